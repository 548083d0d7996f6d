"""What the init system is told: that we serve, that we end, how we are, and that we are alive.

Two protocols, and any of them or none: datagrams to `NOTIFY_SOCKET` (sd_notify(3); systemd, and others that speak it),
and a newline on a descriptor that was left open for it (s6's notification-fd). Nothing here waits or raises: an init
system that does not listen is no reason to end, nor to let capsules wait.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Generator, MutableMapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

import trio

LOG = logging.getLogger("capsuled.notify")

STATUS_SECONDS = 1.0
"""At least between two lines of status: capsules that start and fall by the hundred are one line."""

RETRY_SECONDS = 0.1
"""Until a message that found the socket full is tried again."""

PING_PART = 0.4
"""Of the watchdog's time, between two pings. sd_watchdog_enabled(3) advises half of it; timers are late at times."""

MAX_ADDRESS = 107
"""Bytes of a socket's address: unix(7), as in `control.listening`."""

MAX_STATUS = 200
"""Characters of a status. It is a line on a terminal."""

MAX_WAITING = 16
"""Messages for a socket that is full. They are four at most but for reloads, of which the last ones count."""

_NO_LIMIT = 2**64 - 1
"""What systemd writes for a time that is infinite."""


class UnusableDescriptor(ValueError):
    """The descriptor that was given for readiness; the message says what is wrong with it."""


class Told(NamedTuple):
    """What the environment says of the init system."""

    address: str | bytes | None
    """For sendto(2); abstract ones begin with a null byte."""
    watchdog: float | None
    """Seconds within which it wants to hear from us."""
    complaints: tuple[str, ...]
    """What in it was of no use."""


def heed(environment: MutableMapping[str, str], pid: int) -> Told:
    """Read it, and take it out: nothing that we start may speak for us. Raises nothing.

    `pid` is ours: a watchdog that another process was started with is not meant for us (sd_watchdog_enabled(3)).
    """
    where = environment.pop("NOTIFY_SOCKET", "")
    usec, whom = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    complaints: list[str] = []
    address, watchdog = None, None
    if where:
        try:
            address = _address(where)
        except ValueError as exc:
            complaints.append(f"NOTIFY_SOCKET is of no use, and the init system is told nothing: {exc}")
    if usec and (not whom or whom == str(pid)):
        if usec.isascii() and usec.isdecimal() and 0 < int(usec) < _NO_LIMIT:
            watchdog = int(usec) / 1e6
        else:
            complaints.append(
                f"WATCHDOG_USEC is of no use: {usec!r} are no microseconds: no watchdog is told"
            )
    return Told(address, watchdog, tuple(complaints))


def _address(where: str) -> str | bytes:
    """Raises `ValueError`."""
    if len(os.fsencode(where)) > MAX_ADDRESS:
        raise ValueError(f"{len(os.fsencode(where))} bytes, {MAX_ADDRESS} at most may be")
    if where.startswith("/"):
        return where
    if where.startswith("@") and len(where) > 1:
        return b"\0" + os.fsencode(where[1:])
    raise ValueError(f"{where!r} begins neither with a slash nor with @")


def check_ready_fd(fd: int) -> int:
    """The descriptor, from now on for us alone. Raises `UnusableDescriptor` unless it can be written to."""
    if fd <= 2:
        raise UnusableDescriptor(f"{fd} is one of standard input, output and error: use 3 or more")
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_PATH:
            raise UnusableDescriptor(f"{fd} is open, but not for writing: open it with {fd}> and not {fd}<")
        os.set_inheritable(fd, False)
    except (OSError, OverflowError) as exc:
        raise UnusableDescriptor(
            f"{fd} is not open: let the init system or the shell open it, as with {fd}>file"
        ) from exc
    return fd


class Notifier:
    """What is told, and when. Everything but `run` may be called at any time, and does nothing where nobody listens."""

    def __init__(self, told: Told, ready_fd: int | None = None) -> None:
        """`ready_fd` has passed `check_ready_fd`, and is closed here."""
        self._address = told.address
        self._watchdog = told.watchdog
        self._ready_fd = ready_fd
        self._socket: socket.socket | None = None
        if told.address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._waiting: list[bytes] = []
        self._full = trio.Event()
        self._changed = trio.Event()
        self._serving = False
        self._ending = False
        self._reloads = 0
        for complaint in told.complaints:
            LOG.warning("%s", complaint)

    # ── what we do ───────────────────────────────────────────────────────────────────────────────

    def ready(self) -> None:
        """The control socket answers. Only the first call tells it."""
        if self._serving or self._ending:
            return
        self._serving = True
        self._send(b"READY=1")
        self._write_newline()

    def stopping(self, seconds: float) -> None:
        """We end, and it may take so long. Only the first call tells it, and only where we have been ready."""
        if not self._serving or self._ending:
            return
        self._ending = True
        # Within this time it wants to hear from us again; by then we are gone. Its own limit may be shorter.
        self._send(b"STOPPING=1\nEXTEND_TIMEOUT_USEC=%d" % round(seconds * 1e6))

    @contextmanager
    def reloading(self) -> Generator[None, None, None]:
        """The block reads the configuration again; however it ends, we serve on. One in another tells nothing."""
        self._reloads += 1
        begun = self._reloads == 1 and self._serving and not self._ending
        if begun:
            # CLOCK_MONOTONIC, by which systemd knows which of its own reloads this is the answer to.
            self._send(b"RELOADING=1\nMONOTONIC_USEC=%d" % (time.monotonic_ns() // 1000))
        try:
            yield
        finally:
            self._reloads -= 1
            if begun and not self._ending:
                self._send(b"READY=1")

    def changed(self) -> None:
        """The status is another."""
        self._changed.set()

    async def run(
        self,
        describe: Callable[[], str],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Tell the status after each change, and that we are alive: from this very loop, so that one which hangs is
        missed."""
        if self._socket is None:
            task_status.started()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._retry)
            nursery.start_soon(self._tell_status, describe)
            if self._watchdog is not None:
                nursery.start_soon(self._ping, self._watchdog)
            task_status.started()

    def close(self) -> None:
        """Nothing is told any more. What still waits is tried once."""
        self._flush()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._close_ready_fd()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    async def _tell_status(self, describe: Callable[[], str]) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            self._send(b"STATUS=" + line(describe()).encode())
            await trio.sleep(STATUS_SECONDS)

    async def _ping(self, watchdog: float) -> None:
        while True:
            self._send(b"WATCHDOG=1")
            await trio.sleep(watchdog * PING_PART)

    async def _retry(self) -> None:
        while True:
            await self._full.wait()
            await trio.sleep(RETRY_SECONDS)  # nothing tells when another's queue has room
            self._flush()

    def _send(self, message: bytes) -> None:
        if self._socket is None:
            return
        # Of what only says how we are now, the newest is enough.
        kind = message.partition(b"=")[0]
        if kind in (b"STATUS", b"WATCHDOG"):
            self._waiting = [each for each in self._waiting if not each.startswith(kind + b"=")]
        self._waiting = [*self._waiting, message][-MAX_WAITING:]
        self._flush()

    def _flush(self) -> None:
        """Send what waits, in its order, as far as there is room."""
        while self._waiting and self._socket is not None and self._address is not None:
            try:
                self._socket.sendto(self._waiting[0], socket.MSG_NOSIGNAL, self._address)
            except BlockingIOError:
                self._full.set()
                return
            except OSError as exc:
                # Whom we cannot reach has gone, or never was: it is told once where it matters.
                level = logging.WARNING if self._waiting[0].startswith(b"READY") else logging.DEBUG
                LOG.log(level, "cannot tell the init system: %s", os.strerror(exc.errno or errno.EIO))
            self._waiting = self._waiting[1:]
        if self._full.is_set():  # or it would be another one than `_retry` waits for
            self._full = trio.Event()

    def _write_newline(self) -> None:
        if self._ready_fd is None:
            return
        poll = select.poll()
        poll.register(self._ready_fd, select.POLLOUT)
        try:
            # A pipe that is full would hold us up; O_NONBLOCK would be set for everybody who has it open.
            if any(events & (select.POLLOUT | select.POLLERR) for _, events in poll.poll(0)):
                os.write(self._ready_fd, b"\n")
            else:
                LOG.warning("descriptor %d takes nothing: readiness is not told there", self._ready_fd)
        except OSError as exc:
            LOG.warning("cannot tell readiness on descriptor %d: %s", self._ready_fd, exc.strerror)
        self._close_ready_fd()

    def _close_ready_fd(self) -> None:
        if self._ready_fd is not None:
            with suppress(OSError):
                os.close(self._ready_fd)
            self._ready_fd = None


def line(text: str) -> str:
    """One line, whatever is in it: a second one would be a message of its own."""
    return "".join(each if each.isprintable() else "?" for each in text)[:MAX_STATUS]


@contextmanager
def opened(told: Told, ready_fd: int | None = None) -> Generator[Notifier, None, None]:
    """A notifier that is closed at the end."""
    notifier = Notifier(told, ready_fd)
    try:
        yield notifier
    finally:
        notifier.close()


NOBODY = Told(None, None, ())
"""No init system that wants to hear of us."""
