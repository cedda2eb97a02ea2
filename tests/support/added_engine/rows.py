"""The two rows of the added target, as text to insert into the tables."""

SERVED = """
        ServedTarget("onnx", "ONNX", "onnx", "onnx{ordinal}", needs_sdk=False),
"""
BUILT = """
BUILD_TARGETS["onnx"] = BuildTarget(
    served=SERVED_TARGETS["onnx"],
    compiler="model_build.onnx_target",
    model="model.onnx",
    reference="reference.xml",
    files=frozenset({"model.onnx", "reference.xml", "reference.bin"}),
    precisions={"force_float32": Accuracy("everything is float32", 1e-4, _CPU_BOUND)},
)
"""
