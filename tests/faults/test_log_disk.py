"""A disk that is full, and folders that vanish under a running supervisor: what is lost is counted, no one falls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ..e2e import lives
from ..support.daemon import DEADLINE, Daemon, configured

ROOM = 256 * 1024
"""Bytes of the disk: some seconds of two counters."""

NAMES = ("one", "two")

FOREVER = 1_000_000

ENDLESS = lives.counter(FOREVER, pause=5)


class OnSmallDisk(Daemon):
    """Its logs are on a tmpfs of `ROOM` bytes, in a mount namespace that goes with it."""

    def launch(
        self, configuration: str = "", arguments: Iterable[str] = (), stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        path = self.folder / "capsuled.toml"
        path.write_text(configured(configuration))
        (self.folder / "st" / "logs").mkdir(parents=True, exist_ok=True)
        mount = f'mount -t tmpfs -o size={ROOM},mode=0700 none st/logs && exec "$@"'
        capsuled = [sys.executable, "-m", "capsuled.supervisor.commands.capsuled", "run", "--config"]
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mount, "sh", *capsuled, str(path), *arguments],
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=self.folder,
        )

    @property
    def logs(self) -> Path:
        """The small disk, from outside."""
        return Path(f"/proc/{self.pid}/root{self.folder}/st/logs")


def until(daemon: Daemon, holds: Callable[[], bool]) -> None:
    """Ask the supervisor until something holds that it does not tell of; each time it has to answer."""
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, daemon.log()
        assert daemon.get("/v1/health")["healthy"]


def fill(path: Path) -> None:
    """Take all the room that there is."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        with suppress(OSError):
            while True:
                os.write(fd, bytes(4096))
        assert os.fstatvfs(fd).f_bavail == 0
    finally:
        os.close(fd)


def sequence(path: Path) -> Iterator[int]:
    """The guest's numbers in a file; where lines are missing, how many, below zero."""
    for line in path.read_bytes().splitlines():
        found = json.loads(line)
        if "lost" in found:
            yield -found["lost"]
        elif found["stream"] == "guest":
            yield int(found["message"])


def complete(path: Path) -> bool:
    """Whether each number is there or counted where it is missing."""
    expected = 0
    for number in sequence(path):
        if number < 0:
            expected -= number
        elif number != expected:
            return False
        else:
            expected += 1
    return expected > 0


@pytest.mark.skipif(os.getuid() != 0, reason="a private tmpfs, which root alone may mount")
def test_a_full_disk() -> None:
    """Capsules run on and are shown, the supervisor says it once for each; with room again each log tells how many
    lines it lacks, and lacks no other."""
    folder = Path(f"/tmp/capsuled-{os.getpid()}-disk")  # short: it holds sockets
    folder.mkdir()
    daemon = OnSmallDisk(folder)
    try:
        for name in NAMES:
            daemon.capsule(name, ENDLESS, subscribe=lives.QUIET)
        daemon.start(wait_for=NAMES)
        pids = [daemon.worker(name) for name in NAMES]
        fill(daemon.logs / "filler")
        until(daemon, lambda: daemon.log().count("No space left on device") == 2)
        newest = int(daemon.lines("one")[-1]["message"])
        daemon.wait_line("one", lambda line: line["message"] == f"{newest + 50:06d}")
        assert [daemon.worker(name) for name in NAMES] == pids
        assert daemon.log().count("No space left on device") == 2
        (daemon.logs / "filler").unlink()
        for name in NAMES:
            path = daemon.logs / f"{name}.log"
            until(daemon, lambda path=path: any(number < 0 for number in sequence(path)))  # type: ignore[misc]
            assert complete(path), path.read_text()[-5000:]
        until(daemon, lambda: daemon.log().count("lines are written again") == 2)
        assert daemon.stop() == 0
        assert daemon.left() == []
    finally:
        daemon.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_folder_of_logs_that_vanishes(daemon: Daemon) -> None:
    """It is made again with the next line, and the supervisor says so once."""
    for name in NAMES:
        daemon.capsule(name, ENDLESS, subscribe=lives.QUIET)
    daemon.start(wait_for=NAMES)
    folder = daemon.folder / "st" / "logs"
    folder.rename(daemon.folder / "away")
    until(daemon, lambda: all((folder / f"{name}.log").exists() for name in NAMES))
    for name in NAMES:
        daemon.wait_line(name, lambda line: line["stream"] == "guest")
    assert daemon.log().count("had vanished: it is made again") == 1
    assert daemon.stop() == 0
    for name in NAMES:
        *_, last = (folder / f"{name}.log").read_bytes().splitlines()
        assert json.loads(last)["message"] == "ended: supervisor-shutdown"


def test_a_capsule_whose_folder_vanishes(daemon: Daemon) -> None:
    """It runs and logs on; its logs are not in that folder."""
    daemon.capsule("one", ENDLESS, subscribe=lives.QUIET)
    daemon.start(wait_for=["one"])
    shutil.rmtree(daemon.capsules / "one")
    newest = len(daemon.lines("one"))
    daemon.wait_line("one", lambda line: line["message"] == f"{newest + 20:06d}")
    assert daemon.stop() == 0
    assert complete(daemon.folder / "st" / "logs" / "one.log")
