"""journald: each line of a capsule's log as an entry of the system's journal, with fields to look for it by.

systemd's Native Journal Protocol: one datagram for an entry, `FIELD=value` and a newline for each of its fields; a
value with a newline in it is written as the field's name and a newline, the value's length as 64 bits little-endian,
the value and a newline. So no value can make a field. What is too large for a datagram travels as a sealed memory
file in an empty one.

Lines wait in memory while journald is slow or gone, and nobody waits for it: what is over the bound is lost and
counted, and the next line that journald takes is preceded by one which says so. The files have it all the same.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

import trio

from capsuled.proto.control import LogStream
from capsuled.supervisor.configuration import AUTO, Log
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.ownlog import PRIORITIES, fields

LOG = logging.getLogger("capsuled.journal")

SOCKET = "/run/systemd/journal/socket"

IDENTIFIER = "capsuled"
"""What `journalctl -t` looks for."""

DATAGRAM_BYTES = 64 * 1024
"""A larger entry goes as a memory file: well below what a socket takes by default (net.core.wmem_default)."""

WAITING_BYTES = 4 * 1024 * 1024
"""Of all capsules together, in memory, while journald does not take them."""

AGAIN_SECONDS = 1.0
"""Between two attempts to reach a journald that is not there."""

LAST_LINES_SECONDS = 1.0
"""How long the end waits until the last lines have been taken."""

_SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""journald maps nothing that could still change."""

_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)


def path(using: Log) -> str | None:
    """Where the configuration sends lines to; None: nowhere."""
    if using.journal == AUTO:
        return SOCKET if Path(SOCKET).is_socket() else None
    if isinstance(using.journal, str):
        return using.journal
    return SOCKET if using.journal else None


def entry(line: JsonObject) -> bytes:
    """A line of a capsule's log, as journald takes it."""
    level = str(line["level"])
    return encode(
        {
            "MESSAGE": str(line["message"]),
            "PRIORITY": str(PRIORITIES.get(level, PRIORITIES["info"])),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "CAPSULED_CAPSULE": str(line["capsule"]),
            "CAPSULED_INSTANCE": str(line["instance"]),
            "CAPSULED_STREAM": str(line["stream"]),
            "CAPSULED_TIME": str(line["time"]),
        }
    )


def encode(entry: Mapping[str, str]) -> bytes:
    """Fields in the form of the protocol. Their names are ours: letters, digits and underscores."""
    made = bytearray()
    for name, text in entry.items():
        value = text.encode(errors="backslashreplace")
        if b"\n" in value:
            made += b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
        else:
            made += b"%s=%s\n" % (name.encode(), value)
    return bytes(made)


class _Entry(NamedTuple):
    data: bytes
    lines: int
    """How many lines are lost with it."""


class Journal:
    """The way to one journald."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting: deque[_Entry] = deque()
        self._bytes = 0
        self._lost = 0
        """Since the last entry that waits."""
        self._more = trio.Event()
        self._socket: socket.socket | None = None
        self._complained = False

    def offer(self, line: JsonObject) -> None:
        """Queue a line. Never blocks."""
        data = entry(line)
        if self._bytes + len(data) > WAITING_BYTES:
            self._lost += 1
        else:
            self._tell_lost()
            self._put(_Entry(data, 1))
        self._more.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Send what is offered, until cancelled; what waits then is sent by `flush`."""
        task_status.started()
        while True:
            await self._more.wait()
            try:
                while self._step():
                    await trio.lowlevel.checkpoint()
                self._more = trio.Event()
            except BlockingIOError:
                assert self._socket is not None
                with trio.move_on_after(AGAIN_SECONDS):
                    await trio.lowlevel.wait_writable(self._socket)
            except OSError as exc:
                self._complain(exc)
                await trio.sleep(AGAIN_SECONDS)

    def flush(self) -> None:
        """Send what waits, as far as it is taken soon, and close the way."""
        deadline = time.monotonic() + LAST_LINES_SECONDS
        try:
            while True:
                try:
                    if not self._step():
                        return
                except BlockingIOError:
                    assert self._socket is not None
                    poll = select.poll()
                    poll.register(self._socket, select.POLLOUT)
                    left = deadline - time.monotonic()
                    if left <= 0.0 or not poll.poll(left * 1000):
                        return
        except OSError as exc:
            self._complain(exc)
        finally:
            if lost := self._lost + sum(each.lines for each in self._waiting):
                LOG.error("lines are lost: the journal did not take them", extra=fields(lost=lost))
            self._close()

    def _step(self) -> bool:
        """Send one entry; False when none waits. Raises `BlockingIOError` where there is no room now, and `OSError`."""
        if not self._waiting:
            self._tell_lost()
        if not self._waiting:
            return False
        data = self._waiting[0].data
        known = self._socket is not None
        try:
            self._send(data)
        except BlockingIOError:
            raise
        except OSError:
            if not known:
                raise
            self._send(data)  # journald was started again: there is another socket by that name
        self._waiting.popleft()
        self._bytes -= len(data)
        if self._complained:
            self._complained = False
            LOG.info("lines reach the journal again", extra=fields(path=self._path))
        return True

    def _put(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._bytes += len(entry.data)

    def _tell_lost(self) -> None:
        if self._lost:
            self._put(_Entry(_lost(self._lost), self._lost))
            self._lost = 0

    def _send(self, data: bytes) -> None:
        try:
            _send(self._connect(), data)
        except BlockingIOError:
            raise
        except OSError:
            self._close()
            raise

    def _connect(self) -> socket.socket:
        if self._socket is None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                made.connect(self._path)
            except OSError:
                made.close()
                raise
            self._socket = made
        return self._socket

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _complain(self, exc: OSError) -> None:
        if not self._complained:
            self._complained = True  # once, and not for each line
            LOG.error(
                "cannot reach the journal: lines wait, and are lost if it does not come back",
                extra=fields(path=self._path, error=exc.strerror),
            )


def _send(to: socket.socket, data: bytes) -> None:
    if len(data) <= DATAGRAM_BYTES:
        try:
            to.send(data)
            return
        except OSError as exc:
            if exc.errno not in _TOO_LARGE:
                raise
    fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALED)
        to.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    finally:
        os.close(fd)


def _lost(count: int) -> bytes:
    return encode(
        {
            "MESSAGE": f"lost: {count} lines that the journal did not take: the files have them",
            "PRIORITY": str(PRIORITIES["warn"]),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "CAPSULED_STREAM": LogStream.SUPERVISOR.value,
        }
    )
