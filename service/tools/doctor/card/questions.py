"""The open questions about MagicMind, each put to a real card: a process of its own for each.

    python -E -s service/tools/doctor/card/questions.py JOB NAME

NAME is one of QUESTIONS below, JOB a JSON file:

    model         a mutable model: uint8 (n,height,width,3) in, one output
    device        the ordinal of the card
    most          rows that the model takes at once
    rows          .npy of uint8 (N,height,width,3), two rows or more, whose answers differ
    prototxt, caffemodel, shape
                  the network of the model, and its input: [1,3,height,width]
    samples       .npy of float32 (N,3,height,width), to calibrate with
    own_archs     what to build for, as the builder's configuration has it
    archs         for_arch: the same, to be tried
    scratch       a folder to write to
    absent, text  a path where nothing is, and that of a file that is no model

The answer is one line on stdout, `[topfive:answer] ` and a JSON string or object. What a question
does is at the edge of what is recorded, and may crash or hang: the caller takes that as the answer.
Only calls that the public record attests are made. The process ends without a destructor.

Started by path, so that this folder is first on the path and nothing else of the service can be
imported. Python 3.7, numpy and the SDK.
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
from opened import Job, opened


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    try:
        answer = QUESTIONS[sys.argv[2]](job)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is the answer
        answer = "unknown: %s: %s" % (type(error).__name__, error)
    print("[topfive:answer] " + json.dumps(answer), flush=True)
    sys.stderr.flush()
    os._exit(0)


def tags(job: Job) -> str:
    """1: for which Pythons the wheel was made, as its metadata has it."""
    found = []
    for folder in sys.path:
        place = os.path.join(glob.escape(folder), "magicmind-*.dist-info", "WHEEL")
        for path in glob.glob(place):
            with open(path, encoding="utf-8") as file:
                found += [line.split()[1] for line in file if line.startswith("Tag:")]
    if not found:
        return "no metadata of a wheel was found"
    return "its wheel is for %s" % ", ".join(found)


def names(job: Job) -> dict[str, list[str]]:
    """The public names of what we use, as this SDK has them."""
    card = opened(job)
    tensor = card.inputs[0]
    living = {
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
        title: sorted(name for name in dir(living[title]) if not name.startswith("_"))
        for title in living
    }


QUESTIONS: dict[str, Callable[[Job], Any]] = {
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
