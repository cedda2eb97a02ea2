"""A small Caffe network for tests of the build around the importer: 32x32 in, ten classes out."""

from pathlib import Path

from tests.support.seeded import write_seeded_weights

SIDE, CLASSES = 32, 10
PREPROCESSING = ["--color", "bgr", "--mean", "110,120,130", "--std", "64", "--resize", "36"]
TEXT = """
input: "data"
input_dim: 1 input_dim: 3 input_dim: 32 input_dim: 32
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 64 kernel_size: 3 stride: 2 pad: 1 }
}
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer {
  name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { pool: AVE global_pooling: true }
}
layer {
  name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
  inner_product_param { num_output: 10 }
}
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def write_small_network(folder: Path, seed: int = 3) -> list[str]:
    """Write small.prototxt, .caffemodel and .txt (labels); the weights are those of `seed`.

    Return the options of `topfive-build caffe`.
    """
    prototxt, caffemodel, labels = (
        folder / f"small.{end}" for end in ("prototxt", "caffemodel", "txt")
    )
    prototxt.write_text(TEXT)
    write_seeded_weights(prototxt, caffemodel, seed=seed)
    labels.write_text("".join(f"n{number:08d} class {number}\n" for number in range(CLASSES)))
    sources = ["--prototxt", str(prototxt), "--caffemodel", str(caffemodel)]
    return [*sources, "--labels", str(labels), *PREPROCESSING]
