"""The Python client of topfive: images in, the most likely labels of each image out.

`Client` and `AsyncClient` have the same calls. The package needs httpx only. Images of Pillow and
arrays of numpy are accepted, but neither library is imported.
"""

from topfive_client.async_client import AsyncClient
from topfive_client.client import Client
from topfive_client.errors import (
    ClassificationError,
    DeadlinePassed,
    ImageRejected,
    RequestRejected,
    Unavailable,
)
from topfive_client.images import ImageInput
from topfive_client.results import ModelVersion, Prediction, Result

__all__ = [
    "AsyncClient",
    "ClassificationError",
    "Client",
    "DeadlinePassed",
    "ImageInput",
    "ImageRejected",
    "ModelVersion",
    "Prediction",
    "RequestRejected",
    "Result",
    "Unavailable",
]
