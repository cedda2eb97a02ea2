"""The trained networks of the data folder: their options, and the answers of OpenCV's dnn."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

# The facts of ../shared/data/models/models.json as options of topfive-build.
CAFFE = ["--preprocess", "caffe"]
OPTIONS = {
    "squeezenet_v1.1": CAFFE,
    "squeezenet_v1.0_dc": CAFFE,
    "mobilenet_v2": ["--color", "rgb", "--mean", "128", "--std", "128", "--resize", "256"],
    "efficientnet_lite0": ["--preprocess", "efficientnet-lite"],
}
# The recipes in the form of the reference: crop, channel order, mean, divisor.
REFERENCE = {
    "squeezenet_v1.1": (227, "bgr", (104, 117, 123), 1),
    "squeezenet_v1.0_dc": (227, "bgr", (104, 117, 123), 1),
    "mobilenet_v2": (224, "rgb", (128, 128, 128), 128),
    "efficientnet_lite0": (224, "rgb", (127, 127, 127), 128),
    "demo": (224, "rgb", (127, 127, 127), 128),
    "resnext50": (224, "bgr", (103.52, 116.28, 123.675), (57.375, 57.12, 58.395)),
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


def opencv_answer(network: cv2.dnn.Net, name: str, photo: np.ndarray) -> np.ndarray:
    """Return OpenCV's probabilities (classes) for the middle of `photo`, a scaled RGB image.

    `network` is read from the original Caffe files. If it ends in scores, a softmax is added.
    """
    crop, color, mean, divisor = REFERENCE[name]
    top, left = (photo.shape[0] - crop) // 2, (photo.shape[1] - crop) // 2
    pixels = photo[top : top + crop, left : left + crop].astype(np.float64)
    if color == "bgr":
        pixels = pixels[:, :, ::-1]
    blob = ((pixels - mean) / divisor).transpose(2, 0, 1)[None].astype(np.float32)
    network.setInput(np.ascontiguousarray(blob))
    answer = network.forward().reshape(-1).astype(np.float64)
    if abs(answer.sum() - 1) > 1e-3 or answer.min() < 0:
        answer = np.exp(answer - answer.max())
        answer /= answer.sum()
    return answer
