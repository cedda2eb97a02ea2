"""Models, engines, contexts and tensors: what serves. Python 3.7."""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any, Sequence

import numpy as np

from magicmind._sim.card import ARCH, Card, Work, faults
from magicmind._sim.devices import active_card
from magicmind._sim.strict import Strict, wrong
from magicmind._sim.values import bad, dims, done, good, kind_of


def _switch(name: str, default: str) -> str:
    return os.environ.get("MAGICMIND_SIM_%s" % name, default)


class EngineConfig(Strict):
    _surface = "Model.EngineConfig"

    def __init__(self) -> None:
        self.__dict__["device_type"] = "MLU"


class Model(Strict):
    _surface = "Model"
    EngineConfig = EngineConfig

    def __init__(self) -> None:
        self._compiled: Any = None

    def deserialize_from_file(self, path: str) -> Any:
        from magicmind._sim.compiled import Compiled

        try:
            compiled = Compiled.load(path)
        except ValueError as error:
            return bad("%s: %s" % (path, error))
        if ARCH not in compiled.archs:
            return bad("CN_FATBIN_INVALID_ARCH: built for %s" % ", ".join(compiled.archs))
        self._compiled = compiled
        return done()

    def serialize_to_file(self, path: str) -> Any:
        try:
            self._compiled.save(path)
        except OSError as error:
            return bad("%s: %s" % (path, error))
        return done()

    def create_i_engine(self, config: Any = None) -> Any:
        card = active_card()
        if card is None or self._compiled is None:
            return None
        if config is not None and config.__dict__["device_type"] != "MLU":
            wrong("an engine for %r" % config.__dict__["device_type"])
            return None
        if card.call("open"):
            return None
        clusters = self._compiled.archs[card.arch]
        if clusters and min(clusters) > card.clusters:
            return None
        core = _Core(self._compiled, card)
        return Engine._made(_core=core)

    def get_input_num(self) -> int:
        return len(self._compiled.input_names)

    def get_output_num(self) -> int:
        return len(self._compiled.output_names)

    def get_input_names(self) -> list[str]:
        return list(self._compiled.input_names)

    def get_output_names(self) -> list[str]:
        return list(self._compiled.output_names)

    def get_input_dimensions(self) -> list[Any]:
        return [dims(each) for each in self._compiled.input_dims]

    def get_output_dimensions(self) -> list[Any]:
        return [dims(each) for each in self._compiled.output_dims]

    def get_input_data_types(self) -> list[Any]:
        return [kind_of(each) for each in self._compiled.input_types]

    def get_output_data_types(self) -> list[Any]:
        return [kind_of(np.float32) for _ in self._compiled.output_names]

    def get_input_data_type(self, index: int) -> Any:
        return kind_of(self._compiled.input_types[index])


class _Core(object):
    """An engine's constants on a card, and its living contexts."""

    def __init__(self, compiled: Any, card: Card) -> None:
        self.compiled, self.card = compiled, card
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()


class Engine(Strict):
    _surface = "Engine"

    _core: _Core

    def create_i_context(self) -> Any:
        if active_card() is not self._core.card:
            return None
        context = Context._made(_core=self._core, _work=None, _buffers=[], _outputs=[])
        self._core.contexts.add(context)
        return context

    def __del__(self) -> None:
        if len(self._core.contexts) and not sys.is_finalizing():
            wrong("an engine is dropped with a living context")


class Tensor(Strict):
    _surface = "Tensor"

    def __init__(self, shape: Any = (), dtype: Any = None, location: Any = None) -> None:
        self._array: Any = None
        self._work: Work | None = None
        self.__dict__["shape"] = tuple(shape)

    def from_numpy(self, array: Any) -> Any:
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            wrong("from_numpy of what is no contiguous array")
            return bad("the array is not contiguous")
        self._array = array.copy() if _switch("FROM_NUMPY", "late") == "copy" else array
        self.__dict__["shape"] = array.shape
        return done()

    def to(self, device: Any) -> Any:
        kind = _switch("TO", "status")
        return {"status": good(), "none": None, "tensor": self}[kind]

    def asnumpy(self) -> Any:
        work = self._work
        if work is not None and not (work.done.is_set() and work not in self._queue._works):
            wrong("asnumpy before sync")
            return np.full_like(self._array, np.nan)
        return self._array.copy() if _switch("ASNUMPY", "view") == "copy" else self._array


class Context(Strict):
    _surface = "Context"

    _core: _Core
    _work: Work | None

    def create_inputs(self) -> Any:
        made = [
            Tensor._made(_array=None, _work=None, shape=()) for _ in self._core.compiled.input_names
        ]
        return tuple(made) if _switch("INPUTS", "list") == "tuple" else made

    def create_outputs(self, inputs: Any, suppress_infer_shape_error: bool = False) -> Any:
        return [
            Tensor._made(_array=None, _work=None, shape=())
            for _ in self._core.compiled.output_names
        ]

    def enqueue(self, inputs: Any, outputs: Any, queue: Any) -> Any:
        core = self._core
        card = active_card()
        if card is None or card is not core.card or queue._card is not card:
            return bad("engine, queue and thread are not of one device")
        reason = card.call("enqueue") or _unfit(core.compiled, inputs)
        if reason:
            return bad(reason)
        if self._work is not None and self._work in queue._works:
            wrong("a second enqueue of a context before sync")
        given = [tensor._array for tensor in inputs]
        batch = given[0].shape[0]
        reused = self._take_outputs(outputs, batch)
        if reused is None:
            return bad("outputs is neither empty nor made by create_outputs")
        work = Work(lambda: _compute(core, given, reused))
        for tensor, array in zip(outputs, reused):  # noqa: B905 - Python 3.7
            tensor._array, tensor._work, tensor._queue = array, work, queue
            tensor.__dict__["shape"] = array.shape
        card.start(work, batch, queue._free_at)
        queue._free_at = work.ends_at
        queue._works.append(work)
        self._work = work
        return done()

    def _take_outputs(self, outputs: Any, batch: int) -> list[Any] | None:
        """The context's own memory for so many rows, poisoned; `outputs` is filled if empty."""
        compiled = self._core.compiled
        if not isinstance(outputs, list):
            return None
        if len(outputs) not in (0, len(compiled.output_names)):
            return None
        if outputs and _switch("OUTPUTS", "refuse") == "refuse":
            if any(tensor._work is not None for tensor in outputs):
                return None
        if not outputs or _switch("OUTPUTS", "refuse") == "replace":
            outputs[:] = self.__class__.create_outputs.__get__(self)([])
        shapes = [(batch, *sides[1:]) for sides in compiled.output_dims]
        buffers = self._buffers
        if [buffer.shape for buffer in buffers] != shapes:
            buffers = self._buffers = [np.empty(shape, np.float32) for shape in shapes]
        for buffer in buffers:
            buffer.fill(np.nan)
        return list(buffers)


def _unfit(compiled: Any, inputs: Sequence[Any]) -> str:
    """Why these inputs are not the model's; empty if they are."""
    if len(inputs) != len(compiled.input_names):
        return "%d inputs; %d were expected" % (len(inputs), len(compiled.input_names))
    for tensor, sides, dtype, bounds in zip(  # noqa: B905 - Python 3.7
        inputs, compiled.input_dims, compiled.input_types, compiled.dim_ranges
    ):
        array = tensor._array
        low, high = bounds or (sides, sides)
        lenient = _switch("DTYPES", "strict") == "lenient" and dtype == np.uint8
        if lenient and array is not None and array.dtype == np.float32:
            dtype = array.dtype
        if array is None or array.dtype != dtype or len(array.shape) != len(sides):
            wrong("an input of another type or rank")
            return "an input of another type or rank"
        if any(not a <= side <= b for side, a, b in zip(array.shape, low, high)):  # noqa: B905
            wrong("an input of %s; %s to %s" % (array.shape, low, high))
            return "an input of %s; %s to %s" % (array.shape, low, high)
    return ""


def _compute(core: _Core, given: list[Any], outputs: list[Any]) -> None:
    if core.card.computes:
        answers = core.compiled.run(given)
    else:
        answers = [_any_row(output.shape) for output in outputs]
    turned = faults(core.card.number).get("answers") == "wrong"
    for output, answer in zip(outputs, answers):  # noqa: B905 - Python 3.7
        output[:] = answer[:, ::-1] if turned else answer


def _any_row(shape: tuple[int, ...]) -> Any:
    answer = np.zeros(shape, np.float32)
    answer[:, 0] = 1.0
    return answer
