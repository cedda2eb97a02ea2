"""Settings in all forms: which wins, where each came from, and what is said of wrong ones."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from service import settings
from service.errors import SettingsError
from tests.support.paths import ROOT
from tests.support.serving import COMMAND, plain_environment

# A name; a line's value in the file and how that is printed; the variable's; the flag's.
KINDS = [
    ("artifact", '"/a"', "/a", "/b", "/c"),
    ("host", '"::1"', "::1", "localhost", "127.0.0.2"),
    ("port", "1", "1", "2", "3"),
    ("max_pixels", "1_000", "1000", "2000", "3000"),
    ("start_timeout_s", "1.5", "1.5", "2.5", "3.5"),
    ("devices", '"0"', "0", "0,1", "0,1,2"),
    ("log_level", '"debug"', "debug", "warning", "error"),
]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests plays a part."""
    for name in os.environ:
        if name.startswith("TOPFIVE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "SYSTEM_FILE", Path("/nonexistent"))


def variable(name: str) -> str:
    return f"TOPFIVE_{name.upper()}"


def topfive(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = plain_environment() | environment
    return subprocess.run([*COMMAND, *arguments], env=env, capture_output=True, text=True)


def config(*arguments: str, **environment: str) -> dict[str, tuple[str, str]]:
    """(value, source) of each setting, as `topfive config` prints them."""
    done = topfive("config", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    rows = (line.split(maxsplit=2) for line in done.stdout.splitlines())
    return {name: (value, source) for name, value, source in rows}


def test_each_source_wins_over_the_next(tmp_path: Path) -> None:
    """Flag, environment, file, default: for every type, as the command prints it."""
    file = tmp_path / "config.toml"
    file.write_text("".join(f"{name} = {in_file}\n" for name, in_file, *_ in KINDS))
    env = {variable(name): in_env for name, _, _, in_env, _ in KINDS}
    flags = [f"--{name.replace('_', '-')}={in_flag}" for name, *_, in_flag in KINDS]
    by_default = config()
    by_file = config("--config", str(file))
    by_env = config("--config", str(file), **env)
    by_flag = config("--config", str(file), *flags, **env)
    for name, _, printed, in_env, in_flag in KINDS:
        assert by_default[name][1] == "default"
        assert by_file[name] == (printed, str(file))
        assert by_env[name] == (in_env, "environment")
        assert by_flag[name] == (in_flag, "flag")


def test_switches(tmp_path: Path) -> None:
    """A switch is a word in the file and the environment, and two flags."""
    file = tmp_path / "config.toml"
    file.write_text("server_timing = false")
    words = {"no": "False", "0": "False", "off": "False", "yes": "True", "1": "True", "on": "True"}
    for word, value in words.items():
        assert config(TOPFIVE_SERVER_TIMING=word)["server_timing"] == (value, "environment")
    assert config("--config", str(file))["server_timing"] == ("False", str(file))
    assert config("--config", str(file), "--server-timing")["server_timing"] == ("True", "flag")
    assert config("--no-server-timing")["server_timing"] == ("False", "flag")


def test_the_variable_names_the_file(tmp_path: Path) -> None:
    """TOPFIVE_CONFIG, where --config does not."""
    files = [tmp_path / "one.toml", tmp_path / "two.toml"]
    for number, file in enumerate(files, 1):
        file.write_text(f"port = {number}")
    assert config(TOPFIVE_CONFIG=str(files[0]))["port"] == ("1", str(files[0]))
    assert config("--config", str(files[1]), TOPFIVE_CONFIG=str(files[0]))["port"][0] == "2"


def test_the_systems_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it exists, and nothing else is named."""
    file = tmp_path / "config.toml"
    file.write_text("rows = 7")
    monkeypatch.setattr(settings, "SYSTEM_FILE", file)
    effective, sources = settings.load({})
    assert (effective.rows, sources["rows"]) == (7, str(file))


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "x"), ("port", "65536"), ("rows", "0"), ("max_pixels", "-1"),
     ("max_pixels", "1e6"), ("start_timeout_s", "nan"), ("start_timeout_s", "0"),
     ("devices", "0;1"), ("log_level", "loud"), ("server_timing", "maybe")],
)  # fmt: skip
def test_wrong_values_are_named_with_their_place(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag, the variable, or the file with its line; and the value."""
    file = tmp_path / "config.toml"
    file.write_text(f'# {name} = 5\nhost = "x"\n  {name} = "{value}"\n')
    assert complaint({name: value}).startswith(f"--{name.replace('_', '-')}: ")
    assert complaint({}, file).startswith(f"{file}:3: {name}: ")
    monkeypatch.setenv(variable(name), value)
    assert complaint({}, file).startswith(f"{variable(name)}: ")
    assert repr(value) in complaint({})


def complaint(flags: dict[str, object], file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.load(flags, file)
    assert caught.value.remedy
    return caught.value.detail


def test_an_empty_variable_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass empty variables: the file counts, then the default, for each setting."""
    for name in (*settings.Settings.model_fields, "config", "anything"):
        monkeypatch.setenv(variable(name), "")
    file = tmp_path / "config.toml"
    file.write_text("port = 5\n")
    effective, sources = settings.load({}, file)
    assert (effective.host, effective.port, effective.artifact) == ("127.0.0.1", 5, None)
    assert set(sources.values()) == {"default", str(file)}
    assert settings.unknown_variables() == []


@pytest.mark.parametrize("name", ["host", "artifact", "port", "devices", "device_python"])
def test_an_empty_flag_or_line_is_refused(name: str, tmp_path: Path) -> None:
    """It would listen on every address, or take this folder for the artifact."""
    file = tmp_path / "config.toml"
    file.write_text(f'rows = 5\n{name} = ""\n')
    assert complaint({name: ""}) == f"--{name.replace('_', '-')} is empty."
    assert complaint({}, file) == f"{file}:2: {name} is empty."


def test_empty_variables_of_other_commands() -> None:
    """TOPFIVE_URL and TOPFIVE_DEBUG: the address is that of the settings, no trace is shown."""
    empty = {"TOPFIVE_URL": "", "TOPFIVE_DEBUG": "", "TOPFIVE_CONFIG": "", "TOPFIVE_HOST": ""}
    done = topfive("health", TOPFIVE_PORT="1", **empty)
    assert done.returncode == 4
    assert done.stderr.startswith("error: http://127.0.0.1:1 does not answer")


EDITED = {
    "a byte order mark": "port = 5\nrows = 6\n".encode("utf-8-sig"),
    "lines of Windows": b"port = 5\r\nrows = 6\r\n",
    "both": "port = 5\r\nrows = 6\r\n".encode("utf-8-sig"),
}


@pytest.mark.parametrize("how", EDITED)
def test_what_editors_put_into_a_file(how: str, tmp_path: Path) -> None:
    """It is read; a wrong line is found at its place."""
    file = tmp_path / "config.toml"
    file.write_bytes(EDITED[how])
    effective, _ = settings.load({}, file)
    assert (effective.port, effective.rows) == (5, 6)
    file.write_bytes(EDITED[how].replace(b"port", b"prot"))
    assert complaint({}, file) == f"{file}:1: prot is not a setting."


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(encoding: str, tmp_path: Path) -> None:
    """As PowerShell writes it; without a byte order mark it is no TOML."""
    file = tmp_path / "config.toml"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    file.write_bytes(f"{mark}port = 5\n".encode(encoding))
    assert (
        f"Cannot read {file}: the encoding is UTF-16. Save the file as UTF-8: iconv -f UTF-16"
        in complaint({}, file)
    )


@pytest.mark.parametrize("text", ["port = ", "\xff", "port = 1\nport = 2"])
def test_files_that_are_no_toml(text: str, tmp_path: Path) -> None:
    """The file is named."""
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))
    assert str(file) in complaint({}, file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """It was asked for."""
    assert "missing.toml" in complaint({}, tmp_path / "missing.toml")


@pytest.mark.parametrize("text", ["prot = 1", "[server]\nport = 1", '"prot" = 1'])
def test_unknown_names_in_a_file_are_refused(text: str, tmp_path: Path) -> None:
    """With the line."""
    file = tmp_path / "config.toml"
    file.write_text(f"rows = 5\n{text}\n")
    name = "server" if "server" in text else "prot"
    assert complaint({}, file) == f"{file}:2: {name} is not a setting."


def test_errors_end_the_command_with_1() -> None:
    """What and where, then what to do, on stderr; an unknown flag is 2, and the near one named."""
    done = topfive("config", "--rows", "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: --rows: .*'none'\.\n  try: .*\n", done.stderr)
    unknown = topfive("serve", "--max-pixel", "5")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "--max-pixels" in unknown.stderr


def test_a_service_link_of_kubernetes_is_explained() -> None:
    """A Service named topfive sets TOPFIVE_PORT to a URL."""
    done = topfive("serve", TOPFIVE_PORT="tcp://10.0.0.1:80")
    assert done.returncode == 1
    assert "TOPFIVE_PORT" in done.stderr
    assert "enableServiceLinks: false" in done.stderr


def test_unknown_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Misspelt ones; not those of ours that are no settings, nor other programs'."""
    for name in ("TOPFIVE_PROT", "TOPFIVE_DEBUG", "TOPFIVE_URL", "TOPFIVE_ROWS", "TOPFIVES"):
        monkeypatch.setenv(name, "1")
    assert settings.unknown_variables() == ["TOPFIVE_PROT"]


def test_settings_do_not_change() -> None:
    """They are immutable."""
    effective, _ = settings.load({})
    with pytest.raises(ValueError, match="frozen"):
        effective.rows = 5


PAGE = ROOT / "docs/settings.md"


def test_docs_list_every_setting_with_its_default() -> None:
    """Name, flag, variable and default in docs/settings.md; neither more nor less."""
    row = re.compile(r"^\| `(\w+)` \| `(--[a-z-]+)` \| `(\w+)` \| (none|`[^`]+`) \|", re.MULTILINE)
    told = {name: rest for name, *rest in row.findall(PAGE.read_text())}
    assert told.keys() == settings.Settings.model_fields.keys()
    for name, field in settings.Settings.model_fields.items():
        default = "none" if field.default is None else f"`{str(field.default).removesuffix('.0')}`"
        default = default.lower() if isinstance(field.default, bool) else default
        assert told[name] == [f"--{name.replace('_', '-')}", variable(name), default]


def test_docs_list_the_other_variables() -> None:
    """Those that are no settings are told too."""
    told = set(re.findall(r"^\| `(TOPFIVE_\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert told == settings.OTHER_VARIABLES
