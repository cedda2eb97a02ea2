"""An ONNX classifier, as its exporter left it, to the graph that targets take.

`load` reads a model and leaves a Network: cut to one input and one output (`cut`), its batch axis
freed (`batch`), its operators those of an opset that targets take (`opset`), its end probabilities
(`ends`). The part that was cut out is run in the file's own opset, an image at a time; what the
graph that was made of it answers to several images at once must be the same (`proof`). Whatever
cannot be done right is a BuildError that names the file; nothing is written.
"""

from pathlib import Path

from model_build.network import Network, check
from model_build.onnx_model import batch, cut, ends, opset, proof
from model_build.onnx_model.file import read


def load(
    path: Path,
    height: int | None = None,
    width: int | None = None,
    output: str | None = None,
    newest: int = opset.NEWEST,
) -> tuple[Network, tuple[Path, ...]]:
    """The classifier in the file, proven, and the files that it was read from.

    `height` and `width` replace the input's own, or say what it leaves free. `output` names the
    value of the classes; else it is the output `prob`, or the only one. The network is in an opset
    from 11 to `newest`.
    """
    file = str(path)
    model, files = read(path, output)
    model = cut.from_input(model, file, height, width)
    images = proof.images(model)
    answers = proof.one_by_one(model, images, file)
    batch.free(model)
    model = opset.convert(model, file, newest)
    proof.prove(model, images, answers, file)
    network = ends.classifier(model, answers, file)
    check(network, file)
    return network, files
