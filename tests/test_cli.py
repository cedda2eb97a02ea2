"""The command `topfive` as a process: how serve starts and ends, classify, health, help."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from service.settings import Settings
from service.tools.client import FileAnswer, print_table
from tests.support import pictures, tiny
from tests.support.serving import (
    COMMAND,
    Service,
    one_answer,
    plain_environment,
    receive_all,
    serving,
)

PNG = pictures.encoded()
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact) as running:
        yield running


@pytest.fixture(scope="module")
def nowhere() -> str:
    """A URL at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two good files and one that is no image."""
    files = [tmp_path / name for name in ("one.png", "two.png", "bad.png")]
    for seed, file in enumerate(files):
        file.write_bytes(pictures.encoded(seed=seed))
    files[2].write_text("no image")
    return files


def topfive(
    *arguments: str | Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=plain_environment() | environment,
        input=stdin,
        capture_output=True,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


# serve: how it does not start


def assert_not_started(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 1 with what and what to do on stderr, before it listened."""
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"^error: .+\n  try: .+\n\Z", done.stderr, re.MULTILINE), done.stderr
    assert "listening" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_port_in_use(service: Service, artifact: Path) -> None:
    """The address is named."""
    port = service.url.rpartition(":")[2]
    done = topfive("serve", "--artifact", artifact, "--port", port)
    assert_not_started(done, f"127.0.0.1:{port}", "in use")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 100, "192.0.2.1"])
def test_address_that_is_not_ours(artifact: Path, host: str) -> None:
    """A name that is none, or another machine's address."""
    assert_not_started(topfive("serve", "--artifact", artifact, "--host", host), host)


def test_no_artifact(tmp_path: Path) -> None:
    """None named, or a folder without one."""
    assert_not_started(topfive("serve"), "--artifact")
    missing = tmp_path / "missing"
    assert_not_started(topfive("serve", "--artifact", missing), str(missing / "manifest.json"))


def test_changed_artifact(tmp_path: Path) -> None:
    """A byte changed: the file is named, with the hashes."""
    folder = tiny.write_tiny_artifact(tmp_path / "tiny")
    file = folder / "model.bin"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert_not_started(topfive("serve", "--artifact", folder), str(file), "SHA-256")


def test_no_device_in_time(artifact: Path) -> None:
    """Exit 1 after start_timeout_s, with the reason of the device in the log."""
    service = Service(artifact, "--start-timeout-s", "1", "--device-python", "/no/python")
    failed = service.await_event("device_state", to="failed")
    assert "/no/python" in failed["detail"]
    assert "No device was ready for 1 s" in service.await_event("fatal")["detail"]
    assert service.await_end() == 1


def test_misspelt_variables_are_warned_of() -> None:
    """In the log, by name."""
    done = topfive("serve", TOPFIVE_PROT="1", TOPFIVE_LOG_FORMAT="json")
    line = json.loads(done.stderr.splitlines()[0])
    assert (line["event"], line["level"]) == ("unknown_variable", "warning")
    assert line["variable"] == "TOPFIVE_PROT"


# serve: how it starts


def test_the_start_is_logged(service: Service, artifact: Path) -> None:
    """Artifact, devices and address; on loopback without a warning."""
    (line,) = [line for line in service.log if line["event"] == "listening"]
    assert (line["artifact"], line["devices"], line["url"]) == (str(artifact), "all", service.url)
    assert not [line for line in service.log if line["event"] == "public_listener"]


def test_other_addresses_are_warned_of(artifact: Path) -> None:
    """There are no keys yet."""
    with serving(artifact, "--host", "0.0.0.0") as service:
        (line,) = [line for line in service.log if line["event"] == "public_listener"]
        assert (line["level"], line["host"]) == ("warning", "0.0.0.0")
        assert service.url.startswith("http://0.0.0.0:")
        port = service.url.rpartition(":")[2]
        assert service.await_event("ready")["url"] == f"http://127.0.0.1:{port}"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this kernel has no IPv6")
def test_ipv6(artifact: Path) -> None:
    """The URL has its brackets; health finds it by the settings."""
    with serving(artifact, "--host", "::1") as service:
        assert service.url.startswith("http://[::1]:")
        assert service.await_event("ready")["url"] == service.url
        port = service.url.rpartition(":")[2]
        assert topfive("health", TOPFIVE_HOST="::1", TOPFIVE_PORT=port).returncode == 0


# serve: how it ends


def accept_one(service: Service) -> socket.socket:
    """A request whose image waits for the device."""
    connection = service.connect()
    connection.sendall(POST % len(PNG) + PNG)
    while service.http.get("/model").json()["statistics"]["rows"]["running"] == 0:
        assert service.process.poll() is None
    return connection


def await_exits(hosts: list[int], timeout_s: float) -> None:
    for host in hosts:
        readable, _, _ = select.select([host], [], [], timeout_s)
        assert readable
        os.close(host)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_accepted(artifact: Path, number: signal.Signals) -> None:
    """The answer comes, late, with Connection: close; exit 0; the hosts are gone."""
    with serving(artifact) as service:
        hosts = [os.pidfd_open(pid) for pid in service.hosts()]
        with service.frozen_device():
            connection = accept_one(service)
            service.process.send_signal(number)
            service.await_event("stopping", signal=number.name)
        answer = receive_all(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert service.await_end() == 0
        await_exits(hosts, 0)


def test_a_signal_lets_a_body_arrive(artifact: Path) -> None:
    """A request whose body was on the way at SIGTERM is received to its end, and answered."""
    with serving(artifact) as service:
        connection = service.connect()
        connection.sendall(POST % len(PNG) + PNG[:20])
        while service.http.get("/model").json()["statistics"]["bodies"]["receiving"] == 0:
            assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        service.await_event("stopping")
        connection.sendall(PNG[20:])
        assert receive_all(connection).startswith(b"HTTP/1.1 200")
        assert service.await_end() == 0


def test_the_drain_has_an_end(artifact: Path) -> None:
    """Past drain_timeout_s what is left is answered 503 draining; a stuck host is killed."""
    with serving(artifact, "--drain-timeout-s", "0.5", "--reap-timeout-s", "0.5") as service:
        hosts = [os.pidfd_open(pid) for pid in service.hosts()]
        with service.frozen_device():
            connection = accept_one(service)
            started = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            answer = receive_all(connection)
            assert 0.4 < time.monotonic() - started < 10
            assert answer.startswith(b"HTTP/1.1 503")
            assert b'"draining"' in answer
            assert b"retry-after: 1\r\n" in answer
            assert service.await_end() == 0
            await_exits(hosts, 0)


def test_a_second_signal_hurries(artifact: Path) -> None:
    """All that is waiting, and all that is being received, is answered 503 at once; exit 0."""
    with serving(artifact, "--drain-timeout-s", "60", "--reap-timeout-s", "0.5") as service:
        hosts = [os.pidfd_open(pid) for pid in service.hosts()]
        with service.frozen_device():
            receiving = service.connect()
            receiving.sendall(POST % 1000 + b"a")
            waiting = accept_one(service)
            service.process.send_signal(signal.SIGTERM)
            service.await_event("stopping", hurry=False)
            service.process.send_signal(signal.SIGTERM)
            service.await_event("stopping", hurry=True)
            started = time.monotonic()
            for connection in (receiving, waiting):
                answer = receive_all(connection)
                assert answer.startswith(b"HTTP/1.1 503")
                assert b'"draining"' in answer
            assert service.await_end() == 0
            assert time.monotonic() - started < 5
            await_exits(hosts, 0)


def test_nobody_can_hold_up_the_end(artifact: Path) -> None:
    """Idle, silent and half-sent connections are closed."""
    with serving(artifact, "--drain-timeout-s", "0.5") as service:
        connections = [service.connect() for _ in range(3)]
        connections[1].sendall(b"POST /classify HT")
        connections[2].sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        one_answer(connections[2])
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 5
        assert [receive_all(connection) for connection in connections] == [b"", b"", b""]


# classify


def test_classify_asks_a_server_or_an_artifact(
    service: Service, artifact: Path, photos: list[Path]
) -> None:
    """The same JSON from both: an array with the files in order, and the network's own scores."""
    files = photos[:2]
    by_url = topfive("classify", "--json", "--top-k", "3", service.url, *files)
    by_artifact = topfive("classify", "--json", "--top-k", "3", artifact, *files)
    assert (by_url.returncode, by_artifact.returncode) == (0, 0)
    said = json.loads(by_url.stdout)
    assert said == json.loads(by_artifact.stdout)
    assert [item["file"] for item in said] == [str(file) for file in files]
    best = [item["predictions"][0] for item in said]
    expected = tiny.probabilities(pictures.pixels(0)[None])[0]
    assert best[0]["score"] == pytest.approx(expected.max(), abs=1e-5)
    assert best[0]["class_id"] == expected.argmax()
    assert [len(item["predictions"]) for item in said] == [3, 3]


def test_classify_prints_a_table(service: Service, photos: list[Path]) -> None:
    """A line a prediction, the file's name at the first; nothing but the table on stdout."""
    done = topfive("classify", service.url, *photos[:2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("class ") == 10
    assert done.stdout.count("one.png") == done.stdout.count("two.png") == 1
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("to", ["url", "artifact"])
def test_some_images_failed(service: Service, artifact: Path, photos: list[Path], to: str) -> None:
    """Exit 5, and each file has its predictions or its error; exit 1 when none was classified."""
    server = service.url if to == "url" else artifact
    missing = photos[0].with_name("missing.png")
    done = topfive("classify", "--json", server, photos[0], photos[2], missing)
    assert done.returncode == 5
    good, bad, unread = json.loads(done.stdout)
    assert good["predictions"]
    assert "no known image format" in bad["error"]
    assert "No such file" in unread["error"]
    table = topfive("classify", server, photos[2])
    assert table.returncode == 1
    assert "no known image format" in " ".join(table.stdout.split())


def test_classify_reads_stdin(service: Service) -> None:
    """A file named - is what comes in."""
    done = topfive("classify", "--json", service.url, "-", stdin=PNG)
    assert json.loads(done.stdout)[0]["predictions"]


def test_no_server(nowhere: str, photos: list[Path]) -> None:
    """Exit 4, said with a remedy; with --json as one line of JSON, stdout empty."""
    plain = topfive("classify", nowhere, photos[0])
    assert (plain.returncode, plain.stdout) == (4, "")
    assert re.match(rf"error: {nowhere} does not answer.*\n  try: ", plain.stderr)
    machine = topfive("classify", "--json", nowhere, photos[0])
    assert (machine.returncode, machine.stdout) == (4, "")
    (line,) = machine.stderr.splitlines()
    assert nowhere in json.loads(line)["error"]


@pytest.mark.parametrize("url", ["http://[x", "http://", "http://x:99999", "http://\x01"])
def test_urls_that_are_none(url: str, photos: list[Path]) -> None:
    """Exit 4 too, without a trace."""
    assert topfive("classify", url, photos[0]).returncode == 4
    assert topfive("health", "--url", url).returncode == 4


def test_another_kind_of_server(photos: list[Path], tmp_path: Path) -> None:
    """What is no topfive is told by its status, not by a trace."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as other:
        assert other.stdout
        found = re.search(r"port (\d+)", other.stdout.readline())
        assert found
        done = topfive("classify", "--json", f"http://127.0.0.1:{found[1]}", photos[0])
        other.terminate()
    assert done.returncode == 1
    assert "501" in json.loads(done.stdout)[0]["error"]


def test_classify_with_an_artifact_that_is_none(tmp_path: Path, photos: list[Path]) -> None:
    """Exit 1, the file named."""
    done = topfive("classify", tmp_path, photos[0])
    assert (done.returncode, done.stdout) == (1, "")
    assert "manifest.json" in done.stderr


# health


@pytest.fixture
def gated(artifact: Path, tmp_path: Path) -> Iterator[tuple[Service, Path]]:
    """A service whose device starts when something is written to the path beside it."""
    gate, python = tmp_path / "gate", tmp_path / "python"
    os.mkfifo(gate)
    python.write_text(f'#!/bin/sh\nread _ < {gate}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    service = Service(artifact, "--device-python", str(python), "--reap-timeout-s", "0.5")
    yield service, gate
    service.stop()


def test_health(service: Service, nowhere: str) -> None:
    """0 with the server's words; 4 where nothing answers."""
    ready = topfive("health", "--url", service.url)
    assert (ready.returncode, json.loads(ready.stdout)["ready"]) == (0, True)
    silent = topfive("health", "--url", nowhere)
    assert (silent.returncode, silent.stdout) == (4, "")
    assert "does not answer" in silent.stderr


def test_health_finds_its_own_server(service: Service) -> None:
    """By the environment that serve would use, and by TOPFIVE_URL."""
    port = service.url.rpartition(":")[2]
    assert topfive("health", TOPFIVE_PORT=port).returncode == 0
    assert topfive("health", TOPFIVE_PORT=port, TOPFIVE_HOST="0.0.0.0").returncode == 0
    assert topfive("health", TOPFIVE_URL=service.url).returncode == 0


def test_quiet_health_says_nothing(service: Service, nowhere: str) -> None:
    """Print nothing. Only set the exit code."""
    for url, code in ((service.url, 0), (nowhere, 4)):
        done = topfive("health", "-q", "--url", url)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_not_ready_and_waiting_for_it(gated: tuple[Service, Path], photos: list[Path]) -> None:
    """health and classify end with 4 before the device is proven; --wait-s waits for it."""
    service, gate = gated
    unready = topfive("health", "--url", service.url)
    assert (unready.returncode, unready.stdout) == (4, "")
    assert "starting" in unready.stderr
    assert topfive("classify", service.url, photos[0]).returncode == 4
    command = [*COMMAND, "health", "--quiet", "--wait-s", "60", "--url", service.url]
    with subprocess.Popen(command) as waiting:
        gate.write_text("go\n")
        assert waiting.wait(timeout=60) == 0


# help and manners


def test_version() -> None:
    """The package's."""
    assert topfive("--version").stdout == f"topfive {version('topfive')}\n"


@pytest.mark.parametrize("command", ["serve", "config", "classify", "health"])
def test_help(command: str) -> None:
    """Each command has one, with an example and whole names; -h is the same."""
    done = topfive(command, "--help")
    assert done.returncode == 0
    assert f"Example: topfive {command}" in done.stdout
    assert topfive(command, "-h").stdout == done.stdout
    assert command in topfive("--help").stdout


def test_help_of_serve_tells_all_settings() -> None:
    """Each flag with its default."""
    told = " ".join(topfive("serve", "--help", COLUMNS="200").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in told
        if field.default is not None:
            assert f"{field.description} [default: {field.default}]" in told


def test_help_is_fast() -> None:
    """Nothing heavy is imported for it."""
    code = "import sys, service.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    heavy = {"numpy", "PIL", "fastapi", "uvicorn", "httpx", "prometheus_client", "openvino", "rich"}
    assert not heavy & set(done.stdout.split())


def test_usage_is_2() -> None:
    """What was meant is named."""
    done = topfive("clasify")
    assert (done.returncode, done.stdout) == (2, "")
    assert "classify" in done.stderr
    assert topfive("classify", "http://x").returncode == 2
    assert topfive("classify", "--top-k", "0", "http://x", "y").returncode == 2


def on_a_terminal(*arguments: str | Path, **environment: str) -> str:
    """What the command prints where it can see a terminal."""
    ours, theirs = pty.openpty()
    env = plain_environment() | {"TERM": "xterm-256color"} | environment
    with subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=theirs, env=env) as process:
        os.close(theirs)
        printed = b""
        try:
            while part := os.read(ours, 65536):
                printed += part
        except OSError:  # Linux' way to say that the other side is closed
            pass
        assert process.wait(timeout=60) == 0
    os.close(ours)
    return printed.decode()


def test_no_color(service: Service, photos: list[Path]) -> None:
    """Even on a terminal NO_COLOR is heard."""
    printed = on_a_terminal("classify", service.url, photos[0], NO_COLOR="1")
    assert "class " in printed
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7]|[34]8;)[0-9;]*m", printed)


def test_labels_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A label or a file's name with brackets is printed as it is."""
    prediction = {"score": 1.0, "label": "[/b] :cat:", "wnid": "n1"}
    print_table([FileAnswer(Path("[red]x.png"), [prediction])])
    printed = capsys.readouterr().out
    assert "[red]x.png" in printed
    assert "[/b] :cat:" in printed


def test_a_closed_pipe_is_no_trace(service: Service, photos: list[Path]) -> None:
    """`topfive config | head -0` ends quietly, and so do the others."""
    for arguments in (
        ["config"],
        ["classify", service.url, photos[0]],
        ["health", "--url", service.url],
    ):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            stdout=writer, stderr=subprocess.PIPE, text=True, env=plain_environment(),
        )  # fmt: skip
        os.close(writer)
        assert done.stderr == ""


def test_ctrl_c_ends_a_command_with_130(gated: tuple[Service, Path]) -> None:
    """SIGINT while it waits."""
    service, _ = gated
    command = [*COMMAND, "health", "--wait-s", "60", "--url", service.url]
    asked = service.metric("topfive_http_requests_total", route="admin", code="503")
    with subprocess.Popen(command, stderr=subprocess.PIPE) as waiting:
        while service.metric("topfive_http_requests_total", route="admin", code="503") == asked:
            assert waiting.poll() is None
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=60) == 130
