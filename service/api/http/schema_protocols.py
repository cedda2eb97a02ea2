"""The JSON of the V2 and V1 protocols as pydantic models; see schema.py."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from service.api.http.schema import ABSENT, OptionalText


class Alive(BaseModel):
    """Liveness in the words of the V1 protocol."""

    status: str


class ModelNames(BaseModel):
    """The names of the models that are served."""

    models: list[str]


class ModelReady(BaseModel):
    """Whether a model wants requests."""

    name: str
    ready: bool
    error: OptionalText


class ServerMetadata(BaseModel):
    """The server in the words of the V2 protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or an output of a model."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is a free dimension. The first one is of the images.")


class ModelMetadata(BaseModel):
    """A model in the words of the V2 protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelConfiguration(BaseModel):
    """The configuration of a model, as the JSON of Triton's ModelConfig."""

    model_config = ConfigDict(extra="allow")

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]


class ModelStatistics(BaseModel):
    """The statistics of models since their start, as Triton has them."""

    model_stats: list[dict[str, Any]]


class IndexEntry(BaseModel):
    """A model in the index of the repository."""

    name: str
    version: str
    state: str
    reason: str


class Loaded(BaseModel):
    """A model was loaded."""

    name: str
    load: bool


class Unloaded(BaseModel):
    """A model was unloaded."""

    name: str
    unload: bool


_Parameters = Annotated[dict[str, Any] | SkipJsonSchema[None], ABSENT]
_Data = Annotated[
    list[Any] | SkipJsonSchema[None],
    Field(default_factory=lambda: None, description="The elements, in row-major order."),
]


class InputTensor(BaseModel):
    """An input of an inference; its data is here or behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: _Parameters
    data: _Data


class WantedOutput(BaseModel):
    """An output that a request names."""

    name: str
    parameters: _Parameters


class InferenceRequest(BaseModel):
    """A request for an inference of the V2 protocol."""

    id: OptionalText
    parameters: _Parameters
    inputs: list[InputTensor]
    outputs: Annotated[list[WantedOutput] | SkipJsonSchema[None], ABSENT]


class OutputTensor(BaseModel):
    """An output of an inference; its data is here or behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: _Parameters
    data: _Data


class InferenceAnswer(BaseModel):
    """The answer to an inference of the V2 protocol."""

    model_name: str
    model_version: str
    id: OptionalText
    outputs: list[OutputTensor]


class PredictRequest(BaseModel):
    """A request for predictions of the V1 protocol."""

    instances: list[dict[str, Any]] = Field(
        description="Base64 of an image file: as b64, as b64 in image_bytes or image, or as data."
    )


class LikelyClass(BaseModel):
    """A class and its probability in the V1 protocol."""

    model_config = ConfigDict(populate_by_name=True)

    class_id: int = Field(alias="class")
    label: str
    probability: float


class LikelyClasses(BaseModel):
    """The most likely classes of an instance, best first."""

    top: list[LikelyClass]


class PredictAnswer(BaseModel):
    """The answer of the V1 protocol, in the order of the instances."""

    predictions: list[LikelyClasses]
