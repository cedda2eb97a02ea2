"""A Caffe network, description and weights, converted to ONNX.

`load` reads a prototxt and a caffemodel and returns a Network. The text becomes layers (`text`,
`wiring`), each layer becomes nodes by its row in the table (`layers`), and the output is made
probabilities (`ends`). What cannot be converted correctly is a BuildError that names the file and
the layer; nothing is written.
"""

from dataclasses import replace
from pathlib import Path

from model_build.caffe import schema, text, weights
from model_build.caffe.ends import classifier
from model_build.caffe.graph import Graph
from model_build.caffe.layers import LAYERS
from model_build.caffe.wiring import Layer, Wiring, wire
from model_build.network import MAX_SIDE, Network, check
from service.errors import BuildError


def load(
    prototxt: Path,
    caffemodel: Path,
    height: int | None = None,
    width: int | None = None,
    output: str | None = None,
) -> Network:
    """Return the checked classifier of the two files; `height` and `width` replace the input's own.

    `output` names the blob of the classes; by default it is `prob`, or the only blob that no layer
    reads. Raise BuildError if a file cannot be read, if the files do not match, or if a feature is
    not supported.
    """
    wiring = _resized(_wired(prototxt, output), height, width)
    graph = Graph(wiring, weights.read(caffemodel), prototxt, caffemodel)
    for layer in wiring.layers:
        if layer.name not in graph.done:
            LAYERS[layer.type](graph, layer)
    network = classifier(graph, wiring)
    check(network)
    return network


def _wired(prototxt: Path, output: str | None) -> Wiring:
    wiring = wire(text.read(prototxt), str(prototxt), output)
    for layer in wiring.layers:
        if objection := _objection(layer):
            detail, remedy = objection
            raise BuildError(detail, remedy, file=str(prototxt), layer=layer.name)
    return wiring


def _objection(layer: Layer) -> tuple[str, str] | None:
    """Return what is wrong with a needed layer and a remedy; None if nothing is found."""
    if layer.type not in LAYERS:
        detail = f"The layer type {layer.type!r} is unknown."
        return detail, f"Known types are {', '.join(LAYERS)}."
    if layer.proto.fault:
        return layer.proto.fault, text.REMEDY
    if layer.proto.HasField("phase") and layer.proto.phase != schema.TEST:
        return "The phase of the layer is TRAIN.", text.DEPLOY
    return None


def _resized(wiring: Wiring, height: int | None, width: int | None) -> Wiring:
    channels, own_height, own_width = wiring.input_shape
    sides = (own_height if height is None else height, own_width if width is None else width)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise BuildError(
            f"The input size {sides[0]} x {sides[1]} is not supported.",
            f"Give a height and width from 1 to {MAX_SIDE}.",
        )
    return replace(wiring, input_shape=(channels, *sides))
