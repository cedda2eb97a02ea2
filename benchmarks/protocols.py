"""Compares the protocols in one server: CPU per image and latency, divided by those of /classify.

    python -m benchmarks.protocols [--rounds 12] [--seconds 1]

The card takes no time, so the figures are what the service itself costs. In each round every form
of a request is measured in turn, in alternating order, and its figures are divided by those of
/classify in the same round. The column that drifts least is all CPU divided by that of decoding,
since every form but the pixels is decoded in the same way. The forms are a photo as binary data, a
photo as base64 in JSON, one as an instance of V1, and prepared pixels.
"""

import argparse
import base64
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks import ours, wrk
from benchmarks.measurement import WARMUP_S
from benchmarks.photos import ROW_SIDE, described, photos
from benchmarks.server import BenchServer, running

CLIENTS = 32
HEAD_BYTES = 256
"""Size of the JSON before binary data: spaces fill it, so that all bodies have the same headers."""
COLUMNS = ("CPU per image", "CPU by that of decoding", "p50 at one client")


@dataclass(frozen=True)
class Form:
    """A way to send an image: where, with which headers, and the bodies."""

    name: str
    path: str
    bodies: list[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One measurement of a form: the figures of COLUMNS, times in ms."""

    cpu_ms: float
    by_decoding: float
    """NaN for pixels, which are not decoded."""
    p50_ms: float


def main() -> None:
    """Measure the rounds, and print the median ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=1)
    arguments = parser.parse_args()
    bodies = photos()
    print(f"{described(bodies)}\ndivided by /classify: {', '.join(COLUMNS)}", flush=True)
    samples: list[dict[str, Measured]] = []
    with running(ours.on_cards(ours.NO_TIME), bodies[0]) as server:
        first, *others = forms(json.loads(server.answer)["model"]["name"], bodies)
        sample(server, first, WARMUP_S)
        for number in range(arguments.rounds):
            order = [first, *others] if number % 2 else [*others, first]
            samples.append({each.name: sample(server, each, arguments.seconds) for each in order})
    for form in others:
        pairs = [(each[form.name], each[first.name]) for each in samples]
        cpu = statistics.median(this.cpu_ms / that.cpu_ms for this, that in pairs)
        share = statistics.median(this.by_decoding / that.by_decoding for this, that in pairs)
        # Other programs only ever lengthen a latency, so its lower quartile says more.
        this, that = (
            statistics.quantiles(one.p50_ms for one in side)[0] for side in zip(*pairs, strict=True)
        )
        print(f"{form.name:16} {cpu:.3f}  {share:.3f}  {this / that:.3f}")


def forms(model: str, bodies: list[bytes]) -> list[Form]:
    """Return every form of a request; the first is POST /classify."""
    infer = f"/v2/models/{model}/infer"
    binary = {"Inference-Header-Content-Length": str(HEAD_BYTES)}
    texts = [base64.b64encode(body).decode() for body in bodies]
    rows = [bytes([seed]) * (ROW_SIDE * ROW_SIDE * 3) for seed in range(8)]
    return [
        Form("classify", "/classify", bodies, {"Content-Type": "application/octet-stream"}),
        Form(
            "v2 binary image",
            infer,
            [
                _headed("image", "BYTES", [1], len(body).to_bytes(4, "little") + body)
                for body in bodies
            ],
            binary,
        ),
        Form(
            "v2 pixels",
            infer,
            [_headed("pixels", "UINT8", [1, ROW_SIDE, ROW_SIDE, 3], row) for row in rows],
            binary,
        ),
        Form(
            "v2 JSON image",
            infer,
            [json.dumps({"inputs": [_tensor(text)]}).encode() for text in texts],
        ),
        Form(
            "v1",
            f"/v1/models/{model}:predict",
            [json.dumps({"instances": [{"b64": text}]}).encode() for text in texts],
        ),
    ]


def _tensor(text: str) -> dict[str, object]:
    named = {"name": "image", "datatype": "BYTES", "shape": [1]}
    return named | {"parameters": {"content_type": "base64"}, "data": [text]}


def _headed(name: str, datatype: str, shape: list[int], data: bytes) -> bytes:
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(asked).encode().ljust(HEAD_BYTES) + data


def sample(server: BenchServer, form: Form, seconds: int) -> Measured:
    """Measure `form` with CLIENTS clients, then with one."""
    url = server.url.removesuffix("/classify") + form.path
    cpu, decoding = server.cpu_seconds(), server.decode_cpu_seconds()
    load = wrk.load(url, form.bodies, CLIENTS, seconds, form.headers)
    cpu, decoding = server.cpu_seconds() - cpu, server.decode_cpu_seconds() - decoding
    alone = wrk.load(url, form.bodies, 1, seconds, form.headers)
    if load.refused + load.broken + alone.refused + alone.broken:
        raise SystemExit(f"{form.name}: requests failed: {load}, {alone}")
    by_decoding = cpu / decoding if decoding else float("nan")
    return Measured(1e3 * cpu / load.answered, by_decoding, alone.p50_ms)


if __name__ == "__main__":
    main()
