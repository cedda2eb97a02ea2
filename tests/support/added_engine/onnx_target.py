"""The compiler of the added target: its model is the ONNX graph itself."""

from typing import Any

from model_build.targets import BUILD_TARGETS, Compiled


def look(recipe: Any, report: Any) -> None:
    """Return nothing: no tools are needed."""


def prepare(recipe: Any, network: Any, tools: None, folder: Any, report: Any) -> None:
    """Return nothing: the network with its preprocessing is enough."""


def compile_into(folder: Any, recipe: Any, network: Any, job: None, report: Any) -> Compiled:
    """Write the ONNX graph."""
    file = folder / BUILD_TARGETS[recipe.target].model
    file.write_bytes(network.model.SerializeToString())
    return Compiled(network.model.graph.input[0].name, network.output_name)
