"""Where the artifacts come from: one folder, or a folder of models.

    --artifact DIR          one artifact, under the name in its manifest
    --models DIR            DIR/NAME or DIR/NAME/VERSION, under the name NAME

Of several versions the last one is served; numbers in their names are compared as numbers. A folder
whose name begins with a dot is ignored: synchronisers write there.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from service import accuracy, sdk
from service import artifact as artifacts
from service.artifact import MANIFEST, Artifact
from service.errors import ArtifactError, SettingsError, TopfiveError
from service.settings import Settings

log = logging.getLogger("topfive.library")


class Loadable(NamedTuple):
    """A verified artifact, and the devices that it is to be loaded on."""

    artifact: Artifact
    devices: sdk.Devices


class Library:
    """The artifacts that the settings name. Its calls block: they read files."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._devices: dict[tuple[str, str], sdk.Devices] = {}
        self.failures: dict[str, TopfiveError] = {}
        """Why a model could not be read when `read_all` was called."""

    def read_all(self) -> list[Loadable]:
        """Return all artifacts. Those that cannot be served are in `failures`.

        Raise SettingsError if the settings name no artifact, and the first failure if none of the
        artifacts can be served.
        """
        self.failures.clear()
        found = []
        for name in self.names():
            try:
                found.append(self.read(name))
            except TopfiveError as error:
                self.failures[name] = error
        if not found:
            raise next(iter(self.failures.values()))
        default, names = self._settings.default_model, {*versions(found), *self.failures}
        if default is not None and default not in names:
            raise SettingsError(
                f"The default model {default!r} is not among the models: "
                f"{', '.join(sorted(names))}.",
                "Name one of them with --default-model, or leave it out.",
            )
        return found

    def names(self) -> list[str]:
        """Return the names of the models in the folder; raise SettingsError if it has none.

        The name of a single artifact is empty here: it is in the manifest.
        """
        settings = self._settings
        if settings.models is None:
            settings.named_artifact()
            return [""]
        if settings.artifact is not None:
            raise SettingsError(
                "Both an artifact and a folder of models are named.",
                "Name one of them: --artifact DIR or --models DIR.",
            )
        names = sorted(folder.name for folder in _folders(settings.models))
        if not names:
            raise SettingsError(
                f"{settings.models} has no models.",
                "Put each artifact into a folder of its own there: NAME or NAME/VERSION.",
            )
        return names

    def read(self, name: str) -> Loadable:
        """Verify the artifact of the model `name` and return it with its devices.

        Raise ArtifactError if it is not valid, SettingsError or SdkError if its devices cannot be
        used.
        """
        # Resolved, so that a link to the folder may be changed while its devices are restarted.
        artifact = artifacts.read(self.folder(name).resolve())
        artifact = replace(artifact, accuracy=_accuracy(artifact))
        if name:
            artifact = artifact.named(name)
        return Loadable(artifact, self._devices_of(artifact))

    def folder(self, name: str) -> Path:
        """Return the folder of the artifact to serve as `name`; raise ArtifactError."""
        if self._settings.models is None:
            return self._settings.named_artifact()
        path = self._settings.models / name
        try:
            artifacts.check_model_name(name)
        except ValueError as error:
            raise ArtifactError(str(error), f"Rename the folder {path}.") from error
        if _is_artifact(path):
            return path
        versions = sorted(_folders(path), key=_natural)
        complete = [version for version in versions if _is_artifact(version)]
        if not complete:
            raise ArtifactError(
                f"{path} has no artifact.",
                f"Put the files that topfive-build wrote into {path} or into a folder there.",
            )
        return complete[-1]

    def alone(self, name: str) -> dict[str, object]:
        """Return the settings with which the model `name` would be served alone."""
        try:
            folder = self.folder(name)
        except ArtifactError:  # reading it has the reason
            folder = (self._settings.models or Path()) / name
        return {"artifact": folder, "devices": self._settings.devices_of(name)}

    def signature(self, name: str) -> object:
        """Return a value that changes with the artifact to serve as `name`; None without one."""
        try:
            found = (self.folder(name) / MANIFEST).stat()
        except (TopfiveError, OSError):
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _devices_of(self, artifact: Artifact) -> sdk.Devices:
        settings, target = self._settings, artifact.manifest.target
        named = settings.devices_of(artifact.manifest.name)
        if (target, named) not in self._devices:
            self._devices[target, named] = sdk.chosen_devices(
                target, named, settings.device_python, settings.import_timeout_s
            )
        return self._devices[target, named]


def _accuracy(artifact: Artifact) -> dict[str, object] | None:
    """Return the accuracy in the artifact's report. A wrong report is logged and left out."""
    try:
        return accuracy.read(artifact.path, artifact.manifest.version)
    except ArtifactError as error:
        extra = {"detail": error.detail, "remedy": error.remedy}
        log.warning("accuracy_ignored", extra=extra)
        return None


def versions(loadable: Iterable[Loadable]) -> dict[str, str]:
    """Return the versions of the models by name."""
    manifests = (each.artifact.manifest for each in loadable)
    return {manifest.name: manifest.version for manifest in manifests}


def _folders(path: Path) -> list[Path]:
    try:
        return [
            entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        ]
    except OSError as error:
        raise _unreadable(path, error) from error


def _is_artifact(path: Path) -> bool:
    try:
        return (path / MANIFEST).exists()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"Cannot read the folder {path}: {error.strerror}",
        "Let the user of the service read it, or name another folder with --models DIR.",
    )


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key that sorts numbers in names as numbers: 9 before 10."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", path.name)
    ]
