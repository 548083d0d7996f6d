"""WASI preview 1, as far as a compiler's runtime needs it: output, clocks, chance, sleep and exit.

There is no file, no socket, no preopened directory, no argument and no environment. Descriptors are 0, which
is at its end, and 1 and 2, whose bytes become log lines; every other one is `badf`. All functions of the
standard can be imported, since linkers keep some that are never called; those without a method here answer
`badf`.

Names, signatures, layouts and numbers: ``wasi_snapshot_preview1.witx`` and ``typenames.witx`` of WASI. An
errno is the result as it is, not negated as in our own ABI.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NoReturn, Protocol

from capsuled.proto.abi import MAX_LOG_TEXT, ValueType
from capsuled.proto.refusals import Errno
from capsuled.sandbox.engine.seam import GuestMemory, HostFunction, OutOfBounds, Signature

MODULE = "wasi_snapshot_preview1"
"""The import module of these functions."""

MAX_VECTORS = 1024
"""Most pieces of one read or write: what Linux takes, so libraries keep below it."""

MAX_WRITE = MAX_LOG_TEXT
"""Bytes taken by one write; the caller writes the rest again. Pieces may overlap: 1024 × 4 GiB at worst."""

MAX_EVENTS = 64
"""Most subscriptions of one poll. Runtimes sleep with one; there is nothing else here that could happen."""

MAX_NAP_S = 3600.0
"""Longest single sleep: a guest may ask for 584 years, and `poll` has 31 bits of milliseconds."""

RANDOM_CHUNK = 64 * 1024
"""Random bytes are made in pieces: a guest that asks to fill all of its memory does not get it twice."""

STDIN, STDOUT, STDERR = 0, 1, 2
DESCRIPTORS = (STDIN, STDOUT, STDERR)
OUTPUTS = (STDOUT, STDERR)

_REALTIME, _MONOTONIC = 0, 1
_CLOCK, _FD_READ, _FD_WRITE = range(3)  # what a subscription waits for
_ABSOLUTE = 1
_HANG_UP = 1
_CHARACTER_DEVICE = 2
_APPEND = 1
_MAY_READ, _MAY_WRITE, _MAY_POLL = 1 << 1, 1 << 6, 1 << 27

_LONGEST_CHARACTER = 4  # bytes, in UTF-8

_VECTOR = struct.Struct("<II")
_FDSTAT = struct.Struct("<BxHxxxxQQ")  # type, flags, rights, rights to inherit
_SUBSCRIPTION = struct.Struct("<QB7xI4xQQHxxxxxx")  # user data, kind; a clock: id, timeout, precision, flags
_EVENT = struct.Struct("<QHBxxxxxQHxxxxxx")  # user data, errno, kind; a descriptor: bytes, flags

_SHAPES = """
args_get ii           args_sizes_get ii     environ_get ii         environ_sizes_get ii
clock_res_get ii      clock_time_get iIi    fd_advise iIIi         fd_allocate iII
fd_close i            fd_datasync i         fd_fdstat_get ii       fd_fdstat_set_flags ii
fd_fdstat_set_rights iII                    fd_filestat_get ii     fd_filestat_set_size iI
fd_filestat_set_times iIIi                  fd_pread iiiIi         fd_prestat_get ii
fd_prestat_dir_name iii                     fd_pwrite iiiIi        fd_read iiii
fd_readdir iiiIi      fd_renumber ii        fd_seek iIii           fd_sync i
fd_tell ii            fd_write iiii         path_create_directory iii
path_filestat_get iiiii                     path_filestat_set_times iiiiIIi
path_link iiiiiii     path_open iiiiiIIii   path_readlink iiiiii   path_remove_directory iii
path_rename iiiiii    path_symlink iiiii    path_unlink_file iii   poll_oneoff iiii
proc_exit i           proc_raise i          random_get ii          sched_yield -
sock_accept iii       sock_recv iiiiii      sock_send iiiii        sock_shutdown ii
"""
"""Each function and its parameters: i for i32, I for i64, - for none."""


def _table() -> dict[tuple[str, str], Signature]:
    kinds: dict[str, tuple[ValueType, ...]] = {"i": ("i32",), "I": ("i64",), "-": ()}
    words = _SHAPES.split()
    table: dict[tuple[str, str], Signature] = {}
    for name, shape in zip(words[::2], words[1::2], strict=True):
        params: tuple[ValueType, ...] = tuple(kind for letter in shape for kind in kinds[letter])
        table[MODULE, name] = (params, () if name == "proc_exit" else ("i32",))
    return table


SIGNATURES = _table()
"""All of WASI preview 1, by import module and name."""


class WasiHost(Protocol):
    """What these functions need of the process around them."""

    def write(self, fd: int, data: bytes) -> None:
        """Take what the guest wrote to 1 or 2, at most `MAX_WRITE` bytes; see `LineSplitter`."""
        ...

    def exit(self, code: int) -> NoReturn:
        """End the process with this code of the guest, unsigned. It must not return and should not raise."""
        ...

    def sleep(self, seconds: float) -> None:
        """Sleep for this long, at most `MAX_NAP_S`; return early when the guest is to stop."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that never steps back."""
        ...

    def random(self, length: int) -> bytes:
        """That many unpredictable bytes, at most `RANDOM_CHUNK`."""
        ...


class LineSplitter:
    """Makes lines of one descriptor's bytes, however they were cut into writes.

    A line is valid UTF-8, without a newline, of at most `limit` bytes: a longer one becomes several. What is
    not UTF-8 is replaced by U+FFFD. At most `limit` bytes wait for their newline.
    """

    def __init__(self, limit: int = MAX_LOG_TEXT) -> None:
        if limit < _LONGEST_CHARACTER:
            raise ValueError(f"cannot make lines of {limit} bytes: a character may need {_LONGEST_CHARACTER}")
        self._limit = limit
        self._waiting = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now."""
        waiting, limit = self._waiting, self._limit
        searched = len(waiting)  # there is no newline before here
        waiting += data
        lines: list[bytes] = []
        start = 0
        while True:
            end = waiting.find(b"\n", max(start, searched), start + limit + 1)
            if end >= 0:
                lines += self._pieces(bytes(waiting[start:end]))
                start = end + 1
            elif len(waiting) - start > limit:
                end = _boundary(waiting, start + limit)
                lines += self._pieces(bytes(waiting[start:end]))
                start = end
            else:
                del waiting[:start]
                return lines

    def flush(self) -> list[bytes]:
        """What waits for its newline, at the end: no line, one, or more where replacing made it too long."""
        waiting = bytes(self._waiting)
        self._waiting.clear()
        return self._pieces(waiting) if waiting else []

    def _pieces(self, line: bytes) -> list[bytes]:
        """The line as valid UTF-8, which replacing may make three times as long."""
        text = line.decode(errors="replace").encode()
        pieces: list[bytes] = []
        start = 0
        while len(text) - start > self._limit:
            end = _boundary(text, start + self._limit)
            pieces.append(text[start:end])
            start = end
        pieces.append(text[start:])
        return pieces


def _boundary(data: bytes | bytearray, end: int) -> int:
    """The last place up to `end` where a character begins; `end` itself where the bytes are no UTF-8."""
    for place in range(end, end - _LONGEST_CHARACTER, -1):
        if data[place] & 0xC0 != 0x80:
            return place
    return end


def functions(memory: Callable[[], GuestMemory], host: WasiHost) -> dict[tuple[str, str], HostFunction]:
    """All of `SIGNATURES`, bound. `memory` is asked at each call: it is there only after instantiation."""
    wasi = _Wasi(memory, host)
    return {
        key: HostFunction(signature, _guarded(getattr(wasi, key[1], _badf)))
        for key, signature in SIGNATURES.items()
    }


def _guarded(call: Callable[..., int]) -> Callable[..., int]:
    def guarded(*arguments: int) -> int:
        try:
            return call(*arguments)
        except OutOfBounds:
            return Errno.FAULT

    return guarded


def _badf(*_: int) -> int:
    return Errno.BADF


class _Wasi:
    """One method for each function that does something, with its name and parameters, which are unsigned."""

    def __init__(self, memory: Callable[[], GuestMemory], host: WasiHost) -> None:
        self._memory = memory
        self._host = host

    # ── arguments and environment: none ──────────────────────────────────────────────────────────

    def args_sizes_get(self, count: int, size: int) -> int:
        self._write_u32(count, 0)
        self._write_u32(size, 0)
        return 0

    def args_get(self, pointers: int, buffer: int) -> int:
        return 0

    environ_sizes_get = args_sizes_get
    environ_get = args_get

    # ── clocks, chance, sleep, exit ──────────────────────────────────────────────────────────────

    def clock_res_get(self, clock: int, result: int) -> int:
        if clock not in (_REALTIME, _MONOTONIC):
            return Errno.INVAL
        self._write_u64(result, 1)
        return 0

    def clock_time_get(self, clock: int, precision: int, result: int) -> int:
        if clock not in (_REALTIME, _MONOTONIC):
            return Errno.INVAL
        self._write_u64(result, self._now(clock))
        return 0

    def random_get(self, buffer: int, length: int) -> int:
        memory = self._memory()
        memory.check(buffer, length)
        for done in range(0, length, RANDOM_CHUNK):
            memory.write(buffer + done, self._host.random(min(RANDOM_CHUNK, length - done)))
        return 0

    def sched_yield(self) -> int:
        return 0

    def proc_exit(self, code: int) -> int:
        self._host.exit(code)

    def proc_raise(self, signal: int) -> int:
        return Errno.NOSYS

    def poll_oneoff(self, subscriptions: int, events: int, count: int, result: int) -> int:
        """Descriptors are always ready, 0 with its end, so that only clocks are waited for.

        A sleep that the host ended early counts as over: runtimes take an error here for a defect and abort,
        while a guest that goes on learns from its next call that it is to stop.
        """
        if not 1 <= count <= MAX_EVENTS:
            return Errno.INVAL
        memory = self._memory()
        wanted = list(_SUBSCRIPTION.iter_unpack(memory.read(subscriptions, count * _SUBSCRIPTION.size)))
        memory.check(events, count * _EVENT.size)
        memory.check(result, 4)
        happened: list[bytes] = []
        clocks: list[tuple[int, int]] = []  # when on the monotonic clock, user data
        now = self._host.monotonic_ns()
        for user_data, kind, subject, timeout, _, flags in wanted:
            if kind != _CLOCK:
                happened.append(_descriptor_event(user_data, kind, subject))
            elif subject not in (_REALTIME, _MONOTONIC) or flags & ~_ABSOLUTE:
                happened.append(_EVENT.pack(user_data, Errno.INVAL, _CLOCK, 0, 0))
            else:
                clocks.append((now + timeout - (self._now(subject) if flags else 0), user_data))
        until = now if happened else min(when for when, _ in clocks)
        self._sleep_until(until)
        until = max(until, self._host.monotonic_ns())
        happened += [_EVENT.pack(user_data, 0, _CLOCK, 0, 0) for when, user_data in clocks if when <= until]
        memory.write(events, b"".join(happened))
        self._write_u32(result, len(happened))
        return 0

    # ── descriptors ──────────────────────────────────────────────────────────────────────────────

    def fd_write(self, fd: int, vectors: int, count: int, result: int) -> int:
        if fd not in OUTPUTS:
            return Errno.BADF
        if count > MAX_VECTORS:
            return Errno.INVAL
        memory = self._memory()
        memory.check(result, 4)
        data = bytearray()
        for pointer, length in self._vectors(vectors, count):
            data += memory.read(pointer, min(length, MAX_WRITE - len(data)))
        if data:
            self._host.write(fd, bytes(data))
        self._write_u32(result, len(data))
        return 0

    def fd_read(self, fd: int, vectors: int, count: int, result: int) -> int:
        if fd != STDIN:
            return Errno.BADF
        if count > MAX_VECTORS:
            return Errno.INVAL
        self._vectors(vectors, count)
        self._write_u32(result, 0)
        return 0

    def fd_close(self, fd: int) -> int:
        return 0 if fd in DESCRIPTORS else Errno.BADF

    def fd_seek(self, fd: int, offset: int, whence: int, result: int) -> int:
        return Errno.SPIPE if fd in DESCRIPTORS else Errno.BADF

    def fd_tell(self, fd: int, result: int) -> int:
        return Errno.SPIPE if fd in DESCRIPTORS else Errno.BADF

    def fd_fdstat_get(self, fd: int, result: int) -> int:
        """A character device that cannot seek: C libraries then write line by line, as a log wants it."""
        if fd not in DESCRIPTORS:
            return Errno.BADF
        flags, rights = (0, _MAY_READ) if fd == STDIN else (_APPEND, _MAY_WRITE)
        self._memory().write(result, _FDSTAT.pack(_CHARACTER_DEVICE, flags, rights | _MAY_POLL, 0))
        return 0

    def fd_fdstat_set_flags(self, fd: int, flags: int) -> int:
        """No flag makes a difference: reading and writing never wait."""
        return 0 if fd in DESCRIPTORS else Errno.BADF

    # ── helpers ──────────────────────────────────────────────────────────────────────────────────

    def _vectors(self, pointer: int, count: int) -> list[tuple[int, int]]:
        """Pointers and lengths, each of them checked."""
        memory = self._memory()
        vectors = [(start, length) for start, length in _VECTOR.iter_unpack(memory.read(pointer, count * 8))]
        for start, length in vectors:
            memory.check(start, length)
        return vectors

    def _now(self, clock: int) -> int:
        return self._host.wall_ns() if clock == _REALTIME else self._host.monotonic_ns()

    def _sleep_until(self, until: int) -> None:
        """In naps; one that was cut short is the last."""
        while (left := until - (before := self._host.monotonic_ns())) > 0:
            nap = min(left, int(MAX_NAP_S * 1e9))
            self._host.sleep(nap / 1e9)
            if self._host.monotonic_ns() - before < nap:
                return

    def _write_u32(self, pointer: int, value: int) -> None:
        self._memory().write(pointer, value.to_bytes(4, "little"))

    def _write_u64(self, pointer: int, value: int) -> None:
        self._memory().write(pointer, value.to_bytes(8, "little"))


def _descriptor_event(user_data: int, kind: int, fd: int) -> bytes:
    if kind == _FD_READ and fd == STDIN:
        return _EVENT.pack(user_data, 0, kind, 0, _HANG_UP)
    if kind == _FD_WRITE and fd in OUTPUTS:
        return _EVENT.pack(user_data, 0, kind, MAX_WRITE, 0)
    known = kind in (_FD_READ, _FD_WRITE)
    return _EVENT.pack(user_data, Errno.BADF if known else Errno.INVAL, kind, 0, 0)
