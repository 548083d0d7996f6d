"""WASI preview 1 for a compiler's runtime."""

from __future__ import annotations

import struct
import sys
from itertools import pairwise
from typing import NoReturn

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.proto.refusals import Errno
from capsuled.sandbox import wasi
from capsuled.sandbox.engine import seam
from capsuled.sandbox.engine.seam import GuestLimits, OutOfBounds
from capsuled.sandbox.wasi import LineSplitter

ENGINES = ("wasmer", "wasmtime") if sys.version_info < (3, 11) else ("wasmtime",)

SIZE = 4 * 64 * 1024
SECOND = 1_000_000_000


class Memory:
    """A guest's memory that is as strict as the engine's."""

    def __init__(self) -> None:
        self.data = bytearray(b"\xee" * SIZE)

    def read(self, pointer: int, length: int) -> bytes:
        self.check(pointer, length)
        return bytes(self.data[pointer : pointer + length])

    def write(self, pointer: int, data: bytes) -> None:
        self.check(pointer, len(data))
        self.data[pointer : pointer + len(data)] = data

    def check(self, pointer: int, length: int) -> None:
        assert pointer >= 0
        assert length >= 0
        if pointer + length > SIZE:
            raise OutOfBounds(f"{length} bytes at {pointer}")

    def size(self) -> int:
        return SIZE

    def u32(self, pointer: int) -> int:
        return int.from_bytes(self.read(pointer, 4), "little")

    def u64(self, pointer: int) -> int:
        return int.from_bytes(self.read(pointer, 8), "little")


class Exited(Exception):
    """The process would be gone."""


class Host:
    """A process whose clocks move only while it sleeps."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self.naps: list[float] = []
        self.asked: list[int] = []
        self.now = 5 * SECOND
        self.cancelled_after = 2**80
        """Nanoseconds on the monotonic clock: no sleep goes on after it."""

    def write(self, fd: int, data: bytes) -> None:
        self.written.append((fd, data))

    def exit(self, code: int) -> NoReturn:
        raise Exited(code)

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= wasi.MAX_NAP_S
        self.naps.append(seconds)
        self.now = max(self.now, min(self.now + round(seconds * SECOND), self.cancelled_after))

    def wall_ns(self) -> int:
        return self.now + 1_700_000_000 * SECOND

    def monotonic_ns(self) -> int:
        return self.now

    def random(self, length: int) -> bytes:
        assert length <= wasi.RANDOM_CHUNK
        self.asked.append(length)
        return bytes([len(self.asked)]) * length


class System:
    """The functions, called by name."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.host = Host()
        self.functions = wasi.functions(lambda: self.memory, self.host)

    def __call__(self, name: str, *arguments: int) -> int:
        function = self.functions[wasi.MODULE, name]
        assert len(arguments) == len(function.signature[0])
        return function.call(*arguments)

    def vectors(self, at: int, *vectors: tuple[int, int]) -> tuple[int, int]:
        """Put them into the memory; pointer and count."""
        self.memory.write(at, b"".join(struct.pack("<II", *each) for each in vectors))
        return at, len(vectors)


@pytest.fixture
def system() -> System:
    return System()


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def importing_all(then: str = "") -> str:
    """Text of a module that imports each function, by its signature, under its name."""
    imports = [
        f'(import "{module}" "{name}" (func ${name} (param {" ".join(params)}) (result {" ".join(results)})))'
        for (module, name), (params, results) in wasi.SIGNATURES.items()
    ]
    return f'(module {"".join(imports)} (memory (export "memory") 1) {then})'


def test_signatures_are_the_standards() -> None:
    """An implementation that is not ours links with each function by name and signature."""
    engine = wasmtime.Engine()
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_wasi()
    store.set_wasi(wasmtime.WasiConfig())
    linker.instantiate(store, wasmtime.Module(engine, importing_all()))
    assert len(wasi.SIGNATURES) == 46


@pytest.mark.parametrize("engine", ENGINES)
def test_guest_can_import_all(system: System, engine: str) -> None:
    """A module may import the whole standard; each function that it calls answers through the engine."""
    call_each = "".join(
        f"(drop (call ${name} {' '.join(f'({kind}.const 7)' for kind in params)}))"
        for (_, name), (params, results) in wasi.SIGNATURES.items()
        if results
    )
    run = f'(func (export "run") {call_each} (call $proc_exit (i32.const -1)))'
    wasm = bytes(wasmtime.wat2wasm(importing_all(then=run)))
    limits, loaded = GuestLimits(SIZE), seam.load(engine)
    blob = seam.load_compiler(engine).compile(wasm, seam.signatures(system.functions), limits)
    guest = loaded.instantiate(loaded.load(blob), system.functions, limits)
    with pytest.raises(Exited) as exited:
        guest.call("run")
    assert exited.value.args == (2**32 - 1,)
    assert guest.host_calls == 46


SERVED = {
    *("args_get", "args_sizes_get", "environ_get", "environ_sizes_get", "clock_res_get", "clock_time_get"),
    *("fd_close", "fd_fdstat_get", "fd_fdstat_set_flags", "fd_read", "fd_seek", "fd_tell", "fd_write"),
    *("poll_oneoff", "proc_exit", "proc_raise", "random_get", "sched_yield"),
}


@pytest.mark.parametrize("name", sorted(name for _, name in wasi.SIGNATURES if name not in SERVED))
def test_what_is_not_there_answers_badf(system: System, name: str) -> None:
    """Files, directories and sockets: whatever the arguments are, there is no such descriptor."""
    params, _ = wasi.SIGNATURES[wasi.MODULE, name]
    for value in (0, 3, 2**32 - 1):
        assert system(name, *[value] * len(params)) == Errno.BADF


# ── nothing to be had ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["args", "environ"])
def test_no_arguments_and_no_environment(system: System, what: str) -> None:
    """There are none of them, in no bytes, and getting them writes nothing."""
    assert system(f"{what}_sizes_get", 8, 16) == 0
    assert (system.memory.u32(8), system.memory.u32(16)) == (0, 0)
    before = bytes(system.memory.data)
    assert system(f"{what}_get", 8, 16) == 0
    assert system.memory.data == before


@pytest.mark.parametrize("fd", [3, 4, 2**32 - 1])
@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("fd_close", ()),
        ("fd_fdstat_get", (8,)),
        ("fd_fdstat_set_flags", (0,)),
        ("fd_read", (0, 0, 8)),
        ("fd_seek", (0, 0, 8)),
        ("fd_tell", (8,)),
        ("fd_write", (0, 0, 8)),
        ("fd_prestat_get", (8,)),
        ("fd_prestat_dir_name", (8, 1)),
    ],
)
def test_descriptors_end_at_2(system: System, name: str, rest: tuple[int, ...], fd: int) -> None:
    """From 3 on there is no descriptor, preopened ones included."""
    assert system(name, fd, *rest) == Errno.BADF


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_standard_descriptors(system: System, fd: int) -> None:
    """They can be closed and set, cannot seek, and are character devices for their direction."""
    assert system("fd_close", fd) == 0
    assert system("fd_fdstat_set_flags", fd, 4) == 0
    assert system("fd_seek", fd, 0, 1, 8) == Errno.SPIPE
    assert system("fd_tell", fd, 8) == Errno.SPIPE
    assert system("fd_fdstat_get", fd, 8) == 0
    kind, flags, rights, inheriting = struct.unpack("<BxHxxxxQQ", system.memory.read(8, 24))
    poll, may = 1 << 27, 1 << 1 if fd == 0 else 1 << 6
    assert (kind, flags, rights, inheriting) == (2, 0 if fd == 0 else 1, poll | may, 0)
    assert system.memory.read(32, 1) == b"\xee"


def test_input_is_at_its_end(system: System) -> None:
    """Reading 0 gives no byte; 1 and 2 cannot be read, nor 0 written."""
    vectors = system.vectors(64, (128, 10))
    assert system("fd_read", 0, *vectors, 8) == 0
    assert system.memory.u32(8) == 0
    assert system.memory.read(128, 10) == b"\xee" * 10
    assert [system("fd_read", fd, *vectors, 8) for fd in (1, 2)] == [Errno.BADF] * 2
    assert system("fd_write", 0, *vectors, 8) == Errno.BADF


# ── output ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fd", [1, 2])
def test_write_gathers_its_pieces(system: System, fd: int) -> None:
    """The pieces of a write arrive together, in their order, and their number of bytes is told."""
    system.memory.write(128, b"hello, world")
    assert system("fd_write", fd, *system.vectors(64, (135, 5), (0, 0), (128, 5)), 8) == 0
    assert system.host.written == [(fd, b"worldhello")]
    assert system.memory.u32(8) == 10


def test_long_write_is_taken_in_part(system: System) -> None:
    """64 KiB are taken of a write, a byte more is left, and the guest is told how much was taken."""
    half = wasi.MAX_WRITE // 2
    assert system("fd_write", 1, *system.vectors(64, (1024, half), (1024, half)), 8) == 0
    assert system.memory.u32(8) == wasi.MAX_WRITE
    assert system("fd_write", 1, *system.vectors(64, (1024, half), (1024, half + 1), (0, 9)), 8) == 0
    assert system.memory.u32(8) == wasi.MAX_WRITE
    assert [len(data) for _, data in system.host.written] == [wasi.MAX_WRITE] * 2


@pytest.mark.parametrize("name", ["fd_write", "fd_read"])
def test_pieces_are_limited(system: System, name: str) -> None:
    """1024 pieces are taken, and not one more."""
    fd = 1 if name == "fd_write" else 0
    most = system.vectors(1024, *[(0, 1)] * wasi.MAX_VECTORS)
    assert system(name, fd, *most, 8) == 0
    assert system(name, fd, most[0], wasi.MAX_VECTORS + 1, 8) == Errno.INVAL
    assert system(name, fd, most[0], 2**32 - 1, 8) == Errno.INVAL


# ── ranges ───────────────────────────────────────────────────────────────────────────────────────

END = SIZE
FAR = 2**32 - 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("args_sizes_get", (END - 3, 8)),
        ("args_sizes_get", (8, END - 3)),
        ("environ_sizes_get", (FAR, 8)),
        ("clock_res_get", (0, END - 7)),
        ("clock_time_get", (1, 0, END - 7)),
        ("fd_fdstat_get", (1, END - 23)),
        ("random_get", (END - 9, 10)),
        ("random_get", (8, FAR)),
        ("random_get", (FAR, FAR)),
        ("fd_write", (1, END - 7, 1, 8)),
        ("fd_write", (1, 64, 1, END - 3)),
        ("fd_write", (1, 80, 1, 8)),
        ("fd_write", (1, 64, 3, 8)),
        ("fd_read", (0, END - 7, 1, 8)),
        ("fd_read", (0, 64, 1, END - 3)),
        ("fd_read", (0, 80, 1, 8)),
        ("poll_oneoff", (END - 47, 8, 1, 8)),
        ("poll_oneoff", (1024, END - 31, 1, 8)),
        ("poll_oneoff", (1024, 8, 1, END - 3)),
    ],
)
def test_range_outside_the_memory_is_a_fault(system: System, name: str, arguments: tuple[int, ...]) -> None:
    """One byte past the end of the memory is `fault`; nothing was written, logged or waited for then."""
    system.vectors(64, (128, 1), (128, 1), (END - 1, 2))  # the third, at 80, leaves the memory
    system.memory.write(1024, subscription(1, 0, timeout=SECOND))
    before = bytes(system.memory.data)
    assert system(name, *arguments) == Errno.FAULT
    changed = [i for i, (a, b) in enumerate(zip(before, system.memory.data, strict=True)) if a != b]
    assert name.endswith("_sizes_get") or changed == []
    assert (system.host.written, system.host.naps) == ([], [])


# ── clocks, chance, exit ─────────────────────────────────────────────────────────────────────────


def test_clocks(system: System) -> None:
    """0 is the wall clock and 1 the monotonic one, in nanoseconds; a process's own clocks are not there."""
    assert system("clock_time_get", 0, 0, 8) == 0
    assert system.memory.u64(8) == system.host.wall_ns()
    assert system("clock_time_get", 1, 10**9, 8) == 0
    assert system.memory.u64(8) == system.host.monotonic_ns()
    for clock in (0, 1):
        assert system("clock_res_get", clock, 8) == 0
        assert system.memory.u64(8) == 1
    for clock in (2, 3, 4):
        assert system("clock_time_get", clock, 0, 8) == Errno.INVAL
        assert system("clock_res_get", clock, 8) == Errno.INVAL


@pytest.mark.parametrize(
    ("length", "pieces"),
    [
        (0, []),
        (10, [10]),
        (wasi.RANDOM_CHUNK, [wasi.RANDOM_CHUNK]),
        (wasi.RANDOM_CHUNK + 1, [wasi.RANDOM_CHUNK, 1]),
    ],
)
def test_random_fills_its_range_in_pieces(system: System, length: int, pieces: list[int]) -> None:
    """All bytes that were asked for are random, none beside them, and at most 64 KiB are made at a time."""
    assert system("random_get", 100, length) == 0
    assert system.host.asked == pieces
    expected = b"".join(bytes([i]) * piece for i, piece in enumerate(pieces, 1))
    assert system.memory.read(99, length + 2) == b"\xee" + expected + b"\xee"


def test_exit_never_returns(system: System) -> None:
    """`proc_exit` hands its code to the host, which does not come back."""
    with pytest.raises(Exited) as exited:
        system("proc_exit", 3)
    assert exited.value.args == (3,)


def test_signals_and_yielding(system: System) -> None:
    """A signal cannot be raised; yielding does nothing."""
    assert system("proc_raise", 6) == Errno.NOSYS
    assert system("sched_yield") == 0


# ── poll ─────────────────────────────────────────────────────────────────────────────────────────


def subscription(user_data: int, kind: int, subject: int = 1, timeout: int = 0, flags: int = 0) -> bytes:
    """48 bytes, of a clock (kind 0) or for reading (1) or writing (2) a descriptor."""
    head = struct.pack("<QBxxxxxxxIxxxx", user_data, kind, subject)
    return head + struct.pack("<QQHxxxxxx", timeout, 0, flags)


def polled(system: System, *subscriptions: bytes) -> list[tuple[int, int, int, int, int]]:
    """User data, errno, kind, bytes and flags of each event."""
    system.memory.write(1024, b"".join(subscriptions))
    assert system("poll_oneoff", 1024, 8192, len(subscriptions), 8) == 0
    events = system.memory.read(8192, 32 * system.memory.u32(8))
    return list(struct.iter_unpack("<QHBxxxxxQHxxxxxx", events))


def test_poll_sleeps_until_the_earliest(system: System) -> None:
    """The earliest clock decides how long is slept; what is due by then has happened, the rest has not."""
    events = polled(
        system,
        subscription(1, 0, timeout=3 * SECOND),
        subscription(2, 0, timeout=2 * SECOND),
        subscription(3, 0, subject=0, timeout=2 * SECOND),
    )
    assert events == [(2, 0, 0, 0, 0), (3, 0, 0, 0, 0)]
    assert system.host.naps == [2.0]


@pytest.mark.parametrize(("clock", "name"), [(0, "wall_ns"), (1, "monotonic_ns")])
def test_poll_knows_absolute_times(system: System, clock: int, name: str) -> None:
    """A time on a clock is waited for by that clock; one that has passed has happened already."""
    now = getattr(system.host, name)()
    assert polled(system, subscription(7, 0, clock, now - 1, 1)) == [(7, 0, 0, 0, 0)]
    assert system.host.naps == []
    assert polled(system, subscription(7, 0, clock, now + SECOND, 1)) == [(7, 0, 0, 0, 0)]
    assert system.host.naps == [1.0]


def test_cancelled_sleep_counts_as_over(system: System) -> None:
    """A sleep that the host ends early ends the poll, as if the time had come."""
    system.host.cancelled_after = system.host.now + SECOND
    assert polled(
        system, subscription(7, 0, timeout=60 * SECOND), subscription(8, 0, timeout=61 * SECOND)
    ) == [(7, 0, 0, 0, 0)]
    assert system.host.naps == [60.0]
    assert polled(system, subscription(7, 0, timeout=2**64 - 1)) == [(7, 0, 0, 0, 0)]
    assert system.host.naps == [60.0, wasi.MAX_NAP_S]


def test_long_sleep_is_made_of_naps(system: System) -> None:
    """The host never sleeps for more than an hour at once, and a longer sleep is as long as it was asked."""
    longest = int(wasi.MAX_NAP_S) * SECOND
    before = system.host.now
    assert polled(system, subscription(7, 0, timeout=longest)) == [(7, 0, 0, 0, 0)]
    assert polled(system, subscription(7, 0, timeout=longest + SECOND)) == [(7, 0, 0, 0, 0)]
    assert system.host.naps == [wasi.MAX_NAP_S, wasi.MAX_NAP_S, 1.0]
    assert system.host.now == before + 2 * longest + SECOND


def test_descriptors_are_ready_at_once(system: System) -> None:
    """0 has its end to be read, 1 and 2 take bytes; then no clock is waited for."""
    events = polled(
        system,
        subscription(1, 1, 0),
        subscription(2, 2, 1),
        subscription(3, 2, 2),
        subscription(4, 0, timeout=SECOND),
        subscription(5, 0, timeout=0),
    )
    assert events == [
        (1, 0, 1, 0, 1),
        (2, 0, 2, wasi.MAX_WRITE, 0),
        (3, 0, 2, wasi.MAX_WRITE, 0),
        (5, 0, 0, 0, 0),
    ]
    assert system.host.naps == []


@pytest.mark.parametrize(
    ("kind", "subject", "flags", "errno"),
    [
        (1, 1, 0, Errno.BADF),
        (2, 0, 0, Errno.BADF),
        (1, 3, 0, Errno.BADF),
        (3, 0, 0, Errno.INVAL),
        (255, 0, 0, Errno.INVAL),
        (0, 2, 0, Errno.INVAL),
        (0, 1, 2, Errno.INVAL),
    ],
)
def test_subscription_that_cannot_be_is_an_event(
    system: System, kind: int, subject: int, flags: int, errno: Errno
) -> None:
    """A wrong descriptor, clock, flag or kind is told by the event of its subscription, at once."""
    assert polled(system, subscription(9, kind, subject, SECOND, flags)) == [(9, errno, kind, 0, 0)]
    assert system.host.naps == []


def test_subscriptions_are_limited(system: System) -> None:
    """64 subscriptions are taken, not one more, and none is no poll."""
    each = subscription(1, 0)
    assert len(polled(system, *[each] * wasi.MAX_EVENTS)) == wasi.MAX_EVENTS
    for count in (0, wasi.MAX_EVENTS + 1, FAR):
        assert system("poll_oneoff", 1024, 8192, count, 8) == Errno.INVAL


# ── lines ────────────────────────────────────────────────────────────────────────────────────────


def test_lines_are_made_of_writes() -> None:
    """A line is told when its newline comes; the rest at the end, once, and only where there is one."""
    splitter = LineSplitter()
    assert splitter.feed(b"a") == []
    assert splitter.feed(b"b\n\nc") == [b"ab", b""]
    assert splitter.flush() == [b"c"]
    assert splitter.flush() == []
    assert splitter.feed(b"d\n") == [b"d"]
    assert splitter.flush() == []


def test_line_at_its_limit_is_one() -> None:
    """64 KiB and a newline are one line; a byte more makes two."""
    splitter = LineSplitter()
    assert splitter.feed(b"x" * MAX_LOG_TEXT) == []
    assert splitter.feed(b"\n") == [b"x" * MAX_LOG_TEXT]
    assert splitter.feed(b"x" * (MAX_LOG_TEXT + 1)) == [b"x" * MAX_LOG_TEXT]
    assert splitter.feed(b"\n") == [b"x"]


def test_long_line_is_cut_between_characters() -> None:
    """A cut does not fall into a character, and what follows it belongs to the next line."""
    assert LineSplitter(5).feed("aäöü\nb\n".encode()) == ["aäö".encode(), "ü".encode(), b"b"]
    assert LineSplitter(4).feed("ab😀\n".encode()) == [b"ab", "😀".encode()]


def test_line_that_replacing_makes_longer_is_cut() -> None:
    """U+FFFD has three bytes: a line of invalid ones still keeps its limit."""
    assert LineSplitter(6).feed(b"\xff" * 5 + b"\n") == [each.encode() for each in ("��", "��", "�")]


def test_line_has_room_for_a_character() -> None:
    """A limit of three bytes would have no place for every character."""
    LineSplitter(4)
    with pytest.raises(ValueError, match="cannot make lines of 3 bytes"):
        LineSplitter(3)


@st.composite
def cut_up(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Some bytes, and the same in pieces."""
    alphabet = st.sampled_from([b"a", b"\n", "ä".encode(), "€".encode(), "😀".encode(), b"\xff", b"\xe2\x82"])
    data = b"".join(draw(st.lists(alphabet, max_size=60)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return data, [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]


def lines_of(splitter: LineSplitter, pieces: list[bytes]) -> list[bytes]:
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.flush()


@given(cut_up(), st.integers(4, 20))
def test_lines_do_not_depend_on_the_writes(cut: tuple[bytes, list[bytes]], limit: int) -> None:
    """However the bytes are cut into writes, the lines are the same, and each keeps its limit."""
    data, pieces = cut
    lines = lines_of(LineSplitter(limit), pieces)
    assert lines == lines_of(LineSplitter(limit), [data])
    assert all(len(line) <= limit and b"\n" not in line for line in lines)
    assert b"\n".join(lines).decode().encode() == b"\n".join(lines)  # each is valid UTF-8


@given(cut_up())
def test_short_lines_are_those_of_the_text(cut: tuple[bytes, list[bytes]]) -> None:
    """Below the limit, the lines are what stands between the newlines, with what is invalid replaced."""
    data, pieces = cut
    whole = [each.decode(errors="replace").encode() for each in data.split(b"\n")]
    assert lines_of(LineSplitter(), pieces) == (whole if whole[-1] else whole[:-1])
