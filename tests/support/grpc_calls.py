"""Calls of a server over gRPC, with messages that are compiled from the .proto in the default pool.

A client's package does the same: so what is sent and read here does not depend on how the service
makes its messages.
"""

import contextlib
import importlib.util
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from grpc_tools import protoc

from tests.support.paths import ROOT
from tests.support.serving import Service, serving

NAME = "inference.GRPCInferenceService"


def _compiled() -> ModuleType:
    """Return the module that protoc generates from the .proto: it registers in the default pool."""
    name = "inference_pb2"
    if name not in sys.modules:
        with tempfile.TemporaryDirectory() as folder:
            source = f"-I{ROOT / 'service' / 'api' / 'grpc'}"
            assert protoc.main(["protoc", source, f"--python_out={folder}", "inference.proto"]) == 0
            spec = importlib.util.spec_from_file_location(name, Path(folder) / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[name] = module
    return sys.modules[name]


pb: Any = _compiled()


class Caller:
    """A channel to the server on `port`, and its methods."""

    def __init__(self, port: int, tls: grpc.ChannelCredentials | None = None) -> None:
        self.port = port
        # Without a pool of its own, the channels of a process share one connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        address = f"127.0.0.1:{port}"
        if tls:
            self.channel = grpc.secure_channel(address, tls, options)
        else:
            self.channel = grpc.insecure_channel(address, options)

    def method(self, name: str) -> Any:
        """Return the callable of a method, for its messages."""
        answer = getattr(pb, f"{name}Response")
        return self.channel.unary_unary(
            f"/{NAME}/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    def call(self, method: str, /, **fields: Any) -> Any:
        """Return the answer of a method to a request with these fields."""
        return self.method(method)(getattr(pb, f"{method}Request")(**fields), timeout=30)

    def infer(self, *files: bytes, timeout: float = 30, **fields: Any) -> Any:
        """Return the answer to an inference of these files."""
        return self.method("ModelInfer")(infer_request(*files, **fields), timeout=timeout)

    def refused(self, name: str, request: Any = None, **options: Any) -> Any:
        """Return the error that a call ends with; fail if it is answered."""
        request = getattr(pb, f"{name}Request")() if request is None else request
        try:
            answer = self.method(name)(request, **{"timeout": 30, **options})
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{name} was answered: {answer}")


def infer_request(*files: bytes, **fields: Any) -> Any:
    """Return a request for these files as raw bytes; `fields` are added or replace its own."""
    raw = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    image = {"name": "image", "datatype": "BYTES", "shape": [len(files)]}
    return pb.ModelInferRequest(**{"inputs": [image], "raw_input_contents": [raw], **fields})


def strings(raw: bytes) -> list[str]:
    """Return the elements of a BYTES tensor."""
    texts = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return texts


def trailer(error: Any) -> dict[str, str]:
    """Return the metadata that came with the status of a call."""
    return dict(error.trailing_metadata())


def free_port() -> int:
    """Return a port that no socket uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving_grpc(
    artifact: Path,
    *flags: str,
    under: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Service, Caller]]:
    """Start a service that serves gRPC too, wait until it is ready, and stop it at the end."""
    port = free_port()
    flags = ("--grpc-port", str(port), *flags)
    with serving(artifact, *flags, under=under, environment=environment) as service:
        caller = Caller(port)
        with caller.channel:
            yield service, caller
