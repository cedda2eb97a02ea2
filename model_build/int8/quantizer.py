"""Quantize one network to int8 with NNCF, in a process of its own.

    python -I model_build/int8/quantizer.py JOB PARENT

NNCF and OpenVINO send telemetry by the package openvino_telemetry, which also writes into the home
folder. That package cannot be imported here, and both then have a stub in its place. The parent
gives the process a home folder of its own. The process is killed when its parent, the process
PARENT, exits. JOB is a JSON file:

    network      the float32 network as OpenVINO IR, whose input is uint8 (N,height,width,3)
    photos       .npy of calibration rows, uint8 (N,height,width,3)
    per_channel  whether each output channel has its own range of weights, or each layer
    labelled     null, or {"rows": .npy of uint8 rows, "classes": .npy of their classes, "max_drop":
                 share of top-1}: NNCF keeps layers in float until no more than that is lost on them
    batch        null, or the only batch size of the model
    model        the file to write, as OpenVINO IR
    result       the file to write at the end: {"nncf": version} or {"failed": reason}

It needs NNCF, OpenVINO and numpy, and no module of topfive.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

# An import of the package raises ImportError from here on, which both expect.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import nncf
import numpy as np
import openvino as ov
from nncf.quantization.advanced_parameters import QuantizationParameters

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[2]):
        sys.exit("the build that started this process has exited")
    job = json.loads(Path(sys.argv[1]).read_bytes())
    try:
        quantize(job)
        result = {"nncf": nncf.__version__}
    except Exception as error:  # noqa: BLE001 - every error is reported to the build
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}"}
    file = Path(job["result"])
    file.with_suffix(".new").write_text(json.dumps(result), encoding="utf-8")
    file.with_suffix(".new").replace(file)


def quantize(job: dict[str, Any]) -> None:
    """Write the quantized model of the job."""
    network = ov.Core().read_model(job["network"])
    photos = np.load(job["photos"], mmap_mode="r")
    common = {
        # Symmetric ranges are the fastest; asymmetric ones had the same top-1.
        "preset": nncf.QuantizationPreset.PERFORMANCE,
        "subset_size": len(photos),
    }
    weights = QuantizationParameters(per_channel=job["per_channel"])
    advanced = nncf.AdvancedQuantizationParameters(weights_quantization_params=weights)
    rows = nncf.Dataset([photos[place : place + 1] for place in range(len(photos))])
    if job["labelled"]:
        network = searched(network, rows, job["labelled"], common, advanced)
    else:
        network = nncf.quantize(network, rows, advanced_parameters=advanced, **common)
    if job["batch"]:
        network.reshape([job["batch"], *list(network.input().partial_shape)[1:]])
    ov.save_model(network, job["model"], compress_to_fp16=False)


def searched(
    network: ov.Model,
    rows: nncf.Dataset,
    labelled: dict[str, Any],
    common: dict[str, Any],
    advanced: nncf.AdvancedQuantizationParameters,
) -> ov.Model:
    """Return the quantized network, with layers in float where int8 loses too much top-1."""
    pixels, classes = np.load(labelled["rows"]), np.load(labelled["classes"])
    photos = [(pixels[at : at + 1], classes[at]) for at in range(len(pixels))]

    def top1(compiled: Any, data: Any) -> tuple[float, list[float]]:
        right = [float(compiled(row)[0].argmax() == expected) for row, expected in data]
        return float(np.mean(right)), right

    return nncf.quantize_with_accuracy_control(
        network,
        calibration_dataset=rows,
        validation_dataset=nncf.Dataset(photos, lambda photo: photo),
        validation_fn=top1,
        max_drop=labelled["max_drop"],
        advanced_quantization_parameters=advanced,
        **common,
    )


if __name__ == "__main__":
    main()
