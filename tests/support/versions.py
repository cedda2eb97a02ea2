"""New versions of a tiny artifact, right and wrong ones, in the place of the one that is served."""

import json
import shutil
from pathlib import Path

import numpy as np

from service import artifact as artifacts
from tests.support.tiny import write_tiny_artifact


def replace(folder: Path, seed: int, **options: int) -> str:
    """Replace the artifact in `folder` as a whole; return its version."""
    written = write_tiny_artifact(folder.parent / ".new", seed=seed, **options)  # type: ignore[arg-type]
    shutil.rmtree(folder)
    written.rename(folder)
    return artifacts.read_manifest(folder).version


def spoil_golden(folder: Path) -> str:
    """Make the golden answers of an artifact wrong; return its version."""
    with np.load(folder / artifacts.GOLDEN) as arrays:
        found = dict(arrays)
    found["probabilities"] = np.roll(found["probabilities"], 1, axis=1)
    np.savez(folder / artifacts.GOLDEN, **found)
    fields = json.loads((folder / artifacts.MANIFEST).read_text())
    fields["files"][artifacts.GOLDEN] = artifacts.facts(folder / artifacts.GOLDEN).model_dump()
    fields["version"] = artifacts.content_version(artifacts.Manifest.model_validate(fields))
    (folder / artifacts.MANIFEST).write_text(json.dumps(fields))
    return str(fields["version"])
