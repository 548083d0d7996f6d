"""What a worker writes becomes lines, at its rate, whatever it writes."""

from __future__ import annotations

import os
import socket

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from capsuled.proto import loglines
from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.proto.control import LogStream
from capsuled.supervisor import output
from capsuled.supervisor.output import (
    CUT_SECONDS,
    LINE_BYTES,
    Intake,
    Write,
    read_lines,
    read_stream,
    watch_cuts,
)

from .control.serving import run


class Written(list[tuple[LogStream, str, str]]):
    """Takes lines as a capsule's book does."""

    def __call__(self, stream: LogStream, level: str, text: str) -> None:
        self.append((stream, level, text))


def fast(write: Write) -> Intake:
    return Intake(write, 1 << 30)


def nobody(stream: LogStream, level: str, text: str) -> None:
    """Takes lines, and forgets them."""


def stream_of(*writes: bytes) -> Written:
    """What becomes of these writes to a standard output that is closed then."""
    written = Written()

    async def main() -> None:
        reader, writer = os.pipe()

        async def write() -> None:
            async with trio.lowlevel.FdStream(writer) as pipe:
                for data in writes:
                    await pipe.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await read_stream(reader, LogStream.STDOUT, fast(written))

    run(main)
    return written


def test_lines_of_a_stream() -> None:
    """A newline ends a line, the end of the stream too; an empty line is one."""
    found = stream_of(b"one\n\ntw", b"o\nthree")
    assert found == [(LogStream.STDOUT, "info", text) for text in ("one", "", "two", "three")]


def test_what_is_not_utf8_is_replaced() -> None:
    """No byte of a worker's breaks the log."""
    assert stream_of(b"\xff\xfe\n") == [(LogStream.STDOUT, "info", "\ufffd\ufffd")]


def test_a_line_of_the_longest_is_one_and_one_byte_more_makes_two() -> None:
    """A line is never longer than `MAX_LOG_TEXT`; what is over it is not lost."""
    longest = b"x" * MAX_LOG_TEXT
    assert [len(text) for _, _, text in stream_of(longest + b"\n")] == [MAX_LOG_TEXT]
    assert [len(text) for _, _, text in stream_of(longest + b"y\n")] == [MAX_LOG_TEXT, 1]
    assert [len(text) for _, _, text in stream_of(longest + b"y")] == [MAX_LOG_TEXT, 1]


@given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"a", b"\n")), max_size=8))
def test_no_byte_is_lost(writes: list[bytes]) -> None:
    """Invariant: the lines, joined by newlines, are what was written, but for a newline at its end."""
    whole = b"".join(writes)
    lines = [text for _, _, text in stream_of(*writes)]
    expected = whole.decode(errors="replace").split("\n")
    assert lines == (expected[:-1] if expected[-1] == "" else expected)


def test_standard_error_is_a_warning() -> None:
    """What comes on standard error is worth more attention."""
    written = Written()

    async def main() -> None:
        reader, writer = os.pipe()
        os.write(writer, b"oh\n")
        os.close(writer)
        await read_stream(reader, LogStream.STDERR, fast(written))

    run(main)
    assert written == [(LogStream.STDERR, "warn", "oh")]


def packets_of(*packets: bytes) -> Written:
    written = Written()

    async def main() -> None:
        mine, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        with mine, worker:
            for packet in packets:
                worker.send(packet)
            worker.close()
            await read_lines(mine, fast(written))

    run(main)
    return written


def test_log_packets() -> None:
    """A packet is a line, with the stream and the level that the worker says."""
    found = packets_of(loglines.pack(LogStream.GUEST, 4, b"bad"), loglines.pack(LogStream.STDOUT, 2, b"out"))
    assert found == [(LogStream.GUEST, "error", "bad"), (LogStream.STDOUT, "info", "out")]


def test_rubbish_is_said_once_and_passed_over() -> None:
    """A worker that sends what is no line is complained about once; its lines are taken all the same."""
    good = loglines.pack(LogStream.GUEST, 2, b"good")
    found = packets_of(b"\xff\xff", good, b"x", b"\x00\xffx", good)
    assert [stream for stream, _, _ in found] == [LogStream.SUPERVISOR, LogStream.GUEST, LogStream.GUEST]
    assert "no log line" in found[0][2]


def test_a_packet_one_byte_too_long() -> None:
    """It is no line, and it is not cut to one."""
    most = loglines.MAX_PACKET - loglines.HEAD_BYTES
    assert [text for _, _, text in packets_of(loglines.pack(LogStream.GUEST, 2, b"x" * most))] == ["x" * most]
    (complaint,) = packets_of(loglines.pack(LogStream.GUEST, 2, b"x" * (most + 1)))
    assert complaint[0] is LogStream.SUPERVISOR


def test_the_rate_holds() -> None:
    """Invariant: in any time no more than the burst and the rate's share of that time is read."""

    async def main() -> None:
        rate = Intake(nobody, 10_000)
        begun = trio.current_time()
        for _ in range(100):
            await rate.charge(1000)
        took = trio.current_time() - begun
        charged = 100 * (1000 + LINE_BYTES)
        assert took >= (charged - 10_000 - 1000 - LINE_BYTES) / 10_000
        assert took <= charged / 10_000 + 1.0

    run(main, clock=MockClock(autojump_threshold=0))


def test_empty_lines_have_a_rate_as_well() -> None:
    """Lines without a byte are not free: of many at once the last has to wait."""

    async def main() -> None:
        rate = Intake(nobody, 1 << 40)
        begun = trio.current_time()
        for _ in range(3 * output.LINES_PER_SECOND):
            await rate.charge(0)
        assert trio.current_time() - begun >= 1.9

    run(main, clock=MockClock(autojump_threshold=0))


CUT = "cut: {} lines over log_bytes_per_second = {}, or faster than they were read"


def messages(written: Written, stream: LogStream) -> list[str]:
    return [text for each, _, text in written if each is stream]


def test_what_an_ended_worker_has_left_is_a_second_s_worth() -> None:
    """Nothing waits for the rate any more; the newest lines are kept, and one over the rate is cut and counted."""
    size = 100
    fitting = 10

    async def main() -> None:
        written = Written()
        intake = Intake(written, fitting * (size + LINE_BYTES))
        intake.end()
        for number in range(fitting):
            await intake.take(LogStream.GUEST, "info", f"{number}", size)
        assert (written, intake.cut) == ([], 0)
        await intake.take(LogStream.GUEST, "info", f"{fitting}", size)
        assert intake.cut == 1
        intake.finish()
        assert messages(written, LogStream.GUEST) == [f"{number}" for number in range(1, fitting + 1)]
        assert intake.tell_cut(0)
        assert messages(written, LogStream.SUPERVISOR) == [CUT.format(1, fitting * (size + LINE_BYTES))]

    run(main)


def test_empty_lines_that_are_left_have_a_bound_too() -> None:
    """One line more than a second may have, and the oldest goes."""

    async def main() -> None:
        written = Written()
        intake = Intake(written, 1 << 40)
        intake.end()
        for _ in range(output.LINES_PER_SECOND + 1):
            await intake.take(LogStream.GUEST, "info", "", 0)
        intake.finish()
        assert (len(written), intake.cut) == (output.LINES_PER_SECOND, 1)

    run(main)


def test_the_end_wakes_who_waits_for_the_rate() -> None:
    """A worker that owes an hour's worth is gone: nobody waits for the hour."""

    async def main() -> None:
        written = Written()
        intake = Intake(written, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.take, LogStream.GUEST, "info", "x", 3600)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            intake.end()
        assert trio.current_time() == begun
        assert messages(written, LogStream.GUEST) == ["x"]

    run(main, clock=MockClock(autojump_threshold=0))


def test_cut_lines_are_told_once_a_second_at_most() -> None:
    """While a guest is over its rate, one line in a second says how many went; none when none did."""
    counts = [0, 5, 5, 7, 7]

    async def main() -> None:
        written = Written()
        intake = Intake(written, 1000)
        times: list[float] = []

        def write(stream: LogStream, level: str, text: str) -> None:
            written(stream, level, text)
            if stream is LogStream.SUPERVISOR:
                times.append(trio.current_time())

        intake = Intake(write, 1000)
        left = iter(counts)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_cuts, intake, lambda: next(left, 7))
            for _ in range(5 * len(counts)):
                await intake.take(LogStream.GUEST, "info", "x", 10)
                await trio.sleep(CUT_SECONDS / 5)
            nursery.cancel_scope.cancel()
        assert messages(written, LogStream.SUPERVISOR) == [CUT.format(5, 1000), CUT.format(2, 1000)]
        assert times[1] - times[0] >= CUT_SECONDS

    run(main, clock=MockClock(autojump_threshold=0))


def test_a_guest_that_is_silent_is_not_looked_after() -> None:
    """Nobody wakes up each second for a capsule that logs nothing: thousands of them would be felt."""

    async def main() -> None:
        looked = 0

        def look() -> int:
            nonlocal looked
            looked += 1
            return 0

        with trio.move_on_after(10 * output.IDLE_SECONDS):
            await watch_cuts(Intake(nobody, 1000), look)
        assert 9 <= looked <= 10

    run(main, clock=MockClock(autojump_threshold=0))


@given(st.lists(st.integers(0, 1 << 64), max_size=20))
def test_a_count_that_lies_tells_no_less_than_before(claims: list[int]) -> None:
    """Invariant: what was told in sum is the largest count that was claimed, whatever a worker claims in between."""

    async def main() -> None:
        written = Written()
        intake = Intake(written, 1000)
        for claim in claims:
            intake.tell_cut(claim)
        told = [int(text.split()[1]) for text in messages(written, LogStream.SUPERVISOR)]
        assert sum(told) == max(claims, default=0)
        assert all(told)

    run(main)
