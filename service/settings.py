"""Every setting of the service: as a flag, an environment variable and a line of a TOML file.

A flag wins over the environment, which wins over the file, which wins over the default:

    --body-timeout-ms 5000      TOPFIVE_BODY_TIMEOUT_MS=5000      body_timeout_ms = 5000

The file is the one that --config or TOPFIVE_CONFIG names, else /etc/topfive/config.toml where that
exists. `load` says of each value where it came from. A name carries its unit.
"""

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from service.errors import SettingsError
from service.system import disk

PREFIX = "TOPFIVE_"
SYSTEM_FILE = Path("/etc/topfive/config.toml")
# Of ours in the environment, but no setting of the service.
OTHER_VARIABLES = frozenset(
    f"{PREFIX}{name}" for name in ("CONFIG", "DEBUG", "DATA", "REVISION", "URL")
)

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


def require_linux() -> None:
    """Raise SettingsError if the system is not Linux: rows and device hosts need Linux."""
    if sys.platform != "linux":
        raise SettingsError(
            f"topfive runs models on Linux only; this is {sys.platform}",
            "use a container, as docs/docker.md says, or ask a server on another machine",
        )


class Settings(BaseSettings):
    """The effective settings; immutable."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    artifact: Path | None = Field(None, description="The artifact's folder (topfive-build's).")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    rows: int = Field(256, ge=1, le=65536, description="Images accepted at one time.")
    queue_images: int = Field(
        0, ge=0, description="Images that wait for a device at one time; 0: as many as rows."
    )
    max_images: Positive = Field(32, description="Images in one request.")
    max_body_bytes: Positive = Field(16 << 20, description="Largest body of one request.")
    max_receiving_bytes: Positive = Field(
        256 << 20, description="Bodies in memory, all requests together."
    )
    max_pixels: Positive = Field(50_000_000, description="Largest image, width times height.")

    max_connections: int = Field(
        0, ge=0, description="Connections open at one time; 0: as the limit of open files allows."
    )

    head_timeout_s: Seconds = Field(
        10, description="From a connection's or a head's start to the end of the head; then 408."
    )
    default_deadline_ms: Positive = Field(
        10_000, description="From a request's first byte to its answer; then 504."
    )
    body_timeout_ms: Positive = Field(
        8_000, description="From a request's head to the end of its body; then 408."
    )
    batch_timeout_ms: Positive = Field(
        10_000,
        description="From sending a batch to its reply; then its device host counts as hung.",
    )
    start_timeout_s: Seconds = Field(
        120, description="Until the first device is proven; then the service ends with 1."
    )
    no_device_grace_s: Seconds = Field(
        60, description="With no device ready after one was; then the service ends with 1."
    )
    drain_delay_s: float = Field(
        0,
        ge=0,
        le=86_400,
        description="From SIGTERM, which makes it unready, until it accepts no more connections.",
    )
    drain_timeout_s: Seconds = Field(
        30, description="After that, for what was accepted; then it is answered 503."
    )

    workers: int = Field(
        1, ge=1, le=64, description="Processes that serve, each with its share of the devices."
    )
    devices: str = Field(
        "all",
        pattern=r"^(all|\d+(,\d+)*)$",
        description="Devices to serve on: all, or ordinals such as 0,1 (on the CPU: how many).",
    )
    device_python: str | None = Field(
        None,
        description="Interpreter of the device hosts; default: on the CPU the service's own, for "
        "cards the first of python3.7, python3 that can load MagicMind.",
    )
    import_timeout_s: Seconds = Field(
        180,
        description="For an interpreter to load MagicMind and count the cards; then the next one "
        "is tried.",
    )
    decode_processes: int = Field(
        0, ge=0, le=256, description="Processes that decode images; 0: one a core."
    )
    max_batch: int = Field(
        0, ge=0, le=1024, description="Largest batch that is sent; 0: what the engine likes."
    )
    inflight_per_device: int = Field(
        0, ge=0, le=16, description="Batches sent to a device at one time; 0: what it likes."
    )
    probe_interval_s: Seconds = Field(
        5, description="Between probes of a ready device, with one golden row each."
    )
    restart_delay_s: Seconds = Field(
        0.5, description="Before a failed device is started again; doubles with each failure."
    )
    quarantine_failures: Positive = Field(
        5, description="Failures in a row, with no probe passed between, that quarantine a device."
    )
    quarantine_s: Seconds = Field(60, description="Until a quarantined device is tried again.")
    reap_timeout_s: Seconds = Field(
        5, description="For a killed device host to end; then its rows are lost until it does."
    )

    server_timing: bool = Field(True, description="Answer with a Server-Timing header.")
    access_log: bool = Field(
        False, description="Log a line for each answer but those of health checks."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Log lines: console, json, or auto (console on a terminal)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is logged."
    )

    def named_artifact(self) -> Path:
        """`artifact`; SettingsError if there is none."""
        if self.artifact is None:
            raise SettingsError("no artifact is named", "name the folder with --artifact DIR")
        return self.artifact


def load(flags: Mapping[str, object], file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings, and for each its source: flag, environment, a file's path, or default.

    `flags` are the values given on the command line. SettingsError names the value that is wrong
    and where it stands.
    """
    file = file or _named_file()
    layers = {
        str(file): _read_file(file) if file else {},
        "environment": EnvSettingsSource(Settings)(),
        "flag": {name: value for name, value in flags.items() if value is not None},
    }
    values: dict[str, object] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    for source, layer in layers.items():
        _refuse_empty(source, layer)
        values |= layer
        sources |= dict.fromkeys(layer, source)
    try:
        return Settings.model_validate(values), sources
    except ValidationError as error:
        first = error.errors()[0]
        name, value = str(first["loc"][0]), first["input"]
        service_link = str(value).startswith("tcp://")
        raise SettingsError(
            f"{_place(name, sources[name])}: {first['msg']}, not {value!r}",
            _SERVICE_LINK if service_link else f"topfive config --help describes {name}",
        ) from error


def url_of(host: str, port: int) -> str:
    """Return the URL of an address; an IPv6 host gets its brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def local_url(host: str, port: int) -> str:
    """Return the URL by which clients on this machine reach a server that listens there."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return url_of(loopback.get(host, host), port)


def unknown_variables() -> list[str]:
    """Variables that look like ours and are none: misspelt, or of a Kubernetes service link.

    An empty one counts as not set.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    ours = (name for name, value in os.environ.items() if name.startswith(PREFIX) and value)
    return sorted(name for name in ours if name not in known)


def _refuse_empty(source: str, layer: Mapping[str, object]) -> None:
    """Raise SettingsError for a flag or a line that is empty: of a path or an address it would mean
    this folder or every address. Of a variable it means that the variable is not set."""
    for name, value in layer.items():
        if value == "":
            remedy = f"give it a value, or leave it out; topfive config --help describes {name}"
            raise SettingsError(f"{_place(name, source)}: it is empty", remedy)


def _named_file() -> Path | None:
    if named := os.environ.get("TOPFIVE_CONFIG"):
        return Path(named)
    try:
        SYSTEM_FILE.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # it may be there: reading it says what is wrong
    return SYSTEM_FILE


def _read_file(file: Path) -> dict[str, object]:
    remedy = "name a readable TOML file with --config or TOPFIVE_CONFIG"
    try:
        values = tomllib.loads(disk.read_text(file))
    except OSError as error:
        detail, remedy = disk.unreadable(file, error, remedy)
        raise SettingsError(f"{file}: {detail}", remedy) from error
    except ValueError as error:
        raise SettingsError(f"{file}: {error}", remedy) from error
    for name in values.keys() - Settings.model_fields.keys():
        raise SettingsError(
            f"{_place(name, str(file))}: no such setting", "topfive config lists them all"
        )
    return values


_SERVICE_LINK = (
    "Kubernetes sets this for a Service of that name: set enableServiceLinks: false in the pod, "
    "or rename the Service"
)


def _place(name: str, source: str) -> str:
    """How the setting is spelt where it stands."""
    if source == "flag":
        return f"--{name.replace('_', '-')}"
    if source == "environment":
        return PREFIX + name.upper()
    lines = disk.read_text(Path(source)).splitlines()
    key = re.compile(rf"""[\s\["']*{re.escape(name)}\b""")
    at = next((number for number, line in enumerate(lines, 1) if key.match(line)), 1)
    return f"{source}:{at}: {name}"
