"""Caffe files for tests: weights from a seed, for any prototxt that the importer reads."""

from pathlib import Path

import numpy as np

from model_build.caffe import schema, text
from model_build.caffe.graph import Graph
from model_build.caffe.layers import LAYERS
from model_build.caffe.weights import Blob
from model_build.caffe.wiring import Layer, Shape, wire


class _SeededGraph(Graph):
    """Makes the weights that a layer asks for, and keeps them."""

    def blobs(self, layer: Layer, **wanted: Shape) -> list[Blob]:
        made = [_numbers(self.random, what, shape) for what, shape in wanted.items()]
        self.made[layer.name] = made
        return made


def _numbers(random: np.random.Generator, what: str, shape: Shape) -> Blob:
    """He-scaled weights, scales and variances about 1, small biases and means, the factor 1."""
    if what == "factor":
        return np.ones(shape, np.float32)
    if what == "variance" or (what == "weights" and len(shape) == 1):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:]))
    return (scale * random.standard_normal(shape)).astype(np.float32)


def write_seeded_weights(prototxt: Path, caffemodel: Path, seed: int) -> None:
    """Write `caffemodel`, with weights of the shapes that `prototxt` asks for."""
    net = text.read(prototxt)
    wiring = wire(net, str(prototxt))
    graph = _SeededGraph(wiring, {}, prototxt, caffemodel)
    graph.random, graph.made = np.random.default_rng(seed), {}
    for layer in wiring.layers:
        if layer.name not in graph.done:
            LAYERS[layer.type](graph, layer)
    write_weights(caffemodel, graph.made)


def write_weights(caffemodel: Path, weights: dict[str, list[Blob]]) -> None:
    """Write a caffemodel with these blobs by the layers' names."""
    net = schema.NetParameter(name="seeded")
    for name, blobs in weights.items():
        layer = net.layer.add(name=name)
        for blob in blobs:
            stored = layer.blobs.add(data=[np.ascontiguousarray(blob, np.float32).tobytes()])
            stored.shape.dim.extend(blob.shape)
    caffemodel.write_bytes(net.SerializeToString())
