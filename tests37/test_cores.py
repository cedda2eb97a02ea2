"""Turns on the cores, between real processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import Any, Callable, Iterator

import pytest
from cores import LONGEST_WAIT_S, ComputingTurn, decoded, may_decode
from started_host import StartedHost


@pytest.fixture
def descriptor() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


@contextlib.contextmanager
def another(begins: Callable[[], Any]) -> Iterator[Callable[[], None]]:
    """Another process, once it has begun its turn; what is yielded kills it, turn and all."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        begins()
        os.write(writes, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(reads, 1)
    ended = []

    def end() -> None:
        if not ended:
            os.kill(child, 9)
            os.waitpid(child, 0)
            ended.append(True)

    try:
        yield end
    finally:
        end()
        os.close(reads)
        os.close(writes)


def may_decode_elsewhere(descriptor: int) -> bool:
    child = os.fork()
    if not child:
        os._exit(may_decode(descriptor, wait=False))
    return bool(os.waitpid(child, 0)[1])


def test_who_decodes_shares_the_turn(descriptor: int) -> None:
    with another(lambda: may_decode(descriptor, wait=True)):
        assert may_decode(descriptor, wait=False)
        decoded(descriptor)


def test_nobody_begins_to_decode_while_an_engine_computes(descriptor: int) -> None:
    """Until that ends, in whatever way."""
    with another(lambda: ComputingTurn(descriptor).__enter__()) as end:
        assert not may_decode(descriptor, wait=False)
        end()
        assert may_decode(descriptor, wait=True)
        decoded(descriptor)


def test_an_engine_has_a_turn_of_its_own(descriptor: int) -> None:
    """At once where nobody decodes; after `with` everybody may."""
    turn = ComputingTurn(descriptor)
    for _ in range(2):
        with turn:
            assert not may_decode_elsewhere(descriptor)
        assert may_decode_elsewhere(descriptor)


def test_an_engine_waits_for_a_picture_but_not_long(descriptor: int) -> None:
    turn = ComputingTurn(descriptor)
    with another(lambda: may_decode(descriptor, wait=True)):
        for _ in range(3):
            started = time.perf_counter()
            with turn:
                waited = time.perf_counter() - started
            assert LONGEST_WAIT_S * 0.9 < waited < 1


def test_a_host_computes_though_a_picture_takes_long(host: StartedHost, dynamic_model: str) -> None:
    """It tells the wait as part of copying in, and lets others decode after each batch."""
    host.greet(dynamic_model)
    _, memory = host.descriptors
    assert may_decode(memory, wait=True)
    started = time.perf_counter()
    _, (copy_in, _, _), failure = host.run(1, [0, 1])
    assert failure is None
    assert LONGEST_WAIT_S * 0.9e9 < copy_in < (time.perf_counter() - started) * 1e9 < 5e9
    decoded(memory)
    assert host.run(2, [0, 1])[2] is None
    assert may_decode(memory, wait=True)
