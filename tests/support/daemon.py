"""The real supervisor for tests: `capsuled run` in a process of its own, with folders of its own.

Nothing here waits by sleeping: it follows the supervisor's own streams, each with a deadline. At the end it looks
whether anything is left behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from capsuled.supervisor import cgroups
from capsuled.supervisor.commands.client import Answer, Ask, CannotAsk, Client, capsule_path

DEADLINE = 30.0
"""Seconds for what takes milliseconds on an idle machine; CI is shared."""

LONG_AGO = "2000-01-01T00:00:00.000Z"

Json = dict[str, Any]


class Called(NamedTuple):
    """What a `guests.Program` has logged of one of its calls."""

    number: int
    result: int
    data: bytes


class Watched:
    """Processes whose ends can be waited for, whoever their parent is: by pidfd, so that no pid is mistaken."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        self._pidfds: dict[int, int] = {}
        for process in processes:
            try:
                self._pidfds[process.pid] = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue

    def __len__(self) -> int:
        """How many are watched, and not known to have ended."""
        return len(self._pidfds)

    def left(self, timeout: float) -> list[int]:
        """The pids of those that have not ended after `timeout` seconds. A zombie has ended."""
        deadline = time.monotonic() + timeout
        for pid, fd in list(self._pidfds.items()):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                os.close(self._pidfds.pop(pid))
        return list(self._pidfds)

    def kill(self) -> None:
        """Kill what is left, and forget it."""
        for fd in self._pidfds.values():
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        self._pidfds.clear()


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
        self.descendants = Watched(())
        self._ended = False
        """The supervisor has ended by itself: nothing may be left."""

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

    def start(
        self,
        *,
        configuration: str = "",
        wait_for: Iterable[str] = (),
        arguments: Iterable[str] = (),
    ) -> None:
        """Start the supervisor and wait until its socket answers, and until these capsules are ready."""
        self.process = self.launch(configuration, arguments)
        self._await_start()
        for name in wait_for:
            self.wait(name, lambda capsule: capsule["ready"])

    def launch(
        self, configuration: str = "", arguments: Iterable[str] = (), stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        """Start the supervisor and wait for nothing: the process is the caller's."""
        (self.folder / "capsuled.toml").write_text(configured(configuration))
        command = [sys.executable, "-m", "capsuled.supervisor.commands.capsuled", "run", "--config"]
        return subprocess.Popen(
            [*command, str(self.folder / "capsuled.toml"), *arguments],
            bufsize=0,  # what is read ahead here would be missing in the log
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=self.folder,
        )

    def refused(self, configuration: str = "", arguments: Iterable[str] = ()) -> tuple[int, str]:
        """Start a supervisor that cannot start. Returns its exit status and what it says."""
        process = self.launch(configuration, arguments)
        try:
            _, said = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
        return process.returncode, said.decode()

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

    def wait_event(self, wanted: Callable[[Json], bool], timeout: float = DEADLINE) -> Json:
        """Follow the events until one, old or new, is as wanted."""
        deadline = time.monotonic() + timeout
        with self.client.follow(Ask("GET", "/v1/events", {"follow": "", "since": LONG_AGO})) as stream:
            assert not isinstance(stream, Answer), stream
            while True:
                try:
                    event = stream.line(max(deadline - time.monotonic(), 0.001))
                except TimeoutError as exc:
                    raise AssertionError(f"no such event in {timeout} s; log: {self.log()}") from exc
                assert event is not None, self.log()
                if wanted(dict(event)):
                    return dict(event)

    def seconds_between(self, name: str, first: str, last: str) -> float:
        """From the newest event `first` of a capsule to its newest event `last`."""
        times = {
            each["event"]: datetime.fromisoformat(each["time"].replace("Z", "+00:00"))
            for each in self.events()
            if each["capsule"] == name
        }
        return (times[last] - times[first]).total_seconds()

    def events(self) -> list[Json]:
        """Every event that is kept, oldest first."""
        return [dict(each) for each in self.client.ask(Ask("GET", "/v1/events")).lines]

    def ended(self, name: str, timeout: float = DEADLINE) -> Json:
        """The newest end of a capsule, once there is one."""
        found = self.wait(name, lambda capsule: capsule["last_exit"] is not None, timeout)
        return dict(found["last_exit"])

    def ctl(self, *arguments: str, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
        """`capsulectl` in a process of its own."""
        command = [sys.executable, "-m", "capsuled.supervisor.commands.capsulectl"]
        return subprocess.run(
            [*command, "--socket", str(self.socket), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def results(self, name: str, last: int) -> list[Called]:
        """What a `guests.Program` reports, once its call number `last` has been reported."""
        self.wait_line(name, lambda line: line["message"].startswith(f'{{"call":{last},'))
        return list(called(line["message"] for line in self.lines(name)))

    # ── its end ──────────────────────────────────────────────────────────────────────────────────

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def backbone(self) -> int:
        """The pid of the backbone, once it is up."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            found = self.get("/v1/status")["backbone"]
            if found["up"]:
                return int(found["pid"])
        raise AssertionError(f"the backbone is not up after {DEADLINE} s; log: {self.log()}")

    def worker(self, name: str) -> int:
        """The pid of a capsule's process."""
        return int(self.of(name)["pid"])

    def children(self) -> list[psutil.Process]:
        """Every process that descends from the supervisor now."""
        return psutil.Process(self.pid).children(recursive=True)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = DEADLINE) -> int:
        """Signal the supervisor and wait for its end; returns its exit status."""
        assert self.process is not None
        self.descendants = Watched(self.children())
        self.process.send_signal(number)
        return self.wait_end(timeout)

    def wait_end(self, timeout: float = DEADLINE) -> int:
        """Wait for the end of a supervisor that something else has told to end; returns its exit status."""
        assert self.process is not None
        try:
            status = self.process.wait(timeout)
            self._ended = status != -signal.SIGKILL
            return status
        finally:
            self.process = None
            self._drain.wait(timeout)

    def left(self, timeout: float = 2.0) -> list[int | Path]:
        """Descendants of the supervisor that was stopped last which are still there after `timeout` seconds; and its
        control groups, unless it was killed: they are empty then, and go with the next start."""
        return [*self.descendants.left(timeout), *(self.groups() if self._ended else ())]

    def groups(self) -> list[Path]:
        """Its control groups that are there."""
        if not self.runtime.exists():
            return []
        possible = cgroups.possible(cgroups.holder(self.runtime))
        return [folder for each in possible for folder in each.folders()]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)
        self.descendants.left(2.0)
        self.descendants.kill()
        if self.runtime.exists():
            with cgroups.opened(cgroups.holder(self.runtime)):
                pass  # as the next start would


def configured(more: str) -> str:
    """The configuration of a supervisor in its own folder. What capsules of the tests say is nothing for the machine's
    journal.
    """
    if "journal" not in more:
        table = "[log]\njournal = false\n"
        more = more.replace("[log]\n", table) if "[log]\n" in more else f"{more}\n{table}"
    return f'capsules = ["capsules"]\nruntime_dir = "rt"\nstate_dir = "st"\n{more}\n'


def called(messages: Iterable[str]) -> Iterator[Called]:
    """What a `guests.Program` has logged in these lines."""
    for message in messages:
        if message.startswith('{"call":'):
            found = json.loads(message)
            yield Called(found["call"], found["result"], bytes.fromhex(found["hex"]))


@contextmanager
def daemon() -> Generator[Daemon, None, None]:
    """A supervisor that is not started yet, and is gone with everything of it at the end."""
    # Not pytest's tmp_path: its long names would not fit into a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="capsuled-"))
    made = Daemon(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["DEADLINE", "Called", "CannotAsk", "Daemon", "Watched", "daemon"]
