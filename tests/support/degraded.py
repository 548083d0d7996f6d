"""A supervisor on a machine that lacks something, or that is made to believe so: see `without`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .daemon import Daemon, configured

WITHOUT = Path(__file__).with_name("without.py")

Calls = Sequence[tuple[str, str]]


class Degraded(Daemon):
    """The attributes are the options of `without`."""

    calls: Calls = ()
    believe: bool | None = False
    cgroup = True

    def launch(
        self, configuration: str = "", arguments: Iterable[str] = (), stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        (self.folder / "capsuled.toml").write_text(configured(configuration))
        lacking = json.dumps({"calls": self.calls, "believe": self.believe, "cgroup": self.cgroup})
        command = [
            sys.executable,
            str(WITHOUT),
            lacking,
            "run",
            "--config",
            str(self.folder / "capsuled.toml"),
        ]
        return subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=self.folder,
        )
