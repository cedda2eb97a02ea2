"""The host as a real process: a real socket, shared rows, the real OpenVINO."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest
import wire
from network import probabilities
from started_host import ROWS, StartedHost


def test_answers_are_those_of_numpy(host: StartedHost, dynamic_model: str) -> None:
    """Batches of every size fill the outputs of their rows, right, and of no others."""
    facts = host.greet(dynamic_model)
    assert (facts["largest_batch"], facts["batches_in_flight"]) == (8, 2)
    assert facts["description"].startswith("OpenVINO 20")
    expected = probabilities(host.inputs)
    for count in range(1, 9):
        host.outputs[:] = np.nan
        numbers = np.random.RandomState(count).permutation(ROWS)[:count].tolist()
        batch_id, nanoseconds, failure = host.run(count, numbers)
        assert (batch_id, failure) == (count, None)
        assert min(nanoseconds) > 0
        np.testing.assert_allclose(host.outputs[numbers], expected[numbers], atol=1e-5)
        assert np.isnan(np.delete(host.outputs, numbers, axis=0)).all()


def test_a_static_batch_is_padded(host: StartedHost, static_model: str) -> None:
    """A model for exactly 4 rows runs 3, and only theirs are written."""
    assert host.greet(static_model, batch_min=4, batch_max=4)["largest_batch"] == 4
    assert host.run(1, [5, 0, 11])[2] is None
    expected = probabilities(host.inputs)[[5, 0, 11]]
    np.testing.assert_allclose(host.outputs[[5, 0, 11]], expected, atol=1e-5)
    assert np.isnan(np.delete(host.outputs, [5, 0, 11], axis=0)).all()


def test_no_more_rows_at_once_than_a_cpu_likes(host: StartedHost, dynamic_model: str) -> None:
    """Of a model for up to 64 rows the CPU wants 8."""
    assert host.greet(dynamic_model, batch_max=64)["largest_batch"] == 8


def test_a_missing_model(host: StartedHost) -> None:
    """No model: not ready, the artifact's fault, with the path; then the host ends."""
    answer = host.greet("/nowhere/model.xml")
    assert (answer["ready"], answer["reason"]) == (False, "artifact")
    assert "/nowhere/model.xml" in answer["detail"]
    assert host.exit_code() == 1


def test_an_unreadable_name_is_told(host: StartedHost) -> None:
    """An error of Python that has a `reason` of its own, as a UnicodeError has, is still told."""
    answer = host.greet("/nowhere/\ud800.xml")  # which checks the reason
    assert not answer["ready"]
    assert host.exit_code() == 1


def test_a_broken_model(host: StartedHost, tmp_path: object) -> None:
    """A file that is no model is the artifact's fault."""
    broken = os.path.join(str(tmp_path), "model.xml")
    with open(broken, "w") as file:
        file.write("<net>")
    assert host.greet(broken)["reason"] == "artifact"


def test_an_unknown_engine(host: StartedHost, dynamic_model: str) -> None:
    """An engine that this host does not have is named."""
    answer = host.greet(dynamic_model, engine="abacus")
    assert answer["reason"] == "artifact"
    assert "'abacus'" in answer["detail"]


def test_a_hello_that_is_none(host: StartedHost) -> None:
    """Junk where the hello should be: the host says so and ends."""
    host.connection.send(b"\x01junk")
    answer = wire.unpack_answer(host.connection.recv(wire.MAX_MESSAGE_BYTES))
    assert "WireError" in answer["detail"]
    assert host.exit_code() == 1


@pytest.mark.parametrize("numbers", [[0, ROWS], [2**32 - 1], [], list(range(9))])
def test_a_batch_that_cannot_be(host: StartedHost, dynamic_model: str, numbers: list[int]) -> None:
    """Rows that do not exist, none, or more than fit: the batch fails, and with it the host."""
    host.greet(dynamic_model)
    batch_id, _, failure = host.run(3, numbers)
    assert (batch_id, failure[0]) == (3, "driver")
    assert "The batch is not valid" in failure[1]
    assert host.exit_code() == 1


def test_a_failing_engine(host: StartedHost, static_model: str) -> None:
    """What the engine raises fails the batch: here a model that does not take so many rows."""
    host.greet(static_model)
    failure = host.run(1, [0])[2]
    assert failure[0] == "driver"
    assert host.exit_code() == 1


def test_a_message_that_is_no_batch(host: StartedHost, dynamic_model: str) -> None:
    """Junk after the hello ends the host."""
    host.greet(dynamic_model)
    host.connection.send(b"\x09")
    assert host.exit_code() == 1


def test_stop_comes_after_what_was_sent(host: StartedHost, dynamic_model: str) -> None:
    """Two batches and a stop: both are answered, then the host ends with 0."""
    host.greet(dynamic_model)
    for message in (wire.pack_run(1, [0]), wire.pack_run(2, [1]), wire.pack_stop()):
        host.connection.send(message)
    replies = [wire.unpack_done(host.connection.recv(65536)) for _ in range(2)]
    assert [batch_id for batch_id, _, _ in replies] == [1, 2]
    assert host.exit_code() == 0


def test_end_of_file_ends_the_host(host: StartedHost, dynamic_model: str) -> None:
    """The service's end of the socket is closed: the host ends with 0."""
    host.greet(dynamic_model)
    host.connection.close()
    assert host.exit_code() == 0


def test_signals_to_the_group_are_ignored(host: StartedHost, dynamic_model: str) -> None:
    """SIGTERM and SIGINT are the service's business: the next batch is computed all the same."""
    host.greet(dynamic_model)
    host.process.send_signal(signal.SIGTERM)
    host.process.send_signal(signal.SIGINT)
    assert host.run(1, [0])[2] is None
    assert host.process.poll() is None


def test_a_host_of_another_parent(host: StartedHost) -> None:
    """Started when its parent is gone already, a host ends at once."""
    host.spawn_instead(host.command(parent=1))
    assert host.exit_code() == 1
    assert b"has exited" in host.process.stderr.read()


PARENT = """
import os, subprocess, sys
command = sys.argv[1:] + ["--parent", str(os.getpid())]
descriptors = [int(command[command.index(name) + 1]) for name in ("--socket", "--memory")]
subprocess.Popen(command, pass_fds=descriptors).wait()
"""


def test_kill_9_of_the_parent(host: StartedHost, dynamic_model: str) -> None:
    """The host is gone within 2 s though its socket stays open: the kernel kills it."""
    command = host.command(parent=0)[: -len(["--parent", "0"])]
    host.spawn_instead([sys.executable, "-c", PARENT, *command])
    host.close_theirs()
    host.greet(dynamic_model)
    host.connection.settimeout(2)
    killed_at = time.monotonic()
    os.kill(host.process.pid, signal.SIGKILL)
    assert host.connection.recv(1) == b""
    assert time.monotonic() - killed_at < 2
