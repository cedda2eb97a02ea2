"""The input and the output of a classifier's graph; the output is probabilities."""

import onnx

from model_build.caffe.graph import Graph
from model_build.caffe.wiring import Layer, Wiring
from model_build.network import OUTPUT, Network


def classifier(graph: Graph, wiring: Wiring) -> Network:
    """Return the finished network with the output (N, classes).

    A softmax is added if the network has none.
    """
    last, output = wiring.layers[-1], wiring.output
    shape = graph.shapes[output]
    one_each = len(shape) >= 2 and shape[1] >= 2 and set(shape[2:]) <= {1}
    detail = f"The output '{output}' has the shape {shape}; expected (1, classes)."
    graph.require(last, one_each, detail, "Give a network that classifies one image.")
    scores = _scores(graph, last, output)
    name = _probabilities(graph, last, output, bool(scores))
    _, height, width = wiring.input_shape
    graph.declare(wiring.input_name, name)
    return Network(
        model=graph.model,
        input_name=wiring.input_name,
        height=height,
        width=width,
        output_name=name,
        classes=shape[1],
        softmax_added=not scores,
        scores=scores or output,
    )


def _scores(graph: Graph, last: Layer, output: str) -> str:
    """Return the input of the softmax that makes `output`; empty if there is no softmax."""
    makers = {node.output[0]: node for node in graph.model.graph.node}
    node = makers[output]
    while node.op_type in ("Identity", "Reshape") and node.input[0] in makers:
        node = makers[node.input[0]]
    if node.op_type != "Softmax":
        return ""
    axis = onnx.helper.get_node_attr_value(node, "axis")
    graph.require(last, axis == 1, f"The softmax is over axis {axis}; the classes are axis 1.")
    return str(node.input[0])


def _probabilities(graph: Graph, last: Layer, output: str, has_softmax: bool) -> str:
    """Flatten the output and add a softmax, where needed. Return the new output's name."""
    flat = graph.shapes[output][:2]
    four_sided = graph.shapes[output] != flat
    if not has_softmax:
        value = graph.reshape(last, output, f"{output}:classes", flat) if four_sided else output
        name = OUTPUT if OUTPUT not in graph.shapes else f"{output}:{OUTPUT}"
        return graph.node(last, "Softmax", [value], name, flat, axis=1)
    if not four_sided:
        return output
    # The output keeps its name. No other node reads the value with four sides.
    maker = next(node for node in graph.model.graph.node if node.output[0] == output)
    maker.name = maker.output[0] = f"{output}:map"
    return graph.reshape(last, maker.output[0], output, flat)
