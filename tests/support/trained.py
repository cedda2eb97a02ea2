"""The trained networks of the data folder: their options for topfive-build, and what they score."""

import subprocess
import sys
from pathlib import Path

# What ../shared/data/models/models.json says, as topfive-build's options.
CAFFE = ["--preprocess", "caffe"]
OPTIONS = {
    "squeezenet_v1.1": CAFFE,
    "squeezenet_v1.0_dc": CAFFE,
    "mobilenet_v2": ["--color", "rgb", "--mean", "128", "--std", "128", "--resize", "256"],
    "efficientnet_lite0": ["--preprocess", "efficientnet-lite"],
}
# Top-1 and top-5 in percent of the 650 sample photos and the 13 validation photos: OpenCV's dnn
# with OpenCV's own resize, by the data folder's README.
MEASURED = {
    "squeezenet_v1.1": ((60.46, 85.23), (53.85, 84.62)),
    "squeezenet_v1.0_dc": ((61.69, 84.77), (69.23, 84.62)),
    "mobilenet_v2": ((88.00, 97.85), (69.23, 84.62)),
    "efficientnet_lite0": ((87.69, 96.92), (61.54, 92.31)),
}


def topfive_build(*arguments: object) -> None:
    """Run `topfive-build` as a process."""
    command = [str(Path(sys.executable).with_name("topfive-build")), *map(str, arguments)]
    subprocess.run(command, check=True, timeout=200)


def build_trained(name: str, models: Path, output: Path) -> Path:
    """Build the artifact of the trained network `name`, whose files are in `models`."""
    prototxt, caffemodel = (models / f"{name}.{end}" for end in ("prototxt", "caffemodel"))
    topfive_build("caffe", "--prototxt", prototxt, "--caffemodel", caffemodel, "--target", "cpu",
                  "--precision", "force_float32", "--output", output, *OPTIONS[name])  # fmt: skip
    return output
