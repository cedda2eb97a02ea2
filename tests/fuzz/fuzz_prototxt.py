"""Any bytes as a prototxt: a graph with weights of zeros, or a BuildError."""

import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["google.protobuf", "model_build"]):
    from model_build.caffe import text
    from model_build.caffe.ends import classifier
    from model_build.caffe.graph import Graph
    from model_build.caffe.layers import LAYERS
    from model_build.caffe.weights import Blob
    from model_build.caffe.wiring import Layer, Shape, wire
    from model_build.network import check
    from service.errors import BuildError

import numpy as np

# A file without a name, which ends with the process however that ends.
FILE = os.memfd_create("prototxt")
PATH = Path(f"/proc/self/fd/{FILE}")
MOST_WEIGHTS = 1_000_000


class Zeros(Graph):
    """A graph whose weights are zeros of the shapes that are asked for."""

    def blobs(self, layer: Layer, **wanted: Shape) -> list[Blob]:
        # In Python's integers; the weights of a network come from a file, which has an end.
        if sum(int(np.prod(shape, dtype=object)) for shape in wanted.values()) > MOST_WEIGHTS:
            raise self.error(layer, "no caffemodel holds so much")
        return [np.zeros(shape, np.float32) for shape in wanted.values()]


def take(data: bytes) -> None:
    """One input of the fuzzer's; anything but a BuildError is a finding."""
    os.ftruncate(FILE, 0)
    os.pwrite(FILE, data, 0)
    try:
        build()
    except BuildError as error:
        assert error.detail


def build() -> None:
    wiring = wire(text.read(PATH), str(PATH))
    graph = Zeros(wiring, {}, PATH, PATH)
    for layer in wiring.layers:
        if layer.type not in LAYERS:
            return
        if layer.name not in graph.done:
            LAYERS[layer.type](graph, layer)
    check(classifier(graph, wiring))


if __name__ == "__main__":
    atheris.Setup(sys.argv, take)
    atheris.Fuzz()
