"""A worker that has been taken over: it says and does what it likes, and harms itself alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from capsuled.proto.control import Reason
from capsuled.proto.reports import Listening, Report
from capsuled.supervisor import exits
from capsuled.supervisor.exits import Intent
from capsuled.supervisor.instance import DRAIN_SECONDS, MAX_REPORTS, Ending
from capsuled.supervisor.output import LINE_BYTES

from .hostile import Hostile, worker


def lives(edges: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> tuple[Hostile, Ending]:
    """The whole life of a worker of this script; it leaves no process, no descriptor and no edge."""
    worker(monkeypatch, script)
    before = sorted(os.listdir("/proc/self/fd"))
    hostile = Hostile(edges)
    ending = trio.run(hostile.run)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert os.listdir(edges) == []
    assert hostile.instance.pid is None
    return hostile, ending


def test_an_honest_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage itself: a script that reports and ends is believed as far as its status agrees."""
    script = "control.send(reports.encode(reports.Ended('exit', 3)))\nos._exit(3)"
    hostile, ending = lives(tmp_path, monkeypatch, script)
    assert (exits.reason(ending.evidence), ending.evidence.status) == (Reason.NONZERO, 3)
    assert len(hostile.reports) == 1


def test_a_report_is_not_believed_against_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash does not become a success by saying so."""
    script = "control.send(reports.encode(reports.Ended('returned')))\nos._exit(9)"
    _, ending = lives(tmp_path, monkeypatch, script)
    assert exits.reason(ending.evidence) is Reason.NONZERO


@pytest.mark.parametrize(
    "packet",
    [
        "b'rubbish'",
        "b'\\xa1dkindglistening'",
        "reports.encode(reports.Ready()).ljust(reports.MAX_BYTES + 1, b'\\x00')",
        "b'\\xff' * 100",
    ],
)
def test_what_is_no_report_costs_its_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packet: str
) -> None:
    """It is killed, the log says why, and the reason is no lie about who did it."""
    hostile, ending = lives(tmp_path, monkeypatch, f"control.send({packet})\ntime.sleep(1000)")
    assert exits.reason(ending.evidence) is Reason.KILLED_SIGNAL
    assert ending.evidence.killed_by_us
    (said,) = hostile.lines("supervisor")
    assert "what is no report" in said


def test_one_report_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`MAX_REPORTS` are read; who goes on is killed, and keeps the supervisor busy no longer."""
    script = (
        "try:\n while True: control.send(reports.encode(reports.Ready()))\nexcept OSError: time.sleep(1000)"
    )
    hostile, ending = lives(tmp_path, monkeypatch, script)
    assert ending.evidence.killed_by_us
    assert len(hostile.reports) == MAX_REPORTS
    assert str(MAX_REPORTS) in hostile.lines("supervisor")[0]


def test_one_report_fewer_is_nobodys_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that reports one time fewer ends as it likes."""
    script = f"for _ in range({MAX_REPORTS - 1}): control.send(reports.encode(reports.Ready()))\nos._exit(0)"
    hostile, ending = lives(tmp_path, monkeypatch, script)
    assert (ending.evidence.status, ending.evidence.killed_by_us) == (0, False)
    assert len(hostile.reports) == MAX_REPORTS - 1


@pytest.mark.parametrize("fd", [1, 2])
def test_a_flood_of_output_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
    """Standard output and error are read at the log's rate: the worker waits, and the supervisor does not."""
    worker(monkeypatch, f"while True: os.write({fd}, b'flood ' * 10 + b'\\n')")

    async def main() -> None:
        hostile = Hostile(tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hostile.run)
            with trio.move_on_after(1.5):
                await trio.sleep_forever()  # for as long as it may flood
            hostile.instance.kill(Intent.OPERATOR_KILL)
        assert hostile.ending is not None
        written = sum(len(line) for stream in ("stdout", "stderr") for line in hostile.lines(stream))
        # 64 KiB each second, and as much in the burst, in the time that it had and that the rest is drained for.
        assert 0 < written < 64 * 1024 * (1 + 1.5 + DRAIN_SECONDS + 2)

    trio.run(main)


def test_a_flood_of_log_packets_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that keeps no rate of its own is kept to it, and to the bound of lines as well."""
    worker(monkeypatch, "while True: log.send(loglines.pack(loglines.STREAMS[0], 2, b''))")

    async def main() -> None:
        hostile = Hostile(tmp_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hostile.run)
            with trio.move_on_after(1.5):
                await trio.sleep_forever()
            hostile.instance.kill(Intent.OPERATOR_KILL)
        # Each empty line is charged as 64 bytes.
        assert 0 < len(hostile.offered) < 1024 * (1 + 1.5 + DRAIN_SECONDS + 2)

    trio.run(main)


def test_what_a_flooder_leaves_at_its_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills its socket at once and ends: a second's worth is kept, the newest; the rest is counted as cut."""
    worker(
        monkeypatch,
        "packets = [loglines.pack(loglines.STREAMS[0], 2, b'%06d' % n + b'x' * 994) for n in range(1000)]\n"
        "log.setblocking(False)\nsent = 0\n"
        "try:\n for packet in packets: log.send(packet); sent += 1\nexcept OSError: pass\n"
        "os._exit(3)",
    )
    # The socket takes a hundred of these packets: five seconds' worth and more.
    hostile = Hostile(tmp_path, rate="16KiB")
    ending = trio.run(hostile.run)
    kept = [int(line[:6]) for line in hostile.lines("guest")]
    # One second's worth while it lived, another at its end, and what a slow machine has time for.
    assert 0 < len(kept) <= 4 * 16 * 1024 // (1000 + LINE_BYTES) + 2
    assert ending.claims is not None
    assert ending.claims.logs_cut > 0
    assert kept[-1] == len(kept) + ending.claims.logs_cut - 1
    (told,) = hostile.lines("supervisor")
    assert told.startswith(f"cut: {ending.claims.logs_cut} lines ")


def test_who_hears_no_cancel_and_no_term_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder ends at its end, though the control socket is full and signals are ignored."""
    script = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "control.send(reports.encode(reports.Ready()))\ntime.sleep(1000)"
    )
    worker(monkeypatch, script)

    async def main() -> None:
        ready = trio.Event()
        hostile = Hostile(tmp_path, lambda _: ready.set())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hostile.run)
            await ready.wait()
            hostile.instance.stop(Intent.STOP)
        assert hostile.ending is not None
        evidence = hostile.ending.evidence
        assert (evidence.signal, evidence.killed_by_us) == (9, True)
        assert exits.reason(evidence) is Reason.CANCELLED
        assert exits.describe(evidence, Reason.CANCELLED)["value"] == 0.2

    trio.run(main)


def test_who_leaves_its_group_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of it that has left its group keeps the pipes open: the end comes all the same, after a while."""
    script = (
        "child = os.fork()\n"
        "if child == 0:\n os.setsid()\n time.sleep(1000)\n"
        "os.write(1, f'{child}\\n'.encode())\nos._exit(0)"
    )
    worker(monkeypatch, script)

    async def main() -> None:
        hostile = Hostile(tmp_path)
        begun = trio.current_time()
        await hostile.run()
        try:
            assert trio.current_time() - begun < 10 * DRAIN_SECONDS
            assert hostile.ending is not None
            assert hostile.ending.evidence.status == 0
        finally:
            os.kill(int(hostile.lines("stdout")[0]), 9)

    trio.run(main)


def test_a_defect_of_ours_costs_one_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where our own code fails in the middle the process is killed and reaped, and the end says whose fault it is."""
    worker(monkeypatch, "control.send(reports.encode(reports.Listening()))\ntime.sleep(1000)")

    def fail(report: Report) -> None:
        pids.append(hostile.instance.pid)
        assert isinstance(report, Listening)
        raise RuntimeError("a defect")

    pids: list[int | None] = []
    hostile = Hostile(tmp_path, fail)
    ending = trio.run(hostile.run)
    assert exits.reason(ending.evidence) is Reason.SPAWN_FAILED
    assert "a defect in the supervisor" in (ending.evidence.spawn_error or "")
    assert "a defect" in caplog.text
    assert not Path(f"/proc/{pids[0]}").exists()


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_told_to_end_before_there_is_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Nothing is started for one that is to end already; the reason is what it was told."""
    marker = tmp_path / "started"
    worker(monkeypatch, f"open({str(marker)!r}, 'w')")
    hostile = Hostile(tmp_path)
    if verb == "stop":
        hostile.instance.stop(Intent.STOP)
    else:
        hostile.instance.kill(Intent.OPERATOR_KILL)
    ending = trio.run(hostile.run)
    assert exits.reason(ending.evidence) is (
        Reason.CANCELLED if verb == "stop" else Reason.KILLED_BY_OPERATOR
    )
    assert not marker.exists()
