"""The model repository extension of the V2 protocol: the index, and loading on request."""

from typing import Any, Protocol

from service.api.v2.descriptions import not_ready_reason, served
from service.core.service import Service
from service.errors import Forbidden

_STATES = {"": "READY", "starting": "LOADING"}


class Control(Protocol):
    """Loads and unloads models on request. Both raise the RequestError of a failure."""

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...


def index(service: Service, only_ready: bool) -> list[dict[str, Any]]:
    """Return each model with its state; with `only_ready` the ready ones only."""
    models = []
    for model in served(service):
        reason = not_ready_reason(service, model)
        state = _STATES.get(reason, "UNAVAILABLE")
        row = {"name": model.name, "version": model.version, "state": state, "reason": reason}
        if state == "READY" or not only_ready:
            models.append(row)
    return models


def allowed(control: Control | None) -> Control:
    """Return `control`; raise Forbidden if this server does not load models on request."""
    if control is None:
        raise Forbidden(
            "This server does not load or unload models on request.",
            "Ask the operator to serve the model.",
        )
    return control
