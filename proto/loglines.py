"""Log lines on their way from a worker to the supervisor: one packet each.

    u8 stream | u8 level | UTF-8 text

The supervisor stamps the time and the capsule; a worker could only lie about them.
"""

from __future__ import annotations

from typing import NamedTuple

from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.proto.control import LOG_LEVELS, LogStream

STREAMS: tuple[LogStream, ...] = (LogStream.GUEST, LogStream.STDOUT, LogStream.STDERR)
"""What a worker may write to, by number."""

HEAD_BYTES = 2
MAX_PACKET = HEAD_BYTES + MAX_LOG_TEXT

INFO = LOG_LEVELS.index("info")
WARN = LOG_LEVELS.index("warn")


class LogLine(NamedTuple):
    """What a guest said."""

    stream: LogStream
    level: str
    text: str


class LogLineError(ValueError):
    """A packet that is no log line."""


def pack(stream: LogStream, level: int, text: bytes) -> bytes:
    """One packet. `level` is the guest ABI's, `text` at most `MAX_LOG_TEXT` bytes of UTF-8."""
    return bytes((STREAMS.index(stream), level)) + text


def unpack(packet: bytes) -> LogLine:
    """The line in a packet. Raises `LogLineError`: a worker may send anything. What is not UTF-8 is replaced."""
    if not HEAD_BYTES <= len(packet) <= MAX_PACKET:
        raise LogLineError(f"a packet of {len(packet)} bytes: {HEAD_BYTES} to {MAX_PACKET} are a log line")
    stream, level = packet[0], packet[1]
    if stream >= len(STREAMS) or level >= len(LOG_LEVELS):
        raise LogLineError(f"there is no stream {stream} with level {level}")
    return LogLine(STREAMS[stream], LOG_LEVELS[level], packet[HEAD_BYTES:].decode(errors="replace"))
