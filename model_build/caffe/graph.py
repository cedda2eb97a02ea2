"""The ONNX graph under construction, which the layers' functions use.

The graph has the shape of every value, each layer's weights and the readers of each value. It
raises errors that name the file and the layer. The layers' functions compute shapes by Caffe's
rules. The first side of a shape is the batch, which stays free and counts as 1 here. A layer's
weights are returned once and then released, so that no number is in memory twice for long.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from model_build.caffe.weights import Blob, Weights
from model_build.caffe.wiring import Layer, Shape, Wiring
from service.errors import BuildError

OPSET = 11
"""Opset of the graph: the only one that public users of MagicMind give it."""
IR_VERSION = 7
BATCH = "N"
MAX_NUMBERS = 1 << 28
"""Maximum count of numbers in one value of one image: 1 GiB of float32."""


class Graph:
    def __init__(self, wiring: Wiring, weights: Weights, text: Path, caffemodel: Path) -> None:
        self.text, self.caffemodel = str(text), str(caffemodel)
        self.shapes: dict[str, Shape] = {wiring.input_name: (1, *wiring.input_shape)}
        self.model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="topfive-build")
        self.model.opset_import.add(domain="", version=OPSET)
        self.model.graph.name = "caffe"
        self.done: set[str] = set()
        """Names of layers that are folded into another layer."""
        self._weights = weights
        self._shared = wiring.shared
        self._readers: defaultdict[str, list[Layer | None]] = defaultdict(list)
        self._readers[wiring.output].append(None)
        for layer in wiring.layers:
            for bottom in layer.bottoms:
                self._readers[bottom].append(layer)

    def error(self, layer: Layer, detail: str, remedy: str = "") -> BuildError:
        return BuildError(detail, remedy, file=self.text, layer=layer.name)

    def require(self, layer: Layer, supported: bool, detail: str, remedy: str = "") -> None:
        """Raise BuildError for the layer unless `supported`."""
        if not supported:
            raise self.error(layer, detail, remedy or "Give a network without this.")

    def single(self, layer: Layer) -> str:
        """Return the only value that the layer reads; refuse a layer with more bottoms or tops."""
        found = len(layer.bottoms), len(layer.tops)
        detail = f"{layer.type} needs one bottom and one top, not {found[0]} and {found[1]}."
        self.require(layer, found == (1, 1), detail)
        return layer.bottoms[0]

    def axis(self, layer: Layer, axis: int, rank: int) -> int:
        """Return `axis` counted from the front; refuse 0, the batch."""
        detail = (
            f"The layer has axis: {axis} of {rank}; supported are 1 to {rank - 1}, and 0 is the "
            "batch."
        )
        self.require(layer, 1 - rank <= axis < rank and axis != 0, detail)
        return axis % rank

    def only_reader(self, value: str) -> Layer | None:
        """Return the layer that is the only reader of `value` and has one bottom and one top."""
        readers = self._readers[value]
        reader = readers[0] if len(readers) == 1 else None
        return reader if reader and (len(reader.bottoms), len(reader.tops)) == (1, 1) else None

    def blobs(self, layer: Layer, **wanted: Shape) -> list[Blob]:
        """Return the layer's weights, checked against their shapes. They can be taken once."""
        own = layer.proto.name
        if own in self._shared:
            detail = f"Several layers have the name '{own}', and weights are found by name."
            raise self.error(layer, detail, "Give each layer a unique name, in both files.")
        found = self._weights.pop(own, [])
        if len(found) != len(wanted):
            raise BuildError(
                f"The layer must have {len(wanted)} blobs ({', '.join(wanted)}); found "
                f"{len(found)}.",
                f"Give the caffemodel that belongs to {self.text}",
                file=self.caffemodel,
                layer=layer.name,
            )
        return [
            self._blob(layer, what, shape, blob)
            for (what, shape), blob in zip(wanted.items(), found, strict=True)
        ]

    def weights_and_bias(
        self, layer: Layer, shape: Shape, bias: Shape, has_bias: bool
    ) -> tuple[Blob, Blob]:
        """Return the layer's weights of `shape` and its bias, or zeros without one."""
        if has_bias:
            weights, summand = self.blobs(layer, weights=shape, bias=bias)
            return weights, summand
        [weights] = self.blobs(layer, weights=shape)
        return weights, np.zeros(bias, np.float32)

    def _blob(self, layer: Layer, what: str, shape: Shape, blob: Blob) -> Blob:
        # In old files every blob has four sides: (1, 1, 1, 64) is (64,), and () is (1,).
        if _without_leading_ones(blob.shape) != _without_leading_ones(shape):
            raise BuildError(
                f"The {what} must have the shape {shape}; found {blob.shape}.",
                f"Give the caffemodel that belongs to {self.text}; not every network accepts "
                "another height or width than in training.",
                file=self.caffemodel,
                layer=layer.name,
            )
        if not np.isfinite(blob).all():
            raise BuildError(
                f"The numbers of the {what} contain NaN or infinity.",
                "Give weights of a training that converged, from an undamaged file.",
                file=self.caffemodel,
                layer=layer.name,
            )
        return blob.reshape(shape)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Store `array` as an initializer and return its name."""
        tensor = self.model.graph.initializer.add(name=name, dims=array.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.raw_data = array.tobytes()
        return name

    def scalar(self, name: str, number: float) -> str:
        return self.constant(name, np.array(number, np.float32))

    def node(
        self,
        layer: Layer,
        op: str,
        inputs: Sequence[str],
        output: str,
        shape: Shape,
        **more: object,
    ) -> str:
        """Add a node that makes `output` of `shape`, with the attributes `more`; return it."""
        if math.prod(shape) > MAX_NUMBERS:
            raise self.error(
                layer, f"The result {shape} has more than {MAX_NUMBERS} numbers per image."
            )
        made = onnx.helper.make_node(op, inputs, [output], name=output, **more)
        self.model.graph.node.append(made)
        self.shapes[output] = shape
        return output

    def chain(
        self, layer: Layer, value: str, steps: Sequence[tuple[str, str]], output: str, shape: Shape
    ) -> str:
        """Add nodes that each combine the previous value with a named one; return the output."""
        if not steps:
            return self.node(layer, "Identity", [value], output, shape)
        for number, (op, operand) in enumerate(steps, 1):
            made = output if number == len(steps) else f"{output}:{number}"
            value = self.node(layer, op, [value, operand], made, shape)
        return value

    def reshape(self, layer: Layer, value: str, output: str, shape: Shape) -> str:
        """Add a node that reshapes `value` and keeps the batch; return the output."""
        # 0 copies the side, so that the batch stays free.
        sides = self.constant(f"{output}:sides", np.array((0, *shape[1:]), np.int64))
        return self.node(layer, "Reshape", [value, sides], output, shape)

    def declare(self, value: str, output: str) -> None:
        """Declare the graph's input and output, each with a free batch."""
        for name, ends in ((value, self.model.graph.input), (output, self.model.graph.output)):
            sides = (BATCH, *self.shapes[name][1:])
            ends.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides))


def _without_leading_ones(shape: Shape) -> Shape:
    return tuple(dropwhile(lambda side: side == 1, shape))
