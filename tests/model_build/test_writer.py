"""The writing of an artifact: what is beside the output while a build runs, and after it."""

from pathlib import Path

import pytest

from model_build import writer
from service.errors import BuildError


def test_a_running_build_is_left_alone(tmp_path: Path) -> None:
    """A second build of the same output does not take the first one's folder for a leftover."""
    with writer.aside(tmp_path / "net", force=False) as first:
        (first / "model.xml").write_text("first")
        with (
            pytest.raises(RuntimeError, match="stopped"),
            writer.aside(tmp_path / "net", force=False) as second,
        ):
            assert second != first
            raise RuntimeError("stopped")
        assert not second.exists()
    assert (tmp_path / "net" / "model.xml").read_text() == "first"


def test_leftovers_are_removed(tmp_path: Path) -> None:
    """Those of this output; not those of one whose name begins the same."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "manifest.json").write_text("whole")
    for name in (".net.partial-0", ".net.partial-0-old", ".network.partial-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_text("half")
    with writer.aside(tmp_path / "net", force=True):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"net", ".network.partial-0"}


def test_an_artifact_put_aside_comes_back(tmp_path: Path) -> None:
    """A build killed between its two renames has moved the old artifact; it is put back."""
    (tmp_path / ".net.partial-0-old").mkdir()
    (tmp_path / ".net.partial-0-old" / "manifest.json").write_text("old")
    with pytest.raises(RuntimeError), writer.aside(tmp_path / "net", force=True):
        raise RuntimeError("the next build fails")
    assert (tmp_path / "net" / "manifest.json").read_text() == "old"


def test_the_later_of_two_builds_is_refused(tmp_path: Path) -> None:
    """An output that came into being meanwhile is not replaced without --force."""
    with (
        pytest.raises(BuildError, match=r"net: The folder already exists\."),
        writer.aside(tmp_path / "net", force=False) as folder,
    ):
        (folder / "manifest.json").write_text("late")
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "manifest.json").write_text("early")
    assert (tmp_path / "net" / "manifest.json").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_link_keeps_pointing(tmp_path: Path) -> None:
    """What it points to is replaced, not the link."""
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "manifest.json").write_text("old")
    (tmp_path / "current").symlink_to("v1")
    with writer.aside(tmp_path / "current", force=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / "manifest.json").read_text() == "new"


def test_an_artifact_can_be_read_by_others(tmp_path: Path) -> None:
    """The folder has the rights of any that the user makes, not those of a temporary one."""
    (tmp_path / "plain").mkdir()
    with writer.aside(tmp_path / "net", force=False):
        pass
    assert (tmp_path / "net").stat().st_mode == (tmp_path / "plain").stat().st_mode
