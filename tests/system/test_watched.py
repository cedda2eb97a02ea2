"""Files that are watched: each way to replace one is noticed, once."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from service.system import watched


def write(file: Path) -> None:
    file.write_text("longer than before")


def rename(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("first")
    other.rename(file)


def link(file: Path) -> None:
    """As in Kubernetes: the folder behind a link is exchanged."""
    new = file.parent / "new"
    new.mkdir()
    (new / "keys").write_text("first")
    (file.parent / "link").symlink_to(new / "keys")
    (file.parent / "link").rename(file)


@pytest.mark.parametrize("change", [write, rename, link, Path.unlink])
async def test_each_change_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """A second call comes only after a second change."""
    monkeypatch.setattr(watched, "LOOK_S", 0.001)
    file = tmp_path / "keys"
    file.write_text("first")
    changes: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def noticed() -> bool:
        loop.call_soon_threadsafe(changes.put_nowait, None)
        raise ValueError("the watch goes on")

    task = asyncio.create_task(watched.watch([file], watched.marks([file]), noticed))
    try:
        for step in (change, lambda each: each.write_text("again, and longer than before")):
            step(file)
            await asyncio.wait_for(changes.get(), 10)
            assert changes.empty()
    finally:
        task.cancel()


async def test_a_file_that_cannot_be_used_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it can, without another change; a change of its mode is one."""
    monkeypatch.setattr(watched, "LOOK_S", 0.001)
    file = tmp_path / "keys"
    file.write_text("first")
    tries, used = [0], asyncio.Event()
    loop = asyncio.get_running_loop()

    def third() -> bool:
        tries[0] += 1
        if tries[0] % 3 == 0:
            loop.call_soon_threadsafe(used.set)
        return tries[0] % 3 == 0

    task = asyncio.create_task(watched.watch([file], watched.marks([file]), third))
    try:
        for step in (lambda: file.write_text("longer than before"), lambda: file.chmod(0o600)):
            step()
            await asyncio.wait_for(used.wait(), 10)
            used.clear()
        assert tries[0] == 6
    finally:
        task.cancel()
