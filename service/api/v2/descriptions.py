"""What the V2 protocol says of the server and its models: metadata, configuration, statistics.

The objects are plain dictionaries with the protocol's names. REST sends them as JSON, and gRPC as
the messages of the same names.
"""

import json
from typing import Any

from service.api.v2.inference import IMAGE, PIXELS, PROBABILITIES
from service.core.model import Model
from service.core.service import Service
from service.core.statistics import Total

EXTENSIONS = (
    "binary_tensor_data", "classification", "parameters", "statistics", "model_configuration",
    "model_repository", "schedule_policy",
)  # fmt: skip
_PLATFORMS = {"openvino": "openvino_ir", "magicmind": "magicmind_mm"}


def served(service: Service) -> list[Model]:
    """Return the models that `service` serves."""
    return service.models


def is_ready(service: Service, model: Model) -> bool:
    """Return whether `model` wants requests."""
    return model.devices.ready > 0 and not service.draining


def not_ready_reason(service: Service, model: Model) -> str:
    """Return why `model` is not ready, in a word; empty if it is."""
    if is_ready(service, model):
        return ""
    if service.draining:
        return "draining"
    return "no_device" if model.devices.first_ready.is_set() else "starting"


def server_metadata(version: str) -> dict[str, Any]:
    """Return the metadata of the server, which has this `version`."""
    return {"name": "topfive", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(model: Model) -> dict[str, Any]:
    """Return the metadata of a model: its inputs and outputs, -1 for a free dimension.

    As with Triton, a shape is the batch dimension and the dims of the configuration: perf_analyzer
    takes the first dimension away, and sends nothing to an input of which nothing is left.
    """
    classes = len(model.artifact.labels)
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": _platform(model),
        "inputs": [
            {"name": IMAGE, "datatype": "BYTES", "shape": [-1, 1]},
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, *_row(model)]},
        ],
        "outputs": [
            {"name": "top_index", "datatype": "INT32", "shape": [-1, -1]},
            {"name": "top_probability", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "top_label", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes]},
        ],
    }


def model_config(model: Model) -> dict[str, Any]:
    """Return the model's configuration, as the JSON form of Triton's ModelConfig.

    `dims` have no batch dimension. `max_batch_size` is the number of images that a request may
    have: a request of more images than the device's batch is computed in several batches.
    """
    manifest = model.artifact.manifest
    classes = len(model.artifact.labels)
    preprocessing = json.dumps(manifest.preprocessing.model_dump(mode="json"))
    return {
        "name": model.name,
        "platform": _platform(model),
        "backend": manifest.engine,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": model.admission.largest_request,
        # A request has one of the two: `optional` says so to perf_analyzer.
        "input": [
            {"name": IMAGE, "data_type": "TYPE_STRING", "dims": [1], "optional": True},
            {"name": PIXELS, "data_type": "TYPE_UINT8", "dims": _row(model), "optional": True},
        ],
        "output": [
            {"name": "top_index", "data_type": "TYPE_INT32", "dims": [-1]},
            {"name": "top_probability", "data_type": "TYPE_FP32", "dims": [-1]},
            {"name": "top_label", "data_type": "TYPE_STRING", "dims": [-1]},
            {
                "name": PROBABILITIES,
                "data_type": "TYPE_FP32",
                "dims": [classes],
                "label_filename": "labels.txt",
            },
        ],
        "instance_group": [{"count": len(model.devices.devices), "kind": "KIND_MODEL"}],
        "dynamic_batching": {
            "preferred_batch_size": [manifest.input.batch.max],
            "max_queue_delay_microseconds": 0,
        },
        "parameters": {"preprocessing": {"string_value": preprocessing}},
    }


def model_statistics(models: list[Model]) -> dict[str, Any]:
    """Return the statistics of `models` since their start; clients read them without checking."""
    return {"model_stats": [_statistics(model) for model in models]}


def _statistics(model: Model) -> dict[str, Any]:
    counted = model.counted
    none = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        # Triton's versions are numbers, and perf_analyzer reads this one as a number.
        "version": str(int(model.version, 16)),
        "last_inference": counted.last_batch_ms,
        "inference_count": counted.images,
        "execution_count": sum(each["compute"].count for each in counted.batches.values()),
        "inference_stats": {
            "success": _duration(counted.success),
            "fail": _duration(counted.fail),
            "queue": _duration(counted.stages["queue"]),
            **_computes(counted.stages),
            "cache_hit": none,
            "cache_miss": none,
        },
        "response_stats": {},
        "batch_stats": [
            {"batch_size": size, **_computes(counted.batches[size])}
            for size in sorted(counted.batches)
        ],
        "memory_usage": [],
    }


def _computes(stages: dict[str, Total]) -> dict[str, dict[str, int]]:
    return {
        "compute_input": _duration(stages["copy_in"]),
        "compute_infer": _duration(stages["compute"]),
        "compute_output": _duration(stages["copy_out"]),
    }


def _duration(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": total.ns}


def _platform(model: Model) -> str:
    engine = model.artifact.manifest.engine
    return _PLATFORMS.get(engine, engine)


def _row(model: Model) -> list[int]:
    """Return the shape of one prepared row: height, width, channels."""
    row = model.artifact.manifest.input
    return [row.height, row.width, row.channels]
