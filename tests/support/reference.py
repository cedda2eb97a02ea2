"""The references of our networks: ONNX Runtime runs our files, OpenCV runs Caffe's files."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Images = NDArray[np.float32]


def run_onnx(model: onnx.ModelProto, images: Images, value: str) -> Images:
    """Return the output of `model` for the images, at the value of this name."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    if value not in [output.name for output in probe.graph.output]:
        probe.graph.output.append(onnx.ValueInfoProto(name=value))
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    return session.run([value], {model.graph.input[0].name: images})[0]


def run_opencv(
    prototxt: Path, caffemodel: Path, images: Images, layer: str | None = None
) -> Images:
    """Return the output of OpenCV's dnn for the images, after this layer or the last one."""
    net = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    net.setInput(images)
    return net.forward(layer) if layer else net.forward()


def largest_difference(ours: Images, reference: Images) -> float:
    """Return max|ours - reference| as a share of max|reference|; the shapes must be equal."""
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / np.abs(reference).max())
