"""The ecosystem's own clients, unchanged, against a service with a trained model.

The clients have an environment of their own, since they need an older protobuf. A script calls
every method there, and what it prints is compared here with POST /classify and the service's own
pages. The run writes docs/clients-table.md. `make ecosystem` makes the environment and runs these
tests.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.artifact import Manifest, read_manifest
from service.decoding.images import decode_into
from tests.ecosystem.expected import (
    CLIENTS,
    CONTROL,
    ROWS,
    STOPPED,
    TRITON,
    Outcome,
    expected_of,
    write_table,
)
from tests.support.documents import blocks
from tests.support.grpc_calls import serving_grpc
from tests.support.paths import PHOTOS, ROOT
from tests.support.serving import Service, plain_environment

pytestmark = pytest.mark.large

PYTHON = ROOT / "build" / "ecosystem-env" / "bin" / "python"
HERE = Path(__file__).parent
METHODS = [row for row in ROWS if re.fullmatch(r"(?:is|get|load|unload|async)_\w+", row)]
LIMIT_S = 120
"""Maximum seconds for a script of a client."""
# A stopped device is not taken for a hung one, and requests wait for it.
PATIENT = ("--batch-late-factor", "0", "--batch-timeout-ms", "90000")


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    if not PYTHON.exists():
        reason = f"no clients in {PYTHON.parent.parent}: make ecosystem installs them"
        if os.environ.get("ECOSYSTEM"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo's artifact, which has labels."""
    folder = tmp_path_factory.mktemp("demo") / "efficientnet-lite0"
    program = str(Path(sys.executable).with_name("topfive-build"))
    subprocess.run([program, "demo", "--output", str(folder)], check=True, env=plain_environment())
    return folder


@pytest.fixture(scope="module")
def photos(data_folder: Path) -> list[Path]:
    found = sorted((data_folder / "photos").glob("*.JPEG"))[:3]
    assert len(found) == 3
    return found


@pytest.fixture(scope="module")
def run(
    artifact: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, Service, int], dict[str, Outcome]]:
    """Return a function that runs the script of a client, and returns the outcome of each row."""
    manifest = read_manifest(artifact)
    pixels = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    np.save(pixels, prepared(manifest, photos[0].read_bytes())[None])

    def ran(client: str, phase: str, service: Service, port: int) -> dict[str, Outcome]:
        cases = {
            "client": client,
            "phase": phase,
            "http": service.url.removeprefix("http://"),
            "grpc": f"127.0.0.1:{port}",
            "model": manifest.name,
            "version": manifest.version,
            "photos": [str(photo) for photo in photos],
            "pixels": str(pixels),
            "methods": METHODS,
        }
        script = HERE / ("run_kserve.py" if client.startswith("kserve") else "run_triton.py")
        found: dict[str, Outcome] = printed([str(PYTHON), str(script), json.dumps(cases)])
        return found

    return ran


def prepared(manifest: Manifest, file: bytes) -> Any:
    """Return a file as the service prepares it."""
    shape, wanted = manifest.input, manifest.preprocessing
    row = np.zeros((shape.height, shape.width, shape.channels), np.uint8)
    decode_into(file, row, wanted.resize, wanted.resample, 50_000_000)
    return row


def printed(command: list[str]) -> Any:
    """Run a script of the clients' environment and return what it prints as its last line."""
    environment = {name: text for name, text in plain_environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(
    artifact: Path, run: Callable[[str, str, Service, int], dict[str, Outcome]]
) -> dict[str, dict[str, Outcome]]:
    """Return the outcomes of all rows by client, for the table; each phase has its service."""
    outcomes: dict[str, dict[str, Outcome]] = {client: {} for client in CLIENTS}
    with serving_grpc(artifact) as (service, caller):
        for client in CLIENTS:
            outcomes[client] |= run(client, "answers", service, caller.port)
    with serving_grpc(artifact, "--model-control") as (service, caller):
        for client in CLIENTS:
            if not client.startswith("kserve"):
                outcomes[client] |= run(client, "control", service, caller.port)
    for client in CLIENTS:
        with serving_grpc(artifact, *PATIENT) as (service, caller):
            with service.frozen_device():
                stopped = run(client, "stopped", service, caller.port)
            # Each image had an end of its own, and the device's answer for it came too late.
            service.await_metric(len(stopped), "topfive_images_total")
            assert service.metric("topfive_images_total", outcome="expired") >= 1
            assert service.metric("topfive_images_total", outcome="ok") == 0
            outcomes[client] |= stopped
    write_table(outcomes)
    return outcomes


@pytest.fixture(scope="module")
def methods(
    artifact: Path, run: Callable[[str, str, Service, int], dict[str, Outcome]]
) -> dict[str, dict[str, Outcome]]:
    """Return by client whether it has each method that is a row."""
    with serving_grpc(artifact) as (service, caller):
        return {client: run(client, "methods", service, caller.port) for client in CLIENTS}


@pytest.fixture(scope="module")
def pages(artifact: Path, photos: list[Path]) -> Iterator[dict[str, Any]]:
    """Return what the service answers to POST /classify and on its own pages."""
    with serving_grpc(artifact) as (service, _):
        name = read_manifest(artifact).name
        answers = [
            service.http.post("/classify", content=photo.read_bytes()).json()["results"][0]
            for photo in photos
        ]
        yield {
            "predictions": [answer["predictions"] for answer in answers],
            "get_server_metadata": service.http.get("/v2").json(),
            "get_model_metadata": service.http.get(f"/v2/models/{name}").json(),
            "get_model_config": service.http.get(f"/v2/models/{name}/config").json(),
            "get_model_repository_index": service.http.post("/v2/repository/index").json(),
        }


@pytest.mark.parametrize("client", CLIENTS)
def test_every_row_ends_as_documented(found: dict[str, dict[str, Outcome]], client: str) -> None:
    """Works, or is refused with the documented status. A client has the methods that it had."""
    rows = {row: expected_of(row, client) for row in ROWS}
    expected = {row: status for row, status in rows.items() if status}
    outcomes = {row: outcome.get("refused", "works") for row, outcome in found[client].items()}
    assert outcomes == expected


@pytest.mark.parametrize("client", CLIENTS)
def test_an_empty_cell_is_an_absent_method(
    found: dict[str, dict[str, Outcome]],
    methods: dict[str, dict[str, Outcome]],
    client: str,
) -> None:
    present = {name for name, outcome in methods[client].items() if outcome["value"]}
    assert present == {name for name in METHODS if name in found[client]}


@pytest.mark.parametrize("client", CLIENTS)
def test_health(found: dict[str, dict[str, Outcome]], client: str) -> None:
    rows = found[client]
    for row in ("is_server_live", "is_server_ready", "is_model_ready"):
        assert rows[row]["value"] is True
        assert rows.get(f"V1: {row}", {"value": True})["value"] is True
    assert rows["is_model_ready: unknown model"].get("value", False) is False


@pytest.mark.parametrize("client", TRITON)
def test_statistics(found: dict[str, dict[str, Outcome]], client: str) -> None:
    """Each client finds what the clients before it have counted."""
    [model] = found[client]["get_inference_statistics"]["value"]["model_stats"]
    if client == TRITON[0]:
        assert int(model["inference_count"]) == 0
    else:
        assert int(model["inference_count"]) > 10
        assert int(model["inference_stats"]["success"]["ns"]) > 0


CLASSIFIED = [row for row in ROWS if row.startswith(("infer", "V1: infer", "async_infer"))]


@pytest.mark.parametrize("client", CLIENTS)
def test_answers_equal_those_of_classify(
    found: dict[str, dict[str, Outcome]], pages: dict[str, Any], client: str
) -> None:
    """The same classes and labels, and scores to 1e-5, for each way to send an image."""
    first, *_ = predictions = pages["predictions"]
    compared = 0
    for row in CLASSIFIED:
        value = found[client].get(row, {}).get("value")
        if not isinstance(value, dict) or "top_index" not in value:
            continue
        images = predictions if row == "infer: three files" else [first]
        assert len(value["top_index"]) == len(images)
        for index, image in enumerate(images):
            if "probabilities" in value:
                scores = value["probabilities"][index]
                assert len(scores) == 1000
                top = [scores[each["class_id"]] for each in image]
            else:
                top = value["top_probability"][index]
                labels = [each["label"] for each in image[: len(top)]]
                assert value["top_label"][index] == labels
            count = 2 if row == "infer: parameter top_k" else 5
            classes = [each["class_id"] for each in image[:count]]
            assert value["top_index"][index] == classes, row
            expected = [each["score"] for each in image[:count]]
            np.testing.assert_allclose(top, expected, atol=1e-5, err_msg=row)
        compared += 1
    assert compared >= 6


@pytest.mark.parametrize("client", CLIENTS)
def test_other_forms_of_answers(
    found: dict[str, dict[str, Outcome]], pages: dict[str, Any], client: str
) -> None:
    """The classification extension, the request's id, outputs as JSON, and V1."""
    image, rows = pages["predictions"][0], found[client]
    [texts] = rows["infer: classification"]["value"]["probabilities"]
    assert texts == [f"{each['score']:f}:{each['class_id']}:{each['label']}" for each in image[:3]]
    assert rows["infer: request id"]["value"] == "a7"
    if "infer: outputs as JSON" in rows:
        [labels] = rows["infer: outputs as JSON"]["value"]["top_label"]
        assert labels == [each["label"] for each in image]
    if "V1: infer" in rows:
        [prediction] = rows["V1: infer"]["value"]
        assert [each["class"] for each in prediction["top"]] == [each["class_id"] for each in image]


STREAMING = [client for client in CLIENTS if expected_of("stream", client)]


@pytest.mark.parametrize("client", STREAMING)
def test_a_stream(found: dict[str, dict[str, Outcome]], pages: dict[str, Any], client: str) -> None:
    """Its requests are answered in their order, and it continues after one that fails."""
    first, error, last = found[client]["stream"]["value"]
    assert "cannot be decoded" in error
    for answer in (first, last):
        expected = [each["class_id"] for each in pages["predictions"][0]]
        assert answer["top_index"] == [expected]


@pytest.mark.parametrize("client", TRITON)
def test_descriptions_equal_the_pages(
    found: dict[str, dict[str, Outcome]], pages: dict[str, Any], client: str
) -> None:
    """Metadata, configuration and index are those of GET; of gRPC those that its messages have."""
    rows = {row: found[client][row]["value"] for row in pages if row != "predictions"}
    if client.startswith("http"):
        assert rows == {row: pages[row] for row in rows}
        return
    assert rows["get_server_metadata"] == pages["get_server_metadata"]
    metadata, page = rows["get_model_metadata"], pages["get_model_metadata"]
    assert (metadata["name"], metadata["versions"]) == (page["name"], page["versions"])
    for kind in ("inputs", "outputs"):
        shapes = [[int(each) for each in tensor["shape"]] for tensor in metadata[kind]]
        assert shapes == [tensor["shape"] for tensor in page[kind]]
    config, page = rows["get_model_config"]["config"], pages["get_model_config"]
    assert config["max_batch_size"] == page["max_batch_size"]
    assert config["parameters"] == page["parameters"]
    [model] = rows["get_model_repository_index"]["models"]
    assert model == {
        key: text for key, text in pages["get_model_repository_index"][0].items() if text
    }


def test_errors_say_what_was_wrong(found: dict[str, dict[str, Outcome]]) -> None:
    """A client's exception has the text of the error, over HTTP and gRPC."""
    texts = {
        "infer: unknown model": "There is no model 'other'.",
        "infer: wrong shape": "[N, 224, 224, 3] is expected",
        "infer: broken image": "inputs/0/data/1: ",
        "infer: unknown input": "There is no input 'other'.",
        "infer: unknown output": "There is no output 'other'.",
        "infer: a sequence": "Sequences of requests are not supported.",
        "infer: parameter timeout": "The deadline was exceeded",
    }
    for client in CLIENTS:
        for row, text in texts.items():
            assert text in found[client][row]["text"], (client, row)


def test_models_come_and_go(found: dict[str, dict[str, Outcome]], pages: dict[str, Any]) -> None:
    expected = [each["class_id"] for each in pages["predictions"][0]]
    for client in CLIENTS:
        if "unload_model, --model-control" in found[client]:
            assert found[client]["unload_model, --model-control"]["value"] == ["UNAVAILABLE"]
            state, answer = found[client]["load_model, --model-control"]["value"]
            assert (state, answer["top_index"]) == ("READY", [expected])


def test_the_rows_are_those_of_the_phases() -> None:
    assert set(STOPPED) | set(CONTROL) <= set(ROWS)


SNIPPETS = [
    block
    for block in blocks("docs/protocols.md")
    if block.language == "python"
    and re.search(r"^(import|from) (tritonclient|kserve)", block.text, re.M)
]


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: f"line {block.line}")
def test_the_snippets_of_the_document(artifact: Path, block: Any, tmp_path: Path) -> None:
    """Each prints the label of the cat, when it is started in the checkout as it is printed."""
    with serving_grpc(artifact) as (service, caller):
        name = read_manifest(artifact).name
        text = block.text.replace("127.0.0.1:8080", service.url.removeprefix("http://"))
        text = text.replace("127.0.0.1:8001", f"127.0.0.1:{caller.port}")
        program = tmp_path / "snippet.py"
        program.write_text(text.replace("efficientnet_lite0", name))
        done = subprocess.run(
            [PYTHON, program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 0, done.stderr
        label = service.http.post("/classify", content=(PHOTOS / "cat.png").read_bytes()).json()[
            "results"
        ][0]["predictions"][0]["label"]
        assert label in done.stdout


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 4
