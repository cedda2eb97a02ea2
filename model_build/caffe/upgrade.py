"""Texts of Caffe's older form, `layers` with types in capitals, to that of today.

A NetParameter with V1 layers becomes one with LayerParameters that say the same; nothing but this
module and the schema knows that there was another form.
"""

from typing import Any

from service.errors import BuildError

# Those that are read, and those that only training has, which are refused by their later names.
TYPES = {
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "CONCAT": "Concat",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "IMAGE_DATA": "ImageData",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "WINDOW_DATA": "WindowData",
}
# Those set by hand, and how a layer learns: `param` is strings in one form, messages in the other.
_NOT_COPIED = {"name", "type", "param", "blob_share_mode", "blobs_lr", "weight_decay"}


def upgrade(net: Any, file: str) -> None:
    """Turn the `layers` of `net`, whose text is `file`, into its `layer`, in place."""
    if not net.layers:
        return
    if net.layer:
        remedy = "keep one form; `layer` is today's"
        raise BuildError("it has both `layer` and `layers`", remedy, file=file)
    for old in net.layers:
        _upgrade(old, net.layer.add())
    del net.layers[:]


def _upgrade(old: Any, layer: Any) -> None:
    asked = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    layer.name, layer.type = old.name, TYPES.get(asked, asked)
    for field, value in old.ListFields():
        if field.name in _NOT_COPIED:
            continue
        if field.is_repeated:
            getattr(layer, field.name).extend(value)
        elif field.message_type:
            getattr(layer, field.name).CopyFrom(value)
        else:
            setattr(layer, field.name, value)
