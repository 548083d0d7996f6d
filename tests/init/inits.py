"""Init systems that can be started here, each behind the same few calls: what it is told, and what it does.

The files are those in init/, put into a folder of the test's own by scripts/install_init.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from ..support.daemon import DEADLINE, Daemon, Watched

TOP = Path(__file__).resolve().parent.parent.parent
CAPSULED = Path(sys.executable).with_name("capsuled")
LOOK_SECONDS = 0.02


def until(reached: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
    """Other people's programs tell no events: looked at again and again, with a deadline."""
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline, f"not {what} after {timeout} s"
        select.select([], [], [], LOOK_SECONDS)


class Init:
    """One init system with one supervisor as its service. `daemon` is that one's folder, and asks it."""

    restarts = False
    """Whether it starts again what has crashed."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.folder = daemon.folder
        self.config = self.folder / "capsuled.toml"
        self.config.write_text('capsules = ["capsules"]\nruntime_dir = "rt"\nstate_dir = "st"\n')
        self.log = self.folder / "log"
        self.log.touch()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._descendants = Watched(())

    # ── what each of them does its own way ───────────────────────────────────────────────────────

    def begin(self) -> None:
        """Have the service started, and wait for nothing."""
        raise NotImplementedError

    def pid(self) -> int | None:
        """The supervisor's, as this process sees it; None while there is none."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether the init system knows by now that the service is ready."""
        raise NotImplementedError

    def end(self) -> int | None:
        """Have it stopped, as the operator would, and wait. The supervisor's exit status, where it is told."""
        raise NotImplementedError

    def given_up(self) -> bool:
        """Whether the init system knows of a start that has failed."""
        raise NotImplementedError

    # ── what all of them do ──────────────────────────────────────────────────────────────────────

    def await_pid(self, but: int | None = None) -> int:
        until(lambda: self.pid() not in (None, but), "started")
        found = self.pid()
        assert found is not None
        return found

    def await_ready(self) -> None:
        until(self.ready, f"ready: {self.log.read_text()[-2000:]}")

    def descendants(self) -> list[psutil.Process]:
        pid = self.pid()
        return [] if pid is None else psutil.Process(pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        return [each for each in self.descendants() if "capsuled.sandbox" in cmdline(each)]

    def watch(self) -> None:
        """Remember who is there, for `left`."""
        pid = self.pid()
        assert pid is not None
        self._descendants = Watched([psutil.Process(pid), *self.descendants()])

    def left(self) -> list[int]:
        """Who of the remembered is still there after two seconds."""
        return self._descendants.left(2.0)

    def install(self, system: str) -> Path:
        root = self.folder / "root"
        command = [sys.executable, str(TOP / "scripts/install_init"), system, "--prefix", str(root)]
        command += ["--capsuled", str(CAPSULED), "--config", str(self.config)]
        subprocess.run([*command, "--socket", str(self.daemon.socket)], check=True, capture_output=True)
        return root

    def run(self, *command: str, **more: object) -> subprocess.Popen[bytes]:
        """Start it in the background; it is gone at the end of the test."""
        with self.log.open("ab") as log:
            options: dict[str, object] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **more}
            process: subprocess.Popen[bytes] = subprocess.Popen(command, **options)  # type: ignore[call-overload]
        self._processes.append(process)
        return process

    def status(self, *command: str) -> int:
        """The exit status of a command of the init system's."""
        return subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False).returncode

    def close(self) -> None:
        """Whatever is left goes."""
        with suppress(psutil.Error):
            pid = self.pid()
            there = [] if pid is None else [psutil.Process(pid), *self.descendants()]
            self._descendants.left(0.0)
            self._descendants.kill()
            self._descendants = Watched(there)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE)
        self._descendants.left(2.0)
        self._descendants.kill()


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Direct(Init):
    """No init system but this test: `Popen`, and one of the two protocols."""

    command: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def pid(self) -> int | None:
        return None if self.process is None or self.process.poll() is not None else self.process.pid

    def end(self) -> int | None:
        assert self.process is not None
        pid = self.pid()
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def given_up(self) -> bool:
        return self.process is not None and self.process.poll() is not None


class Notify(Direct):
    """The notify socket of a systemd, without the rest of it."""

    def __init__(self, daemon: Daemon, abstract: bool = False) -> None:
        super().__init__(daemon)
        self.heard: list[bytes] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = f"@capsuled-{os.getpid()}" if abstract else str(self.folder / "notify")
        self.socket.bind(self.address.replace("@", "\0"))
        self.socket.setblocking(False)

    def begin(self) -> None:
        given = {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": "1000000"}
        self.process = self.run(
            str(CAPSULED), "run", "--config", str(self.config), env={**os.environ, **given}
        )

    def hear(self) -> list[bytes]:
        with suppress(BlockingIOError):
            while True:
                self.heard += self.socket.recv(65536).splitlines()
        return self.heard

    def ready(self) -> bool:
        return b"READY=1" in self.hear()

    def close(self) -> None:
        super().close()
        self.socket.close()


class AbstractNotify(Notify):
    """The same with an address that is no file."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon, abstract=True)


class FirstProcess(Direct):
    """A container's process 1: a pid namespace; and a descriptor for readiness."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.said = b""

    def begin(self) -> None:
        self.launch(str(CAPSULED), "run", "--config", str(self.config), "--ready-fd", str(self.writer))
        os.close(self.writer)
        self.writer = -1

    def launch(self, *command: str) -> None:
        user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
        self.process = self.run(
            *("unshare", *user, "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", *command),
            pass_fds=(self.writer,),
        )

    def pid(self) -> int | None:
        if self.process is None:
            return None
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                if "unshare" not in cmdline(child)[:1]:
                    return child.pid
        return None

    def ready(self) -> bool:
        with suppress(BlockingIOError):
            while data := os.read(self.reader, 100):
                self.said += data
        return self.said == b"\n"

    def close(self) -> None:
        super().close()
        os.close(self.reader)
        if self.writer >= 0:
            os.close(self.writer)


class S6(Init):
    """s6-supervise on the service directory."""

    restarts = True

    def begin(self) -> None:
        self.service = str(self.install("s6") / "etc/s6/sv/capsuled")
        self.supervise = self.run("s6-supervise", self.service)

    def _stat(self, field: str) -> str:
        command = ["s6-svstat", "-o", field, self.service]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE, check=False
        ).stdout.strip()

    def pid(self) -> int | None:
        found = self._stat("pid")
        return int(found) if found.isdecimal() else None

    def ready(self) -> bool:
        return self._stat("ready") == "true"

    def end(self) -> int | None:
        # -wD: until it is down and its finish script has ended.
        assert self.status("s6-svc", "-wD", "-T", "30000", "-d", self.service) == 0
        return int(self._stat("exitcode"))

    def given_up(self) -> bool:
        return b"capsuled: cannot" in self.log.read_bytes()

    def close(self) -> None:
        # Or it would start it again when it is killed.
        self.status("s6-svc", "-xd", self.service)
        with suppress(subprocess.TimeoutExpired):
            self.supervise.wait(DEADLINE)
        super().close()


class Runit(Init):
    """runsv on the service directory."""

    restarts = True

    def begin(self) -> None:
        self.service = str(self.install("runit") / "etc/sv/capsuled")
        self.supervise = self.run("runsv", self.service)

    def pid(self) -> int | None:
        with suppress(OSError, ValueError):
            return int(Path(self.service, "supervise/pid").read_text())
        return None

    def ready(self) -> bool:
        # As an operator would: it changes nothing where it is up. (`sv check` is content with one that is down.)
        return self.status("sv", "-w", "1", "start", self.service) == 0

    def end(self) -> int | None:
        assert self.status("sv", "-w", "30", "down", self.service) == 0
        return None

    def given_up(self) -> bool:
        return b"capsuled: cannot" in self.log.read_bytes()

    def close(self) -> None:
        self.status("sv", "-w", "1", "exit", self.service)
        with suppress(subprocess.TimeoutExpired):
            self.supervise.wait(DEADLINE)
        super().close()


class Sysv(Init):
    """The script, with dash and dpkg's start-stop-daemon."""

    helper = True
    script: Path | None = None

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self.pidfile = self.folder / "pid"
        self.script = self.install("sysv") / "etc/init.d/capsuled"
        self.defaults = self.folder / "defaults"
        self.defaults.write_text(f"PIDFILE={self.pidfile}\nLOGFILE={self.log}\n")
        text = self.script.read_text()
        assert "/etc/default/capsuled" in text
        self.script.write_text(text.replace("/etc/default/capsuled", str(self.defaults)))
        self.starting: subprocess.Popen[bytes] | None = None
        self.tools = self.folder / "bin"
        self.tools.mkdir()
        for each in tools():
            if self.helper or each.name != "start-stop-daemon":
                self.tools.joinpath(each.name).symlink_to(each)

    def act(self, *action: str) -> int:
        """The script's exit status."""
        return self.run(*self.command(*action), env=self.environment()).wait(DEADLINE)

    def command(self, *action: str) -> tuple[str, ...]:
        return ("dash", str(self.script), *action)

    def environment(self) -> dict[str, str]:
        return {"PATH": str(self.tools)}

    def begin(self) -> None:
        self.starting = self.run(*self.command("start"), env=self.environment())

    def pid(self) -> int | None:
        with suppress(OSError, ValueError):
            found = int(self.pidfile.read_text())
            if str(CAPSULED) in cmdline(psutil.Process(found)):
                return found
        return None

    def ready(self) -> bool:
        return self.starting is not None and self.starting.poll() == 0

    def end(self) -> int | None:
        assert self.act("stop") == 0
        return None

    def given_up(self) -> bool:
        return self.starting is not None and self.starting.poll() == 1


class BareSysv(Sysv):
    """The script where there is no start-stop-daemon."""

    helper = False


def tools() -> Iterator[Path]:
    """What an init script finds on its PATH."""
    for name in (
        *("dash", "sh", "env", "flock", "grep", "mv", "rm", "setsid", "sleep"),
        *("start-stop-daemon", "timeout", "tr"),
    ):
        found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found is not None, f"{name} is missing"
        yield Path(found)


ALL: dict[str, Callable[[Daemon], Init]] = {
    "notify": Notify,
    "notify-abstract": AbstractNotify,
    "process-1": FirstProcess,
    "s6": S6,
    "runit": Runit,
    "sysv": Sysv,
    "sysv-bare": BareSysv,
}
