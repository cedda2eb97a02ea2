"""Compares the offline commands: the time of `topfive classify --output` divided by that of `eval`.

    python -m benchmarks.offline [--pairs 6] [--photos FOLDER]

Both classify the same photos with EfficientNet-Lite0 on the CPU, over HTTP at one server and on the
artifact itself, one after the other in alternating order. FOLDER has photos and val_labels.txt;
it is `photos` of TOPFIVE_DATA unless it is named.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import ours
from benchmarks.artifacts import built
from benchmarks.photos import ROOT
from benchmarks.server import plain_environment, running
from benchmarks.wrk import BenchError

DATA = Path(os.environ.get("TOPFIVE_DATA") or ROOT.parent / "shared" / "data")


def main() -> None:
    """Measure the pairs, and print the median ratios of seconds and of CPU, with their ranges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--photos", type=Path, default=DATA / "photos")
    arguments = parser.parse_args()
    photos: Path = arguments.photos
    artifact = str(built("lite0"))
    first = next(iter(sorted(photos.glob("*.JPEG")))).read_bytes()
    with running(ours.on_cpu("lite0"), first) as server:
        url = server.url.removesuffix("/classify")
        compare("over HTTP", photos, url, ["--url", url], arguments.pairs)
    compare("on the artifact", photos, artifact, ["--artifact", artifact], arguments.pairs)


def compare(name: str, photos: Path, target: str, source: list[str], pairs: int) -> None:
    """Measure pairs of both commands, and print the ratios."""
    measured = []
    for number in range(pairs):
        pair = {}
        for command in ("eval", "classify") if number % 2 else ("classify", "eval"):
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                if command == "eval":
                    labels = ["--label-file", str(photos / "val_labels.txt")]
                    flags = [*source, "--image-dir", str(photos), *labels, "--output", folder]
                else:
                    flags = [target, str(photos), "--output", f"{folder}/answers.jsonl"]
                pair[command] = timed([ours.TOPFIVE, command, *flags])
        measured.append(pair)
    for place, figure in enumerate(("seconds", "CPU of the command")):
        ratios = [pair["classify"][place] / pair["eval"][place] for pair in measured]
        seconds = statistics.median(pair["classify"][place] for pair in measured)
        print(
            f"{name}, {figure}: {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}); classify takes {seconds:.2f} s",
            flush=True,
        )


def timed(command: list[str]) -> tuple[float, float]:
    """Run the command, and return its seconds and its CPU seconds with those of its children."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=plain_environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise BenchError(f"{' '.join(command)}: {said.read()[-1000:]}")
    return seconds, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
