"""Log lines on their way out: within their rate, and never blocking the guest for a supervisor that is slow.

What is over the rate or finds no room is cut and counted. The supervisor keeps the same rate on its side, since
a worker may have been taken over.
"""

from __future__ import annotations

import socket
import time

from capsuled.proto import loglines
from capsuled.proto.bucket import Bucket
from capsuled.proto.control import LogStream
from capsuled.proto.ledger import Total
from capsuled.sandbox.page import Page

LINES_PER_SECOND = 10_000
"""The second kind of token of a bucket: empty lines cost no bytes, and are not free all the same."""


class Logs:
    """The log descriptor."""

    def __init__(self, fd: int, bytes_per_second: int, page: Page) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._bucket = Bucket(bytes_per_second, LINES_PER_SECOND, time.monotonic())
        self._page = page

    def write(self, stream: LogStream, level: int, text: bytes) -> None:
        """One line of at most `abi.MAX_LOG_TEXT` bytes."""
        if not self._bucket.admits(len(text), time.monotonic()):
            self._page.add(Total.LOGS_CUT)
            return
        try:
            self._socket.send(loglines.pack(stream, level, text))
        except (BlockingIOError, ConnectionError):
            self._page.add(Total.LOGS_CUT)
