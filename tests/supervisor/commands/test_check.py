"""`capsuled check`: every finding is printed, by file, and the exit code says whether there was one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from capsuled.proto.control import Exit
from capsuled.supervisor.catalogue import MAGIC
from capsuled.supervisor.commands.check import check

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

USER = 1000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user, who has no file yet."""
    monkeypatch.setattr(os, "getuid", lambda: USER)
    for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "capsuled").mkdir()
    return tmp_path / "capsuled"


def capsule(folder: Path, more: str = "", module: bytes = MAGIC) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.wasm").write_bytes(module)
    path = folder / "Capsule.toml"
    digest = hashlib.sha256(MAGIC).hexdigest()
    path.write_text(
        f'[package]\nname = "{folder.name}"\nversion = "1.0.0"\n'
        f'[component]\nfile = "a.wasm"\nhash = "sha256:{digest}"\n{more}'
    )
    return path


@pytest.mark.usefixtures("home")
def test_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """The examples are without a finding."""
    assert check([EXAMPLES], None) is Exit.DONE
    assert capsys.readouterr().out == "14 capsules without a fault, no findings\n"


def test_findings_are_sorted_by_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each finding is a line `file: key: sentence`, those of a file together, and a line sums up."""
    b = capsule(home / "x/b", "[limits]\ncpu = 0\nzap = 1\n")
    a = capsule(home / "y/a", module=b"x")
    capsule(home / "y/c")
    assert check([home / "y", home / "x"], None) is Exit.FAILED
    assert capsys.readouterr().out.splitlines() == [
        f"{b}: limits.cpu: 0 is less than 0.01: write one from 0.01 to 64",
        f"{b}: limits.zap: not known here: write one of memory, process_memory, cpu, cpu_time, open_files, "
        "processes, max_payload, publish_bytes_per_second, publish_messages_per_second, queue_messages, "
        "queue_bytes, log_bytes_per_second",
        f"{a}: component.file: 'a.wasm' is something that begins with b'x', not a core WebAssembly module: "
        "build one",
        "1 capsule without a fault, 3 findings in 2 files",
    ]


def test_without_paths_it_is_what_is_configured(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a path, the usual configuration and the folders that it names are checked."""
    (home / "capsuled.toml").write_text("capsules = ['mine']\nallow_unhashed = true\n")
    path = capsule(home / "mine/a")
    path.write_text(path.read_text().split("hash")[0])
    assert check([], None) is Exit.DONE
    (home / "capsuled.toml").write_text("capsules = ['mine']\n")
    assert check([], None) is Exit.FAILED
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "1 capsule without a fault, no findings"
    assert second.startswith(f"{path}: component.hash: missing")


def test_the_usual_file_need_not_be_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a configuration the usual folder is checked."""
    capsule(home / "capsules/a")
    assert check([], None) is Exit.DONE
    assert capsys.readouterr().out == "1 capsule without a fault, no findings\n"


def test_a_folder_that_is_missing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configured folder that is not there is a finding."""
    assert check([], None) is Exit.FAILED
    assert capsys.readouterr().out.startswith(
        f"{home}/capsules: cannot look for capsules there: No such file"
    )


def test_a_named_file_must_be_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration that the operator names and that is not there is a finding."""
    assert check([EXAMPLES], home / "other.toml") is Exit.FAILED
    assert "other.toml: No such file or directory" in capsys.readouterr().out


def test_the_configuration_s_faults(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Faults of the configuration are findings, and its ceilings hold for what is checked."""
    config = home / "c.toml"
    config.write_text("[limits]\ncpu = 0.5\n")
    path = capsule(home / "a", "[limits]\ncpu = 1\n")
    assert check([path], config) is Exit.FAILED
    config.write_text("zap = 1\n")
    assert check([path], config) is Exit.FAILED
    ceiling, _, unknown, _ = capsys.readouterr().out.splitlines()
    assert ceiling.startswith(f"{path}: limits.cpu: 1 is above the operator's ceiling, 0.5")
    assert unknown.startswith(f"{config}: zap: not known here")


def test_a_configuration_by_its_path(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is called capsuled.toml is checked as a configuration, and told once."""
    file = home / "other/capsuled.toml"
    file.parent.mkdir()
    file.write_text("zap = 1\n")
    assert check([file], None) is Exit.FAILED
    assert check([file], file) is Exit.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"{file}: zap: ") for line in lines] == [True, False, True, False]


def test_nothing_commands_the_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a manifest and its path hold, only printable characters come out."""
    path = capsule(home / "\x1b]0;x\x07", '[capabilities]\nipc_publish = ["\\u001b[2J..a"]\n')
    assert check([path], None) is Exit.FAILED
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
