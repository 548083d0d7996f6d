"""scripts/install_init puts the right files in their places, with the operator's paths, and spoils none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .inits import TOP

PLACES = {
    "systemd": ["etc/systemd/system/capsuled.service"],
    "openrc": ["etc/init.d/capsuled"],
    "sysv": ["etc/init.d/capsuled"],
    "s6": [f"etc/s6/sv/capsuled/{each}" for each in ("finish", "notification-fd", "run", "timeout-kill")],
    "runit": [f"etc/sv/capsuled/{each}" for each in ("check", "finish", "run")],
}
PROGRAMS = ("init.d/capsuled", "/run", "/finish", "/check")


def install(system: str, prefix: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOP / "scripts/install_init"), system, "--prefix", str(prefix), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def found(prefix: Path) -> list[str]:
    return sorted(each.relative_to(prefix).as_posix() for each in prefix.rglob("*") if each.is_file())


@pytest.mark.parametrize("system", PLACES)
def test_places(system: str, tmp_path: Path) -> None:
    """All files of a system and no others, programs executable, and none without the paths that were given."""
    made = install(system, tmp_path, "--capsuled", "/opt/c/bin/capsuled", "--config", "/opt/c/c.toml")
    assert made.returncode == 0, made.stderr
    assert found(tmp_path) == PLACES[system]
    texts = ""
    for name in PLACES[system]:
        file = tmp_path / name
        assert bool(file.stat().st_mode & 0o111) == name.endswith(PROGRAMS), name
        texts += file.read_text()
    assert "/opt/c/bin/capsuled" in texts
    assert "--config /opt/c/c.toml" in texts
    assert "/usr/local/bin" not in texts


@pytest.mark.parametrize("system", PLACES)
def test_a_dry_run_writes_nothing(system: str, tmp_path: Path) -> None:
    made = install(system, tmp_path, "--dry-run")
    assert made.returncode == 0
    assert all(name in made.stdout for name in PLACES[system])
    assert found(tmp_path) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    """A file that says something else is named and nothing is written, unless --force; the same again is no change."""
    assert install("s6", tmp_path).returncode == 0
    assert install("s6", tmp_path).returncode == 0
    run = tmp_path / "etc/s6/sv/capsuled/run"
    run.write_text("mine\n")
    made = install("s6", tmp_path)
    assert made.returncode == 1
    assert f"{run} is there and says something else" in made.stderr
    assert run.read_text() == "mine\n"
    assert install("s6", tmp_path, "--force").returncode == 0
    assert "capsuled run" in run.read_text()


@pytest.mark.parametrize(
    "given",
    [
        ("--capsuled", "bin/capsuled"),
        ("--config", "/a b"),
        ("--config", "/a;b"),
        ("--config", "/a%n"),
        ("--socket", "/$x"),
    ],
)
def test_paths_that_a_shell_would_read(given: tuple[str, str], tmp_path: Path) -> None:
    """Are refused: the files are shell, and systemd has words of its own."""
    made = install("systemd", tmp_path, *given)
    assert made.returncode == 1
    assert given[1] in made.stderr
    assert found(tmp_path) == []


def test_its_help() -> None:
    made = subprocess.run(
        [sys.executable, str(TOP / "scripts/install_init"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--dry-run" in made.stdout
