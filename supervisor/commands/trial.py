"""`capsulectl run`: one capsule under a supervisor of its own, in folders that go with it."""

from __future__ import annotations

import argparse
import os
import select
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from capsuled.proto.control import Exit, Reason
from capsuled.supervisor import catalogue, configuration, daemon, ownlog
from capsuled.supervisor.commands import ends, render
from capsuled.supervisor.commands.asking import members
from capsuled.supervisor.commands.client import Answer, Ask, CannotAsk, Client, capsule_path
from capsuled.supervisor.commands.following import DOWN, log_text
from capsuled.supervisor.configuration import Configuration, Control, Log
from capsuled.supervisor.control.listening import CannotListen
from capsuled.supervisor.folders import CannotStart

GOOD = (Reason.OK, Reason.CANCELLED)
"""Reasons of an end that is no failure."""


def run(_client: Client, given: argparse.Namespace) -> Exit:
    """Until it has ended for good, or TERM or INT ends us. Nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="capsuled-run-", ignore_cleanup_errors=True) as folder:
        using = _configuration(Path(folder))
        found = catalogue.load([Path(given.folder)], using, check=True)
        for fault in found.faults:
            print(f"capsulectl: {render.text(str(fault))}", file=sys.stderr)
        if found.faults:
            return Exit.FAILED
        if len(found.entries) != 1:
            raise CannotAsk(
                f"cannot run {given.folder}: it has {len(found.entries)} capsules: name the folder of one",
                Exit.FAILED,
            )
        (name,) = found.entries
        trial = Trial(name, os.fspath(using.control.path), as_json=given.json)
        try:
            with ownlog.to_stderr(using.log):
                trio.run(partial(_supervise, using, found, trial, insecure=given.insecure))
        except (CannotStart, CannotListen) as exc:
            raise CannotAsk(render.text(str(exc)), Exit.FAILED) from exc
        return trial.code


def _configuration(folder: Path) -> Configuration:
    base = configuration.defaults(os.environ, os.getuid())
    return replace(
        base,
        runtime_dir=folder / "run",
        state_dir=folder / "state",
        secrets_dir=folder / "secrets",
        control=Control(folder / "run/control.sock"),
        # Authors change their modules all the time; whether the hash is right is a question for `build` and `check`.
        allow_unhashed=True,
        log=Log(level="warn", journal=False),
    )


LAST_LINES_SECONDS = 2.0
"""For whoever reads our output, at the end."""


class Trial:
    """Follows the capsule by the socket, as anybody would, in threads."""

    def __init__(self, name: str, path: str, *, as_json: bool) -> None:
        self._name = name
        self._path = path
        self._as_json = as_json
        self._client = Client(path)
        self.code = Exit.DONE

    def log(self) -> None:
        """Print its log until the supervisor ends; where nobody reads, end that."""
        import json

        print(
            f"capsulectl: {self._name} runs; its supervisor is asked with --socket {self._path}",
            file=sys.stderr,
        )
        follow = Ask("GET", capsule_path(self._name, "logs"), {"follow": "", "lines": "10000"})
        try:
            with self._client.follow(follow) as stream:
                while not isinstance(stream, Answer) and (line := stream.line(None)) is not None:
                    print(json.dumps(line) if self._as_json else log_text(line), flush=True)
        except CannotAsk:
            pass  # the supervisor has ended
        except OSError:
            self._shut_down()
            with suppress(OSError):
                # Python would complain at exit, when it flushes what nobody reads.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def watch(self) -> None:
        """When it is down and stays so, tell why, and end the supervisor."""
        try:
            with self._client.follow(Ask("GET", "/v1/events", {"follow": ""})) as stream:
                while not isinstance(stream, Answer):
                    if self._client.ask(Ask("GET", capsule_path(self._name))).value.get("state") in DOWN:
                        self._tell()
                        self._shut_down()
                        return
                    if stream.line(None) is None:
                        return
        except CannotAsk:
            pass  # the supervisor has ended

    def hung_up(self) -> None:
        """When the terminal goes away, end the supervisor: to that one SIGHUP means to read its manifests again."""
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
            pass
        self._shut_down()

    def _tell(self) -> None:
        exits = members(self._client.ask(Ask("GET", capsule_path(self._name, "why"))).value, "exits")
        # Not what we have done to it ourselves.
        if exits and exits[0].get("reason") != Reason.SUPERVISOR_SHUTDOWN:
            self.code = Exit.DONE if exits[0].get("reason") in GOOD else Exit.FAILED
            shown = {key: value for key, value in exits[0].items() if key != "last_lines"}
            print("\n".join(ends.lines(shown)), file=sys.stderr)

    def _shut_down(self) -> None:
        with suppress(CannotAsk):
            self._client.ask(Ask("POST", "/v1/shutdown"))


async def _supervise(
    using: Configuration, found: catalogue.Catalogue, trial: Trial, *, insecure: bool
) -> None:
    """Raises `CannotStart` and `CannotListen`."""
    serving, told = os.pipe()
    logged = trio.Event()
    failed: Exception | None = None

    async def follow() -> None:
        await trio.lowlevel.wait_readable(serving)
        if os.read(serving, 1):
            nursery.start_soon(_in_thread, trial.watch)
            nursery.start_soon(_in_thread, trial.hung_up)
            await _in_thread(trial.log)
        logged.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        try:
            await daemon.run(using, found, insecure=insecure, ready_fd=told)
        except (CannotStart, CannotListen) as exc:
            failed = exc
        else:
            # All lines have been sent by now; that they are printed is waited for, but not for ever.
            with trio.move_on_after(LAST_LINES_SECONDS):
                await logged.wait()
        nursery.cancel_scope.cancel()
    os.close(serving)
    if failed is not None:
        raise failed


async def _in_thread(what: Callable[[], None]) -> None:
    # Each waits for somebody else, and is left behind when it is not wanted any more.
    await trio.to_thread.run_sync(what, abandon_on_cancel=True)
