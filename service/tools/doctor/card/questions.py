"""The open questions about MagicMind that a program puts to a real card, one process for each.

    python -E -s service/tools/doctor/card/questions.py JOB NAME

NAME is one of QUESTIONS below. JOB is a JSON file with these fields:

    model         a mutable model: uint8 (n,height,width,3) in, one output
    device        the ordinal of the card
    most          maximum rows of one batch of the model
    rows          .npy of uint8 (N,height,width,3), two rows or more, whose answers differ
    prototxt, caffemodel, shape
                  the network of the model, and its input: [1,3,height,width]
    samples       .npy of float32 (N,3,height,width), to calibrate with
    own_archs     architectures to build for, in the form of the builder's configuration
    archs         the same, for the question for_arch
    scratch       a folder to write to
    absent, text  the path of a missing file, and of a file that is not a model

The answer is one line on stdout: `[topfive:answer] ` and a JSON string or object. A question uses
the SDK at the limits of its documentation, so the process may crash or hang. The caller takes that
as the answer. The functions call only what public documents describe. The process exits without
running destructors.

The file is started by its path. So its folder is first on the import path, and no other module of
the service can be imported. It runs under Python 3.7 with numpy and the SDK.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from typing import Any, Callable

import building
import magicmind.python.runtime as mm
import refusals
import serving
import waiting
from opened import CardJob, opened


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    try:
        answer = QUESTIONS[sys.argv[2]](job)
    except Exception as error:  # noqa: BLE001 - any exception is an answer
        answer = "unknown: %s: %s" % (type(error).__name__, error)
    print("[topfive:answer] " + json.dumps(answer), flush=True)
    sys.stderr.flush()
    os._exit(0)


def tags(job: CardJob) -> str:
    """Answer question 1: the Python versions of the wheel, from its metadata."""
    found = []
    for folder in sys.path:
        place = os.path.join(glob.escape(folder), "magicmind-*.dist-info", "WHEEL")
        for path in glob.glob(place):
            with open(path, encoding="utf-8") as file:
                found += [line.split()[1] for line in file if line.startswith("Tag:")]
    if not found:
        return "no metadata of a wheel was found"
    return "its wheel is for %s" % ", ".join(found)


def names(job: CardJob) -> dict[str, list[str]]:
    """Return the public names of the classes and modules of this SDK that topfive uses."""
    card = opened(job)
    tensor = card.inputs[0]
    objects = {
        "Device": card.device,
        "Model": card.model,
        "Engine": card.engine,
        "Context": card.context,
        "Queue": card.queue,
        "Tensor": tensor,
        "System": mm.System,
        "BuilderConfig": mm.BuilderConfig,
        "Calibrator": mm.Calibrator,
        "Status": mm.Status,
        "Code": mm.Code,
        "magicmind.python.runtime": mm,
    }
    return {
        title: sorted(name for name in dir(objects[title]) if not name.startswith("_"))
        for title in objects
    }


QUESTIONS: dict[str, Callable[[CardJob], Any]] = {
    function.__name__: function
    for function in (
        *(tags, names, waiting.interpreter),
        *(serving.outputs, serving.from_numpy, serving.to, serving.asnumpy, serving.held),
        *(serving.worked, serving.first_runs, serving.runs, serving.count, serving.repeated),
        *(refusals.absent_file, refusals.foreign_file, refusals.no_device),
        *(refusals.empty_model, refusals.empty_network, refusals.absent_network),
        *(refusals.too_many, refusals.wrong_dtype, refusals.wrong_height),
        *(refusals.wrong_rank, refusals.not_contiguous),
        *(building.unknown_key, building.wrong_type, building.unknown_value, building.no_json),
        *(building.for_arch, building.channel_order, building.calibration),
    )
}

if __name__ == "__main__":
    main()
