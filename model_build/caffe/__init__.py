"""A Caffe network, text and weights, to ONNX.

`load` reads a prototxt and a caffemodel and leaves a Network: the text becomes layers (`text`,
`wiring`), each layer becomes nodes by its row in the table (`layers`), and the last of them
probabilities. What cannot be done right is a BuildError that names the file and the layer; nothing
is written.
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
    """The classifier of the two files, checked; `height` and `width` replace the input's own.

    `output` names the blob of the classes; else it is `prob`, or the only one that nothing reads.
    Raises BuildError for files that cannot be read, do not fit each other, or ask for what is not
    supported.
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
    """What is wrong with a layer that the output needs, and what to do; None if nothing is seen."""
    if layer.type not in LAYERS:
        return f"layers of type {layer.type!r} are not known", f"known are {', '.join(LAYERS)}"
    if layer.proto.fault:
        return layer.proto.fault, text.REMEDY
    if layer.proto.HasField("phase") and layer.proto.phase != schema.TEST:
        return "its phase is TRAIN", text.DEPLOY
    return None


def _resized(wiring: Wiring, height: int | None, width: int | None) -> Wiring:
    channels, own_height, own_width = wiring.input_shape
    sides = (own_height if height is None else height, own_width if width is None else width)
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise BuildError(f"an input of {sides[0]} x {sides[1]}", f"sides are 1 to {MAX_SIDE}")
    return replace(wiring, input_shape=(channels, *sides))
