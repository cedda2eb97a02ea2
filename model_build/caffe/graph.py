"""The ONNX graph under construction: what a layer's function works with.

It knows the shape of every value, each layer's weights and who reads what, and turns complaints
into errors that name the file and the layer. Shapes are computed by the layers' functions, by
Caffe's rules; their first side is the batch, which stays free and counts as 1 here. A layer's
weights are handed out once and forgotten, so that no number is held twice for long.
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
"""The only one that the public users of MagicMind give it."""
IR_VERSION = 7
BATCH = "N"
MAX_NUMBERS = 1 << 28
"""In one value, for one image: 1 GiB of float32."""


class Graph:
    def __init__(self, wiring: Wiring, weights: Weights, text: Path, caffemodel: Path) -> None:
        self.text, self.caffemodel = str(text), str(caffemodel)
        self.shapes: dict[str, Shape] = {wiring.input_name: (1, *wiring.input_shape)}
        self.model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="topfive-build")
        self.model.opset_import.add(domain="", version=OPSET)
        self.model.graph.name = "caffe"
        self.done: set[str] = set()
        """Names of layers whose work is part of another's."""
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
        """Refuse the layer if what it asks for is not supported."""
        if not supported:
            raise self.error(layer, detail, remedy or "give a network that does without")

    def single(self, layer: Layer) -> str:
        """The one value that the layer reads; it makes one too."""
        found = len(layer.bottoms), len(layer.tops)
        detail = f"{layer.type} takes one bottom and one top here, not {found[0]} and {found[1]}"
        self.require(layer, found == (1, 1), detail)
        return layer.bottoms[0]

    def axis(self, layer: Layer, axis: int, rank: int) -> int:
        """`axis` counted from the front; the batch, 0, is no axis to work on."""
        detail = f"axis: {axis} of {rank}; 1 to {rank - 1} can be worked on, 0 is the batch"
        self.require(layer, 1 - rank <= axis < rank and axis != 0, detail)
        return axis % rank

    def only_reader(self, value: str) -> Layer | None:
        """The layer that reads `value`, if it is the only one and does nothing else."""
        readers = self._readers[value]
        reader = readers[0] if len(readers) == 1 else None
        return reader if reader and (len(reader.bottoms), len(reader.tops)) == (1, 1) else None

    def blobs(self, layer: Layer, **wanted: Shape) -> list[Blob]:
        """The layer's weights, checked against the shapes that it must have; to be had once."""
        own = layer.proto.name
        if own in self._shared:
            detail = f"several layers are named '{own}', and weights are found by the name"
            raise self.error(layer, detail, "give each of them a name of its own, in both files")
        found = self._weights.pop(own, [])
        if len(found) != len(wanted):
            raise BuildError(
                f"{len(wanted)} blobs expected ({', '.join(wanted)}), found {len(found)}",
                f"give the caffemodel that belongs to {self.text}",
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
        """The layer's weights of `shape`, and its bias; of zeros, if it has none."""
        if has_bias:
            weights, summand = self.blobs(layer, weights=shape, bias=bias)
            return weights, summand
        [weights] = self.blobs(layer, weights=shape)
        return weights, np.zeros(bias, np.float32)

    def _blob(self, layer: Layer, what: str, shape: Shape, blob: Blob) -> Blob:
        # Old files give every blob four sides: (1, 1, 1, 64) is (64,), and () is (1,).
        if _without_leading_ones(blob.shape) != _without_leading_ones(shape):
            raise BuildError(
                f"{what}: the shape {shape} expected, found {blob.shape}",
                f"give the caffemodel that belongs to {self.text}; an input of another height or "
                "width than in training does not fit every network",
                file=self.caffemodel,
                layer=layer.name,
            )
        if not np.isfinite(blob).all():
            raise BuildError(
                f"{what}: NaN or infinity among the numbers",
                "give weights of a training that converged, from an undamaged file",
                file=self.caffemodel,
                layer=layer.name,
            )
        return blob.reshape(shape)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Store `array` as an initializer; its name."""
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
        """Add a node that makes `output`, of `shape`, with the attributes `more`; the output."""
        if math.prod(shape) > MAX_NUMBERS:
            raise self.error(layer, f"it makes {shape}, more than {MAX_NUMBERS} numbers an image")
        made = onnx.helper.make_node(op, inputs, [output], name=output, **more)
        self.model.graph.node.append(made)
        self.shapes[output] = shape
        return output

    def chain(
        self, layer: Layer, value: str, steps: Sequence[tuple[str, str]], output: str, shape: Shape
    ) -> str:
        """Add nodes of two operands, each taking the one before and the one named; the output."""
        if not steps:
            return self.node(layer, "Identity", [value], output, shape)
        for number, (op, operand) in enumerate(steps, 1):
            made = output if number == len(steps) else f"{output}:{number}"
            value = self.node(layer, op, [value, operand], made, shape)
        return value

    def reshape(self, layer: Layer, value: str, output: str, shape: Shape) -> str:
        """Add a node that gives `value` another shape and leaves the batch alone."""
        # 0 copies the side, which keeps the batch free.
        sides = self.constant(f"{output}:sides", np.array((0, *shape[1:]), np.int64))
        return self.node(layer, "Reshape", [value, sides], output, shape)

    def declare(self, value: str, output: str) -> None:
        """Make the values the graph's input and output, of a free batch each."""
        for name, ends in ((value, self.model.graph.input), (output, self.model.graph.output)):
            sides = (BATCH, *self.shapes[name][1:])
            ends.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides))


def _without_leading_ones(shape: Shape) -> Shape:
    return tuple(dropwhile(lambda side: side == 1, shape))
