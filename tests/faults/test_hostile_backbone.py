"""A backbone that is broken or taken over: it is replaced, and the supervisor goes on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from capsuled.supervisor import bus as buses
from capsuled.supervisor import configuration, daemon, spawn
from capsuled.supervisor.bus import Bus, BusDown
from capsuled.supervisor.catalogue import Catalogue

from .hostile import DEADLINE, backbone, running


async def until_restarts(bus: Bus, count: int) -> None:
    """There is no event for it: look at each turn of the loop."""
    with trio.fail_after(DEADLINE):
        while bus.restarts < count:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "says",
    [
        "b'\\x00\\x00\\x00\\x07rubbish'",
        "b'\\xff\\xff\\xff\\xff'",
        "struct.pack('>I', 2) + b'\\xa0\\xa0'",
        "struct.pack('>I', 9) + b'\\xa1bopedance'",
        "struct.pack('>I', 9) + b'\\xa1bopefault'",
        "struct.pack('>I', 1) + b'\\x07'",
    ],
)
def test_what_is_no_message_costs_its_life(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, says: str
) -> None:
    """It is killed and started again, the log says why, and no exception gets further."""
    backbone(monkeypatch, f"supervisor.send({says})\ntime.sleep(1000)")

    async def main() -> None:
        bus = Bus(1 << 20, 1 << 20)
        async with running(bus):
            await until_restarts(bus, 2)
            with pytest.raises(BusDown):
                await bus.figures()

    trio.run(main)
    assert "the backbone says what is no message" in caplog.text


def test_one_that_ends_at_once_is_started_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once the first time, then after the pauses of the table; it is no loop that takes the machine."""
    backbone(monkeypatch, "")
    pauses: list[float] = []
    sleep = trio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0.0)

    async def main() -> None:
        bus = Bus(1 << 20, 1 << 20)
        async with running(bus):
            with trio.fail_after(DEADLINE):
                while bus.restarts < 7:
                    await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio, "sleep", note)
    trio.run(main)
    restarts = [each for each in pauses if each != buses.PATIENCE_SECONDS]
    assert restarts[:7] == [0.0, 0.1, 0.5, 1.0, 5.0, 5.0, 5.0]


def test_one_that_never_answers_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is found out after `ANSWER_SECONDS`; who waited for an answer is told."""
    monkeypatch.setattr(buses, "ANSWER_SECONDS", 0.3)
    backbone(monkeypatch, "time.sleep(1000)")

    async def main() -> None:
        bus = Bus(1 << 20, 1 << 20)
        async with running(bus):
            await until_restarts(bus, 1)
            assert not bus.up

    trio.run(main)


def test_one_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The end waits `FAREWELL_SECONDS` and no longer for one that hears nothing."""
    monkeypatch.setattr(buses, "FAREWELL_SECONDS", 0.2)
    marker = tmp_path / "there"
    backbone(monkeypatch, f"signal.signal(15, signal.SIG_IGN)\nopen({str(marker)!r}, 'w')\ntime.sleep(1000)")

    async def main() -> int:
        bus = Bus(1 << 20, 1 << 20)
        async with running(bus):
            with trio.fail_after(DEADLINE):
                while not marker.exists():
                    await trio.lowlevel.checkpoint()
            assert bus.pid is not None
            return bus.pid
        raise AssertionError

    pid = trio.run(main)
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_cannot_be_started_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tried again and again, said each time, and not one descriptor stays."""
    monkeypatch.setattr(spawn, "BACKBONE", ("/none/such",))
    monkeypatch.setattr(buses, "RESTART_SECONDS", (0.0,))
    before = os.listdir("/proc/self/fd")

    async def main() -> None:
        bus = Bus(1 << 20, 1 << 20)
        async with running(bus):
            await until_restarts(bus, 20)

    trio.run(main)
    assert "cannot start the backbone" in caplog.text
    assert os.listdir("/proc/self/fd") == before


def test_the_first_answer_may_be_a_later_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A first backbone that fails does not keep the supervisor from starting: whoever waits is told by the second."""
    marker = tmp_path / "second"
    real = "from capsuled.supervisor.backbone import __main__ as main\nmain.main()"
    backbone(
        monkeypatch,
        f"if not os.path.exists({str(marker)!r}):\n open({str(marker)!r}, 'w'); os._exit(1)\n"
        f"supervisor.detach()\n{real}",
    )

    async def main() -> None:
        bus = Bus(1 << 20, 1 << 20)
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                await nursery.start(bus.run)
                assert (bus.up, bus.epoch, bus.restarts) == (True, 2, 1)
                assert dict((await bus.figures()).members) == {}
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_signal_while_no_backbone_comes_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A supervisor that waits in vain for its first backbone ends by the first TERM, with all that it has begun."""
    marker = tmp_path / "there"
    backbone(monkeypatch, f"open({str(marker)!r}, 'w')\ntime.sleep(1000)")
    monkeypatch.setattr(buses, "FAREWELL_SECONDS", 0.2)
    base = configuration.defaults({"HOME": str(tmp_path)}, 1)
    using = replace(
        base,
        runtime_dir=tmp_path / "rt",
        state_dir=tmp_path / "st",
        control=replace(base.control, path=tmp_path / "rt" / "control.sock"),
    )

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.run, using, Catalogue({}))
                # It takes its signals before it starts a backbone.
                while not marker.exists():
                    await trio.lowlevel.checkpoint()
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(buses, "ANSWER_SECONDS", DEADLINE)
    begun = time.monotonic()
    trio.run(main)
    assert time.monotonic() - begun < DEADLINE / 2
    assert not (tmp_path / "rt" / "control.sock").exists()
