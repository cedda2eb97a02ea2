"""Who may import whom, held by walking the source; and what must not be loaded for a --help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LEAVES = {
    f"service.{name}"
    for name in (
        *("errors", "settings", "images", "resampling", "metrics", "artifact", "sdk", "disk"),
        *("cgroup", "photos", "signals", "descriptors", "process", "command"),
    )
}
# What a leaf may import beside the errors; of the artifact only its types.
BESIDE_ERRORS = {
    "service.sdk": {"service.system.process"},
    "service.system.process": {"service.system.signals"},
    "service.command": {"service.system.disk"},
    "service.decoding.images": {"service.artifact", "service.decoding.resampling"},
    "service.decoding.resampling": {"service.artifact"},
    "service.artifact": {"service.system.disk"},
    "service.settings": {"service.system.disk"},
    "service.system.descriptors": {"service.settings"},
}
BELOW_DEVICE = {f"service.core.{name}" for name in ("batcher", "host", "rate", "rows", "request")}
CHILD = "service.core.child_process"

# Down only: beside the leaves, what each module of the service may import of it. A name stands for
# all that is inside it.
MAY_IMPORT = {
    "service.cli": {
        *(
            "service.server.app",
            "service.tools.client",
            "service.tools.evaluation",
            "service.tools.bench",
            "service.telemetry.logs",
        ),
        *("service.tools.doctor", "service.server.supervisor"),
    },
    "service.server.app": {
        *(
            "service.routes",
            "service.core.model",
            "service.server.uvicorn_server",
            "service.server.listener",
        ),
        *("service.server.metrics_merge", "service.telemetry.logs"),
    },
    "service.server.supervisor": {
        "service.server.listener",
        "service.server.turns",
        "service.telemetry.logs",
    },
    "service.server.worker": {
        *(
            "service.server.app",
            "service.server.uvicorn_server",
            "service.server.metrics_merge",
            "service.server.turns",
            "service.telemetry.logs",
        ),
        *("service.server.listener", "service.core.model", "service.device_host.parent"),
    },
    "service.server.metrics_merge": set(),
    "service.server.turns": set(),
    "service.server.uvicorn_server": {
        *(
            "service.routes",
            "service.core.model",
            "service.server.listener",
            "service.server.uvicorn_protocol",
        ),
        "service.server.connections",
    },
    "service.server.uvicorn_protocol": {"service.routes", "service.server.connections"},
    "service.server.connections": set(),
    "service.server.listener": set(),
    "service.tools.client": {"service.core.model", "service.core.request"},
    "service.tools.evaluation": {
        "service.tools.evaluation",
        "service.tools.client",
        "service.core.request",
    },
    "service.tools.bench": {
        "service.tools.bench",
        "service.core.device_session",
        "service.core.host_process",
    },
    "service.tools.doctor": {
        "service.tools.doctor",
        "service.tools.bench",
        "service.core.device_session",
    },
    "service.telemetry.logs": {"service.telemetry.log_writer"},
    "service.telemetry.log_writer": set(),
    "service.routes": {"service.routes", "service.core.model", "service.core.request"},
    "service.core.model": BELOW_DEVICE
    | {f"service.core.{name}" for name in ("pool", "device", "decoder")},
    "service.core.device_pool": {"service.core.device"},
    "service.core.device": BELOW_DEVICE,
    "service.core.host_process": {
        *("service.core.rows", "service.core.request", "service.device_host.wire", CHILD),
    },
    "service.core.device_session": {"service.core.host_process", "service.core.rows"},
    "service.core.decode_pool": {
        *("service.core.rows", "service.core.request", "service.decoding.worker", CHILD),
    },
    "service.core.child_process": set(),
    "service.decoding.worker": {"service.device_host.cores", "service.device_host.parent"},
    "service.core.batcher": {"service.core.request"},
    "service.core.throughput": set(),
    "service.core.rows": set(),
    "service.core.request": set(),
}
# The only places of what is large, or what would turn a room into another one.
HOMES = {
    "fastapi": {
        "service.server.app",
        "service.server.uvicorn_server",
        "service.server.worker",
        "service.routes",
    },
    "fastapi_offline": {"service.server.app"},
    "starlette": {"service.server.app", "service.routes"},
    "uvicorn": {
        "service.server.uvicorn_server",
        "service.server.uvicorn_protocol",
        "service.server.connections",
    },
    "python_multipart": {"service.routes"},
    "PIL": {"service.decoding.images", "service.decoding.resampling"},
    "openvino": {"service.device_host.engine_openvino", "model_build"},
    "magicmind": {
        *(
            "service.device_host.engine_magicmind",
            "service.device_host.facts",
            "service.tools.doctor.card",
        ),
        "model_build.sdk",
    },
    "onnx": {"model_build"},
    "google": {"model_build"},
    "httpx": {"service.tools.client", "service.tools.evaluation"},
    "rich": {"service.cli", "service.tools.client", "service.tools.bench", "model_build"},
    "typer": {
        *("service.cli", "model_build.cli", "model_build.options"),
        *("model_build.sweep_cli", "service.tools.bench.cli"),
    },
    "httptools": {"service.tools.bench.connection", "service.server.uvicorn_protocol"},
    "uvloop": {"service.tools.bench.sweep"},
    "matplotlib": {"service.tools.bench.load_plot"},
    "cv2": {"service.decoding.resampling"},
    "cykooz_resizer": {"service.decoding.resampling"},
    "onnxruntime": set(),
    "torch": set(),
    "pickle": {"model_build.demo"},
}
DEVICE = ROOT / "service" / "device_host"
CARD = ROOT / "service" / "tools" / "doctor" / "card"


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
    "model_build.verify": {"service.core.device_session"},
    "model_build.scoring": {"service.tools.evaluation.labels", "service.tools.evaluation.results"},
    "model_build.sweep": {"service.tools.bench.device", "service.tools.evaluation"},
}


@pytest.mark.parametrize("file", BUILD, ids=name_of)
def test_the_build_imports_the_contract_alone(file: Path) -> None:
    """Of the service the build knows the artifact, the preprocessing and the errors; and how many
    cores there are."""
    contract = {
        "model_build",
        "service.system.cgroup",
        "service.artifact",
        "service.decoding.images",
        "service.errors",
        "service.sdk",
        "service.system.disk",
        "service.decoding.image_files",
        "service.command",
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
    [file] = (ROOT / "model_build" / "sdk").glob("*.py")
    tops = {imported.split(".")[0] for imported in imports(file)}
    assert tops - sys.stdlib_module_names == {"numpy", "magicmind"}


@pytest.mark.parametrize("flat", [HOST, QUESTIONS], ids=["device", "card"])
def test_no_module_of_a_flat_folder_hides_a_library(flat: list[Path]) -> None:
    """Its folder is first on the path of what runs there: no module may be called as a package."""
    names = {module.stem for module in flat} - {"__main__"}
    assert not names & ({"numpy", "openvino", "magicmind"} | sys.stdlib_module_names)


@pytest.mark.parametrize(
    "folder", ["service/device_host", "service/tools/doctor/card", "model_build/sdk", "tests/py37"]
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
    *("uvicorn", "httpx", "rich.table", "prometheus_client", "service.server.app"),
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
