"""What capsulectl costs, where it prints, and what it needs no supervisor for."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from capsuled.proto.control import Exit

from ..control.serving import Daemon, run, serving
from .running import COMMAND, EVIL, SHOWN, ctl, environment, running


def test_a_terminal_gets_colour_and_no_commands() -> None:
    """On a terminal `list` is coloured; what a name has in it is shown there as an escape too."""

    async def main() -> None:
        daemon = Daemon()
        daemon.capsules_by_name["evil"] = {"name": EVIL, "state": "ready"}
        ours, theirs = os.openpty()
        try:
            async with serving(daemon) as served:
                terminal = {"TERM": "xterm-256color", "COLUMNS": "200"}
                async with running(served, "list", stdout=theirs, env=terminal) as listing:
                    assert (await listing.end())[::2] == (Exit.DONE, "")
            shown = os.read(ours, 65536).decode()
        finally:
            os.close(ours)
            os.close(theirs)
        assert "\x1b[32mready" in shown
        assert "\x1b[31mfailed" in shown
        assert SHOWN in shown
        assert "\x1b]" not in shown

    run(main)


HEAVY = {
    *("trio", "pydantic", "rich", "h11", "cbor2", "zmq", "wasmer", "wasmtime", "psutil"),
    *("asyncio", "logging", "subprocess", "dataclasses", "inspect"),
}

OURS = 20
"""Modules of ours that such a command may need; each costs about a millisecond."""


@pytest.mark.parametrize(
    "command",
    [["status"], ["list"], ["logs", "echo"], ["stop", "echo"], ["top", "--interval", "1ms"], ["why", "echo"]],
)
def test_it_imports_little(command: list[str]) -> None:
    """No command but `schema` imports what takes long, when its output is no terminal."""

    async def main() -> None:
        async with serving() as served:
            done = await trio.run_process(
                [sys.executable, "-X", "importtime", *COMMAND[1:], *command],
                capture_stdout=True,
                capture_stderr=True,
                env=environment(served),
            )
        assert done.stderr is not None
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
        assert "http.client" in imported
        assert {name.partition(".")[0] for name in imported} & HEAVY == set()
        assert 5 < sum(name.startswith("capsuled.") for name in imported) <= OURS

    run(main)


def test_it_answers_quickly() -> None:
    """`status` needs less than 150 ms from the start of its process to its answer."""

    async def main() -> None:
        async with serving() as served:
            # By processor time, which is what it takes on an idle machine.
            spent: list[float] = []
            for _ in range(5):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                assert (await ctl(served, "status")).code == Exit.DONE
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
            assert 0 < min(spent) < 0.150

    run(main)


def test_schema_needs_no_supervisor() -> None:
    """`schema` prints the JSON Schema of both kinds of files, and asks nobody."""
    done = subprocess.run(
        [*COMMAND, "schema", "--socket", "/nowhere"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (Exit.DONE, "")
    assert set(json.loads(done.stdout)) == {"Capsule.toml", "capsuled.toml"}


def test_help_names_every_exit_code() -> None:
    """--help lists all exit codes, and exits 0."""
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == Exit.DONE
    assert all(f"  {code.value}  " in done.stdout for code in Exit)


def test_the_installed_command_is_this_one() -> None:
    """The script that the package installs runs `main`."""
    done = subprocess.run(
        [Path(sys.executable).with_name("capsulectl"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.DONE
    assert done.stdout.startswith("usage: capsulectl ")
