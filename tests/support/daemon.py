"""The real supervisor for tests: `capsuled run` in a process of its own, with folders of its own.

Nothing here waits by sleeping: it follows the supervisor's own streams, each with a deadline. At the end it looks
whether anything is left behind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from capsuled.supervisor.commands.client import Answer, Ask, CannotAsk, Client, capsule_path

DEADLINE = 30.0
"""Seconds for what takes milliseconds on an idle machine; CI is shared."""

Json = dict[str, Any]


class Called(NamedTuple):
    """What a `guests.Program` has logged of one of its calls."""

    number: int
    result: int
    data: bytes


class Daemon:
    """One supervisor and its capsules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.capsules = folder / "capsules"
        self.capsules.mkdir()
        self.runtime = folder / "rt"
        self.socket = self.runtime / "control.sock"
        self.client = Client(str(self.socket))
        self.process: subprocess.Popen[bytes] | None = None
        self.descendants: list[psutil.Process] = []

    # ── what it supervises ───────────────────────────────────────────────────────────────────────

    def capsule(
        self,
        name: str,
        wasm: bytes,
        *,
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        extra: str = "",
        digest: str | None = None,
        package: str = "",
        engine: str = "auto",
    ) -> None:
        """Write a capsule's folder. `extra` is more TOML; `digest` replaces the right hash."""
        folder = self.capsules / name
        folder.mkdir()
        (folder / f"{name}.wasm").write_bytes(wasm)
        digest = digest or hashlib.sha256(wasm).hexdigest()
        (folder / "Capsule.toml").write_text(
            f'[package]\nname = "{name}"\nversion = "1.0.0"\n{package}\n'
            f'[component]\nfile = "{name}.wasm"\nhash = "sha256:{digest}"\nengine = "{engine}"\n'
            f"[capabilities]\nipc_publish = {json.dumps(list(publish))}\n"
            f"ipc_subscribe = {json.dumps(list(subscribe))}\n{extra}\n"
        )

    def start(self, *, configuration: str = "", wait_for: Iterable[str] = ()) -> None:
        """Start the supervisor and wait until its socket answers, and until these capsules are ready."""
        (self.folder / "capsuled.toml").write_text(
            f'capsules = ["capsules"]\nruntime_dir = "rt"\nstate_dir = "st"\n{configuration}\n'
        )
        command = [sys.executable, "-m", "capsuled.supervisor.commands.capsuled", "run", "--config"]
        self.process = subprocess.Popen(
            [*command, str(self.folder / "capsuled.toml")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.folder,
        )
        self._await_start()
        for name in wait_for:
            self.wait(name, lambda capsule: capsule["ready"])

    def _await_start(self) -> None:
        """Read the supervisor's log until it says that it has started; the rest is taken to a file."""
        assert self.process is not None
        assert self.process.stderr is not None
        log = (self.folder / "log").open("ab")
        for line in self.process.stderr:
            log.write(line)
            log.flush()
            if b"started: pid" in line:
                break
        else:
            raise AssertionError(f"the supervisor has not started: {self.log()}")
        # From here on another process drains the pipe, so that the supervisor never waits for us.
        self._drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=log)
        log.close()
        self.process.stderr.close()

    def log(self) -> str:
        """What the supervisor has written to its standard error so far."""
        return (self.folder / "log").read_text(errors="replace")

    # ── asking it ────────────────────────────────────────────────────────────────────────────────

    def get(self, path: str, query: Mapping[str, str] = {}) -> Json:
        answer = self.client.ask(Ask("GET", path, query))
        assert answer.status == 200, answer.value
        return dict(answer.value)

    def act(self, name: str, verb: str, *, wait: str | None = None, timeout: float = DEADLINE) -> Answer:
        query = {} if wait is None else {"wait": wait, "timeout": f"{timeout}"}
        return self.client.ask(Ask("POST", capsule_path(name, verb), query, timeout if wait else 0.0))

    def of(self, name: str) -> Json:
        """A capsule as the control socket shows it."""
        return self.get(capsule_path(name))

    def wait(self, name: str, reached: Callable[[Json], bool], timeout: float = DEADLINE) -> Json:
        """Follow the events until `reached` holds for a capsule."""
        deadline = time.monotonic() + timeout
        with self.client.follow(Ask("GET", "/v1/events", {"follow": ""})) as stream:
            assert not isinstance(stream, Answer), stream
            while True:
                found = self.of(name)
                if reached(found):
                    return found
                left = deadline - time.monotonic()
                try:
                    stream.line(max(left, 0.001))
                except TimeoutError as exc:
                    raise AssertionError(f"{name} is {found} after {timeout} s; log: {self.log()}") from exc

    def wait_state(self, name: str, state: str, timeout: float = DEADLINE) -> Json:
        return self.wait(name, lambda capsule: capsule["state"] == state, timeout)

    def lines(self, name: str, count: int = 10_000) -> list[Json]:
        answer = self.client.ask(Ask("GET", capsule_path(name, "logs"), {"lines": str(count)}))
        assert answer.status == 200, answer.value
        return [dict(line) for line in answer.lines]

    def wait_line(self, name: str, wanted: Callable[[Json], bool], timeout: float = DEADLINE) -> Json:
        """Follow a capsule's log until a line of it, old or new, is as wanted."""
        deadline = time.monotonic() + timeout
        with self.client.follow(
            Ask("GET", capsule_path(name, "logs"), {"follow": "", "lines": "10000"})
        ) as stream:
            assert not isinstance(stream, Answer), stream
            while True:
                try:
                    line = stream.line(max(deadline - time.monotonic(), 0.001))
                except TimeoutError as exc:
                    raise AssertionError(
                        f"no such line of {name} in {timeout} s: {self.lines(name)}"
                    ) from exc
                assert line is not None, self.log()
                if wanted(dict(line)):
                    return dict(line)

    def results(self, name: str, last: int) -> list[Called]:
        """What a `guests.Program` reports, once its call number `last` has been reported."""
        self.wait_line(name, lambda line: line["message"].startswith(f'{{"call":{last},'))
        return list(_called(line["message"] for line in self.lines(name)))

    # ── its end ──────────────────────────────────────────────────────────────────────────────────

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def children(self) -> list[psutil.Process]:
        """Every process that descends from the supervisor now."""
        return psutil.Process(self.pid).children(recursive=True)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = DEADLINE) -> int:
        """Signal the supervisor and wait for its end; returns its exit status."""
        assert self.process is not None
        self.descendants = self.children()
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        finally:
            self.process = None
            self._drain.wait(timeout)

    def left(self, timeout: float = 2.0) -> list[psutil.Process]:
        """Descendants of the supervisor that was stopped last which are still there after `timeout` seconds."""
        _, alive = psutil.wait_procs(self.descendants, timeout)
        return alive

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)
        for process in self.left():
            process.kill()


def _called(messages: Iterable[str]) -> Iterator[Called]:
    for message in messages:
        if message.startswith('{"call":'):
            found = json.loads(message)
            yield Called(found["call"], found["result"], bytes.fromhex(found["hex"]))


@contextmanager
def daemon() -> Iterator[Daemon]:
    """A supervisor that is not started yet, and is gone with everything of it at the end."""
    # Not pytest's tmp_path: its long names would not fit into a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="capsuled-"))
    made = Daemon(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["DEADLINE", "Called", "CannotAsk", "Daemon", "daemon"]
