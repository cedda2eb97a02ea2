"""What MagicMind's parser is given: a network that takes RGB and answers with probabilities.

Rows are RGB, and the configuration has no key for colour: a network of BGR gets the channels of its
first weights turned round, in a copy. Mean and std are then left to MagicMind, which puts them
before a network that begins with a convolution. Where it does not, or where its weights cannot be
turned round, our ONNX gets colour, mean and std as nodes, and takes the pixels as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from model_build.caffe import original
from model_build.network import Network, fold_preprocessing
from model_build.recipe import Kind, Recipe
from service.errors import BuildError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The files, in the order of MagicMind's parser, and which parser that is."""

    frontend: Kind
    files: tuple[Path, ...]
    bare: bool
    """Whether the network lacks mean and std: MagicMind is to put them before it."""


def prepare(recipe: Recipe, asked: Kind | None, network: Network, folder: Path, say: Say) -> Source:
    """Write to `folder` what has to be changed; `asked` is the frontend, or caffe where it can be.

    BuildError where the frontend caffe was asked for and cannot be.
    """
    if (asked or recipe.kind) == "caffe":
        try:
            return _caffe(recipe, network, folder)
        except BuildError as error:
            if asked:
                remedy = "build with --frontend onnx, which is the same network"
                raise BuildError(f"--frontend caffe cannot take it: {error}", remedy) from error
            say(f"MagicMind gets the network as ONNX, since {error}")
    return _onnx(recipe, network, folder)


def _caffe(recipe: Recipe, network: Network, folder: Path) -> Source:
    prototxt, caffemodel = recipe.files
    color, softmax = recipe.preprocessing.color, network.softmax_added
    prototxt, caffemodel = original.prepare(
        prototxt, caffemodel, color, recipe.output, softmax, folder
    )
    return Source("caffe", (caffemodel, prototxt), bare=True)


def _onnx(recipe: Recipe, network: Network, folder: Path) -> Source:
    asked = recipe.preprocessing
    model = _in_rgb(network, asked.color)
    bare = model is not None
    if model is None:
        model = fold_preprocessing(network, asked.color, asked.mean, asked.std, planes=True)
    file = folder / "network.onnx"
    file.write_bytes(model.SerializeToString())
    return Source("onnx", (file,), bare)


def _in_rgb(network: Network, color: str) -> onnx.ModelProto | None:
    """A copy that takes RGB, if the network begins with a convolution for which that can be."""
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
