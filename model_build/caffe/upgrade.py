"""Conversion of Caffe's older form, `layers` with types in capitals, to the current one.

A NetParameter with V1 layers becomes one with LayerParameters of the same meaning. Only this module
and the schema contain the older form.
"""

from typing import Any

from service.errors import BuildError

# Supported types, and types of training, which are refused by their current names.
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
# `name` and `type` are set separately. The other fields are for training; `param` is strings in one
# form and messages in the other.
_NOT_COPIED = {"name", "type", "param", "blob_share_mode", "blobs_lr", "weight_decay"}


def upgrade(net: Any, file: str) -> None:
    """Turn the `layers` of `net` into its `layer`, in place; `file` is the text's path."""
    if not net.layers:
        return
    if net.layer:
        remedy = "Keep one form; `layer` is the current one."
        raise BuildError("The file has both `layer` and `layers`.", remedy, file=file)
    for old in net.layers:
        _upgrade(old, net.layer.add())
    del net.layers[:]


def _upgrade(old: Any, layer: Any) -> None:
    old_type = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    layer.name, layer.type = old.name, TYPES.get(old_type, old_type)
    for field, value in old.ListFields():
        if field.name in _NOT_COPIED:
            continue
        if field.is_repeated:
            getattr(layer, field.name).extend(value)
        elif field.message_type:
            getattr(layer, field.name).CopyFrom(value)
        else:
            setattr(layer, field.name, value)
