"""API keys: the file of their hashes, how a sent key is compared, and `topfive keys`."""

import hashlib
import hmac
import multiprocessing
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service import keys
from service.errors import SettingsError
from service.tools import key_file
from service.tools.key_file import NewKey
from tests.support.serving import COMMAND, plain_environment

INFER = NewKey("infer", "", "", "", "")
TODAY = datetime.now(UTC).date()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def test_a_key_and_its_line(file: Path) -> None:
    """The file has the hash of the secret alone, as another program computes it."""
    tomorrow = (TODAY + timedelta(days=1)).isoformat()
    key = key_file.add(file, NewKey("infer,metrics", tomorrow, "2.5", "4", "the shop: night"))
    prefix, identity, secret = key.split("_", 2)
    assert (prefix, len(identity), len(secret)) == ("tf", 8, 43)
    text = file.read_text()
    assert secret not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    found = keys.read_keys(file).find(key)
    assert found is not None
    assert (found.id, found.scopes) == (identity, {"infer", "metrics"})
    assert (found.images_per_s, found.requests, found.note) == (2.5, 4, "the shop: night")
    assert list(key_file.listed(file)) == [
        (identity, "infer,metrics", tomorrow, "2.5", "4", "the shop: night")
    ]


def test_every_check_costs_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hash and one comparison, whether the id is known or not."""
    right = key_file.add(file, INFER)
    yesterday = (TODAY - timedelta(days=1)).isoformat()
    expired = key_file.add(file, NewKey("infer", yesterday, "", "", ""))
    revoked = key_file.add(file, INFER)
    key_file.revoke(file, revoked)
    found = keys.read_keys(file)
    calls: list[str] = []

    def counted_hash(data: bytes) -> "hashlib._Hash":
        calls.append("hash")
        return hashlib.new("sha256", data)

    def counted_compare(one: bytes, other: bytes) -> bool:
        calls.append("compare")
        assert len(one) == len(other) == 32
        return hmac.compare_digest(one, other)

    class Hashes:
        sha256 = staticmethod(counted_hash)

    class Compare:
        compare_digest = staticmethod(counted_compare)

    monkeypatch.setattr(keys, "hashlib", Hashes)
    monkeypatch.setattr(keys, "hmac", Compare)
    wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
    unknown = "tf_00000000_" + right.rpartition("_")[2]
    for sent in (right, wrong, unknown, expired, revoked, "", "tf_", "x" * 70_000, "ä€\n"):
        calls.clear()
        assert (found.find(sent) is not None) == (sent == right)
        assert calls == ["hash", "compare"], sent


def test_the_last_day(file: Path) -> None:
    """A key is valid through its last day in UTC."""
    today = key_file.add(file, NewKey("infer", TODAY.isoformat(), "", "", ""))
    past = key_file.add(file, NewKey("infer", (TODAY - timedelta(days=1)).isoformat(), "", "", ""))
    found = keys.read_keys(file)
    assert found.find(today) is not None
    assert found.find(past) is None
    assert [row[2] for row in key_file.listed(file)][1].endswith("(expired)")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("7f3a9c01:" + "0" * 64, "2 fields"),
        ("7F3a9c01:" + "0" * 64 + ":infer:", "the id '7F3a9c01' is not eight hex digits"),
        ("7f3a9c01:" + "0" * 63 + ":infer:", "the hash is not 64 hex digits"),
        ("7f3a9c01:" + "0" * 64 + ":root:", "'root' is not a scope"),
        ("7f3a9c01:" + "0" * 64 + "::", "'' is not a scope"),
        ("7f3a9c01:" + "0" * 64 + ":infer:tomorrow", "the expiry 'tomorrow' is not a day"),
        ("7f3a9c01:" + "0" * 64 + ":infer:9999-12-31", "the expiry '9999-12-31' is not a day"),
        ("7f3a9c01:" + "0" * 64 + ":infer::0", "'0' is not a limit of images per second"),
        ("7f3a9c01:" + "0" * 64 + ":infer::nan", "'nan' is not a limit of images per second"),
        ("7f3a9c01:" + "0" * 64 + ":infer:::-1", "'-1' is not a limit of requests"),
        ("7f3a9c01:" + "0" * 64 + ":infer:::0.5", "'0.5' is not a limit of requests"),
    ],
)
def test_wrong_lines(file: Path, line: str, why: str) -> None:
    """The error names the file, the line and what is wrong, and never the hash."""
    file.write_text(f"# comment\n\n{line}\n")
    with pytest.raises(SettingsError) as caught:
        keys.read_keys(file)
    assert caught.value.detail.startswith(f"{file}:3: {why}")
    assert "000000000" not in caught.value.detail


def test_wrong_files(tmp_path: Path, file: Path) -> None:
    """No file, a folder, other bytes, one id twice."""
    with pytest.raises(SettingsError, match="No such file"):
        keys.read_keys(file)
    with pytest.raises(SettingsError, match="Is a directory"):
        keys.read_keys(tmp_path)
    file.write_bytes(b"\xff\xfe1\0")
    with pytest.raises(SettingsError, match="UTF-16"):
        keys.read_keys(file)
    line = "7f3a9c01:" + "0" * 64 + ":infer:\n"
    file.write_text(line + line)
    with pytest.raises(SettingsError, match=r"keys.txt:2: the id 7f3a9c01 is there twice"):
        keys.read_keys(file)


def test_the_owner_stays(file: Path) -> None:
    """The service, which runs as another user, can still read the file."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a file away")
    key_file.add(file, INFER)
    os.chown(file, 12345, 12346)
    key_file.add(file, INFER)
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12346)


def test_a_pipe_is_no_file_of_keys(file: Path) -> None:
    """It would block the service."""
    os.mkfifo(file)
    with pytest.raises(SettingsError, match="or is a pipe"):
        keys.read_keys(file)


def _add_ten(file: Path) -> None:
    for _ in range(10):
        key_file.add(file, INFER)


def test_commands_at_the_same_time(file: Path) -> None:
    """Each adds its keys, and none is lost."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_ten, args=(file,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(keys.read_keys(file)) == 40


def test_the_commands(file: Path) -> None:
    """Add prints the key alone on standard output; comments and the mode of the file stay."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = plain_environment() | {"TOPFIVE_KEYS_FILE": str(file)}
        return subprocess.run(
            [*COMMAND, "keys", *words], env=environment, capture_output=True, text=True, check=False
        )

    added = run("add", "--scopes", "admin", "--note", "night shift")
    key = added.stdout.strip()
    assert keys.read_keys(file).find(key) is not None
    file.write_text("# ours\n" + file.read_text())
    file.chmod(0o640)
    listed = run("list").stdout.splitlines()
    assert len(listed) == 2 and listed[1].split() == [key[3:11], "admin", "night", "shift"]
    assert run("revoke", key[3:11]).returncode == 0
    assert file.read_text().startswith("# ours\n")
    assert file.stat().st_mode & 0o777 == 0o640
    assert len(keys.read_keys(file)) == 0
    again = run("revoke", key[3:11])
    assert again.returncode == 1 and "has no key" in again.stderr
    for note in ("two\nlines", "x\u2028y", "x\u0085y"):
        assert "that cannot be printed" in run("add", "--note", note).stderr
    wrong = run("add", "--scopes", "infer,root")
    assert wrong.returncode == 1 and "'root' is not a scope" in wrong.stderr
