"""The JSON of requests and answers as pydantic models: the named schemas of the OpenAPI document.

Endpoints read and write bytes themselves, which is faster; tests hold their JSON against these
models. A generated client has a class for each of them.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

ABSENT = Field(default_factory=lambda: None)
"""The field of a member that may be absent, but is never null."""
OptionalText = Annotated[str | SkipJsonSchema[None], ABSENT]


class Prediction(BaseModel):
    """One class and its probability."""

    class_id: int
    wnid: Annotated[
        str | SkipJsonSchema[None],
        Field(default_factory=lambda: None, description="Absent if the class has no wnid."),
    ]
    label: str
    score: float


class ImageError(BaseModel):
    """The reason why one of several images was not classified."""

    status: int
    code: str
    detail: str
    remedy: OptionalText


class Result(BaseModel):
    """The predictions of one image, best first, or its error."""

    predictions: Annotated[list[Prediction] | SkipJsonSchema[None], ABSENT]
    error: Annotated[ImageError | SkipJsonSchema[None], ABSENT]


class ModelVersion(BaseModel):
    """The model that has answered."""

    name: str
    version: str


class Answer(BaseModel):
    """The answer to POST /classify."""

    model: ModelVersion
    request_id: str
    results: list[Result] = Field(
        description="One result for each image, in the order of the images."
    )


class Problem(BaseModel):
    """An error as RFC 9457 has it, with the members of topfive."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    detail: str
    remedy: OptionalText
    request_id: str
    error: str
    retry_after_ms: Annotated[int | SkipJsonSchema[None], ABSENT]
    errors: Annotated[list[dict[str, Any]] | SkipJsonSchema[None], ABSENT]


class Base64Image(BaseModel):
    """An image file in base64."""

    model_config = ConfigDict(extra="forbid")

    b64: str = Field(
        description="Base64 of the standard or the URL alphabet, with or without line breaks and "
        "padding, or a data: URL of base64."
    )


class ImageUrl(BaseModel):
    """The URL of an image, on a server with the setting `fetch_hosts`; on others it is a 403."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        description="An https URL of an allowed host, without a user name, a port and a fragment.",
        examples=["https://images.example.org/cat.jpg"],
    )


class ImagesRequest(BaseModel):
    """Images in JSON: files as objects or as strings of base64, or URLs."""

    model_config = ConfigDict(extra="forbid")

    images: list[Base64Image | ImageUrl | str]


class ImagesForm(BaseModel):
    """Image files in a form: a part for each file, all of one name."""

    image: list[Annotated[bytes, Field(json_schema_extra={"format": "binary"})]]


class Liveness(BaseModel):
    """The answer to a question for liveness."""

    live: bool


class DeviceCount(BaseModel):
    """How many devices there are, and how many of them are ready."""

    ready: int
    total: int


class Readiness(BaseModel):
    """Whether the service wants requests."""

    ready: bool
    reason: OptionalText
    devices: DeviceCount


class ServerReady(BaseModel):
    """Readiness in the words of the V2 protocol."""

    ready: bool
    error: OptionalText


class ModelState(BaseModel):
    """The models that are served, with live statistics."""

    model: dict[str, Any] | None = Field(
        description="The manifest of the default model; null if there is none."
    )
    accuracy: dict[str, Any] | None = Field(
        description="The accuracy of the default model, if its artifact has a report of it."
    )
    ready: bool
    reason: str = Field(description="Why the service is not ready; empty if it is.")
    statistics: dict[str, Any] = Field(description="Statistics of the default model.")
    models: list[dict[str, Any]] = Field(
        description="For each model its name, state, version, manifest and statistics."
    )
    reloads: dict[str, Any] = Field(
        description="Reloads asked for, reloads done, and what was refused the last time."
    )
    access: dict[str, bool] = Field(
        description="Whether requests need a key, whether other machines reach the address, and "
        "whether the administration has an address of its own."
    )
