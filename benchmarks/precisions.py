"""Measures the precisions of the CPU with the four trained networks of TOPFIVE_DATA.

    python -m benchmarks.precisions [--rounds 5] [--seconds 1.5] [--http-seconds 6]
                                    [--networks NAME,...] [--photos 300]

Each network is built in each precision; int8 is calibrated with `--photos` of the labelled photos.
On the other photos each precision is compared with float32, pair by pair: a loss of top-1 counts if
its 95 % interval excludes 0. The engine alone runs batches of 8 in alternating order, and its
throughput is divided by that of float32 in the same round. The fastest precision that loses no
top-1 then serves 32 clients over HTTP, and its throughput is divided by what decoding and the
engine together allow, measured directly before and after. All figures are medians with their
ranges. The whole takes about ten minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import bare, wrk
from benchmarks.bare_engine import BareEngine
from benchmarks.figures import Figure, figure
from benchmarks.measurement import Ceiling, measure
from benchmarks.ours import DEADLINE_MS, TOPFIVE
from benchmarks.photos import ROOT, described, photos
from benchmarks.server import ServerRecipe, running
from model_build import comparison, image_folder, reference, scoring, top1_loss
from model_build.targets import BUILD_TARGETS
from model_build.top1_loss import Top1Loss
from service import artifact as artifacts
from service.artifact import Artifact, Resample, read_labels
from service.decoding.images import decode_into
from tests.support.trained import OPTIONS

FOLDER = ROOT / "build" / "bench" / "precisions"
FLOAT32 = "force_float32"
# float16 is stored, and computes in float32.
PRECISIONS = [name for name in BUILD_TARGETS["cpu"].precisions if name != "force_float16"]
BATCH, CLIENTS = 8, 32
LEAST_RATE, LEAST_SHARE = 1.7, 0.93
"""The least that is expected of the rate by that of float32, and of the share over HTTP."""


@dataclass(frozen=True)
class Precision:
    """A precision of one network: its artifact, its loss, and its rates by those of float32."""

    name: str
    path: Path
    loss: Top1Loss
    rates: Figure

    @property
    def loses(self) -> bool:
        """Return whether the loss counts: its interval excludes 0."""
        return self.loss.interval_95[0] > 0

    def __str__(self) -> str:
        loses = "  LOSES" if self.loses else ""
        return f"  {self.name:21} rate {self.rates.text(2)}  {self.loss}{loses}"


def main() -> None:
    """Measure each network and print its figures; exit with 1 if one falls short."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of the engine, each time")
    parser.add_argument("--http-seconds", type=int, default=6)
    parser.add_argument("--networks", default=",".join(OPTIONS))
    parser.add_argument("--photos", type=int, default=300, help="photos to calibrate with")
    arguments = parser.parse_args()
    data = Path(os.environ.get("TOPFIVE_DATA") or ROOT.parent / "shared" / "data")
    bodies, fine = photos(), True
    print(described(bodies), flush=True)
    for network in arguments.networks.split(","):
        paths = built(network, data, arguments.photos)
        losses = scored(paths, data, arguments.photos)
        rates = engine_rates(paths, arguments.rounds, arguments.seconds)
        found = [Precision(name, paths[name], losses[name], rates[name]) for name in paths]
        print(network, *found, sep="\n", flush=True)
        best = fastest(found)
        share = http_share(best.path, bodies, arguments.rounds, arguments.http_seconds)
        print(f"  best: {best.name}, rate {best.rates.text(2)} (at least {LEAST_RATE});")
        print(
            f"  over HTTP {share.text(3)} of decode and engine (at least {LEAST_SHARE})", flush=True
        )
        fine &= best.rates.median >= LEAST_RATE and share.median >= LEAST_SHARE
    sys.exit(0 if fine else 1)


def fastest(found: Sequence[Precision]) -> Precision:
    """Return the precision with the highest rate of those that lose no top-1; float32 is one."""
    return max((one for one in found if not one.loses), key=lambda one: one.rates.median)


def built(network: str, data: Path, calibration_photos: int) -> dict[str, Path]:
    """Build the network in each precision, and return the folders of the artifacts."""
    sources = FOLDER / "networks"
    sources.mkdir(parents=True, exist_ok=True)
    subprocess.run([data / "unpack", sources, network], check=True, stdout=subprocess.DEVNULL)
    prototxt, caffemodel = (sources / f"{network}.{end}" for end in ("prototxt", "caffemodel"))
    program = Path(sys.executable).with_name("topfive-build")
    made: dict[str, Path] = {}
    for name in PRECISIONS:
        made[name] = FOLDER / f"{network}-{name}"
        command: list[str | Path] = [program, "caffe"]
        command += ["--prototxt", prototxt, "--caffemodel", caffemodel]
        command += ["--precision", name, "--output", made[name], "--force", *OPTIONS[network]]
        if name.startswith("qint8"):
            command += ["--image-dir", data / "photos"]
            command += ["--calibration-images", str(calibration_photos)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise wrk.BenchError(f"{network} in {name}: {done.stderr.strip()[-1000:]}")
    return made


def scored(paths: dict[str, Path], data: Path, calibration_photos: int) -> dict[str, Top1Loss]:
    """Return the loss of each precision on the photos that are not of the calibration."""
    opened = {name: artifacts.read(path) for name, path in paths.items()}
    rows, classes = labelled_rows(opened[FLOAT32], data / "photos", calibration_photos)
    expected = reference.opened(opened[FLOAT32])(rows)
    losses = {}
    for name, made in opened.items():
        found = comparison.device_answers(made, rows, 0, None)
        losses[name] = top1_loss.measured(expected, found, classes)
    return losses


def labelled_rows(
    made: Artifact, folder: Path, calibration_photos: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the rows and classes of the labelled photos that the calibration does not use."""
    used = set(image_folder.spread(image_folder.in_folder(folder), calibration_photos))
    labels = read_labels(made.path / artifacts.LABELS)
    samples, _ = scoring.existing(labels, folder, folder / "labels.csv", quiet)
    left = [one for one in samples if folder / one.name not in used]
    rows, whole = image_folder.decoded([folder / one.name for one in left], made, quiet)
    return rows, np.array([left[place].class_id for place in whole])


def engine_rates(paths: dict[str, Path], rounds: int, seconds: float) -> dict[str, Figure]:
    """Return each precision's throughput by that of float32, of the engine alone."""
    engines = {name: BareEngine(path) for name, path in paths.items()}
    rates: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds):
        names = list(engines)[:: -1 if number % 2 else 1]
        seen = {name: engines[name].images_per_second(BATCH, seconds) for name in names}
        for name in names:
            rates[name].append(seen[name] / seen[FLOAT32])
    return {name: figure(values) for name, values in rates.items()}


def http_share(path: Path, bodies: list[bytes], rounds: int, seconds: int) -> Figure:
    """Return the share of 1 / (1 / decode + 1 / engine) that 32 clients get over HTTP."""
    command = [TOPFIVE, "serve", "--artifact", str(path), "--port", "{port}"]
    recipe = ServerRecipe("topfive", [*command, "--default-deadline-ms", DEADLINE_MS])
    now = partial(ceiling, BareEngine(path), artifacts.read(path), bodies, seconds / 4)
    shares = []
    for _ in range(rounds):
        with running(recipe, bodies[0]) as server:
            [found] = measure(server, bodies, [CLIENTS], seconds, now)
        if found.load.refused + found.load.broken:
            raise wrk.BenchError(f"requests failed: {found.load}")
        shares.append(found.share)
    return figure(shares)


def ceiling(engine: BareEngine, made: Artifact, bodies: Sequence[bytes], seconds: float) -> Ceiling:
    """Return the throughput of the bare decode, with the artifact's resampling, and the engine."""
    wanted = made.manifest.preprocessing

    def way(data: bytes, row: NDArray[np.uint8], resize: int, _: Resample, most: int) -> object:
        return decode_into(data, row, resize, wanted.resample, most)

    decoded = bare.decode(list(bodies), seconds, wanted.resize, way)
    return Ceiling(decoded, engine.images_per_second(BATCH, seconds))


def quiet(line: str) -> None:
    """Print nothing."""


if __name__ == "__main__":
    main()
