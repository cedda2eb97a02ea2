"""Caffe files for tests: weights from a seed, for any prototxt that the importer reads."""

from pathlib import Path

import numpy as np

from model_build.caffe import schema, text
from model_build.caffe.graph import Graph
from model_build.caffe.layers import LAYERS
from model_build.caffe.weights import Blob
from model_build.caffe.wiring import Layer, Shape, wire


class _SeededGraph(Graph):
    """A graph that makes the weights of each layer and keeps them."""

    def blobs(self, layer: Layer, **wanted: Shape) -> list[Blob]:
        name = layer.proto.name
        if name not in self.made:
            self.made[name] = [
                _numbers(self.random, self.scale, what, shape) for what, shape in wanted.items()
            ]
        return self.made[name]


def _numbers(random: np.random.Generator, scale: float, what: str, shape: Shape) -> Blob:
    """Return He-scaled weights, variances about 1, scales about `scale`, small biases, factor 1."""
    if what == "factor":
        return np.ones(shape, np.float32)
    if what == "variance":
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if what == "weights" and len(shape) < 2:
        return (scale * random.uniform(0.5, 1.5, shape)).astype(np.float32)
    spread = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:]))
    return (spread * random.standard_normal(shape)).astype(np.float32)


def write_seeded_weights(prototxt: Path, caffemodel: Path, seed: int, scale: float = 1) -> None:
    """Write `caffemodel`, with weights of the shapes that `prototxt` needs.

    All branches get weights, because some engines check the whole network.
    """
    net = text.read(prototxt)
    made: dict[str, list[Blob]] = {}
    random = np.random.default_rng(seed)
    read = {blob for layer in net.layer for blob in layer.bottom}
    ends = [top for layer in net.layer for top in layer.top if top not in read]
    for end in dict.fromkeys(ends or [None]):
        wiring = wire(net, str(prototxt), end)
        graph = _SeededGraph(wiring, {}, prototxt, caffemodel)
        graph.random, graph.scale, graph.made = random, scale, made
        for layer in wiring.layers:
            if layer.type in LAYERS and layer.name not in graph.done:
                LAYERS[layer.type](graph, layer)
    write_weights(caffemodel, made)


def write_weights(caffemodel: Path, weights: dict[str, list[Blob]]) -> None:
    """Write a caffemodel with these blobs, by the names of the layers."""
    net = schema.NetParameter(name="seeded")
    for name, blobs in weights.items():
        layer = net.layer.add(name=name)
        for blob in blobs:
            stored = layer.blobs.add(data=[np.ascontiguousarray(blob, np.float32).tobytes()])
            stored.shape.dim.extend(blob.shape)
    caffemodel.write_bytes(net.SerializeToString())
