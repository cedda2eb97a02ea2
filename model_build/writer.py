"""Writing an artifact: into a temporary folder, synced, read back, renamed.

A build fills a temporary folder beside the output. `write_manifest` completes the folder and reads
it back with the service's reader. Only then is the folder renamed to the output. So the output is
either the old artifact or the whole new one. A build that fails removes its temporary folder. The
folder of a build that was killed is removed by the next build of the same output.
"""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from model_build.targets import BUILD_TARGETS
from service import artifact
from service.artifact import GOLDEN, LABELS, MANIFEST, Manifest, Sdk
from service.errors import ArtifactError, BuildError
from service.system import disk

_OLD = "-old"
# A folder with any other file is not replaced, so that no user's file is removed.
OURS = frozenset({MANIFEST, LABELS, GOLDEN}).union(
    *(target.files for target in BUILD_TARGETS.values())
)


def check_output(output: Path, force: bool) -> None:
    """Raise BuildError if `output` exists and may not be replaced.

    Only an artifact may be replaced, and only with `force`.
    """
    try:
        names = {path.name for path in output.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise BuildError(
            f"The output exists and cannot be replaced: {error.strerror}",
            "Name a new folder as --output.",
            file=str(output),
        ) from error
    except OSError as error:
        raise _unwritable(output, error) from error
    if MANIFEST not in names or names - OURS:
        foreign = ", ".join(sorted(names - OURS)[:3]) or "no manifest"
        raise BuildError(
            f"The folder contains {foreign} and is not an artifact.",
            "Name a new folder as --output.",
            file=str(output),
        )
    if not force:
        raise BuildError(
            "The folder already exists.",
            "Name a new folder as --output, or replace this one with --force.",
            file=str(output),
        )


@contextlib.contextmanager
def aside(output: Path, force: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `output`; rename it to `output` if the block succeeds."""
    output = output.resolve()
    folder = output.with_name(f".{output.name}.partial-{secrets.token_hex(4)}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        folder.mkdir()
        with _lock(folder):
            yield folder
            for path in (*folder.iterdir(), folder):
                _sync(path)
            check_output(output, force)
            _put_in_place(folder, output)
    except OSError as error:
        raise _unwritable(output, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unwritable(output: Path, error: OSError) -> BuildError:
    remedy = "Name an --output in a writable folder with enough space."
    detail, remedy = disk.unwritable(Path(error.filename or output), error, remedy)
    return BuildError(f"The artifact cannot be written: {detail}", remedy, file=str(output))


def write_manifest(
    folder: Path, more_tools: Mapping[str, str], sdk: Sdk | None = None, **fields: Any
) -> Manifest:
    """Write a manifest with `sdk`, `fields` and the tools' versions, and `sign` the folder."""
    tools = {name: metadata.version(name) for name in ("topfive", "openvino", "onnx", "protobuf")}
    tools |= more_tools
    if sdk:
        tools["magicmind"] = sdk.version
    made = Manifest(
        schema=artifact.SCHEMA, version="0" * 12, tools=tools, files={}, sdk=sdk, **fields
    )
    return sign(folder, made)


def sign(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the hashes of the folder's files and the resulting version.

    The artifact is then read as the service reads it. Raise BuildError if this fails.
    """
    files = {path.name: artifact.facts(path) for path in sorted(folder.iterdir())}
    unsigned = manifest.model_copy(update={"files": files})
    manifest = unsigned.model_copy(update={"version": artifact.content_version(unsigned)})
    text = manifest.model_dump_json(by_alias=True, indent=2, exclude_none=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    try:
        return artifact.read(folder).manifest
    except ArtifactError as error:
        raise BuildError(f"The artifact cannot be read back: {error}", error.remedy) from error


@contextlib.contextmanager
def _lock(folder: Path, flags: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock that marks a running build.

    The kernel drops the lock when the process ends.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, flags)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(output: Path) -> None:
    """Remove temporary folders of builds of `output` that were killed."""
    for folder in output.parent.glob(f".{glob.escape(output.name)}.partial-*"):
        if folder.name.endswith(_OLD) and not output.exists():
            folder.rename(output)  # killed between the two renames of `_put_in_place`
            continue
        with contextlib.suppress(BlockingIOError), _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Write the file at `path`, or the names in the folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(folder: Path, output: Path) -> None:
    """Rename `folder` to `output`. An old artifact is first renamed, and removed last."""
    old = folder.with_name(f"{folder.name}{_OLD}")
    replaced = output.exists()
    if replaced:
        output.rename(old)
    try:
        folder.rename(output)
    except BaseException:
        if replaced:
            old.rename(output)
        raise
    _sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)
