"""The models that are served, by name: loaded, replaced by a new version, and unloaded.

A new version is opened beside the old one on each device, and must answer its golden rows there.
Then new requests go to it. The old one answers the requests that it has, and is closed. A request
is answered by the version that it was admitted to. A version that fails its self-test is closed
again, and the old one stays.

Where a device has no room for both, the devices change one after another: the old version leaves a
device, and the new one opens there. If only one device is ready, that leaves a gap, which the
settings must allow.

One change is made at a time, each in a task of its own: a client who does not wait for the end of a
change does not end it half-way.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from service.artifact import Artifact
from service.core.device import Device
from service.core.library import Library, Loadable
from service.core.model import Common, Model
from service.errors import ArtifactError, DeviceError, Malformed, NotFound, TopfiveError, stopping
from service.sdk import Devices

log = logging.getLogger("topfive.models")

BUSY_S = 0.01
"""Seconds between two looks whether a model that leaves still has requests."""

T = TypeVar("T")
State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


@dataclass
class Entry:
    """A name, and the version that is served under it; `reason` says why there is none."""

    model: Model | None = None
    state: State = "UNAVAILABLE"
    reason: str = ""


class Repository:
    """The models of a service; created and run on one event loop.

    `fatal` is called with the reason when no model has a device left. `on_change` is called when
    the readiness of a model may have changed.
    """

    def __init__(
        self, library: Library, common: Common, fatal: Callable[[DeviceError], None]
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.on_change: Callable[[], None] = lambda: None
        self._library = library
        self._common = common
        self._fatal = fatal
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[object]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def models(self) -> list[Model]:
        """The models that are served."""
        return [entry.model for entry in self.entries.values() if entry.model is not None]

    def find(self, name: str = "", version: str = "") -> Model:
        """Return the model of this name, without one the default model.

        If `version` is given, it must be the version that is served. Raise NotFound if there is no
        such model, Malformed if none is named and there is no default.
        """
        if not name:
            return self._default()
        entry = self.entries.get(name)
        if entry is None or entry.model is None:
            raise NotFound(f"There is no model {name[:80]!r}.", "GET /model lists the models.")
        if version and version != entry.model.version:
            raise NotFound(
                f"Model {name} has no version {version[:80]!r}; version {entry.model.version} is "
                "served.",
                "Leave the version out, or name the one that is served.",
            )
        return entry.model

    def _default(self) -> Model:
        if name := self._common.settings.default_model:
            return self.find(name)
        models = self.models
        if len(models) == 1:
            return models[0]
        names = ", ".join(sorted(model.name for model in models)[:10])
        raise Malformed(
            f"The request names no model, and {len(models)} are served"
            + (f": {names}." if names else "."),
            "Name one, as in /classify?model=NAME, or ask the operator for --default-model.",
        )

    def start(self, loadable: Sequence[Loadable]) -> None:
        """Open the models; each is ready when one of its devices has passed its self-test."""
        for artifact, devices in loadable:
            model = Model(artifact, devices, self._common)
            self._serve(model)
            model.devices.start()
        for name, error in self._library.failures.items():
            self.entries[name] = Entry(reason=error.detail)
            self._log_refused(name, error)

    async def stop(self) -> None:
        """End all models; there are no changes from now on."""
        self._stopped = True
        for tasks in (self._changes, self._leaving):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(model.close() for model in list(self._common.models)))

    async def known(self, name: str) -> bool:
        """Return whether the name has an entry, or a folder among the models."""
        if name in self.entries:
            return True
        try:
            return name in await asyncio.to_thread(self._library.names)
        except TopfiveError:
            return False

    async def load(self, name: str) -> Model:
        """Serve the artifact that is in the model's folder now, if it is not the one served.

        Raise the ArtifactError, SettingsError, SdkError or DeviceError for which it is refused.
        """
        return await self._change(lambda: self._load(name))

    async def unload(self, name: str) -> None:
        """Stop serving a model. It answers the requests that it has; raise NotFound."""
        await self._change(lambda: self._unload(name))

    async def reload(self) -> list[TopfiveError]:
        """Load every model that is new or has changed, and unload those whose folder is gone.

        Return the errors of those that were refused.
        """
        try:
            names = await asyncio.to_thread(self._library.names)
        except TopfiveError as error:
            log.error("reload_failed", extra={"detail": error.detail, "remedy": error.remedy})
            return [error]
        errors = []
        for name in names:
            try:
                await self.load(name)
            except TopfiveError as error:
                errors.append(error)
        if names != [""]:
            try:
                await self._change(self._remove_gone)
            except TopfiveError as error:
                errors.append(error)
        return errors

    async def poll(self, seen: dict[str, object]) -> None:
        """Load every model whose folder has changed since the last call with the same `seen`.

        An artifact that is not complete is tried again at the next call. A folder that is gone may
        be on its way back, so its model stays.
        """
        for name in await asyncio.to_thread(self._library.names):
            signature = await asyncio.to_thread(self._library.signature, name)
            if signature is None or seen.get(name) == signature:
                continue
            try:
                await self.load(name)
            except ArtifactError:
                continue
            except TopfiveError as error:
                log.debug("poll_refused", extra={"model": name, "detail": error.detail})
            seen[name] = signature

    async def _change(self, change: Callable[[], Awaitable[T]]) -> T:
        """Make a change alone, and return its result. It goes on if the caller is cancelled."""
        if self._stopped:
            raise stopping()

        async def make() -> T:
            async with self._changing:
                return await change()

        task = asyncio.create_task(make())
        self._changes.add(task)
        task.add_done_callback(self._end_change)
        return await asyncio.shield(task)

    def _end_change(self, task: asyncio.Task[object]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone; what was refused is logged

    async def _unload(self, name: str) -> None:
        model = self.find(name)
        entry = self.entries[model.name]
        entry.model, entry.state, entry.reason = None, "UNAVAILABLE", "unloaded"
        self._leave(model)
        log.info("model_unloaded", extra={"model": model.name, "version": model.version})
        self.on_change()

    async def _remove_gone(self) -> None:
        """Unload and forget the models whose folder is gone."""
        names = await asyncio.to_thread(self._library.names)
        for name in [name for name in self.entries if name not in names]:
            if self.entries[name].model is not None:
                await self._unload(name)
            del self.entries[name]

    async def _load(self, name: str) -> Model:
        entry: Entry | None = None
        try:
            artifact, devices = await asyncio.to_thread(self._library.read, name)
            entry = self._entry_for(name or artifact.manifest.name)
            old = entry.model
            # In another folder it is opened again: the former one may be gone at a restart.
            if old is not None and (old.version, old.artifact.path) == (
                artifact.manifest.version,
                artifact.path,
            ):
                entry.reason = ""
                return old
            facts = {"model": artifact.manifest.name, "version": artifact.manifest.version}
            log.info("model_loading", extra=facts)
            entry.state = "LOADING"
            model = self._made(artifact, devices)
            try:
                await self._open(model, old)
            except BaseException:
                if self.entries[model.name].model is not model:
                    await model.close()
                raise
        except TopfiveError as error:
            self._refuse(name, entry, error)
            raise
        log.info("model_loaded", extra=facts | {"replaces": old.version if old else ""})
        return model

    def _made(self, artifact: Artifact, devices: Devices) -> Model:
        try:
            return Model(artifact, devices, self._common)
        except OSError as error:
            raise DeviceError(
                f"There is no memory for the rows of the model: {error.strerror}",
                "Give the service more memory, or lower its rows.",
            ) from error

    def _entry_for(self, name: str) -> Entry:
        """Return the entry of the name; raise ArtifactError if a single artifact has another."""
        if self._common.settings.models is None and name not in self.entries:
            raise ArtifactError(
                f"The artifact is now that of model {name}; this service serves "
                f"{', '.join(self.entries)}.",
                "Restart the service to serve another model, or serve a folder of models with "
                "--models DIR.",
            )
        return self.entries.setdefault(name, Entry())

    def _refuse(self, name: str, entry: Entry | None, error: TopfiveError) -> None:
        """Record that a version was refused; the one that is served stays."""
        if entry is None:
            entry = self.entries.setdefault(name or next(iter(self.entries)), Entry())
        entry.state = "READY" if entry.model else "UNAVAILABLE"
        known, entry.reason = entry.reason, error.detail
        if known != error.detail:  # a folder that is looked at again and again is logged once
            self._log_refused(name, error)

    def _log_refused(self, name: str, error: TopfiveError) -> None:
        facts = {"model": name, "detail": error.detail, "remedy": error.remedy}
        log.error("model_refused", extra=facts)

    async def _open(self, model: Model, old: Model | None) -> None:
        """Open the model on its devices, prove it there, and serve it in place of `old`."""
        for device in model.devices.devices:
            model.devices.start_device(device)
        able = {device.name for device in old.devices.devices if device.ready} if old else set()
        needed = [device for device in model.devices.devices if device.name in able]
        try:
            await _proven(model, needed)
        except DeviceError as error:
            if old is None or error.reason != "driver":
                raise
            await self._open_by_turns(model, old, error)
        else:
            self._replace(model, old)

    async def _open_by_turns(self, model: Model, old: Model, refusal: DeviceError) -> None:
        """Replace `old` on one device after another; `refusal` says why not beside it.

        The devices that are ready come first. Requests go to the new version once it has half of
        them. If it fails before, the old one is opened again where it has left. If it fails later,
        the device goes on trying, as at any time.
        """
        before = {device.name: device for device in old.devices.devices}
        ready = [each for each in model.devices.devices if _is_ready(before.get(each.name))]
        others = [each for each in model.devices.devices if each not in ready]
        if len(ready) == 1:
            await self._check_gap(old, refusal)
        for device in model.devices.devices:
            await model.devices.stop_device(device)
        old.on_failure = lambda _: None  # without a device for as long as the new one takes to open
        left: list[Device] = []

        async def change(device: Device) -> None:
            if former := before.get(device.name):
                left.append(former)
                await old.devices.stop_device(former)
            model.devices.start_device(device)

        try:
            for done, device in enumerate(ready, 1):
                if done == len(ready):  # none is left for the requests that it has
                    old.paused = True
                    await _answered(old)
                await change(device)
                try:
                    await _proven(model, [device])
                except DeviceError:
                    if self.entries[model.name].model is old:
                        raise
                if self.entries[model.name].model is old and 2 * done >= len(ready):
                    self._replace(model, old, leaves=False)
            for device in others:
                await change(device)
            if not ready:
                await _proven(model, [])
                self._replace(model, old, leaves=False)
        except Exception:
            if self.entries[model.name].model is old:
                await model.devices.stop()
                old.devices.start_again(left)
                old.paused = False
                self._watch(old)
            raise
        self._leave(old)

    async def _check_gap(self, old: Model, refusal: DeviceError) -> None:
        """Raise DeviceError if `old` may not leave its only device before the new version opens."""
        if not self._common.settings.allow_gap:
            raise DeviceError(
                f"{refusal.detail} The device has no room for the new version beside the old one.",
                f"{refusal.remedy} Or allow a gap without answers with --allow-gap.".lstrip(),
                reason=refusal.reason,
            )
        try:
            await asyncio.to_thread(old.artifact.check_model_unchanged)
        except ArtifactError as error:
            raise DeviceError(
                f"{refusal.detail} The old version could not come back if the new one fails: its "
                "files were replaced.",
                "Put each version into a folder of its own, NAME/VERSION, and serve with "
                "--models. Or restart the service.",
                reason=refusal.reason,
            ) from error

    def _replace(self, model: Model, old: Model | None, leaves: bool = True) -> None:
        self._serve(model)
        if old is not None and leaves:
            self._leave(old)

    def _serve(self, model: Model) -> None:
        """Let new requests go to the model."""
        self.entries[model.name] = Entry(model, "READY")
        self._watch(model)
        self.on_change()

    def _watch(self, model: Model) -> None:
        model.on_failure = lambda error: self._failed(model, error)
        model.devices.on_change = lambda: self._changed(model)

    def _changed(self, model: Model) -> None:
        """A device of the model has changed its state.

        A model that no device could ever open, such as a second one on a card in exclusive compute
        mode, is refused, so that the others make the service ready.
        """
        devices = model.devices.devices
        never = all(each.state == "quarantined" and each.failure for each in devices)
        if never and not model.devices.first_ready.is_set() and self._others_ready(model):
            error = next(each.failure for each in devices if each.failure)
            self.entries[model.name].model = None
            self._refuse(model.name, self.entries[model.name], error)
            self._leave(model)
        self.on_change()

    def _others_ready(self, model: Model) -> bool:
        return any(other.devices.ready for other in self.models if other is not model)

    def _failed(self, model: Model, error: DeviceError) -> None:
        """A model has no device left: the service ends if no other model has one."""
        if not self._others_ready(model):
            self._fatal(error)
            return
        facts = {"model": model.name, "detail": error.detail, "remedy": error.remedy}
        log.error("model_failed", extra=facts)

    def _leave(self, model: Model) -> None:
        """Close the model when the requests that it has are answered."""
        model.on_failure = lambda _: None
        model.devices.on_change = lambda: None

        async def leave() -> None:
            await _answered(model)
            await model.close()
            log.info("model_closed", extra={"model": model.name, "version": model.version})

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def _is_ready(device: Device | None) -> bool:
    return device is not None and device.ready


async def _answered(model: Model) -> None:
    """Wait until the model has answered the requests that it has, or they have ended."""
    while model.busy:  # rows are released in many places
        model.drop_ended()
        await asyncio.sleep(BUSY_S)


async def _proven(model: Model, needed: list[Device]) -> None:
    """Wait until the devices `needed`, or any device if it is empty, have passed their self-test.

    Raise the failure of a needed device, or that of the last one if none is needed and all fail.
    """
    changed = asyncio.Event()
    before = model.devices.on_change

    def notice() -> None:
        changed.set()
        before()

    model.devices.on_change = notice
    try:
        while True:
            changed.clear()
            devices = needed or model.devices.devices
            failures = [each.failure for each in devices if each.failure and not each.ready]
            if failures and (needed or len(failures) == len(devices)):
                raise failures[-1]
            passed = [device.ready for device in devices]
            if all(passed) or (any(passed) and not needed):
                return
            await changed.wait()
    finally:
        if model.devices.on_change is notice:
            model.devices.on_change = before
