"""How should the CPU engine use the cores: one stream on all of them, or one stream for each?

    python -m benchmarks.streams [--rounds 3] [--seconds 0.6] [--hint f32] ARTIFACT

One stream computes one batch on all cores; with a stream for each core as many batches are computed
at once, each on one core. Both run each batch size in alternating order, and the table has the
median images per second with the range.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.figures import figure
from service import artifact as artifacts
from service.system.cgroup import available_cores

BATCHES = (1, 4, 8, 16, 32)


def main() -> None:
    """Measure both ways in rounds, and print a line for each batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--hint", default="f32", choices=("f32", "bf16"), help="the precision")
    arguments = parser.parse_args()
    artifact, ways = artifacts.read(arguments.artifact), (1, available_cores())
    models = {streams: compiled(artifact.model_path, streams, arguments.hint) for streams in ways}
    shape = artifact.golden.rows.shape[1:]
    rates: dict[tuple[int, int], list[float]] = {}
    for number in range(arguments.rounds):
        for size in BATCHES:
            for streams in ways if number % 2 else reversed(ways):
                rate = images_per_second(
                    models[streams], streams, (size, *shape), arguments.seconds
                )
                rates.setdefault((size, streams), []).append(rate)
    print("batch  " + "  ".join(f"{streams} streams, images/s" for streams in ways))
    for size in BATCHES:
        print(f"{size:5}  " + "  ".join(figure(rates[size, streams]).text(0) for streams in ways))


def compiled(path: Path, streams: int, precision: str) -> Any:
    """Return the model, compiled for this many streams on all cores together."""
    core = ov.Core()
    hints = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": str(streams)}
    hints["INFERENCE_NUM_THREADS"] = str(available_cores())
    return core.compile_model(core.read_model(path), "CPU", hints)


def images_per_second(model: Any, streams: int, shape: tuple[int, ...], seconds: float) -> float:
    """Keep a request of one batch in flight for each stream; return the throughput."""
    requests = [model.create_infer_request() for _ in range(streams)]
    for request in requests:
        request.set_input_tensor(ov.Tensor(np.zeros(shape, np.uint8)))
        request.infer()
    batches, started = 0, time.perf_counter()
    for request in requests:
        request.start_async()
    while time.perf_counter() - started < seconds:
        for request in requests:
            request.wait()
            request.start_async()
        batches += streams
    for request in requests:
        request.wait()
    return (batches + streams) * shape[0] / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
