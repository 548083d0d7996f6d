"""What a worker writes becomes lines, at its rate, whatever it writes."""

from __future__ import annotations

import os
import socket

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from capsuled.proto import loglines
from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.proto.control import LogStream
from capsuled.supervisor import output
from capsuled.supervisor.output import Rate, read_lines, read_stream

from .control.serving import run


class Written(list[tuple[LogStream, str, str]]):
    """Takes lines as a capsule's book does."""

    def __call__(self, stream: LogStream, level: str, text: str) -> None:
        self.append((stream, level, text))


def fast() -> Rate:
    return Rate(1 << 30)


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
            await read_stream(reader, LogStream.STDOUT, written, fast())

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
        await read_stream(reader, LogStream.STDERR, written, fast())

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
            await read_lines(mine, written, fast())

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
        rate = Rate(10_000)
        begun = trio.current_time()
        for _ in range(100):
            await rate.charge(1000)
        took = trio.current_time() - begun
        charged = 100 * (1000 + output.LINE_BYTES)
        assert took >= (charged - 10_000 - 1000 - output.LINE_BYTES) / 10_000
        assert took <= charged / 10_000 + 1.0

    run(main, clock=MockClock(autojump_threshold=0))


def test_empty_lines_have_a_rate_as_well() -> None:
    """Lines without a byte are not free: of many at once the last has to wait."""

    async def main() -> None:
        rate = Rate(1 << 40)
        begun = trio.current_time()
        for _ in range(3 * output.LINES_PER_SECOND):
            await rate.charge(0)
        assert trio.current_time() - begun >= 1.9

    run(main, clock=MockClock(autojump_threshold=0))
