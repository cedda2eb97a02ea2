"""Write service/api/grpc/descriptor.py from service/api/grpc/inference.proto: `make proto`.

The module has the compiled form of the file as bytes, and no code: so it suits every version of
protobuf, and needs no default pool.
"""

import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

FOLDER = Path(__file__).resolve().parent.parent / "service" / "api" / "grpc"
CHARACTERS_A_LINE = 88
HEAD = '''"""The compiled form of inference.proto: a serialized FileDescriptorProto.

Written by `make proto`. Change inference.proto instead of this file.
"""

from base64 import b64decode

FILE = b64decode(
'''


def compiled() -> bytes:
    """Return the serialized FileDescriptorProto of inference.proto."""
    with tempfile.NamedTemporaryFile() as target:
        arguments = [f"-I{FOLDER}", f"--descriptor_set_out={target.name}", "inference.proto"]
        if protoc.main(["protoc", *arguments]) != 0:
            sys.exit("error: protoc failed; its messages are above")
        [file] = FileDescriptorSet.FromString(Path(target.name).read_bytes()).file
    for message in _all(file.message_type):
        for field in message.field:
            field.ClearField("json_name")  # it is derived from the name
    serialized: bytes = file.SerializeToString(deterministic=True)
    return serialized


def _all(messages: Iterable[Any]) -> Iterator[Any]:
    """Yield the messages and those inside them."""
    for message in messages:
        yield message
        yield from _all(message.nested_type)


def module() -> str:
    """Return the text of descriptor.py."""
    text = b64encode(compiled()).decode()
    lines = (text[at : at + CHARACTERS_A_LINE] for at in range(0, len(text), CHARACTERS_A_LINE))
    return HEAD + "".join(f'    "{line}"\n' for line in lines) + ")\n"


if __name__ == "__main__":
    (FOLDER / "descriptor.py").write_text(module())
