"""What is called of the SDK is listed in the public record, and the simulator has nothing else."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

from tests.support.magicmind import SIMULATOR, SimulatedSdk, confidences
from tests.support.paths import ROOT

OURS = sorted(
    {
        *(ROOT / "service" / "device_host").glob("*.py"),
        *(ROOT / "service" / "tools" / "doctor" / "card").glob("*.py"),
        *(ROOT / "model_build" / "mlu" / "compiler").glob("*.py"),
    }
)


def test_the_surface_is_the_reference(data_folder: Path) -> None:
    """The project's copy of the SDK's surface is the one of the shared reference."""
    reference = data_folder.parent / "reference" / "magicmind-api-surface.json"
    assert json.loads((SIMULATOR / "surface.json").read_text()) == json.loads(reference.read_text())


def chains(file: Path) -> set[str]:
    """`A` or `A.b` for each `mm.A` or `mm.A.b` in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if names and isinstance(node, ast.Name) and node.id == "mm":
            found.add(".".join(names[::-1]))
    return found


@pytest.mark.parametrize("file", OURS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_name_is_listed(file: Path) -> None:
    """Whatever is taken out of the SDK's module is in the surface, a class or its member."""
    listed = set(confidences())
    classes = {name.rpartition(".")[0] for name in listed}
    assert {chain for chain in chains(file) if chain not in listed | classes} == set()


MEMBERS = """
import json, sys
import magicmind.python.runtime as mm
from magicmind._sim import building, devices, running, values
rooms = (building, devices, running, values)
print(json.dumps({
    name: sorted(member for member in type.__getattribute__(kind, "__dict__")
                 if not member.startswith("_"))
    for room in rooms for name, kind in vars(room).items()
    if isinstance(kind, type) and type.__getattribute__(kind, "__module__").startswith("magicmind")
    and name in %r
}))
print(sorted(name for name in vars(mm) if not name.startswith("_")))
"""


def test_the_simulator_has_the_surface_alone(magicmind: SimulatedSdk) -> None:
    """No public member of a class of the simulator is missing in the surface; nor an import."""
    surface = json.loads((SIMULATOR / "surface.json").read_text())["magicmind.python.runtime"]
    script = MEMBERS % sorted(surface)
    said = subprocess.run(
        [magicmind.python, "-E", "-s", "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name, members in json.loads(said[0]).items():
        assert set(members) <= set(surface[name]["members"]), name
    importable = {name for name, facts in surface.items() if facts.get("importable")}
    assert set(ast.literal_eval(said[1])) <= importable | {"parser"}
    missing = importable - set(ast.literal_eval(said[1]))
    assert {name for name in missing if "." not in name} == set()
