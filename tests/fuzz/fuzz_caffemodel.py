"""Any bytes as a caffemodel, for a network of three layers: a network, or a BuildError."""

import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["google.protobuf", "model_build"]):
    from model_build import caffe
    from model_build.caffe import weights
    from service.errors import BuildError

# Files without names, which end with the process however that ends.
FILE = os.memfd_create("caffemodel")
TEXT = os.memfd_create("prototxt")
CAFFEMODEL, PROTOTXT = (Path(f"/proc/self/fd/{file}") for file in (FILE, TEXT))
os.pwrite(
    TEXT,
    b"""
    input: "data" input_shape { dim: 1 dim: 3 dim: 6 dim: 6 }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
            convolution_param { num_output: 4 kernel_size: 3 } }
    layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
    layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
            inner_product_param { num_output: 5 } }
    """,
    0,
)


def take(data: bytes) -> None:
    """One input of the fuzzer's; anything but a BuildError is a finding."""
    os.ftruncate(FILE, 0)
    os.pwrite(FILE, data, 0)
    for build in (weights.read, lambda path: caffe.load(PROTOTXT, path)):
        try:
            build(CAFFEMODEL)
        except BuildError as error:
            assert error.detail


if __name__ == "__main__":
    atheris.Setup(sys.argv, take)
    atheris.Fuzz()
