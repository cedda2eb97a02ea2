"""Measures the CPU time of each resampling, compared with Pillow's one-step bilinear.

    python -m benchmarks.resampling [--passes 15]

The measurement uses one thread. Each pass decodes and scales all photos in each way, and gives one
ratio for each way, because the machine's speed may change from pass to pass. Pillow's bilinear with
a box was the resampling of every row before recipes named one.
"""

import argparse
import statistics
import time
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.photos import described, photos
from service.artifact import Resample
from service.decoding import images, resampling

SIDE, RESIZE, MAX_PIXELS = 224, 256, 50_000_000
FITTED = resampling.fitted
BEFORE = "Pillow's bilinear, as before"


def before(
    image: Image.Image, resize: int, width: int, height: int, _: Resample
) -> NDArray[np.uint8]:
    """Return the row that one call of Pillow's resize with a box makes."""
    short = min(image.size)
    whole = image.width * resize // short, image.height * resize // short
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    across, down = image.width / whole[0], image.height / whole[1]
    box = left * across, top * down, (left + width) * across, (top + height) * down
    row = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box))
    return row if row.ndim == 3 else np.repeat(row[:, :, None], 3, axis=2)


def ways() -> dict[str, tuple[Resample, bool]]:
    """Return the ways to measure: a resampling, and whether its fast way is allowed."""
    found: dict[str, tuple[Resample, bool]] = {BEFORE: ("bilinear", True)}
    for resample in get_args(Resample):
        found[resample] = (resample, True)
        found[f"{resample}, Pillow alone"] = (resample, False)
    return found


def milliseconds(bodies: list[bytes], way: str, resample: Resample, fast: bool) -> float:
    """Return the mean CPU time for one photo."""
    resampling.fitted = before if way == BEFORE else FITTED  # type: ignore[assignment]
    resampling.FAST = fast
    resampling.MAX_ASPECT_RATIO = 8 if fast else 0
    row = np.zeros((SIDE, SIDE, 3), np.uint8)
    started = time.thread_time()
    for body in bodies:
        images.decode_into(body, row, RESIZE, resample, MAX_PIXELS)
    return 1e3 * (time.thread_time() - started) / len(bodies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=15)
    passes = parser.parse_args().passes
    bodies = photos()[:15]
    print(f"{described(bodies)}; cykooz-resizer is {'here' if resampling.FAST else 'not here'}")
    resampling.use_one_thread()
    has_fast = resampling.FAST
    times: dict[str, list[float]] = {way: [] for way in ways()}
    for number in range(passes + 1):
        for way, (resample, fast) in ways().items():
            taken = milliseconds(bodies, way, resample, fast and has_fast)
            if number:  # the first pass warms up
                times[way].append(taken)
    for way, passes_ms in times.items():
        pairs = zip(passes_ms, times[BEFORE], strict=True)
        ratios = sorted(one / base for one, base in pairs)
        print(
            f"{way:30} {statistics.median(passes_ms):6.2f} ms a photo, "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) of before"
        )


if __name__ == "__main__":
    main()
