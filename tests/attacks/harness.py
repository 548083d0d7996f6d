"""A supervisor of attackers, in private namespaces: a hostile test with a layer off is a real attack.

The supervisor and all of its workers are started by unshare(1) in mount, process and network namespaces of their own,
and it is looked whether they are before a capsule starts: nothing runs otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..support.daemon import Daemon, configured
from ..support.guests import Program, text

ROOT = os.getuid() == 0

PRIVATE = ("--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc")

ROOM = 120
"""Characters of a log text: the attack's name before, its outcome after."""

_GUARD = (
    "import os, sys\n"
    "for kind, outside in zip(('mnt', 'pid', 'net'), sys.argv[1:4]):\n"
    "    if os.readlink('/proc/self/ns/' + kind) == outside:\n"
    "        sys.exit(f'cannot attack: the {kind} namespace is shared: run it under unshare(1)')\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[4:]])\n"
)
"""The last look before anything hostile can run."""


def outside() -> list[str]:
    """The namespaces that an attacker may not be in."""
    return [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "net")]


def guarded(command: Sequence[str]) -> list[str]:
    """Run a program of Python's, unless it is in a namespace of ours."""
    return [sys.executable, "-c", _GUARD, *outside(), *command]


def private(command: Sequence[str]) -> list[str]:
    """Run it in private namespaces."""
    user = [] if ROOT else ["--user", "--map-current-user"]
    return ["unshare", *user, *PRIVATE, *command]


def attacker(name: str, folder: Path, inode: int) -> bytes:
    """A real guest that tries one attack through the broken engine's gate, aimed at the supervisor's `folder`."""
    program = Program()
    program.call("ready", quiet=True)
    program.call("log", 2, text(f"attack:{name}={folder}:{inode}".ljust(ROOM)), quiet=True)
    return program.wasm()


class Attacked(Daemon):
    """A supervisor whose workers' engine is broken, on a machine that may lack calls or control groups."""

    calls: Sequence[tuple[str, str]] = ()
    cgroup = True
    skipped: Sequence[str] = ()
    """Steps of the sealing plan that its workers leave out."""
    inherited = -1
    """A descriptor that it gets for nothing."""

    def launch(
        self, configuration: str = "", arguments: Iterable[str] = (), stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        path = self.folder / "capsuled.toml"
        path.write_text(configured(configuration))
        lacking = json.dumps(
            {"calls": self.calls, "believe": False, "cgroup": self.cgroup, "skipped": self.skipped}
        )
        script = str(Path(__file__).with_name("attacked.py"))
        return subprocess.Popen(
            private(guarded([script, lacking, "run", "--config", str(path), *arguments])),
            bufsize=0,
            pass_fds=[self.inherited] if self.inherited >= 0 else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=self.folder,
        )

    def outcome(self, name: str) -> str:
        """What became of an attack: `refused ERRNO`, `killed SIGNAL`, `oom` or `THROUGH`."""
        ended = self.ended(name)
        said = [
            str(line["message"]) for line in self.lines(name) if str(line["message"]).startswith(f"{name}:")
        ]
        if said:
            return said[0].partition(": ")[2].strip()
        if ended["reason"] == "oom":
            assert ended["oom_kills"] > 0
            assert ended["limit"] == "process_memory"
            return "oom"
        return f"killed {ended['signal']}" if "signal" in ended else f"ended {json.dumps(ended)}"
