"""Logs over the end of the supervisor, in the journal, and the supervisor's own."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterable

import pytest

from ..supervisor.journald import Entry, Journald
from ..support.daemon import DEADLINE, Daemon, Json
from . import lives

LINES = 5000
"""More than a socket holds, and than 64 KiB each second allow."""

CHATTY = '[limits]\nlog_bytes_per_second = "64KiB"\n'


def on_disk(daemon: Daemon, name: str) -> list[Json]:
    """All lines of a capsule's files, oldest first."""
    folder = daemon.folder / "st" / "logs"
    files = sorted(folder.glob(f"{name}.log.*"), key=lambda path: -int(path.suffix[1:]))
    return [
        json.loads(line)
        for path in [*files, folder / f"{name}.log"]
        for line in path.read_bytes().splitlines()
    ]


def numbers(lines: Iterable[Json]) -> list[int]:
    return [int(line["message"]) for line in lines if line["stream"] == "guest"]


def cut(lines: Iterable[Json]) -> int:
    """As many lines as the log itself says that it lacks."""
    said = (line["message"] for line in lines if line["stream"] == "supervisor")
    return sum(int(text.split()[1]) for text in said if text.startswith("cut: "))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_end_loses_no_line(daemon: Daemon, number: signal.Signals) -> None:
    """A guest numbers its lines, faster than it may, and the supervisor is stopped while many are on their way: each
    stands in the files, or is counted there; and so again in the next supervisor, which shows those of before."""
    daemon.capsule("counter", lives.counter(LINES), subscribe=lives.QUIET, extra=CHATTY)
    for _ in range(2):
        daemon.start(wait_for=["counter"], configuration='[log]\nring_lines = 100000\nring_bytes = "64MiB"\n')
        assert daemon.stop(number) == 0
    by_instance: defaultdict[str, list[Json]] = defaultdict(list)
    for line in on_disk(daemon, "counter"):
        by_instance[line["instance"]].append(line)
    by_instance.pop("", None)
    assert len(by_instance) == 2
    for lines in by_instance.values():
        kept = numbers(lines)
        assert kept == sorted(set(kept))
        assert cut(lines) > 0
        assert len(kept) + cut(lines) == LINES
        assert lines[-1]["message"] == "ended: supervisor-shutdown"
    daemon.start(wait_for=["counter"], configuration='[log]\nring_lines = 100000\nring_bytes = "64MiB"\n')
    before = on_disk(daemon, "counter")
    shown = daemon.lines("counter")
    first = [line for line in before if line["instance"] in by_instance]
    assert shown[: len(first)] == first
    assert shown[len(first)]["instance"] not in by_instance


def test_what_was_cut_is_told_while_it_runs(daemon: Daemon) -> None:
    """The log says so within a second or two, and as many as the ledger does."""
    daemon.capsule("counter", lives.counter(LINES), subscribe=lives.QUIET, extra=CHATTY)
    daemon.start(wait_for=["counter"])
    daemon.wait_line("counter", lambda line: str(line["message"]).startswith("cut: "))
    (shown,) = daemon.get("/v1/bus")["capsules"]
    told = [line for line in daemon.lines("counter") if line["message"].startswith("cut: ")]
    assert sum(int(line["message"].split()[1]) for line in told) == shown["logs_cut"] > 0
    assert told[0]["message"].endswith(
        " lines over log_bytes_per_second = 65536, or faster than they were read"
    )
    assert (told[0]["stream"], told[0]["level"]) == ("supervisor", "warn")


def test_a_killed_supervisor_leaves_what_was_written(daemon: Daemon) -> None:
    """Its successor shows it, passes over half a line, and goes on in a line of its own."""
    daemon.capsule("counter", lives.counter(100), subscribe=lives.QUIET)
    daemon.start(wait_for=["counter"])
    daemon.wait_line("counter", lambda line: line["message"] == "000099")
    path = daemon.folder / "st" / "logs" / "counter.log"
    watched = daemon.lines("counter")
    while b'"message":"000099"' not in path.read_bytes():
        assert daemon.get("/v1/health")["healthy"]  # the thread that writes needs no longer than an answer
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert daemon.left() == []
    with path.open("ab") as file:
        file.write(b'{"time":"2026-01-31T12:00')
    daemon.start(wait_for=["counter"])
    instance = daemon.of("counter")["instance"]
    daemon.wait_line("counter", lambda line: (line["message"], line["instance"]) == ("000099", instance))
    shown = daemon.lines("counter")
    assert shown[: len(watched)] == watched
    assert numbers(shown) == [*range(100), *range(100)]
    assert daemon.stop() == 0
    log = path.read_bytes().splitlines()
    assert log.count(b'{"time":"2026-01-31T12:00') == 1
    assert (
        'event="what is no line in the files of a log was passed over" capsule=counter count=1'
        in daemon.log()
    )


def test_capsulectl_shows_what_was_before(daemon: Daemon) -> None:
    """Also where it follows: first the lines of before, then those of now."""
    daemon.capsule("counter", lives.counter(3), subscribe=lives.QUIET)
    daemon.start(wait_for=["counter"])
    assert daemon.stop() == 0
    daemon.start(wait_for=["counter"])
    daemon.wait_line("counter", lambda line: line["message"] == "ended: supervisor-shutdown")
    told = daemon.ctl("logs", "counter", "-n", "1000").stdout.splitlines()
    guests = [line.split()[-1] for line in told if " guest " in line]
    assert guests == ["000000", "000001", "000002"] * 2


def test_lines_go_to_the_journal(daemon: Daemon) -> None:
    """Each once, with its capsule, its instance and its stream; what comes while it is started again, too."""
    journald = Journald(daemon.folder / "journal")
    try:
        daemon.capsule("counter", lives.counter(3), subscribe=lives.QUIET)
        daemon.start(wait_for=["counter"], configuration=f'[log]\njournal = "{journald.path}"\n')
        entries: list[Entry] = []
        while not entries or entries[-1].fields["MESSAGE"] != "000002":
            entries.append(journald.wait(DEADLINE))
        assert [each.fields["MESSAGE"] for each in entries][-3:] == ["000000", "000001", "000002"]
        found = entries[-1].fields
        assert found["CAPSULED_CAPSULE"] == "counter"
        assert found["CAPSULED_INSTANCE"] == daemon.of("counter")["instance"]
        assert (found["CAPSULED_STREAM"], found["SYSLOG_IDENTIFIER"]) == ("guest", "capsuled")
        journald.close()
        journald = Journald(journald.path)
        assert daemon.stop() == 0
        assert journald.messages()[-1] == "ended: supervisor-shutdown"
    finally:
        journald.close()


def test_a_journal_that_does_not_read_holds_nobody_up(daemon: Daemon) -> None:
    """Its queue is full: capsules start, log and end as ever, and the files have every line."""
    journald = Journald(daemon.folder / "journal")
    try:
        daemon.capsule("counter", lives.counter(500, pause=1), subscribe=lives.QUIET)
        daemon.start(wait_for=["counter"], configuration=f'[log]\njournal = "{journald.path}"\n')
        daemon.wait_line("counter", lambda line: line["message"] == "000499")
        assert daemon.stop() == 0
        assert numbers(on_disk(daemon, "counter")) == list(range(500))
        assert "the journal did not take them" in daemon.log()
    finally:
        journald.close()


def test_the_own_log_in_json(daemon: Daemon) -> None:
    """Every line is an object with time, level, logger and event, from the first to the last."""
    daemon.capsule("returns", lives.returns(), extra='[supervision]\nrestart = "never"\n')
    daemon.start(configuration='[log]\nformat = "json"\n')
    daemon.wait_state("returns", "stopped")
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert all({"time", "level", "logger", "event"} <= set(line) for line in lines)
    (exited,) = [line for line in lines if line["event"] == "exited"]
    assert (exited["capsule"], exited["reason"]) == ("returns", "ok")
    assert lines[-1]["event"] == "stopped"


def test_the_own_log_under_systemd(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its standard error is the journal, lines have priorities and no time."""
    reader, writer = os.pipe()
    found = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    process = daemon.launch(stderr=writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as log:
            first = next(line for line in log if b"started: pid" in line)
            process.send_signal(signal.SIGTERM)
            rest = log.read().splitlines()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
    assert first.startswith(b'<6>level=info logger=capsuled event="started: pid')
    assert rest[-1] == b"<6>level=info logger=capsuled event=stopped"
