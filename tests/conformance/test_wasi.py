"""WASI preview 1 through real guests: output becomes log lines, proc_exit the exit status; there is no environment."""

from __future__ import annotations

import pytest

from capsuled.proto.refusals import Errno

from ..support.guests import Program
from .stage import Actor, Stage

EXITS = {0: ("ok", 0), 7: ("nonzero", 7), 70: ("nonzero", 70), 97: ("nonzero", 97), 256 + 3: ("nonzero", 3)}
"""Code of proc_exit to the reason and status of the end. The worker ends with some of them itself."""

IMPORTS = {
    "fd_write": "(param i32 i32 i32 i32) (result i32)",
    "fd_close": "(param i32) (result i32)",
    "proc_exit": "(param i32)",
    "environ_sizes_get": "(param i32 i32) (result i32)",
    "args_sizes_get": "(param i32 i32) (result i32)",
    "clock_time_get": "(param i32 i64 i32) (result i32)",
    "random_get": "(param i32 i32) (result i32)",
    "path_open": "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
    "fd_prestat_get": "(param i32 i32) (result i32)",
    "poll_oneoff": "(param i32 i32 i32 i32) (result i32)",
    "sock_send": "(param i32 i32 i32 i32 i32) (result i32)",
}


def command(body: str, entry: str = "_start") -> Program:
    """A program of these instructions; WASI's functions have their names."""
    program = Program(entry=entry)
    program.imports = [
        f'(import "wasi_snapshot_preview1" "{name}" (func ${name} {signature}))'
        for name, signature in IMPORTS.items()
    ]
    program.raw(body)
    return program


def put(at: int, data: bytes) -> str:
    """Instructions that write these bytes."""
    return " ".join(f"(i32.store8 (i32.const {at + i}) (i32.const {byte}))" for i, byte in enumerate(data))


def write(fd: int, *pieces: bytes) -> str:
    """Instructions that write these pieces to a descriptor in one call, and drop its result."""
    vectors = b""
    parts: list[str] = []
    at = 2048
    for piece in pieces:
        parts.append(put(at, piece))
        vectors += at.to_bytes(4, "little") + len(piece).to_bytes(4, "little")
        at += len(piece)
    parts.append(put(1024, vectors))
    parts.append(
        f"(drop (call $fd_write (i32.const {fd}) (i32.const 1024) (i32.const {len(pieces)}) (i32.const 1000)))"
    )
    return " ".join(parts)


class Cast:
    """The guests of this module, and their calls."""

    def __init__(self, stage: Stage) -> None:
        self.writer = stage.add(
            "writer",
            command(
                write(1, b"one\ntw", b"o\n", "half é".encode()[:-1])
                + write(2, b"to stderr\n")
                + write(1, "é".encode()[1:] + b"\n\xff\n\nno newline")
            ),
        )
        self.exits: dict[int, Actor] = {
            code: stage.add(
                f"exit-{code}",
                command(write(1, b"tail") + f"(call $proc_exit (i32.const {code})) unreachable"),
            )
            for code in EXITS
        }
        program = command("")
        self.environ = program.load(
            "(i64.store (i32.const 64) (i64.const -1))"
            "(i64.extend_i32_u (call $environ_sizes_get (i32.const 64) (i32.const 68)))"
        )
        self.environ_sizes = program.show(64, 8)
        self.arguments = program.load(
            "(i64.store (i32.const 64) (i64.const -1))"
            "(i64.extend_i32_u (call $args_sizes_get (i32.const 64) (i32.const 68)))"
        )
        self.argument_sizes = program.show(64, 8)
        self.clock = program.call("clock_ms")
        self.wasi_clock = program.load(
            "(drop (call $clock_time_get (i32.const 0) (i64.const 1) (i32.const 64))) (i64.load (i32.const 64))"
        )
        self.chance = program.load(
            "(drop (call $random_get (i32.const 64) (i32.const 8))) (i64.load (i32.const 64))"
        )
        zero = "(i32.const 0)"
        self.refused = [
            program.load(f"(i64.extend_i32_u {call})")
            for call in (
                f"(call $path_open (i32.const 3) {zero * 4} (i64.const 0) (i64.const 0) {zero * 2})",
                f"(call $fd_prestat_get (i32.const 3) {zero})",
                "(call $fd_close (i32.const 3))",
                f"(call $sock_send (i32.const 3) {zero} {zero} {zero} {zero})",
                f"(call $fd_write (i32.const 0) {zero} {zero} {zero})",
            )
        ]
        # One subscription: the monotonic clock in 30 ms.
        program.raw(put(512, bytes(8) + bytes(8) + (1).to_bytes(8, "little")))
        program.raw(put(536, (30_000_000).to_bytes(8, "little") + bytes(16)))
        self.before = program.call("monotonic_ns")
        self.slept = program.load(
            "(i64.extend_i32_u (call $poll_oneoff (i32.const 512) (i32.const 600) (i32.const 1) (i32.const 700)))"
        )
        self.after = program.call("monotonic_ns")
        self.asker = stage.add("asker", program)
        both = command(write(1, b"ran"), entry="run")
        self.reactor = stage.add(
            "reactor",
            both.wasm(
                more='(func (export "_initialize") (call $init)) (func $init ' + write(1, b"init\n") + ")"
            ),
        )


def output(actor: Actor, stream: str) -> list[tuple[str, str]]:
    actor.ended()
    return [(line["level"], line["message"]) for line in actor.lines() if line["stream"] == stream]


def test_output_becomes_log_lines(guests: Cast) -> None:
    """However it is cut into writes: one line for each newline, the rest at the end; what is no UTF-8 is replaced."""
    lines = ["one", "two", "half é", "\ufffd", "", "no newline"]
    assert output(guests.writer, "stdout") == [("info", line) for line in lines]
    assert output(guests.writer, "stderr") == [("warn", "to stderr")]


@pytest.mark.parametrize("code", EXITS)
def test_proc_exit_is_the_exit_status(guests: Cast, code: int) -> None:
    """The process ends with the code's low byte, and says that it was the guest's; its last line is not lost."""
    ended = guests.exits[code].ended()
    assert (ended["reason"], ended["status"]) == EXITS[code]
    assert output(guests.exits[code], "stdout") == [("info", "tail")]


def test_there_is_no_environment_and_no_argument(guests: Cast) -> None:
    """Both have no entry and no byte."""
    for result, sizes in (
        (guests.environ, guests.environ_sizes),
        (guests.arguments, guests.argument_sizes),
    ):
        assert guests.asker.value(result) == 0
        assert guests.asker.called(sizes).data == bytes(8)


def test_there_is_no_file_and_no_socket(guests: Cast) -> None:
    """Whatever is asked of a descriptor but 0, 1 and 2 is badf; 0 cannot be written to."""
    assert [guests.asker.value(each) for each in guests.refused] == [Errno.BADF] * 5


def test_clocks_and_chance(guests: Cast) -> None:
    """The wall clock is that of `clock_ms`; eight random bytes are not all zero."""
    milliseconds = guests.asker.value(guests.wasi_clock) // 1_000_000
    assert 0 <= milliseconds - guests.asker.value(guests.clock) < 60_000
    assert guests.asker.value(guests.chance) != 0


def test_a_guest_can_sleep(guests: Cast) -> None:
    """poll_oneoff with a clock returns when that has passed."""
    assert guests.asker.value(guests.slept) == 0
    assert guests.asker.value(guests.after) - guests.asker.value(guests.before) >= 30_000_000


def test_a_reactor_is_initialised_before_it_runs(guests: Cast) -> None:
    """`_initialize` is called once, and `run` after it."""
    assert output(guests.reactor, "stdout") == [("info", "init"), ("info", "ran")]
