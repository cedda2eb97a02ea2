"""Compares the protocols in one server: CPU per image and latency, divided by those of /classify.

    python -m benchmarks.protocols [--engine no-time|cpu] [--rounds 12] [--seconds 1]

With the engine that takes no time (a simulated card) the figures are what the service itself costs;
the other one is EfficientNet-Lite0 on the CPU. In each round every form of a request is measured in
turn, in alternating order, and its figures are divided by those of /classify in the same round. The
column that drifts least is all CPU divided by that of decoding, since every form but the pixels is
decoded in the same way. The forms are a photo as binary data, as base64 in JSON, as an instance of
V1 and as a gRPC message, and prepared pixels. All photos are the same one, of a median size.
"""

import argparse
import base64
import json
import statistics
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks import h2load, ours
from benchmarks.measurement import WARMUP_S
from benchmarks.photos import ROW_SIDE, photos
from benchmarks.server import BenchServer, free_port, running
from service.api.grpc.messages import REQUESTS, SERVICE_NAME

CLIENTS = 32
COLUMNS = ("CPU per image", "CPU by that of decoding", "p50 at one client")


@dataclass(frozen=True)
class Form:
    """A way to send an image: to which address, with which headers and body."""

    name: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    grpc: bool = False


@dataclass(frozen=True)
class Measured:
    """One measurement of a form: the figures of COLUMNS, times in ms."""

    cpu_ms: float
    by_decoding: float
    """NaN for pixels, which are not decoded."""
    p50_ms: float


def main() -> None:
    """Measure the rounds, and print the median ratios with their quartiles."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=("no-time", "cpu"), default="no-time")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=1)
    arguments = parser.parse_args()
    bodies = sorted(photos(), key=len)
    photo = bodies[len(bodies) // 2]
    print(f"One JPEG of 500x375, {len(photo) >> 10} KiB")
    print(f"divided by /classify: {', '.join(COLUMNS)}", flush=True)
    port = free_port()
    flags = ("--grpc-port", str(port))
    no_time = arguments.engine == "no-time"
    recipe = ours.on_cards(ours.NO_TIME, *flags) if no_time else ours.on_cpu("lite0", *flags)
    samples: list[dict[str, Measured]] = []
    with running(recipe, photo) as server:
        first, *others = forms(server, port, photo)
        sample(server, first, WARMUP_S)
        for number in range(arguments.rounds):
            order = [first, *others] if number % 2 else [*others, first]
            samples.append({each.name: sample(server, each, arguments.seconds) for each in order})
        refuse_failed_calls(server)
    for form in others:
        pairs = [(each[form.name], each[first.name]) for each in samples]
        cpu = _middle([this.cpu_ms / that.cpu_ms for this, that in pairs])
        share = _middle([this.by_decoding / that.by_decoding for this, that in pairs])
        # Other programs only ever lengthen a latency, so its lower quartile says more.
        this, that = (
            statistics.quantiles(one.p50_ms for one in side)[0] for side in zip(*pairs, strict=True)
        )
        print(f"{form.name:16} {cpu}  {share}  {this / that:.3f}")


def forms(server: BenchServer, grpc_port: int, photo: bytes) -> list[Form]:
    """Return every form of a request; the first is POST /classify."""
    model = json.loads(server.answer)["model"]["name"]
    root = server.url.removesuffix("/classify")
    infer = f"{root}/v2/models/{model}/infer"
    text = base64.b64encode(photo).decode()
    raw = len(photo).to_bytes(4, "little") + photo
    row = bytes(range(256)) * (ROW_SIDE * ROW_SIDE * 3 // 256)
    return [
        Form("classify", server.url, photo, {"Content-Type": "application/octet-stream"}),
        _binary("v2 binary image", infer, _tensor("image", "BYTES", [1]), raw),
        _binary("v2 pixels", infer, _tensor("pixels", "UINT8", [1, ROW_SIDE, ROW_SIDE, 3]), row),
        Form(
            "v2 JSON image",
            infer,
            json.dumps({"inputs": [_tensor("image", "BYTES", [1]) | _base64(text)]}).encode(),
        ),
        Form(
            "v1",
            f"{root}/v1/models/{model}:predict",
            json.dumps({"instances": [{"b64": text}]}).encode(),
        ),
        _call("grpc", grpc_port, model, _tensor("image", "BYTES", [1]), raw),
    ]


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _base64(text: str) -> dict[str, object]:
    return {"parameters": {"content_type": "base64"}, "data": [text]}


def _binary(name: str, url: str, tensor: Mapping[str, object], data: bytes) -> Form:
    described = {**tensor, "parameters": {"binary_data_size": len(data)}}
    asked = {"inputs": [described], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    return Form(name, url, head + data, {"Inference-Header-Content-Length": str(len(head))})


def _call(name: str, port: int, model: str, tensor: Mapping[str, object], data: bytes) -> Form:
    request = REQUESTS["ModelInfer"](model_name=model, inputs=[tensor], raw_input_contents=[data])
    message = request.SerializeToString()
    # Before a message are one byte, 0 for one that is not compressed, and its length.
    framed = bytes(1) + len(message).to_bytes(4, "big") + message
    headers = {"Content-Type": "application/grpc", "TE": "trailers"}
    url = f"http://127.0.0.1:{port}/{SERVICE_NAME}/ModelInfer"
    return Form(name, url, framed, headers, grpc=True)


def sample(server: BenchServer, form: Form, seconds: int) -> Measured:
    """Measure `form` with CLIENTS clients, then with one."""

    def load(clients: int) -> h2load.H2Load:
        done = h2load.load(form.url, form.body, clients, seconds, form.headers, http2=form.grpc)
        if done.failed or not done.answered:
            raise SystemExit(f"{form.name}: requests failed: {done}")
        return done

    cpu, decoding = server.cpu_seconds(), server.decode_cpu_seconds()
    answered = load(CLIENTS).answered
    cpu, decoding = server.cpu_seconds() - cpu, server.decode_cpu_seconds() - decoding
    by_decoding = cpu / decoding if decoding else float("nan")
    return Measured(1e3 * cpu / answered, by_decoding, load(1).p50_ms)


def refuse_failed_calls(server: BenchServer) -> None:
    """End the program if the server has answered a gRPC call with an error.

    The calls that were not answered when the load ended are CANCELLED.
    """
    url = server.url.removesuffix("/classify") + "/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    calls = [line for line in lines if line.startswith("topfive_grpc_requests_total{")]
    failed = [
        line
        for line in calls
        if 'code="OK"' not in line and 'code="CANCELLED"' not in line and float(line.split()[1])
    ]
    if failed:
        raise SystemExit("\n".join(["gRPC calls failed:", *failed]))


def _middle(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values)
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
