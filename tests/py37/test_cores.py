"""CPU time slicing, between real processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from typing import Callable, Iterator

import pytest
from cores import LONGEST_WAIT_S, begin_decode, end_decode
from started_host import DEVICE, StartedHost

Asked = Callable[[], str]
"""Lets the other process go on, and answers with the line that it then writes."""

BEGINNING = """
import sys
sys.path.insert(0, sys.argv[1])
from cores import ComputeSlice, begin_decode
descriptor = int(sys.argv[2])
"""
DECODER = """
input()
begin_decode(descriptor, wait=True)
print("decodes")
input()
"""
ENGINE = """
compute_slice = ComputeSlice(descriptor)
while not input():
    with compute_slice as waited:
        print(waited)
        input()
    print("ended")
"""


@pytest.fixture
def descriptor() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


@contextlib.contextmanager
def another(program: str, descriptor: int) -> Iterator[Asked]:
    """Another process. It is killed at the end, in its turn or not.

    No fork: a test process that has used OpenVINO may have lost the stack on which signals run
    (each plugin sets one, and those that end in another order leave one that is gone).
    """
    command = [sys.executable, "-u", "-c", BEGINNING + program, str(DEVICE), str(descriptor)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, pass_fds=[descriptor], universal_newlines=True, **pipes)

    def ask() -> str:
        print(file=process.stdin, flush=True)
        return process.stdout.readline().strip()

    with process:
        try:
            yield ask
        finally:
            process.kill()


def test_who_decodes_shares_the_turn(descriptor: int) -> None:
    with another(DECODER, descriptor) as ask:
        assert ask() == "decodes"
        assert begin_decode(descriptor, wait=False)
        end_decode(descriptor)


def test_nobody_begins_to_decode_while_an_engine_computes(descriptor: int) -> None:
    """Until that ends, in whatever way."""
    with another(ENGINE, descriptor) as ask:
        assert ask()
        assert not begin_decode(descriptor, wait=False)
    assert begin_decode(descriptor, wait=False)
    end_decode(descriptor)


def test_an_engine_has_a_turn_of_its_own(descriptor: int) -> None:
    """At once where nobody decodes; after `with` everybody may."""
    with another(ENGINE, descriptor) as ask:
        for _ in range(2):
            assert ask()
            assert not begin_decode(descriptor, wait=False)
            assert ask() == "ended"
            assert begin_decode(descriptor, wait=False)
            end_decode(descriptor)


def test_an_engine_waits_for_a_picture_but_not_long(descriptor: int) -> None:
    assert begin_decode(descriptor, wait=True)
    with another(ENGINE, descriptor) as ask:
        for _ in range(3):
            assert LONGEST_WAIT_S * 0.9e9 < int(ask()) < 1e9
            assert ask() == "ended"


def test_a_host_computes_though_a_picture_takes_long(host: StartedHost, dynamic_model: str) -> None:
    """It tells the wait as part of copying in, and lets others decode after each batch."""
    host.greet(dynamic_model)
    _, memory = host.descriptors
    assert begin_decode(memory, wait=True)
    started = time.perf_counter()
    _, (copy_in, _, _, _), failure = host.run(1, [0, 1])
    assert failure is None
    assert LONGEST_WAIT_S * 0.9e9 < copy_in < (time.perf_counter() - started) * 1e9 < 5e9
    end_decode(memory)
    assert host.run(2, [0, 1])[2] is None
    assert begin_decode(memory, wait=True)
