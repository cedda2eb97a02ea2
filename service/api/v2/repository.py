"""The model repository extension of the V2 protocol: the index, and loading on request."""

from typing import Any, Protocol

from service.api.v2.descriptions import not_ready_reason
from service.core.service import Service
from service.errors import (
    DeviceError,
    DeviceFailed,
    Forbidden,
    Malformed,
    NotFound,
    RequestError,
    TopfiveError,
    Unsupported,
)

_STATES = {"": "READY", "starting": "LOADING"}


class Control(Protocol):
    """Loads and unloads models on request. Both raise the RequestError of a failure."""

    async def load(self, name: str) -> None: ...

    async def unload(self, name: str) -> None: ...


class RepositoryControl:
    """The control of the models that `service` serves, and of those in its folder of models."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def load(self, name: str) -> None:
        """Serve what is in the model's folder now.

        Raise NotFound if there is no such model, DeviceFailed if a device refuses it, and Malformed
        if it cannot be served.
        """
        repository = self._service.repository
        if not name or not await repository.known(name):
            raise NotFound(f"There is no model {name[:80]!r}.", "Name one of the repository index.")
        try:
            await repository.load(name)
        except RequestError:
            raise
        except DeviceError as error:
            raise DeviceFailed(error.detail, error.remedy) from error
        except TopfiveError as error:
            raise Malformed(error.detail, error.remedy) from error

    async def unload(self, name: str) -> None:
        """Stop serving a model; raise NotFound if it is not served."""
        if not name:
            raise NotFound("There is no model ''.", "Name one of the repository index.")
        await self._service.repository.unload(name)


def index(service: Service, only_ready: bool) -> list[dict[str, Any]]:
    """Return each model with its state; with `only_ready` the ready ones only.

    A model that is not served has no version.
    """
    models = []
    for name, entry in service.repository.entries.items():
        model = entry.model
        if model is None:
            row = {"name": name, "version": "", "state": entry.state, "reason": entry.reason}
        else:
            reason = not_ready_reason(service, model)
            state = _STATES.get(reason, "UNAVAILABLE")
            row = {"name": name, "version": model.version, "state": state, "reason": reason}
        if row["state"] == "READY" or not only_ready:
            models.append(row)
    return models


def check_no_parameters(parameters: object) -> None:
    """Raise Unsupported if a request to load a model has parameters, which would change it."""
    if parameters:
        raise Unsupported(
            "A model is loaded as it is in the repository: parameters are not supported.",
            "Leave the parameters out.",
        )


def allowed(control: Control | None) -> Control:
    """Return `control`; raise Forbidden if this server does not load models on request."""
    if control is None:
        raise Forbidden(
            "This server does not load or unload models on request.",
            "Ask the operator to serve the model.",
        )
    return control
