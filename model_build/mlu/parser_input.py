"""The input of MagicMind's parser: a network that takes RGB and answers with probabilities.

Rows are RGB, and MagicMind's configuration has no key for the colour order. For a network that
takes BGR, the channels of the first weights are reversed in a copy. MagicMind then puts mean and
std before the network, which it can do if the network begins with a convolution. If it does not, or
if the weights cannot be reversed, the ONNX gets nodes for colour order, mean and std, and takes
unchanged pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from model_build.caffe import original
from model_build.network import Network, fold_preprocessing
from model_build.recipe import Kind, Recipe
from model_build.targets import Report
from service.errors import BuildError


@dataclass(frozen=True)
class ParserInput:
    """The files in the order of MagicMind's parser, and the parser's name."""

    frontend: Kind
    files: tuple[Path, ...]
    bare: bool
    """Whether the network lacks mean and std, so that MagicMind must add them."""


def prepare(
    recipe: Recipe, frontend: Kind | None, network: Network, folder: Path, report: Report
) -> ParserInput:
    """Write changed copies to `folder` where the network needs changes.

    `frontend` None is caffe where that is possible. Raise BuildError if the frontend
    caffe is requested and cannot read the network.
    """
    if (frontend or recipe.kind) == "caffe":
        try:
            return _caffe(recipe, network, folder)
        except BuildError as error:
            if frontend:
                remedy = "Build with --frontend onnx, which gives the same network."
                raise BuildError(
                    f"--frontend caffe cannot read the network: {error}", remedy
                ) from error
            report(f"MagicMind reads the network as ONNX: {error}")
    return _onnx(recipe, network, folder)


def _caffe(recipe: Recipe, network: Network, folder: Path) -> ParserInput:
    prototxt, caffemodel = recipe.files
    color, softmax = recipe.preprocessing.color, network.softmax_added
    prototxt, caffemodel = original.prepare(
        prototxt, caffemodel, color, recipe.output, softmax, folder
    )
    return ParserInput("caffe", (caffemodel, prototxt), bare=True)


def _onnx(recipe: Recipe, network: Network, folder: Path) -> ParserInput:
    wanted = recipe.preprocessing
    model = _in_rgb(network, wanted.color)
    bare = model is not None
    if model is None:
        model = fold_preprocessing(network, wanted.color, wanted.mean, wanted.std, planes=True)
    file = folder / "network.onnx"
    file.write_bytes(model.SerializeToString())
    return ParserInput("onnx", (file,), bare)


def _in_rgb(network: Network, color: str) -> onnx.ModelProto | None:
    """Return a copy that takes RGB; None unless the network begins with a suitable convolution."""
    graph = network.model.graph
    readers = [node for node in graph.node if network.input_name in node.input]
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return None
    [first] = readers
    if color == "rgb":
        return network.model
    group = {each.name: each.i for each in first.attribute}.get("group", 1)
    stored = [tensor for tensor in graph.initializer if tensor.name == first.input[1]]
    users = [node for node in graph.node if first.input[1] in node.input]
    if group != 1 or len(stored) != 1 or len(users) != 1:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    [tensor] = [each for each in model.graph.initializer if each.name == first.input[1]]
    turned = np.ascontiguousarray(numpy_helper.to_array(tensor)[:, ::-1])
    tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    return model
