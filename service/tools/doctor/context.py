"""What the checks look at: the settings, and what several of them need, each looked at once.

Nothing here fails: what could not be had is the error that tells why, and a check's to judge.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from service import artifact as artifacts
from service import sdk
from service.artifact import Artifact
from service.errors import ArtifactError, SdkError
from service.settings import Settings
from service.targets import ServedTarget

State = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: `found` says what is so, `remedy` what to try where it is wrong.

    `skip` is what was not looked at, or does not matter here; only FAIL keeps a service from
    serving.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Context:
    """The settings that a service would have, and where the machine's own files are."""

    settings: Settings
    root: Path = Path("/")
    """Above dev, proc and sys."""

    @cached_property
    def artifact(self) -> Artifact | ArtifactError | None:
        """The artifact, verified; None if none is named."""
        if self.settings.artifact is None:
            return None
        try:
            return artifacts.read(self.settings.artifact)
        except ArtifactError as error:
            return error

    @cached_property
    def target(self) -> ServedTarget | None:
        """The target of the artifact; None if no manifest can be read."""
        if self.settings.artifact is None:
            return None
        try:
            return artifacts.read_manifest(self.settings.artifact).served_target
        except ArtifactError:
            return None

    @property
    def needs_no_sdk(self) -> bool:
        """Whether the artifact is known to need no SDK and no card."""
        return self.target is not None and not self.target.needs_sdk

    @cached_property
    def sdk(self) -> sdk.Sdk | SdkError:
        """The interpreter that can load MagicMind."""
        try:
            return sdk.find(self.settings.device_python, self.settings.import_timeout_s)
        except SdkError as error:
            return error

    @cached_property
    def device_count(self) -> int | SdkError:
        """How many devices the SDK sees."""
        if isinstance(self.sdk, SdkError):
            return self.sdk
        try:
            return sdk.device_count(self.sdk.python, self.settings.import_timeout_s)
        except SdkError as error:
            return error

    @property
    def ordinals(self) -> tuple[int, ...]:
        """The devices that would be served on, as far as they are there."""
        asked = self.settings.devices
        if asked != "all":
            return tuple(dict.fromkeys(map(int, asked.split(","))))
        if self.needs_no_sdk or isinstance(self.device_count, SdkError):
            return (0,)
        return tuple(range(self.device_count))
