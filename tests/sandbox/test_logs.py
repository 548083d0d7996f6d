"""Log lines out: within their rate, and never waiting for a supervisor that is slow or gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from capsuled.proto import ledger, loglines
from capsuled.proto.control import LogStream
from capsuled.proto.ledger import Total
from capsuled.sandbox import logs as logs_module
from capsuled.sandbox.logs import LINES_PER_SECOND, Logs
from capsuled.sandbox.page import Page


class Clock:
    """A monotonic clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Ends(NamedTuple):
    """Both ends of a log descriptor, the page and the clock."""

    supervisor: socket.socket
    fd: int
    page: Page
    clock: Clock

    def cut(self) -> int:
        return self.page.slots[Total.LOGS_CUT]

    def lines(self) -> list[loglines.LogLine]:
        found: list[loglines.LogLine] = []
        while True:
            try:
                found.append(loglines.unpack(self.supervisor.recv(loglines.MAX_PACKET + 1)))
            except BlockingIOError:
                return found


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    clock = Clock()
    monkeypatch.setattr(logs_module, "time", clock)
    supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor.setblocking(False)

    def take(fileno: int) -> socket.socket:
        """A worker never closes it; here it is closed at the end."""
        assert fileno == worker.fileno()
        return worker

    monkeypatch.setattr(logs_module, "socket", SimpleNamespace(socket=take))
    with supervisor, worker:
        page = Page(memoryview(bytearray(ledger.BYTES)).cast("Q"))
        yield Ends(supervisor, worker.fileno(), page, clock)


def test_a_line_arrives_with_stream_and_level(ends: Ends) -> None:
    """One packet each, an empty one too."""
    logs = Logs(ends.fd, 1000, ends.page)
    logs.write(LogStream.GUEST, 0, b"a")
    logs.write(LogStream.STDERR, 4, "é".encode())
    logs.write(LogStream.STDOUT, 2, b"")
    assert ends.lines() == [
        (LogStream.GUEST, "trace", "a"),
        (LogStream.STDERR, "error", "é"),
        (LogStream.STDOUT, "info", ""),
    ]


def test_bytes_over_the_rate_are_cut_and_counted(ends: Ends) -> None:
    """Exactly one second's worth passes; one byte more is cut, and a second later there is room again."""
    logs = Logs(ends.fd, 1000, ends.page)
    logs.write(LogStream.GUEST, 2, b"x" * 999)
    logs.write(LogStream.GUEST, 2, b"y")
    assert ends.cut() == 0
    logs.write(LogStream.GUEST, 2, b"z")
    assert ends.cut() == 1
    ends.clock.now += 1.0
    logs.write(LogStream.GUEST, 2, b"later")
    assert [line.text[0] for line in ends.lines()] == ["x", "y", "l"]
    assert ends.cut() == 1


def test_lines_have_a_rate_too(ends: Ends) -> None:
    """Empty lines cost no bytes; the one after the last that may be is cut."""
    logs = Logs(ends.fd, 1, ends.page)
    passed = 0
    for _ in range(LINES_PER_SECOND):
        logs.write(LogStream.GUEST, 2, b"")
        passed += len(ends.lines())
    assert (passed, ends.cut()) == (LINES_PER_SECOND, 0)
    logs.write(LogStream.GUEST, 2, b"")
    assert (ends.lines(), ends.cut()) == ([], 1)


def test_a_slow_supervisor_does_not_hold_up_the_guest(ends: Ends) -> None:
    """What finds no room is cut and counted; what arrives is whole, and the first that was written."""
    logs = Logs(ends.fd, 1 << 40, ends.page)
    for number in range(1000):
        logs.write(LogStream.GUEST, 2, f"{number:05}".encode() + b"x" * 1000)
    found = ends.lines()
    assert 0 < len(found) < 1000
    assert len(found) + ends.cut() == 1000
    assert [line.text[:5] for line in found] == [f"{number:05}" for number in range(len(found))]


def test_a_supervisor_that_is_gone_is_no_failure(ends: Ends) -> None:
    """The kernel's SIGKILL is on its way; until then lines are cut."""
    logs = Logs(ends.fd, 1000, ends.page)
    ends.supervisor.close()
    logs.write(LogStream.GUEST, 2, b"a")
    assert ends.cut() == 1
