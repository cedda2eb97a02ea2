"""An ONNX classifier as exported, converted to the graph that targets take.

`load` reads a model and returns a Network. The model is cut to one input and one output (`cut`),
its batch axis is freed (`batch`), its operators are converted to a supported opset (`opset`), and
its output is made probabilities (`ends`). The cut model runs in the file's own opset, one image at
a time. The converted graph must give the same answers to several images at once (`validation`).
Whatever cannot be converted correctly is a BuildError that names the file; nothing is written.
"""

from pathlib import Path

from model_build.network import Network, check
from model_build.onnx_model import batch, cut, ends, opset, validation
from model_build.onnx_model.file import read


def load(
    path: Path,
    height: int | None = None,
    width: int | None = None,
    output: str | None = None,
    newest: int = opset.NEWEST,
) -> tuple[Network, tuple[Path, ...]]:
    """Return the classifier in the file, validated, and the files that it was read from.

    `height` and `width` replace the input's own, or set the ones that the file leaves open.
    `output` names the value of the classes; by default it is the output `prob`, or the only one.
    The network's opset is from 11 to `newest`.
    """
    file = str(path)
    model, files = read(path, output)
    model = cut.from_input(model, file, height, width)
    images = validation.images(model)
    answers = validation.one_by_one(model, images, file)
    batch.free(model)
    model = opset.convert(model, file, newest)
    validation.validate(model, images, answers, file)
    network = ends.classifier(model, answers, file)
    check(network, file)
    return network, files
