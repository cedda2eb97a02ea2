"""Who may import whom, held by walking the source; and what must not be loaded for a --help."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import structure
from scripts.structure import ROOT, imports, name_of

# Down only: what each room at the top of service/ may import of it, beside itself.
FOR_ALL = {
    "accuracy",
    "errors",
    "targets",
    "settings",
    "artifact",
    "keys",
    "sdk",
    "system",
    "telemetry",
}
MAY_IMPORT = {
    "errors": set(),
    "targets": set(),
    "system": {"errors"},
    "telemetry": {"errors"},
    "settings": {"errors", "system"},
    "keys": {"errors", "settings", "system"},
    "accuracy": {"errors", "system"},
    "artifact": {"errors", "system", "targets"},
    "sdk": {"errors", "system", "targets"},
    "command": {"errors", "system"},
    "decoding": {"errors", "system", "artifact", "device_host"},
    "core": FOR_ALL | {"decoding", "device_host"},
    "api": FOR_ALL | {"core", "decoding"},
    "server": FOR_ALL | {"api", "core", "device_host"},
    "tools": FOR_ALL | {"core", "decoding"},
    "cli": FOR_ALL | {"command", "server", "tools"},
}
# Modules inside a room, with what they may import besides what is for all.
INSIDE = {
    "service.core.classification": set(),
    "service.core.rows": set(),
    "service.core.throughput": set(),
    "service.core.child_process": set(),
    "service.core.library": set(),
    "service.core.arbiter": {
        *("service.core.batcher", "service.core.request", "service.core.throughput"),
    },
    "service.core.request": {"service.core.classification"},
    "service.core.batcher": {"service.core.request"},
    "service.core.statistics": {"service.core.request", "service.core.throughput"},
    "service.core.host_process": {
        *("service.core.child_process", "service.core.request", "service.core.rows"),
        *("service.core.throughput", "service.device_host.wire"),
    },
    "service.core.device_session": {
        *("service.core.host_process", "service.core.rows", "service.core.throughput"),
    },
    # The V2 protocol is shared by all transports, and knows none.
    "service.api.access": set(),
    "service.api.images": {"service.core"},
    "service.api.v2.messages": set(),
    "service.api.v2.tensors": {"service.api.v2.messages"},
    "service.api.v2.inference": {"service.api.images", "service.api.v2", "service.core"},
    "service.api.v2.descriptions": {"service.api.v2", "service.core"},
    "service.api.v2.repository": {"service.api.v2", "service.core"},
    "service.server.channel": set(),
    "service.server.listener": set(),
    "service.server.connections": set(),
    "service.server.metrics_merge": set(),
    # The parent of workers loads no web framework.
    "service.server.supervisor": {
        *("service.server.channel", "service.server.listener"),
        *("service.core.child_process", "service.core.library"),
    },
    "service.tools.client": {
        *("service.core.classification", "service.core.local_model", "service.tools.trust"),
    },
    "service.tools.trust": set(),
    "service.server.tls": {"service.server.connections", "service.server.listener"},
    "service.server.transport": set(),
}
# What the service's interpreter may know of the device host's folder.
SHARED_WITH_THE_HOST = {
    "service.device_host.wire",
    "service.device_host.parent",
    "service.device_host.cores",
}
# The only places of what is large, or what would turn a room into another one.
HOMES = {
    "fastapi": {
        "service.server.app",
        "service.server.uvicorn_server",
        "service.server.worker",
        "service.api.http",
    },
    "fastapi_offline": {"service.server.app"},
    "starlette": {"service.server.app", "service.api.http"},
    "uvicorn": {
        "service.server.uvicorn_server",
        "service.server.uvicorn_protocol",
        "service.server.uvicorn_cycle",
    },
    "python_multipart": {"service.api.http"},
    "PIL": {"service.decoding.images", "service.decoding.resampling"},
    "openvino": {"service.device_host.engine_openvino", "model_build"},
    "magicmind": {
        *(
            "service.device_host.engine_magicmind",
            "service.device_host.facts",
            "service.tools.doctor.card",
        ),
        "model_build.mlu.compiler",
    },
    "onnx": {"model_build"},
    "google": {"model_build", "service.api.grpc"},
    "grpc": {"service.api.grpc", "service.server.grpc_server"},
    "grpc_health": {"service.server.grpc_server"},
    "grpc_reflection": {"service.server.grpc_server"},
    "grpc_tools": set(),
    "httpx": {
        *("service.api.http.fetch", "service.tools.client", "service.tools.sources"),
        "service.tools.reload",
    },
    "rich": {"service.cli", "service.tools.client", "service.tools.bench", "model_build"},
    "typer": {
        *("service.cli", "model_build.cli", "model_build.options", "model_build.int8_options"),
        *("model_build.sweep_cli", "service.tools.bench.cli", "service.tools.keys_cli"),
    },
    "httptools": {"service.tools.bench.connection", "service.server.uvicorn_protocol"},
    "uvloop": {"service.tools.bench.sweep"},
    "matplotlib": {"service.tools.bench.load_plot"},
    "cv2": {"service.decoding.resampling"},
    "cykooz_resizer": {"service.decoding.resampling"},
    "simplejpeg": {"service.decoding.images"},
    "nncf": {"model_build.int8.quantizer"},
    "pyarrow": {"service.tools.bulk.parquet"},
    "openvino_telemetry": set(),
    "onnxruntime": set(),
    "torch": set(),
    "pickle": {"model_build.demo"},
}
DEVICE = ROOT / "service" / "device_host"
CARD = ROOT / "service" / "tools" / "doctor" / "card"


SERVICE = [file for file in structure.modules() if ROOT / "service" in file.parents]
BUILD = [file for file in structure.modules() if ROOT / "model_build" in file.parents]
HOST = sorted(DEVICE.glob("*.py"))
QUESTIONS = sorted(CARD.glob("*.py"))
CLIENT = sorted((ROOT / structure.CLIENT / "topfive_client").glob("*.py"))
COMPILER = sorted((ROOT / "model_build" / "mlu" / "compiler").glob("*.py"))


def inside(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def ours(file: Path) -> set[str]:
    return {name for name in imports(file) if structure.is_ours(name)}


@pytest.mark.parametrize("file", SERVICE, ids=name_of)
def test_the_service_imports_downwards(file: Path) -> None:
    """Each room imports itself and the rooms that stand below it."""
    room = name_of(file).partition(".")[2].partition(".")[0]
    if not room:
        assert file.read_text() == ""
        return
    assert room in MAY_IMPORT, f"{room} has no place in MAY_IMPORT"
    allowed = {f"service.{name}" for name in MAY_IMPORT[room] | {room}}
    strays = {imported for imported in ours(file) if not inside(imported, allowed)}
    assert not strays, f"{name_of(file)} may not import {strays}"
    if name_of(file) in INSIDE:
        below = {f"service.{name}" for name in FOR_ALL} | INSIDE[name_of(file)]
        strays = {imported for imported in ours(file) if not inside(imported, below)}
        assert not strays, f"{name_of(file)} may not import {strays}"
    host = {imported for imported in ours(file) if inside(imported, {"service.device_host"})}
    assert host <= SHARED_WITH_THE_HOST


def test_no_module_imports_itself_over_others() -> None:
    """There is no import cycle in our packages."""
    assert structure.cycle() == []


def test_no_class_name_is_defined_twice() -> None:
    """A search for a name finds one class; the folders that stand alone count too."""
    assert structure.defined_twice() == {}


def test_no_constructor_has_many_arguments() -> None:
    """A constructor takes at most five arguments."""
    counts = structure.constructors()
    assert {name for name, count in counts.items() if count > structure.MOST_ARGUMENTS} == set()


def test_a_class_defined_twice_is_found(tmp_path: Path) -> None:
    """In two packages, and in a folder without `__init__.py`."""
    for folder in ("service/tools", "service/device_host", "model_build"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "service/tools/one.py").write_text("class Same:\n    pass\n")
    (tmp_path / "service/device_host/two.py").write_text("class Same:\n    pass\n")
    (tmp_path / "model_build/three.py").write_text("class Other:\n    pass\n")
    assert structure.defined_twice(tmp_path) == {
        "Same": ["service.device_host.two", "service.tools.one"]
    }


# What runs a device, measures it, or reads label files.
MEASURING = {
    "model_build.comparison": {"service.core.device_session"},
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
        "service.targets",
    }
    contract |= MEASURING.get(name_of(file), set())
    assert {name for name in ours(file) if not inside(name, contract)} == set()


@pytest.mark.parametrize("file", SERVICE + BUILD + HOST + QUESTIONS + COMPILER, ids=name_of)
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


@pytest.mark.parametrize("file", CLIENT, ids=name_of)
def test_the_client_stands_alone(file: Path) -> None:
    """It knows the standard library, httpx and its own modules: no numpy, no Pillow, no service."""
    tops = {imported.split(".")[0] for imported in imports(file)}
    assert tops - sys.stdlib_module_names <= {"httpx", "topfive_client"}


def test_the_classes_of_the_client_have_names_of_their_own() -> None:
    """Only what both sides of POST /classify describe has one name."""
    names = [node.name for _, node in structure.classes(folders=[structure.CLIENT])]
    ours = {node.name for _, node in structure.classes()}
    assert len(set(names)) == len(names) > 10
    assert ours & set(names) == {"Prediction", "Result", "ModelVersion"}


def test_the_quantizer_stands_alone() -> None:
    """It is started by its path, isolated: it knows no module of ours."""
    file = ROOT / "model_build" / "int8" / "quantizer.py"
    tops = {imported.split(".")[0] for imported in imports(file)}
    assert tops - sys.stdlib_module_names == {"numpy", "openvino", "nncf"}


def test_the_compiler_stands_alone() -> None:
    """It knows the standard library, numpy and the SDK, and nothing is beside it to be imported."""
    [file] = COMPILER
    tops = {imported.split(".")[0] for imported in imports(file)}
    assert tops - sys.stdlib_module_names == {"numpy", "magicmind"}


@pytest.mark.parametrize("flat", [HOST, QUESTIONS], ids=["device", "card"])
def test_no_module_of_a_flat_folder_hides_a_library(flat: list[Path]) -> None:
    """Its folder is first on the path of what runs there: no module may be called as a package."""
    names = {module.stem for module in flat} - {"__main__"}
    assert not names & ({"numpy", "openvino", "magicmind"} | sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("folder", "oldest"),
    [
        ("service/device_host", "3.7"),
        ("service/tools/doctor/card", "3.7"),
        ("model_build/mlu/compiler", "3.7"),
        ("tests/py37", "3.7"),
        ("client/topfive_client", "3.9"),
    ],
)
def test_an_old_python_can_read_it(folder: str, oldest: str) -> None:
    """The SDK's interpreter runs it, or one of a user: vermin finds nothing newer."""
    vermin = str(Path(sys.executable).with_name("vermin"))
    options = ["--no-tips", "--no-parse-comments", "--violations", f"-t={oldest}-"]
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
    *("httptools", "uvloop", "matplotlib", "pyarrow", "grpc"),
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
