"""A million host calls inside one `run` leave the worker as large as it was."""

from __future__ import annotations

import psutil
import pytest

from capsuled.supervisor.commands.client import Answer, Ask, capsule_path

from ..support.daemon import DEADLINE, Daemon
from . import lives

CALLS = 1_000_000
MAY_GROW = 8 * 1024 * 1024


def test_memory_is_flat(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """After the first tenth of a million calls the process grows by 8 MiB at most."""
    daemon.capsule("caller", lives.caller(CALLS), subscribe=["go.on"])
    daemon.start(wait_for=["caller"])
    process = psutil.Process(daemon.worker("caller"))
    sizes: list[int] = []
    with daemon.client.follow(
        Ask("GET", capsule_path("caller", "logs"), {"follow": "", "lines": "100"})
    ) as stream:
        assert not isinstance(stream, Answer)
        while len(sizes) < 10:
            line = stream.line(DEADLINE)
            assert line is not None
            if line["message"] == "another tenth":
                sizes.append(process.memory_info().rss)
                assert daemon.ctl("bus", "publish", "go.on", "true").returncode == 0
    with capsys.disabled():
        print("\nRSS in MiB at each tenth:", " ".join(f"{size / 1024 / 1024:.1f}" for size in sizes))
    assert max(sizes) - sizes[0] <= MAY_GROW
    (shown,) = daemon.get("/v1/bus")["capsules"]
    assert shown["host_calls"] >= CALLS
