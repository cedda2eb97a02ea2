"""The context of the checks: the settings, and the facts that several checks need.

Each fact is determined once. Accessors never raise an expected error: they return it, and each
check decides what it means.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from service import artifact as artifacts
from service import sdk
from service.artifact import Artifact
from service.core.library import Library
from service.errors import ArtifactError, SdkError
from service.settings import Settings
from service.targets import ServedTarget

State = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's output: the fact that was found, and the remedy if it is wrong.

    `skip` is the state of a check that was not done or is not needed. Only FAIL prevents a service
    from serving.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Context:
    """The settings of a service, and the facts of this machine and of the artifact."""

    settings: Settings
    root: Path = Path("/")
    """Folder that contains dev, proc and sys."""

    def models(self) -> list["Context"]:
        """Return a context for each model of the settings, as if it alone was to be served.

        Raise SettingsError if the settings name a folder without models.
        """
        if self.settings.models is None:
            return [self]
        library = Library(self.settings)
        return [
            Context(self.settings.model_copy(update={"models": None, **own}), self.root)
            for own in map(library.alone, library.names())
        ]

    @cached_property
    def artifact(self) -> Artifact | ArtifactError | None:
        """Return the verified artifact, or its error; None if no artifact is named."""
        if self.settings.artifact is None:
            return None
        try:
            return artifacts.read(self.settings.artifact)
        except ArtifactError as error:
            return error

    @cached_property
    def target(self) -> ServedTarget | None:
        """Return the target of the artifact; None if there is no readable manifest."""
        if self.settings.artifact is None:
            return None
        try:
            return artifacts.read_manifest(self.settings.artifact).served_target
        except ArtifactError:
            return None

    @property
    def needs_no_sdk(self) -> bool:
        """Return whether the artifact is known to need no SDK and no card."""
        return self.target is not None and not self.target.needs_sdk

    @cached_property
    def sdk(self) -> sdk.SdkPython | SdkError:
        """Return the interpreter that can load MagicMind, or the error."""
        try:
            return sdk.find(self.settings.device_python, self.settings.import_timeout_s)
        except SdkError as error:
            return error

    @cached_property
    def device_count(self) -> int | SdkError:
        """Return the number of devices that the SDK sees, or the error."""
        if isinstance(self.sdk, SdkError):
            return self.sdk
        try:
            return sdk.device_count(self.sdk.python, self.settings.import_timeout_s)
        except SdkError as error:
            return error

    @property
    def ordinals(self) -> tuple[int, ...]:
        """Return the devices of the settings; for `all` those that exist."""
        wanted = self.settings.devices
        if wanted != "all":
            return tuple(dict.fromkeys(map(int, wanted.split(","))))
        if self.needs_no_sdk or isinstance(self.device_count, SdkError):
            return (0,)
        return tuple(range(self.device_count))
