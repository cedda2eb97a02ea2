"""The metrics that are not counted: the state of rows, devices and decode processes at a scrape."""

from collections.abc import Iterable, Sequence

from prometheus_client.core import Metric

from service.artifact import Manifest
from service.core.decode_pool import DecodePool
from service.core.model import Model
from service.core.rows import State
from service.telemetry.metrics import DEVICE_STATES, counter_family, gauge_family


def read(models: Sequence[Model], decode_pool: DecodePool) -> Iterable[Metric]:
    """Yield the families of the models that are served, and of the decode processes."""
    for model in models:
        model.count_row_seconds()
    yield gauge_family(
        "rows",
        "Rows by state. The sum is the number of all rows.",
        ("model", "state"),
        [
            ((model.name, state.value), model.rows.statistics()[state.value])
            for model in models
            for state in State
        ],
    )
    yield gauge_family(
        "model_info",
        "1. The labels describe the model that is served.",
        ("model", "version", "target", "precision", "batch", "input"),
        [(_described(model.artifact.manifest), 1.0) for model in models],
    )
    devices = [(model.name, device) for model in models for device in model.devices.devices]
    labels = ("model", "device")
    yield gauge_family(
        "device_state",
        "1 for the state that the device is in.",
        (*labels, "state"),
        [
            ((model, device.name, state), float(device.state == state))
            for model, device in devices
            for state in DEVICE_STATES
        ],
    )
    yield gauge_family(
        "device_batches_in_flight",
        "Batches sent to the device and not answered yet.",
        labels,
        [((model, device.name), float(device.batches_in_flight)) for model, device in devices],
    )
    usage = [((model, device.name), *device.usage()) for model, device in devices]
    yield counter_family(
        "host_cpu_seconds",
        "CPU time of the device host process.",
        labels,
        [(values, cpu_seconds) for values, cpu_seconds, _ in usage],
    )
    yield gauge_family(
        "host_resident_memory_bytes",
        "Resident memory of the device host process.",
        labels,
        [(values, memory_bytes) for values, _, memory_bytes in usage],
    )
    yield gauge_family(
        "device_info",
        "1. The labels join with the metrics of mlu-exporter.",
        (*labels, "kind", "mlu", "uuid", "sn", "card", "engine"),
        [
            ((model.name, device.name, manifest.target, "", "", "", "", manifest.engine), 1.0)
            for model in models
            for manifest in (model.artifact.manifest,)
            for device in model.devices.devices
        ],
    )
    yield from decode_pool.collect()


def _described(manifest: Manifest) -> tuple[str, ...]:
    batch = manifest.input.batch
    return (
        manifest.name,
        manifest.version,
        manifest.target,
        manifest.precision,
        str(batch.max) if batch.min == batch.max else f"{batch.min}-{batch.max}",
        f"{manifest.input.height}x{manifest.input.width}",
    )
