"""A journald of the tests': takes datagrams as systemd's Native Journal Protocol describes them, and checks them."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

MOST = 1 << 20
"""Bytes of a datagram; journald takes 8 MiB and more."""


class Entry(NamedTuple):
    fields: dict[str, str]
    by_file: bool


class Journald:
    """Its socket, until it is closed; another one may then be made by the same name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def close(self) -> None:
        self.socket.close()

    def entries(self) -> list[Entry]:
        """All that wait."""
        return list(self._entries())

    def messages(self) -> list[str]:
        return [each.fields["MESSAGE"] for each in self._entries()]

    def wait(self, seconds: float) -> Entry:
        """The next one; TimeoutError when none comes in time."""
        self.socket.settimeout(seconds)
        try:
            return self._entry()
        finally:
            self.socket.setblocking(False)

    def _entries(self) -> Iterator[Entry]:
        while True:
            try:
                yield self._entry()
            except BlockingIOError:
                return

    def _entry(self) -> Entry:
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        data, control, flags, _ = self.socket.recvmsg(MOST, room)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if not control:
            return Entry(parse(data), by_file=False)
        # An empty datagram with one descriptor: the entry is in it, and cannot be changed any more.
        assert data == b""
        ((level, kind, numbers),) = control
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        (fd,) = array.array("i", numbers)
        try:
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
            with mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_PRIVATE, mmap.PROT_READ) as content:
                return Entry(parse(bytes(content)), by_file=True)
        finally:
            os.close(fd)


def parse(data: bytes) -> dict[str, str]:
    """The fields of one entry; raises AssertionError for what journald would not take as it is meant."""
    found: dict[str, str] = {}
    while data:
        line, newline, data = data.partition(b"\n")
        assert newline
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", data[:8])
            value, end, data = data[8 : 8 + size], data[8 + size : 9 + size], data[9 + size :]
            assert (len(value), end) == (size, b"\n")
        key = name.decode("ascii")
        assert key.replace("_", "").isalnum()
        assert key == key.upper()
        assert key not in found
        found[key] = value.decode()
    return found
