"""What shells offer for a command line: by real shells, with the script that the real command prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from capsuled.proto.control import Exit
from capsuled.supervisor.commands import capsulectl, commandline, completion

from ..control.serving import Daemon, Served, run, serving
from .running import COMMAND, EVIL, environment

BASH = """
source "$1"
complete -p capsulectl >/dev/null || exit 1
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_capsulectl capsulectl
printf '%s\\n' "${COMPREPLY[@]}"
"""

# compadd and _describe only work in the line editor: here they print what they are given.
ZSH = """
compdef() { [[ "$*" == '_capsulectl capsulectl' ]] || exit 1 }
compset() { : }
compadd() { shift; local each; for each in "$@"; do print -r -- $each; done }
_files() { if [[ $1 == -/ ]]; then print -rl -- *(/N); else print -rl -- *(N); fi }
_describe() { local each; for each in "${(@P)argv[-1]}"; do print -r -- ${each%%:*}; done }
source "$1"
shift
words=("$@")
CURRENT=$#
_capsulectl
exit 0
"""

FISH = """
source $argv[1]
complete --do-complete="$argv[2]" | string replace --regex '\\t.*' ''
true
"""


class Shell(NamedTuple):
    name: str
    arguments: Sequence[str]
    driver: str


SHELLS = [
    shell
    for shell in (
        Shell("bash", ("--norc", "--noprofile", "-c"), BASH),
        Shell("zsh", ("-f", "-c"), ZSH),
        Shell("fish", ("--no-config", "-c"), FISH),
    )
    if shell.name == "bash" or shutil.which(shell.name)
]
"""Those that are there: bash always is, and the others are not asked for."""

each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.name)


async def offered(shell: Shell, folder: Path, served: Served | None, line: str) -> list[str]:
    """What the shell offers at the end of the line, in order."""
    script = folder / f"script.{shell.name}"
    if not script.exists():
        made = await trio.run_process([*COMMAND, "completion", shell.name], capture_stdout=True)
        script.write_bytes(made.stdout or b"")
    words = [line] if shell.name == "fish" else line.split(" ")
    zero = [] if shell.name == "fish" else [shell.name]
    folder_of_ours = os.fspath(Path(sys.executable).parent)
    done = await trio.run_process(
        [shell.name, *shell.arguments, shell.driver, *zero, os.fspath(script), *words],
        stdin=subprocess.DEVNULL,
        capture_stdout=True,
        capture_stderr=True,
        cwd=folder,
        env=environment(
            served, {"PATH": f"{folder_of_ours}:{os.environ['PATH']}", "HOME": os.fspath(folder)}
        ),
    )
    assert done.stderr == b""
    assert done.stdout is not None
    current = line.rsplit(" ", maxsplit=1)[-1]
    found = sorted(set(done.stdout.decode().split("\n")) - {""})
    # The stubs of zsh's are told everything, for it is its line editor that compares.
    return [each for each in found if each.startswith(current.rpartition("=")[2])]


def commands() -> list[str]:
    return sorted(each.path[-1] for each in commandline.read(capsulectl.parser()).commands)


@each_shell
def test_what_is_offered(shell: Shell, tmp_path: Path) -> None:
    """Commands, options, choices, files and names of capsules, each where it may stand."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    async def main() -> None:
        async with serving() as served:
            for line, wanted in (
                ("capsulectl ", commands()),
                ("capsulectl st", ["start", "status", "stop"]),
                ("capsulectl bus ", ["publish", "stats", "tap", "trace"]),
                ("capsulectl acl ", ["explain"]),
                ("capsulectl --json sta", ["start", "status"]),
                ("capsulectl status ", ["broken", "echo", "idle", "slow"]),
                ("capsulectl status e", ["echo"]),
                ("capsulectl status echo ", []),
                ("capsulectl stop echo i", ["idle"]),
                ("capsulectl stop --wait ", ["down", "ready"]),
                ("capsulectl stop --wait r", ["ready"]),
                ("capsulectl stop --wait ready e", ["echo"]),
                ("capsulectl stop --timeout ", []),
                ("capsulectl reload --wait ", []),
                ("capsulectl wait echo --for ", ["down", "ready"]),
                ("capsulectl acl explain echo ", ["publish", "subscribe"]),
                ("capsulectl acl explain echo publish ", []),
                ("capsulectl acl explain ec", ["echo"]),
                ("capsulectl logs -n 5 ", ["broken", "echo", "idle", "slow"]),
                ("capsulectl --socket fi", ["file"]),
                ("capsulectl completion ", ["bash", "fish", "zsh"]),
                ("capsulectl bus publish ", []),
                ("capsulectl nothing ", []),
                ("capsulectl events --f", ["--follow"]),
                ("capsulectl bus -", ["--help", "-h"]),
            ):
                assert await offered(shell, tmp_path, served, line) == wanted, line

    run(main)


@each_shell
def test_names_of_the_supervisor_that_is_named(shell: Shell, tmp_path: Path) -> None:
    """Names are those of the socket on the line; without a supervisor there are none, and nothing is said."""

    async def main() -> None:
        async with serving() as served:
            line = f"capsulectl --socket {served.path} status "
            assert await offered(shell, tmp_path, None, line + "e") == ["echo"]
            assert await offered(shell, tmp_path, served, "capsulectl --socket /nowhere status ") == []
        assert await offered(shell, tmp_path, served, "capsulectl status ") == []

    run(main)


@each_shell
def test_names_run_nothing(shell: Shell, tmp_path: Path) -> None:
    """A supervisor that is none of ours may call its capsules what it likes: what is no name is not offered."""
    daemon = Daemon()
    names = ("good", "$(touch${IFS}pwned)", "`touch pwned`", EVIL, "a;b", "UP", "grün")
    daemon.capsules_by_name = {name: {"name": name, "state": "ready"} for name in names}

    async def main() -> None:
        async with serving(daemon) as served:
            assert await offered(shell, tmp_path, served, "capsulectl status ") == ["good"]

    run(main)
    assert not (tmp_path / "pwned").exists()


def test_words_that_bash_divides(tmp_path: Path) -> None:
    """bash makes three words of an option and its value with an equals sign; what is offered is the same."""
    words = ("capsulectl", "stop", "--wait", "=", "")

    async def main() -> None:
        bash = SHELLS[0]
        assert await offered(bash, tmp_path, None, " ".join(words)) == ["down", "ready"]
        assert await offered(bash, tmp_path, None, "capsulectl stop --wait =") == ["down", "ready"]
        async with serving() as served:
            line = "capsulectl stop --wait = ready ec"
            assert await offered(bash, tmp_path, served, line) == ["echo"]

    run(main)


def test_every_option_is_offered() -> None:
    """Whatever the parser knows is in the table: each option of each command, and each command."""
    top = commandline.read(capsulectl.parser())
    found = completion.table(top)
    for command in top.all():
        at = "/".join(command.path[1:])
        assert set(found.options[at]) == {flag for option in command.options for flag in option.flags}
        assert {"-h", "--help"} <= set(found.options[at])
    assert len(found.options) == len(list(top.all())) > 20


def test_scripts_are_quoted() -> None:
    """A help text with whatever signs is text in each script."""
    hostile = commandline.Command(
        ("x",), "", (), (), (commandline.Command(("x", "y"), "it's $(a) `b` \\ %", (), (), ()),)
    )
    for shell in completion.SHELLS:
        made = completion.script(shell, hostile)
        if shell == "fish":
            assert "'y\tit\\'s $(a) `b` \\\\ %'" in made
    done = subprocess.run(["bash", "-n"], input=completion.script("bash", hostile), text=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "zsh"]])
def test_wrong_usage(arguments: list[str]) -> None:
    """Shells that it does not know exit 2."""
    done = subprocess.run([*COMMAND, "completion", *arguments], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (Exit.USAGE, b"")
