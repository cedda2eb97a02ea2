"""How each method of each client is to end, and the table of the documents."""

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.support.paths import ROOT

TRITON_HTTP, TRITON_GRPC = ("http", "http.aio"), ("grpc", "grpc.aio")
REST, GRPC = (*TRITON_HTTP, "kserve rest"), (*TRITON_GRPC, "kserve grpc")
TRITON = (*TRITON_HTTP, *TRITON_GRPC)
CLIENTS = (*TRITON, "kserve rest", "kserve grpc")
HEADS = {"kserve rest": "KServe REST", "kserve grpc": "KServe gRPC"}

Outcome = Mapping[str, Any]
"""What a script reports of a row: `value`, or `refused` and `text`."""
TABLE = ROOT / "docs" / "clients-table.md"

WORKS = ("works", "works")
NOT_FOUND, INVALID = ("404", "NOT_FOUND"), ("400", "INVALID_ARGUMENT")
FORBIDDEN, UNSUPPORTED = ("403", "PERMISSION_DENIED"), ("501", "UNIMPLEMENTED")
Expected = tuple[tuple[str, str], tuple[str, ...]]

_NO_REST_VERSION = tuple(client for client in CLIENTS if client != "kserve rest")
# By row: how it ends over HTTP and over gRPC, and which clients have the method.
_ANSWERS: dict[str, Expected] = {
    "is_server_live": (WORKS, CLIENTS),
    "is_server_ready": (WORKS, CLIENTS),
    "is_model_ready": (WORKS, CLIENTS),
    # Over HTTP the clients make `False` of any status but 200.
    "is_model_ready: unknown model": (("works", "NOT_FOUND"), CLIENTS),
    "get_server_metadata": (WORKS, TRITON),
    "get_model_metadata": (WORKS, TRITON),
    "get_model_metadata: unknown model": (NOT_FOUND, TRITON),
    "get_model_config": (WORKS, TRITON),
    "get_inference_statistics": (WORKS, TRITON),
    "get_model_repository_index": (WORKS, TRITON),
    "load_model": (FORBIDDEN, TRITON),
    "unload_model": (FORBIDDEN, TRITON),
    "get_system_shared_memory_status": (UNSUPPORTED, TRITON),
    "get_cuda_shared_memory_status": (UNSUPPORTED, TRITON),
    "get_trace_settings": (UNSUPPORTED, TRITON),
    "get_log_settings": (UNSUPPORTED, TRITON),
    "infer: an image file": (WORKS, CLIENTS),
    "infer: an image file as JSON": (WORKS, REST),
    "infer: an image file in contents": (WORKS, ("kserve grpc",)),
    "infer: three files": (WORKS, CLIENTS),
    "infer: pixels": (WORKS, CLIENTS),
    "infer: pixels as JSON": (WORKS, REST),
    "infer: pixels in contents": (WORKS, ("kserve grpc",)),
    "infer: requested outputs": (WORKS, CLIENTS),
    "infer: outputs as JSON": (WORKS, REST),
    "infer: classification": (WORKS, CLIENTS),
    "infer: parameter top_k": (WORKS, CLIENTS),
    "infer: request id": (WORKS, CLIENTS),
    "infer: the served version": (WORKS, _NO_REST_VERSION),
    "infer: request of gzip": (WORKS, TRITON),
    "infer: request of deflate": (WORKS, TRITON),
    "infer: answer of gzip": (WORKS, TRITON_HTTP),
    "infer: unknown model": (NOT_FOUND, CLIENTS),
    "infer: unknown version": (NOT_FOUND, _NO_REST_VERSION),
    "infer: wrong shape": (INVALID, CLIENTS),
    "infer: broken image": (("422", "INVALID_ARGUMENT"), CLIENTS),
    "infer: unknown input": (INVALID, CLIENTS),
    "infer: unknown output": (INVALID, CLIENTS),
    "infer: a sequence": (UNSUPPORTED, CLIENTS),
    "async_infer": (WORKS, ("http", "grpc")),
    "stream": (WORKS, TRITON_GRPC),
    "V1: is_server_live": (WORKS, ("kserve rest",)),
    "V1: is_model_ready": (WORKS, ("kserve rest",)),
    "V1: infer": (WORKS, ("kserve rest",)),
    "V1: infer: unknown model": (NOT_FOUND, ("kserve rest",)),
    "V1: explain": (UNSUPPORTED, ("kserve rest",)),
}
STOPPED: dict[str, Expected] = {
    "infer: parameter timeout": (("504", "DEADLINE_EXCEEDED"), CLIENTS),
    "infer: the client's timeout": (("client's timeout", "DEADLINE_EXCEEDED"), CLIENTS),
    "cancelled": (WORKS, tuple(client for client in CLIENTS if client != "http")),
    "stream: cancelled": (WORKS, TRITON_GRPC),
}
"""The rows of requests that a stopped device does not answer."""
CONTROL: dict[str, Expected] = {
    "unload_model, --model-control": (WORKS, TRITON),
    "load_model, --model-control": (WORKS, TRITON),
    "load_model, --model-control: unknown model": (NOT_FOUND, TRITON),
}
ROWS = _ANSWERS | STOPPED | CONTROL


def expected_of(row: str, client: str) -> str:
    """Return `works`, or the status with which the row is refused; empty without such a method."""
    (http, grpc), clients = ROWS[row]
    if client not in clients:
        return ""
    return grpc if client in GRPC else http


def write_table(found: Mapping[str, Mapping[str, Outcome]]) -> None:
    """Write docs/clients-table.md: a row for each method, a column for each client."""
    versions = subprocess.run(
        [ROOT / "build/ecosystem-env/bin/python", "-c", _VERSIONS],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = json.loads(versions)
    heads = [HEADS.get(client, client) for client in CLIENTS]
    lines = [
        "# What the clients can do",
        "",
        "`make ecosystem` has written this table. Its clients are unchanged: those of tritonclient "
        f"{names['tritonclient']}",
        f"(http, http.aio, grpc, grpc.aio) and of KServe {names['kserve']} (InferenceRESTClient, "
        "InferenceGRPCClient). The service",
        "has EfficientNet-Lite0. Each cell is the outcome of a call, and answers were compared "
        "with those of `POST /classify`.",
        "A status is that of a refusal: [protocols.md](protocols.md) and [grpc.md](grpc.md) have "
        "its meaning. An empty cell: the",
        "client has no such method.",
        "",
        f"| | {' | '.join(heads)} |",
        "| --- |" + " --- |" * len(heads),
    ]
    for row in ROWS:
        cells = [_cell(found[client].get(row)) for client in CLIENTS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    TABLE.write_text("\n".join(lines) + "\n")


_VERSIONS = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("tritonclient", "kserve")}))
"""


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    return "works" if "value" in outcome else str(outcome["refused"])
