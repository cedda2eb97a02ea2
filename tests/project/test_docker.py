"""The papers that images are made of, without making one: `make image-test` does that."""

import re
import tomllib
from typing import Any

import pytest
import yaml

from service.settings import OTHER_VARIABLES, PREFIX, Settings
from tests.support.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
FINAL = ("cpu", "mlu")


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions by stage, continued lines joined."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found[rest.rpartition(" AS ")[2]] = []
        found[list(found)[-1]].append((name, " ".join(rest.split())))
    return found


STAGES = stages()


def values(stage: str, instruction: str) -> list[str]:
    return [rest for name, rest in STAGES[stage] if name == instruction]


def copied() -> set[str]:
    """What COPY takes out of the build's context."""
    found = set()
    for rest in (rest for stage in STAGES for rest in values(stage, "COPY")):
        if "--from=" not in rest:
            found |= set(rest.split()[:-1])
    return found - {"${ARTIFACT}"} | {"artifacts", "docker/no-artifact"}


def test_the_context_is_an_allow_list_of_what_is_copied() -> None:
    """.dockerignore shuts everything out and lets in what COPY names: no more, no less."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == copied()
    assert [pattern for pattern in patterns[1:] if pattern[0] != "!"] == [
        "**/__pycache__",
        "**/*.pyc",
    ]


def test_cpu_is_what_a_build_without_a_target_makes() -> None:
    """The last stage is the default one."""
    assert list(STAGES)[-1] == "cpu"


def test_the_bases_are_arguments() -> None:
    """Each FROM is an ARG with a default, or a stage: any base can be given, by digest too."""
    arguments = {rest.partition("=")[0] for rest in values("", "ARG") if "=" in rest}
    bases = {values(stage, "FROM")[0].split()[0] for stage in STAGES if stage}
    assert {"PYTHON_IMAGE", "MAGICMIND_IMAGE", "RELOCATABLE_PYTHON_IMAGE"} == arguments
    assert bases <= {f"${{{name}}}" for name in arguments} | set(STAGES)


@pytest.mark.parametrize("stage", FINAL)
def test_an_image_starts_as_containers_should(stage: str) -> None:
    """A numeric user, an init that gets the signals, a health check without a shell."""
    assert values(stage, "USER") == ["10001:10001"]
    assert values(stage, "STOPSIGNAL") == ["SIGTERM"]
    assert values(stage, "ENTRYPOINT") == ['["tini", "--", "topfive"]']
    assert values(stage, "CMD") == ['["serve"]']
    [health] = values(stage, "HEALTHCHECK")
    assert health.endswith('CMD ["topfive", "health", "--quiet"]')


def test_the_two_images_end_alike() -> None:
    """From the artifact on: an edit of one is an edit of both."""
    ends = []
    for stage in FINAL:
        names = [name for name, rest in STAGES[stage] if rest.startswith("ARTIFACT")]
        begin = STAGES[stage].index((names[0], "ARTIFACT=docker/no-artifact"))
        ends.append(STAGES[stage][begin:])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("stage", FINAL)
def test_an_image_says_what_it_is(stage: str) -> None:
    """Its OCI labels have the package's name, version and licence."""
    labels = dict(
        re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', str(STAGES[stage]))
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for label, field in (("title", "name"), ("version", "version"), ("licenses", "license")):
        assert labels[label] == project[field]
    assert labels.keys() >= {"authors", "base.name", "created", "description", "revision"}


def test_only_what_buildkit_and_buildah_share() -> None:
    """Nothing that buildah 1.28 lacks."""
    for newer in ("<<", "--link", "--start-interval", "--checksum", "--exclude", "--parents"):
        assert newer not in DOCKERFILE


def test_packages_are_locked_by_hash() -> None:
    """Each installation is from a lock, or of the wheel that was just made."""
    commands = [rest for stage in STAGES for rest in values(stage, "RUN")]
    installs = [rest for rest in commands if re.search(r"/pip .*\binstall\b", rest)]
    assert len(installs) == 5
    for rest in installs:
        locked = "--require-hashes" in rest and "--only-binary=:all:" in rest
        assert locked or "--no-index" in rest


@pytest.mark.parametrize("lock", ["cpu", "backend"])
def test_an_image_has_the_versions_that_were_tested(lock: str) -> None:
    """What the CPU image installs is in requirements/install.lock, with the same hashes."""
    tested = (ROOT / "requirements/install.lock").read_text()
    assert all(
        line in tested for line in (ROOT / f"requirements/{lock}.lock").read_text().splitlines()
    )


def test_the_mlu_image_keeps_to_an_openvino_for_its_glibc() -> None:
    """The SDK's image has glibc 2.27; `make image-test` looks at every library."""
    text = (ROOT / "requirements/mlu.lock").read_text()
    assert re.search(r"(?m)^openvino==2025\.0\.", text)
    assert re.search(r"(?m)^onnx==", text)


def test_the_mlu_image_finds_the_sdks_libraries() -> None:
    """By NEUWARE_HOME, in the processes that load the SDK: none of it is on the others' path."""
    found = " ".join(values("mlu", "ENV"))
    assert "NEUWARE_HOME=/usr/local/neuware HOME=/tmp" in found
    assert "LD_LIBRARY_PATH" not in found


def compose(name: str) -> Any:
    return yaml.safe_load((ROOT / "docker" / name).read_text())


def test_prometheus_scrapes_where_topfive_answers() -> None:
    """The service's name, the image's port, the path of the metrics."""
    services = compose("compose.yaml")["services"]
    [job] = compose("prometheus.yaml")["scrape_configs"]
    [port] = values("cpu", "EXPOSE")
    assert "topfive" in services
    assert job["static_configs"] == [{"targets": [f"topfive:{port}"]}]
    assert job["metrics_path"] == "/metrics"
    assert services["topfive"]["ports"][0].endswith(f":{port}")
    [volume] = [v for v in services["prometheus"]["volumes"] if isinstance(v, dict)]
    assert (ROOT / "docker" / volume["source"]).is_file()


def test_the_composed_service_is_hardened() -> None:
    """Read-only, no capabilities, the image's user, bounded, not open to strangers."""
    service = compose("compose.yaml")["services"]["topfive"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [service["user"]] == values("cpu", "USER")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert (ROOT / "docker" / service["build"]["context"]).resolve() == ROOT


def test_compose_waits_for_the_drain() -> None:
    """SIGKILL comes later than the last answer."""
    service = compose("compose.yaml")["services"]["topfive"]
    drain_s = float(service["environment"]["TOPFIVE_DRAIN_TIMEOUT_S"])
    assert int(service["stop_grace_period"].removesuffix("s")) >= drain_s + 10


def test_cards_are_added_to_the_same_service() -> None:
    """compose.mlu.yaml builds the other target, and gives it one card's nodes."""
    [(name, service)] = compose("compose.mlu.yaml")["services"].items()
    assert name == "topfive"
    assert service["build"]["target"] == "mlu"
    assert service["devices"] == ["/dev/cambricon_ctl", "/dev/cambricon_dev0"]
    [mount] = service["tmpfs"]
    assert mount.startswith("/tmp:") and "exec" in mount.split(":")[1].split(",")


def test_every_variable_is_a_setting() -> None:
    """A misspelt TOPFIVE_* would be no more than a warning in a log."""
    known = {name.upper() for name in Settings.model_fields}
    known |= {name.removeprefix(PREFIX) for name in OTHER_VARIABLES}
    named = set(re.findall(r"\bTOPFIVE_([A-Z_]+)=", DOCKERFILE))
    named |= {
        name.removeprefix(PREFIX)
        for name in compose("compose.yaml")["services"]["topfive"]["environment"]
    }
    assert named
    assert named <= known
