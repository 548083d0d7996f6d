"""The backbone is killed or stopped: another one takes over, and no capsule is restarted for it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from capsuled.supervisor import bus

from ..e2e import lives
from ..support.daemon import Daemon
from . import traffic

NAMES = ["auditor", "listener", "talker"]


@pytest.fixture
def flowing(daemon: Daemon) -> Daemon:
    """A supervisor with traffic."""
    traffic.put(daemon)
    daemon.start(wait_for=NAMES)
    traffic.await_more(daemon, "listener")
    traffic.await_more(daemon, "auditor")
    return daemon


def await_epoch(daemon: Daemon, epoch: int, seconds: float) -> None:
    """The next backbone has no event of its own; it answers when it is there."""
    deadline = time.monotonic() + seconds
    while not ((found := daemon.get("/v1/status")["backbone"])["up"] and found["epoch"] == epoch):
        assert time.monotonic() < deadline, daemon.log()


def test_killed_under_traffic(flowing: Daemon) -> None:
    """Five times in a row: the epoch rises, traffic resumes for subscriptions and interceptors, the ledger adds up."""
    workers = {name: flowing.worker(name) for name in NAMES}
    for epoch in range(2, 7):
        os.kill(flowing.backbone, signal.SIGKILL)
        await_epoch(flowing, epoch, 30.0)
        traffic.await_more(flowing, "listener")
        traffic.await_more(flowing, "auditor")
        traffic.await_balance(flowing)
    assert {name: flowing.worker(name) for name in NAMES} == workers
    found = flowing.get("/v1/bus")
    assert found["epoch"] == 6
    assert {line["pattern"] for line in found["subscriptions"]} >= {"beat.now", "beat.*"}
    assert flowing.get("/v1/status")["backbone"]["restarts"] == 5


def test_capsules_come_and_go_while_it_is_away(flowing: Daemon) -> None:
    """A stop and a start right after its death end as ever; the newcomer receives."""
    for _ in range(3):
        os.kill(flowing.backbone, signal.SIGKILL)
        assert flowing.act("listener", "restart", wait="ready").status == 200
        assert flowing.act("talker", "stop", wait="down").status == 200
        assert flowing.act("talker", "start", wait="ready").status == 200
        traffic.await_more(flowing, "listener")
    traffic.await_balance(flowing)


def test_a_stopped_one_is_found_out(flowing: Daemon) -> None:
    """One that is stopped answers nobody: it is killed and replaced, and a stop of a capsule is bounded meanwhile."""
    backbone = flowing.backbone
    os.kill(backbone, signal.SIGSTOP)
    assert flowing.act("talker", "stop", wait="down", timeout=20).status == 200
    await_epoch(flowing, 2, 3 * (bus.PATIENCE_SECONDS + bus.ANSWER_SECONDS))
    assert flowing.backbone != backbone
    assert flowing.act("talker", "start", wait="ready").status == 200
    traffic.await_more(flowing, "listener")


def test_the_supervisor_says_so_meanwhile(daemon: Daemon) -> None:
    """The ledger cannot be read while the backbone is stopped, and that is an answer with a next step."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    os.kill(daemon.backbone, signal.SIGSTOP)
    found = daemon.ctl("bus", "stats")
    assert found.returncode == 1
    assert "cannot read the ledger" in found.stderr
    assert daemon.of("sleeper")["ready"]
