"""Who may import whom, held by walking the source; and what must not be loaded for a --help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {
    f"service.{name}"
    for name in (
        *("errors", "settings", "images", "resampling", "metrics", "artifact", "sdk", "disk"),
        *("cgroup", "photos", "signals", "descriptors", "process", "command", "targets"),
    )
}
# What a leaf may import beside the errors; of the artifact only its types.
BESIDE_ERRORS = {
    "service.sdk": {"service.process", "service.targets"},
    "service.process": {"service.signals"},
    "service.command": {"service.disk"},
    "service.images": {"service.artifact", "service.resampling"},
    "service.resampling": {"service.artifact"},
    "service.artifact": {"service.disk", "service.targets"},
    "service.settings": {"service.disk"},
    "service.descriptors": {"service.settings"},
}
BELOW_DEVICE = {f"service.core.{name}" for name in ("batcher", "host", "rate", "rows", "request")}
CHILD = "service.core.child_process"

# Down only: beside the leaves, what each module of the service may import of it. A name stands for
# all that is inside it.
MAY_IMPORT = {
    "service.cli": {
        *("service.app", "service.client", "service.evaluation", "service.bench", "service.logs"),
        *("service.doctor", "service.workers"),
    },
    "service.app": {
        *("service.routes", "service.core.model", "service.server", "service.listener"),
        *("service.merging", "service.logs"),
    },
    "service.workers": {"service.listener", "service.turns", "service.logs"},
    "service.worker": {
        *("service.app", "service.server", "service.merging", "service.turns", "service.logs"),
        *("service.listener", "service.core.model", "service.device.parent"),
    },
    "service.merging": set(),
    "service.turns": set(),
    "service.server": {
        *("service.routes", "service.core.model", "service.listener", "service.protocol"),
        "service.connections",
    },
    "service.protocol": {"service.routes", "service.connections"},
    "service.connections": set(),
    "service.listener": set(),
    "service.client": {"service.core.model", "service.core.request"},
    "service.evaluation": {"service.evaluation", "service.client", "service.core.request"},
    "service.bench": {"service.bench", "service.core.trial", "service.core.host"},
    "service.doctor": {"service.doctor", "service.bench", "service.core.trial"},
    "service.logs": {"service.log_writer"},
    "service.log_writer": set(),
    "service.routes": {"service.routes", "service.core.model", "service.core.request"},
    "service.core.model": BELOW_DEVICE
    | {f"service.core.{name}" for name in ("pool", "device", "decoder")},
    "service.core.pool": {"service.core.device"},
    "service.core.device": BELOW_DEVICE,
    "service.core.host": {
        *("service.core.rows", "service.core.request", "service.device.wire", CHILD),
    },
    "service.core.trial": {"service.core.host", "service.core.rows"},
    "service.core.decoder": {
        *("service.core.rows", "service.core.request", "service.decoding", CHILD),
    },
    "service.core.child_process": set(),
    "service.decoding": {"service.device.cores", "service.device.parent"},
    "service.core.batcher": {"service.core.request"},
    "service.core.rate": set(),
    "service.core.rows": set(),
    "service.core.request": set(),
}
# The only places of what is large, or what would turn a room into another one.
HOMES = {
    "fastapi": {"service.app", "service.server", "service.worker", "service.routes"},
    "fastapi_offline": {"service.app"},
    "starlette": {"service.app", "service.routes"},
    "uvicorn": {"service.server", "service.protocol", "service.connections"},
    "python_multipart": {"service.routes"},
    "PIL": {"service.images", "service.resampling"},
    "openvino": {"service.device.engine_openvino", "model_build"},
    "magicmind": {
        *("service.device.engine_magicmind", "service.device.facts", "service.card"),
        "model_build.mlu.compiler",
    },
    "onnx": {"model_build"},
    "google": {"model_build"},
    "httpx": {"service.client", "service.evaluation"},
    "rich": {"service.cli", "service.client", "service.bench", "model_build"},
    "typer": {
        *("service.cli", "model_build.cli", "model_build.options"),
        *("model_build.sweep_cli", "service.bench.cli"),
    },
    "httptools": {"service.bench.connection", "service.protocol"},
    "uvloop": {"service.bench.sweep"},
    "matplotlib": {"service.bench.load_plot"},
    "cv2": {"service.resampling"},
    "cykooz_resizer": {"service.resampling"},
    "onnxruntime": set(),
    "torch": set(),
    "pickle": {"model_build.demo"},
}
DEVICE = ROOT / "service" / "device"
CARD = ROOT / "service" / "card"


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def inside(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def imports(file: Path) -> set[str]:
    """The modules that are imported anywhere in `file`, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{file}:{node.lineno}: a relative import"
            found |= {_module(node.module, alias.name) for alias in node.names}
    return found


def _module(package: str, name: str) -> str:
    """The module `package.name` where that is one of ours, else `package`."""
    path = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.with_suffix(".py").is_file() or path.is_dir() else package


SERVICE = sorted(
    file for file in (ROOT / "service").rglob("*.py") if not {DEVICE, CARD} & set(file.parents)
)
BUILD = sorted((ROOT / "model_build").rglob("*.py"))
HOST = sorted(DEVICE.glob("*.py"))
QUESTIONS = sorted(CARD.glob("*.py"))


def ours(file: Path) -> set[str]:
    return {name for name in imports(file) if name.split(".")[0] in ("service", "model_build")}


@pytest.mark.parametrize("file", SERVICE, ids=name_of)
def test_the_service_imports_downwards(file: Path) -> None:
    """A leaf imports errors alone; any other module leaves and what stands below it."""
    name = name_of(file)
    if file.stat().st_size == 0:
        return
    if name in LEAVES:
        assert ours(file) <= {"service.errors"} | BESIDE_ERRORS.get(name, set())
        return
    rooms = [room for room in MAY_IMPORT if inside(name, {room})]
    assert rooms, f"{name} has no place in MAY_IMPORT"
    allowed = LEAVES.union(*(MAY_IMPORT[room] for room in rooms))
    strays = {imported for imported in ours(file) if not inside(imported, allowed)}
    assert not strays, f"{name} may not import {strays}"


# What runs a device, measures it, or reads label files.
MEASURING = {
    "model_build.comparison": {"service.core.trial"},
    "model_build.scoring": {"service.evaluation.labels", "service.evaluation.results"},
    "model_build.sweep": {"service.bench.device", "service.evaluation"},
}


@pytest.mark.parametrize("file", BUILD, ids=name_of)
def test_the_build_imports_the_contract_alone(file: Path) -> None:
    """Of the service the build knows the artifact, the preprocessing and the errors; and how many
    cores there are."""
    contract = {
        "model_build",
        "service.cgroup",
        "service.artifact",
        "service.images",
        "service.errors",
        "service.sdk",
        "service.disk",
        "service.photos",
        "service.command",
        "service.targets",
    }
    contract |= MEASURING.get(name_of(file), set())
    assert {name for name in ours(file) if not inside(name, contract)} == set()


@pytest.mark.parametrize("file", SERVICE + BUILD + HOST + QUESTIONS, ids=name_of)
def test_every_library_has_its_home(file: Path) -> None:
    """No FastAPI in the core, no Pillow but in the one preprocessing, no OpenVINO but for hosts."""
    for imported in imports(file):
        homes = HOMES.get(imported.split(".")[0])
        assert homes is None or inside(name_of(file), homes), f"{imported} in {name_of(file)}"


@pytest.mark.parametrize("file", HOST, ids=name_of)
def test_the_device_folder_stands_alone(file: Path) -> None:
    """A host knows the standard library, numpy, its own flat modules, and its engine its SDK."""
    flat = {module.stem for module in HOST}
    for imported in imports(file):
        top = imported.split(".")[0]
        if top in ("openvino", "magicmind"):
            assert file.stem == f"engine_{top}" or file.stem == "facts", imported
        else:
            assert top == "numpy" or top in flat or top in sys.stdlib_module_names, imported


@pytest.mark.parametrize("file", QUESTIONS, ids=name_of)
def test_the_questions_to_a_card_stand_alone(file: Path) -> None:
    """They know the standard library, numpy, the SDK and their own flat modules."""
    known = {module.stem for module in QUESTIONS} | {"numpy", "magicmind"}
    tops = {imported.split(".")[0] for imported in imports(file)}
    assert tops - sys.stdlib_module_names <= known


def test_the_compiler_stands_alone() -> None:
    """It knows the standard library, numpy and the SDK, and nothing is beside it to be imported."""
    [file] = (ROOT / "model_build" / "mlu" / "compiler").glob("*.py")
    tops = {imported.split(".")[0] for imported in imports(file)}
    assert tops - sys.stdlib_module_names == {"numpy", "magicmind"}


@pytest.mark.parametrize("flat", [HOST, QUESTIONS], ids=["device", "card"])
def test_no_module_of_a_flat_folder_hides_a_library(flat: list[Path]) -> None:
    """Its folder is first on the path of what runs there: no module may be called as a package."""
    names = {module.stem for module in flat} - {"__main__"}
    assert not names & ({"numpy", "openvino", "magicmind"} | sys.stdlib_module_names)


@pytest.mark.parametrize(
    "folder", ["service/device", "service/card", "model_build/mlu/compiler", "tests37"]
)
def test_python_3_7_can_read_it(folder: str) -> None:
    """The SDK's interpreter runs it: vermin finds nothing newer than 3.7."""
    vermin = str(Path(sys.executable).with_name("vermin"))
    options = ["--no-tips", "--no-parse-comments", "--violations", "-t=3.7-"]
    answer = subprocess.run(
        [vermin, *options, folder], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout


HELP = """
import sys
from {package}.cli import main
sys.argv = ["command", "--help"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
print(*sys.modules, file=sys.stderr)
"""
HEAVY = {
    *("numpy", "openvino", "onnx", "google.protobuf", "PIL", "cv2", "fastapi", "starlette"),
    *("uvicorn", "httpx", "rich.table", "prometheus_client", "service.app"),
    *("httptools", "uvloop", "matplotlib"),
}


@pytest.mark.parametrize("package", ["service", "model_build"])
def test_help_loads_nothing_heavy(package: str) -> None:
    """`topfive --help` and `topfive-build --help` answer without the libraries that they use."""
    answer = subprocess.run(
        [sys.executable, "-c", HELP.format(package=package)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "Usage" in answer.stdout
    assert HEAVY & set(answer.stderr.split()) == set()
