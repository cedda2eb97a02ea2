"""The messages of the protocol, made from descriptor.py in a descriptor pool of their own.

tritonclient and kserve define messages with the same names. protobuf's default pool has one message
of a name, so definitions of two packages clash there.
"""

from typing import Any

from google.protobuf import message, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

from service.api.grpc.descriptor import FILE
from service.errors import Malformed

POOL = DescriptorPool()
POOL.AddSerializedFile(FILE)
SERVICE_NAME = "inference.GRPCInferenceService"

_METHODS = POOL.FindServiceByName(SERVICE_NAME).methods_by_name
REQUESTS = {
    name: message_factory.GetMessageClass(method.input_type) for name, method in _METHODS.items()
}
"""The class of the request of each method."""
ANSWERS = {
    name: message_factory.GetMessageClass(method.output_type) for name, method in _METHODS.items()
}
"""The class of the answer of each method."""


def parsed(method: str, data: bytes) -> Any:
    """Return the request of `method` that `data` encodes; raise Malformed if it encodes none."""
    try:
        return REQUESTS[method].FromString(data)
    except message.DecodeError as error:
        name = REQUESTS[method].DESCRIPTOR.name
        raise Malformed(
            f"The {len(data)} bytes of the request are no {name}.",
            "Send the message that the protocol defines.",
        ) from error
