"""The targets of artifacts: which engine runs a target, and how its devices are found and named.

A new engine is a module `service/device_host/engine_NAME.py` and a row here. The row of the same
target in model_build/targets.py builds its artifacts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServedTarget:
    """A kind of device, and the engine that runs on it."""

    name: str
    """Name in the manifest and in --target."""
    title: str
    """Name in messages: "the artifact is for ..."."""
    engine: str
    """Name in the manifest; the module is service/device_host/engine_NAME.py."""
    device_name: str
    """Name of a device in metrics and logs, a format string with `ordinal`."""
    needs_sdk: bool
    """Whether the devices are MagicMind cards.

    The host of a card runs under the SDK's Python, the SDK counts the cards, and the manifest has
    `sdk`. Other hosts run under this Python, and device 0 is served by default.
    """

    def name_of_device(self, ordinal: int) -> str:
        """Return the name of a device in metrics and logs."""
        return self.device_name.format(ordinal=ordinal)


SERVED_TARGETS = {
    target.name: target
    for target in (
        ServedTarget("cpu", "the CPU", "openvino", "cpu{ordinal}", needs_sdk=False),
        ServedTarget("mlu", "cards", "magicmind", "{ordinal}", needs_sdk=True),
    )
}
