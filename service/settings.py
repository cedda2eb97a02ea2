"""Every setting of the service, as a flag, an environment variable and a line of a TOML file.

A flag has priority over the environment, the environment over the file, and the file over the
default:

    --body-timeout-ms 5000      TOPFIVE_BODY_TIMEOUT_MS=5000      body_timeout_ms = 5000

--config or TOPFIVE_CONFIG names the file. The default is /etc/topfive/config.toml, if it exists.
`load` returns the settings and the source of each value. The name of a setting has its unit.
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
from service.system import addresses, disk
from service.system.certificate import CertificateFiles

PREFIX = "TOPFIVE_"
SYSTEM_FILE = Path("/etc/topfive/config.toml")
TRUST = ("CA", "CLIENT_CERTIFICATE")
"""Variables of the certificates of commands: tools/trust.py."""
# Variables with the prefix that are not settings of the service.
OTHER_VARIABLES = frozenset(
    f"{PREFIX}{name}" for name in ("CONFIG", "DEBUG", "DATA", "KEY", "REVISION", "URL", *TRUST)
)

_HOSTS = r"(\*\.)?([A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]*"
"""The name of a host in fetch_hosts, or all names below it."""
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


def require_linux() -> None:
    """Raise SettingsError if the system is not Linux: rows and device hosts need Linux."""
    if sys.platform != "linux":
        raise SettingsError(
            f"topfive runs models on Linux only; this system is {sys.platform}.",
            "Use a container as docs/docker.md describes, or use a server on another machine.",
        )


class Settings(BaseSettings):
    """The effective settings; immutable."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    artifact: Path | None = Field(
        None, description="Folder of the artifact that topfive-build wrote."
    )
    models: Path | None = Field(
        None,
        description="Folder of models to serve in place of one artifact: NAME/ or NAME/VERSION/.",
    )
    default_model: str | None = Field(
        None,
        description="Model of requests that name none. Default: the only model.",
    )
    poll_models_s: float = Field(
        0,
        ge=0,
        le=86_400,
        description="Seconds between two looks for changed models. 0 looks on SIGHUP only.",
    )
    allow_gap: bool = Field(
        False,
        description="Let a new version of a model be opened after the old one has left, if a "
        "device has no room for both. Requests meanwhile get 503.",
    )
    model_control: bool = Field(
        False,
        description="Let clients load and unload models: POST /v2/repository/models/NAME/load.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on. 0 uses a free port.")
    grpc_port: int = Field(
        0, ge=0, le=65535, description="Port to listen on for gRPC. 0 switches gRPC off."
    )

    admin_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of the administration: metrics, model control and profiles are at its "
        "address alone. 0 leaves them at port.",
    )
    admin_host: str = Field("127.0.0.1", description="Address to listen on for admin_port.")
    admin_socket: Path | None = Field(
        None,
        description="Unix socket of the administration, for this user alone. It needs no key.",
    )
    keys_file: Path | None = Field(
        None,
        description="File of API keys that topfive keys writes. Without one no key is needed.",
    )
    require_keys: bool = Field(False, description="Refuse to start without a file of keys.")
    key_images_per_s: float = Field(
        0,
        ge=0,
        le=1e9,
        description="Maximum images per second with one key, unless its line has another number. "
        "0 sets no limit.",
    )
    key_requests: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Maximum requests in flight with one key, unless its line has another number. "
        "0 sets no limit.",
    )
    cors_origins: str | None = Field(
        None,
        pattern=r"^(\*|https?://[^/,*\s]+(,https?://[^/,*\s]+)*)$",
        description="Origins whose pages may read answers in a browser: "
        "https://app.example.org,https://other.example.org, or * for all, without keys only.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file of the certificate and its chain. With it HTTP and gRPC use TLS.",
    )
    tls_key: Path | None = Field(
        None, description="PEM file of the certificate's private key, without a passphrase."
    )
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of CA certificates. With it each client must present a certificate "
        "that one of them has signed.",
    )

    rows: int = Field(256, ge=1, le=65536, description="Maximum images in the service at one time.")
    queue_images: int = Field(
        0, ge=0, description="Maximum images that wait for a device. 0 uses the value of rows."
    )
    max_images: Positive = Field(32, description="Maximum images in one request.")
    max_body_bytes: Positive = Field(
        16 << 20, description="Maximum size of one request body, in bytes."
    )
    max_receiving_bytes: Positive = Field(
        256 << 20, description="Maximum size of all request bodies in memory, in bytes."
    )
    max_pixels: Positive = Field(50_000_000, description="Maximum width times height of an image.")

    fetch_hosts: str | None = Field(
        None,
        pattern=rf"^(\*|{_HOSTS}(,{_HOSTS})*)$",
        description="Hosts from which POST /classify may fetch images by https URL: names, *.NAME "
        "for all below one, or * for any public host. Default: none.",
    )

    max_connections: int = Field(
        0, ge=0, description="Maximum open connections. 0 uses what the limit of open files allows."
    )

    max_grpc_calls: Positive = Field(
        128,
        description="Maximum gRPC calls at one time. Each may hold a message of max_body_bytes.",
    )

    head_timeout_s: Seconds = Field(
        10,
        description="Seconds from a new connection, or from the first byte of a head, to the end "
        "of the head. Then the answer is 408.",
    )
    default_deadline_ms: Positive = Field(
        10_000,
        description="Milliseconds from a request's head to its answer. Then the answer is 504.",
    )
    body_timeout_ms: Positive = Field(
        8_000,
        description="Milliseconds from a request's head to the end of its body. Then "
        "the answer is 408.",
    )
    batch_timeout_ms: Positive = Field(
        10_000,
        description="Milliseconds from sending a batch to its reply. Then the device host "
        "counts as hung.",
    )
    batch_late_factor: float = Field(
        20,
        ge=0,
        le=1000,
        description="A batch is late, and its device host counts as hung, after this many times "
        "its predicted time, but not within 2 s. 0 leaves only batch_timeout_ms.",
    )
    start_timeout_s: Seconds = Field(
        120,
        description="Seconds until the first device has passed its self-test. Then the "
        "service exits with 1.",
    )
    no_device_grace_s: Seconds = Field(
        60,
        description="Seconds without a ready device after one was ready. Then the service "
        "exits with 1.",
    )
    drain_delay_s: float = Field(
        0,
        ge=0,
        le=86_400,
        description="Seconds from SIGTERM, which makes the service unready, until it stops "
        "accepting connections.",
    )
    drain_timeout_s: Seconds = Field(
        30,
        description="Seconds after the drain delay to answer accepted requests. Then they "
        "are answered with 503.",
    )

    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of serving processes. Each uses its share of the devices.",
    )
    devices: str = Field(
        "all",
        pattern=r"^(all|\d+(,\d+)*)$",
        description="Devices to serve on: all, or ordinals such as 0,1. On the CPU the "
        "ordinals only set the number.",
    )
    model_devices: str | None = Field(
        None,
        pattern=r"^[^=;\s]+=\d+(,\d+)*(;[^=;\s]+=\d+(,\d+)*)*$",
        description="Devices of single models in place of all: NAME=0,1;OTHER=2",
    )
    device_python: str | None = Field(
        None,
        description="Interpreter of the device hosts. Default: for the CPU the interpreter of "
        "the service, for cards the first of python3.7 and python3 that can load "
        "MagicMind.",
    )
    import_timeout_s: Seconds = Field(
        180,
        description="Seconds for an interpreter to load MagicMind and to count the cards. "
        "Then the next interpreter is tried.",
    )
    decode_processes: int = Field(
        0, ge=0, le=256, description="Number of decode processes. 0 uses one for each core."
    )
    max_batch: int = Field(
        0, ge=0, le=1024, description="Maximum batch size. 0 uses the engine's default."
    )
    inflight_per_device: int = Field(
        0,
        ge=0,
        le=16,
        description="Maximum batches in flight per device. 0 uses the engine's default.",
    )
    strict_precision: bool = Field(
        False,
        description="Refuse a device that lacks the artifact's precision, instead of computing in "
        "another one.",
    )
    probe_interval_s: Seconds = Field(
        5, description="Seconds between probes of a ready device. A probe runs one golden row."
    )
    restart_delay_s: Seconds = Field(
        0.5,
        description="Seconds before a failed device is restarted. The delay doubles with "
        "each failure.",
    )
    quarantine_failures: Positive = Field(
        5,
        description="Number of consecutive failures without a passed probe that "
        "quarantines a device.",
    )
    quarantine_s: Seconds = Field(
        60, description="Seconds until a quarantined device is restarted."
    )
    reap_timeout_s: Seconds = Field(
        5,
        description="Seconds for a killed device host to exit. Then its rows are lost "
        "until it exits.",
    )

    server_timing: bool = Field(True, description="Send a Server-Timing header with each answer.")
    access_log: bool = Field(
        False, description="Log a line for each answer, except answers to health checks."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="Format of the log: console, json, or auto (console on a terminal, else json).",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum log level."
    )

    def named_artifact(self) -> Path:
        """Return `artifact`; raise SettingsError if it is not set."""
        if self.artifact is None:
            raise SettingsError(
                "No artifact is named.",
                "Name the folder with --artifact DIR, or a folder of models with --models DIR.",
            )
        return self.artifact

    def tls_files(self) -> CertificateFiles | None:
        """Return the files of the certificate, None without TLS.

        Raise SettingsError if a part is missing.
        """
        certificate, key = self.tls_certificate, self.tls_key
        if certificate and key:
            return CertificateFiles(certificate, key, self.tls_client_ca)
        if certificate or key or self.tls_client_ca:
            missing = [name for name in ("tls_certificate", "tls_key") if not getattr(self, name)]
            raise SettingsError(
                f"TLS needs a certificate and its key; without a value: {', '.join(missing)}.",
                "Set --tls-certificate and --tls-key, or leave out all settings of TLS.",
            )
        return None

    def public_host(self) -> str:
        """Return an address of HTTP that other machines can reach; empty if there is none."""
        hosts = [self.host, *([self.admin_host] if self.admin_port else [])]
        return next(filter(is_public, hosts), "")

    def devices_of(self, model: str) -> str:
        """Return the devices to serve `model` on, as the setting `devices` names them."""
        own = dict(entry.split("=") for entry in (self.model_devices or "").split(";") if entry)
        return own.get(model, self.devices)


def load(flags: Mapping[str, object], file: Path | None = None) -> tuple[Settings, dict[str, str]]:
    """Return the settings, and the source of each: flag, environment, a file's path, or default.

    `flags` are the values on the command line. Raise SettingsError with the first wrong value and
    its place.
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
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name, value = str(first["loc"][0]), first["input"]
        service_link = str(value).startswith("tcp://")
        raise SettingsError(
            f"{_place(name, sources[name])}: {first['msg']}, not {value!r}.",
            _SERVICE_LINK
            if service_link
            else f"Run topfive config --help, which describes {name}.",
        ) from error
    _refuse_contradictions(settings)
    return settings, sources


def url_of(settings: Settings, host: str, port: int) -> str:
    """Return the URL of an address of the service; an IPv6 host is put in brackets."""
    scheme = "https" if settings.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def local_url(settings: Settings, host: str, port: int) -> str:
    """Return the URL by which clients on this machine reach the service that listens there."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return url_of(settings, loopback.get(host, host), port)


def is_public(host: str) -> bool:
    """Return whether clients on other machines can reach an address to listen on."""
    return host != "localhost" and not addresses.is_loopback(host)


def unknown_variables() -> list[str]:
    """Return the variables with our prefix that are not settings.

    They are misspelt, or come from a Kubernetes service link. An empty variable counts as not set.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    ours = (name for name, value in os.environ.items() if name.startswith(PREFIX) and value)
    return sorted(name for name in ours if name not in known)


def _refuse_contradictions(settings: Settings) -> None:
    """Raise SettingsError for settings that are right alone, but not together."""
    if settings.require_keys and settings.keys_file is None:
        raise SettingsError(
            "require_keys is set, and no file of keys is named.",
            "Create one with topfive keys add --file FILE, and name it with --keys-file.",
        )
    if settings.cors_origins == "*" and settings.keys_file:
        raise SettingsError(
            "cors_origins is *, and there are keys: any page could use a key that it has found.",
            "List the origins: --cors-origins https://app.example.org",
        )
    if settings.admin_port and settings.admin_port in (settings.port, settings.grpc_port):
        raise SettingsError(
            f"admin_port is {settings.admin_port}, as another port of the service.",
            "Give the administration a port of its own.",
        )
    if settings.admin_port and settings.admin_socket:
        raise SettingsError(
            "Both admin_port and admin_socket are set.", "Give the administration one address."
        )


def _refuse_empty(source: str, layer: Mapping[str, object]) -> None:
    """Raise SettingsError for an empty flag or line.

    An empty path would mean this folder, and an empty address every address. An empty variable
    counts as not set, so it is not in a layer.
    """
    for name, value in layer.items():
        if value == "":
            remedy = f"Give it a value or remove it. topfive config --help describes {name}."
            raise SettingsError(f"{_place(name, source)} is empty.", remedy)


def _named_file() -> Path | None:
    if named := os.environ.get("TOPFIVE_CONFIG"):
        return Path(named)
    try:
        SYSTEM_FILE.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # the file may exist: reading it raises the error with its reason
    return SYSTEM_FILE


def _read_file(file: Path) -> dict[str, object]:
    remedy = "Name a readable TOML file with --config or TOPFIVE_CONFIG."
    try:
        values = tomllib.loads(disk.read_text(file))
    except OSError as error:
        detail, remedy = disk.unreadable(file, error, remedy)
        raise SettingsError(f"Cannot read {file}: {detail}", remedy) from error
    except ValueError as error:
        raise SettingsError(f"Cannot read {file}: {error}", remedy) from error
    for name in values.keys() - Settings.model_fields.keys():
        raise SettingsError(
            f"{_place(name, str(file))} is not a setting.",
            "Run topfive config, which lists all settings.",
        )
    return values


_SERVICE_LINK = (
    "Kubernetes sets this variable for a Service of that name. Set enableServiceLinks: "
    "false in the pod, or rename the Service."
)


def _place(name: str, source: str) -> str:
    """Return the setting as its source spells it; for a file with path and line."""
    if source == "flag":
        return f"--{name.replace('_', '-')}"
    if source == "environment":
        return PREFIX + name.upper()
    lines = disk.read_text(Path(source)).splitlines()
    key = re.compile(rf"""[\s\["']*{re.escape(name)}\b""")
    at = next((number for number, line in enumerate(lines, 1) if key.match(line)), 1)
    return f"{source}:{at}: {name}"
