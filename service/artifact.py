"""The artifact: the contract between the build and the service.

An artifact is a folder. The build writes it, and all other programs only read it:

    manifest.json   the model, its input and output, and the hash of every other file
    model.xml+.bin  the compiled model: OpenVINO IR; or model.mm, a MagicMind model
    labels.txt      a line for each class: its names; before them its wnid and a space, if any
    golden.npz      rows (uint8 N,H,W,3), probabilities (float32 N,classes), tolerance (float32),
                    same_top1 (bool)

`read` verifies the whole folder before the model runs: the schema, every hash and size, every
shape. It raises ArtifactError for anything unknown or wrong.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ArtifactError
from service.system import disk
from service.targets import SERVED_TARGETS, ServedTarget

SCHEMA = 2
"""Schema that the build writes. Schema 1, with one resampling and only wnids, is still read."""
MANIFEST = "manifest.json"
LABELS = "labels.txt"
GOLDEN = "golden.npz"

# Names that the inference protocols use as path segments cannot name a model.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
RESERVED_NAMES = frozenset({"stats", "ready", "infer", "config"})

Color = Literal["rgb", "bgr"]
Resample = Literal["opencv-bilinear", "bilinear", "bicubic", "lanczos"]
Precision = Literal[
    "force_float32",
    "force_float16",
    "force_bfloat16",
    "qint8_mixed_float16",
    "qint8_mixed_float32",
    "qint8_mixed_bfloat16",
]


def _plain_name(value: str) -> str:
    if value in ("", ".", "..") or Path(value).name != value:
        raise ValueError(f"{value!r} is not a plain file name.")
    return value


def check_model_name(value: str) -> str:
    """Return `value` if it can name a model in a URL and a metric; else raise ValueError."""
    if not NAME.fullmatch(value) or value in RESERVED_NAMES:
        raise ValueError(
            f"{value!r} cannot name a model: a name has 1 to 63 letters, digits, '.', "
            "'_' or '-', begins with a letter or digit, and is none of "
            f"{', '.join(sorted(RESERVED_NAMES))}."
        )
    return value


def _known_target(value: str) -> str:
    if value not in SERVED_TARGETS:
        known = " or ".join(repr(name) for name in SERVED_TARGETS)
        raise ValueError(f"{value!r} is not a target; expected {known}.")
    return value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileFacts(_Part):
    """The hash and the size of a file."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Source(_Part):
    """The files from which the artifact was built."""

    kind: Literal["caffe", "onnx"]
    files: dict[str, FileFacts]


class Batch(_Part):
    """The number of rows in one batch: from `min` to `max`. A static model has min = max."""

    min: Annotated[int, Field(ge=1)]
    max: Annotated[int, Field(ge=1)]


class Input(_Part):
    """The input of the model. One row is uint8, height x width x 3, RGB."""

    name: str
    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    channels: Literal[3] = 3
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    batch: Batch


class Output(_Part):
    """The output of the model: one probability for each class, float32."""

    name: str
    classes: Annotated[int, Field(ge=1)]
    softmax_added: bool
    """Whether the build appended a softmax to a network that ended in scores."""


class Inside(_Part):
    """The preprocessing in the compiled model: reorder to `color`, then (x - mean) / std."""

    color: Color
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Preprocessing(_Part):
    """The preprocessing from an image file to a row.

    The short side is scaled to `resize` by `resample`, with the long side rounded down. Then the
    centre is cropped.
    """

    resize: Annotated[int, Field(ge=1)]
    crop: tuple[int, int]
    """Height and width of the input."""
    resample: Resample
    """See service/decoding/resampling.py. In schema 1 it is always "bilinear"."""
    color: Literal["rgb"] = "rgb"
    inside: Inside


class Calibration(_Part):
    """The calibration that found the value ranges for int8."""

    images: Annotated[int, Field(ge=1)]
    algorithm: Literal["linear", "eqnm"]
    weight_granularity: Literal["per_tensor", "per_axis"]
    accuracy_aware: Literal[True] | None = None
    """True if layers were kept in float because int8 lost too much top-1."""


class Sdk(_Part):
    """The SDK and the configuration with which a MagicMind model was compiled."""

    version: str
    """Version of MagicMind. An SDK of another major.minor refuses the model."""
    frontend: Literal["caffe", "onnx"]
    """The parser that read the network."""
    config: dict[str, Any]
    """The whole builder configuration: archs, precision, dim_range, layouts."""
    calibration: Calibration | None = None


class Manifest(_Part):
    """The content of manifest.json."""

    schema_version: Literal[1, 2] = Field(alias="schema")
    name: Annotated[str, AfterValidator(check_model_name)]
    version: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    target: Annotated[str, AfterValidator(_known_target)]
    precision: Precision
    precision_note: str
    """How the target's engine computes in this precision."""
    engine: str
    model: Annotated[str, AfterValidator(_plain_name)]
    """The file that the engine opens."""
    source: Source
    tools: dict[str, str]
    sdk: Sdk | None = None
    """Only for a model for cards."""
    calibration: Calibration | None = None
    """Only for an int8 model for the CPU; that of cards is in `sdk`."""
    input: Input
    output: Output
    preprocessing: Preprocessing
    label_order: str
    files: dict[Annotated[str, AfterValidator(_plain_name)], FileFacts]

    @property
    def served_target(self) -> ServedTarget:
        """Return the row of the target."""
        return SERVED_TARGETS[self.target]

    @property
    def resample_note(self) -> str:
        """Return a note for users of an artifact of schema 1; empty for later schemas."""
        if self.schema_version > 1:
            return ""
        return (
            "schema 1: images are scaled by antialiased bilinear, with which the artifact was "
            "verified; a rebuild with the network's own --preprocess may gain points of top-1"
        )

    @model_validator(mode="after")
    def _resample_of_schema_1(self) -> Self:
        if self.schema_version == 1 and self.preprocessing.resample != "bilinear":
            raise ValueError("Schema 1 has only the resampling 'bilinear'.")
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        row = self.served_target
        if (self.engine, self.sdk is not None) != (row.engine, row.needs_sdk):
            rest = " and has 'sdk'" if row.needs_sdk else ", without 'sdk'"
            raise ValueError(f"Target {row.name} goes with engine {row.engine}{rest}.")
        return self


@dataclass(frozen=True)
class Label:
    """The names of a class, and its WordNet id if it has one."""

    wnid: str | None
    names: str

    def members(self) -> dict[str, str]:
        """Return the members of a prediction; `wnid` is absent if the class has none."""
        return ({"wnid": self.wnid} if self.wnid else {}) | {"label": self.names}


@dataclass(frozen=True)
class Golden:
    """The golden rows, and the probabilities that a device must answer.

    `tolerance` is the largest difference of a probability that counts as right.
    """

    rows: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    tolerance: float
    same_top1: bool
    """Whether the most likely class of each row must be the golden one: see `fault`."""

    def deviation(self, answers: NDArray[np.float32]) -> float:
        """Return the largest difference of `answers` (N,classes) from the golden ones, or NaN."""
        return float(np.abs(answers - self.probabilities).max())

    def fault(self, answers: NDArray[np.float32]) -> str:
        """Return the fault of a device's `answers` (N,classes) as text; empty if they are right.

        With `same_top1` the most likely class of a row may be another one only if its golden
        probability is within `tolerance` of the largest one.
        """
        deviation = self.deviation(answers)
        if np.isnan(deviation):
            return "some outputs are not numbers"
        if deviation > self.tolerance:
            return (
                f"the largest difference is {deviation:.2g} and the tolerance is "
                f"{self.tolerance:.2g}"
            )
        places = np.arange(len(answers))
        found, right = answers.argmax(axis=1), self.probabilities.argmax(axis=1)
        lost = self.probabilities[places, right] - self.probabilities[places, found]
        if self.same_top1 and (lost > self.tolerance).any():
            row = int(lost.argmax())
            return f"the first class of row {row} is {found[row]} instead of {right[row]}"
        return ""


@dataclass(frozen=True)
class Artifact:
    """A verified artifact."""

    path: Path
    manifest: Manifest
    labels: tuple[Label, ...]
    golden: Golden
    marks: Mapping[str, "_Mark | None"] = field(default_factory=dict)
    """The mark of each file at the time of its verification."""
    accuracy: dict[str, Any] | None = None
    """The members of /model that tell its accuracy; see accuracy.py."""

    @property
    def model_path(self) -> Path:
        return self.path / self.manifest.model

    def named(self, name: str) -> "Artifact":
        """Return the artifact under another name; its version stays that of its content."""
        return replace(self, manifest=self.manifest.model_copy(update={"name": name}))

    def check_model_unchanged(self) -> None:
        """Raise ArtifactError if a file that the engine opens was changed since it was verified.

        A file with another mark is read: it counts as unchanged if its hash is the same.
        """
        for name, expected in self.manifest.files.items():
            file, mark = self.path / name, self.marks.get(name)
            if file.stem != self.model_path.stem or (mark and mark == _mark(file)):
                continue
            _, found = _read_file(file)
            if found != expected:
                manifest = self.manifest
                raise ArtifactError(
                    f"The files of {self.path} do not match the manifest that was read "
                    f"({manifest.name} {manifest.version}): "
                    f"{_mismatch(file, found, expected)}",
                    "Reload the service to serve the artifact that is in the folder now.",
                )


_Mark = tuple[int, int, int, int]
"""Device, inode, size and modification time: they show that a file was replaced without a read."""


def _mark(path: Path) -> _Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def facts(path: Path) -> FileFacts:
    """Return the SHA-256 and the size in bytes of the file at `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(sha256=digest, size=path.stat().st_size)


def content_version(manifest: Manifest) -> str:
    """Return the first 12 hex digits of the SHA-256 over the manifest without its version."""
    # Fields that are None are left out, so that a new field does not change older artifacts.
    content = manifest.model_dump(
        mode="json", by_alias=True, exclude={"version"}, exclude_none=True
    )
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def read(path: Path) -> Artifact:
    """Verify the artifact in the folder `path` and return it; else raise ArtifactError."""
    manifest = read_manifest(path)
    marks = {name: _verify_file(path / name, expected) for name, expected in manifest.files.items()}
    missing = {manifest.model, LABELS, GOLDEN} - manifest.files.keys()
    if missing:
        raise ArtifactError(
            f"{path / MANIFEST}: 'files' does not list {', '.join(sorted(missing))}.", _REBUILD
        )
    labels = read_labels(path / LABELS)
    if len(labels) != manifest.output.classes:
        raise ArtifactError(
            f"{path / LABELS} has {len(labels)} labels for {manifest.output.classes} classes.",
            _REBUILD,
        )
    return Artifact(path, manifest, labels, _read_golden(path / GOLDEN, manifest), marks)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the artifact in `path`, with its fields checked but not its files."""
    file = path / MANIFEST
    try:
        text = file.read_bytes()
    except OSError as error:
        name_it = "Name the folder that topfive-build wrote (its --output)."
        raise _unreadable(file, error, name_it) from error
    try:
        schema = json.loads(text)["schema"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{file} is not the manifest of an artifact.", _REBUILD) from error
    if schema not in (1, SCHEMA):
        raise ArtifactError(
            f"{file} has schema {schema!r}; this version of topfive reads schemas 1 and {SCHEMA}.",
            "Build the artifact again with the topfive-build of this version, or serve "
            "it with the version that built it.",
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        fault = f"{place}: {reason}" if place else reason
        raise ArtifactError(f"{file}: {fault}", _REBUILD) from error
    if manifest.version != content_version(manifest):
        raise ArtifactError(
            f"{file}: the version {manifest.version} does not match the content "
            f"({content_version(manifest)}): the manifest was changed.",
            _REBUILD,
        )
    return manifest


def read_labels(file: Path) -> tuple[Label, ...]:
    """Return the labels of a text file, which has a line for each class.

    A line has the names of the class, and before them its wnid and a space, if any. Empty lines at
    the end are ignored.
    """
    try:
        lines = disk.read_text(file).rstrip().splitlines()
    except OSError as error:
        detail, remedy = disk.unreadable(file, error, LABEL_FORM)
        raise ArtifactError(f"Cannot read labels from {file}: {detail}", remedy) from error
    except ValueError as error:
        raise ArtifactError(f"Cannot read labels from {file}: {error}", LABEL_FORM) from error
    labels = []
    for number, line in enumerate(lines, 1):
        if (label := _label(line.strip())) is None:
            raise ArtifactError(f"{file}: line {number}: {line[:60]!r} is not a label.", LABEL_FORM)
        labels.append(label)
    return tuple(labels)


def _label(line: str) -> Label | None:
    """Return the label of the line; None for an empty line or an incomplete wnid."""
    if found := re.fullmatch(r"(n\d{8})\s+(.+)", line):
        return Label(*found.groups())
    # A line that begins like a wnid is a mistyped wnid, and not the name of a class.
    return Label(None, line) if line and not re.match(r"n\d{6}", line) else None


LABEL_FORM = (
    "Give a text with one line for each class: its names, or its wnid (n and eight "
    "digits), a space and its names."
)
_REBUILD = "Copy the artifact again, or build it again with topfive-build."


def _unreadable(path: Path, error: OSError, remedy: str) -> ArtifactError:
    detail, remedy = disk.unreadable(path, error, remedy, whole=path.parent)
    return ArtifactError(f"{path}: {detail}", remedy)


def _verify_file(path: Path, expected: FileFacts) -> _Mark | None:
    """Return the mark of a file that matches the manifest; else raise ArtifactError."""
    mark, found = _read_file(path)
    if found != expected:
        raise ArtifactError(_mismatch(path, found, expected), _REBUILD)
    return mark


def _read_file(path: Path) -> tuple[_Mark | None, FileFacts]:
    """Return the mark, hash and size of a regular file; raise ArtifactError if it is unreadable."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # another kind may have no end
            raise ArtifactError(f"{path} is not a regular file.", _REBUILD)
        return _mark(path), facts(path)
    except OSError as error:
        raise _unreadable(path, error, _REBUILD) from error


def _mismatch(path: Path, found: FileFacts, expected: FileFacts) -> str:
    return (
        f"{path} has {found.size} bytes with SHA-256 {found.sha256}; the manifest lists "
        f"{expected.size} bytes with {expected.sha256}."
    )


def _read_golden(path: Path, manifest: Manifest) -> Golden:
    row_shape = (manifest.input.height, manifest.input.width, manifest.input.channels)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows, probabilities = arrays["rows"], arrays["probabilities"]
            tolerance = float(arrays["tolerance"])
            same_top1 = bool(arrays["same_top1"]) if "same_top1" in arrays else False
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise ArtifactError(f"{path} does not contain golden rows: {error}", _REBUILD) from error
    right = (
        rows.dtype == np.uint8
        and rows.shape[1:] == row_shape
        and len(rows) >= 1
        and probabilities.dtype == np.float32
        and probabilities.shape == (len(rows), manifest.output.classes)
        and np.isfinite(probabilities).all()
        and 0 < tolerance < 1
    )
    if not right:
        raise ArtifactError(
            f"{path}: rows {rows.dtype}{rows.shape} and probabilities "
            f"{probabilities.dtype}{probabilities.shape} (tolerance {tolerance}) do not "
            f"fit a model with rows of {row_shape} and {manifest.output.classes} classes.",
            _REBUILD,
        )
    return Golden(rows, probabilities, tolerance, same_top1)
