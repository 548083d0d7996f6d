"""Guests by how they live and end: one that waits, one that computes for ever, one that traps, …"""

from __future__ import annotations

from pathlib import Path

import cbor2

from ..support.guests import Program, buffer, text, wat

EXAMPLES = Path(__file__).parents[2] / "examples"

QUIET = ["quiet.never"]
"""What `sleeper` subscribes to; nobody publishes it."""

_READY = '(import "capsule" "ready" (func $ready (result i32)))'
_WASI = "wasi_snapshot_preview1"


def sleeper(*, says_ready: bool = True) -> bytes:
    """Waits in a receive of 60 s, and returns when that is cancelled. Needs the grant `QUIET`."""
    program = Program()
    handle = program.call("ipc_subscribe", text("quiet.never"))
    if says_ready:
        program.call("ready")
    program.call("ipc_recv", handle, 60_000, buffer(64))
    return program.wasm()


def spinner(*, says_ready: bool = True) -> bytes:
    """Computes for ever, and never calls the host again."""
    return _module("call $ready drop" if says_ready else "", "(loop $for_ever br $for_ever)")


def returns() -> bytes:
    """Is ready, and returns."""
    return _module("call $ready drop", "")


def exits(code: int) -> bytes:
    """Is ready, and calls `proc_exit`."""
    return _module(
        "call $ready drop",
        f"i32.const {code} call $exit",
        f'(import "{_WASI}" "proc_exit" (func $exit (param i32)))',
    )


def large(functions: int) -> bytes:
    """So many functions to compile; is ready, and returns."""
    body = "(i32.add (local.get 0) (i32.mul (local.get 0) (i32.const {})))"
    each = " ".join(f"(func (param i32) (result i32) {body.format(number)})" for number in range(functions))
    return _module("call $ready drop", "", more=each)


def traps(body: str = "unreachable") -> bytes:
    """Is ready, and runs into `body`."""
    return _module("call $ready drop", body)


def traps_at_once() -> bytes:
    """Never gets ready."""
    return _module("", "unreachable")


def recurses() -> bytes:
    """Is ready, and overflows its stack."""
    return wat(
        f'(module {_READY} (memory (export "memory") 1) '
        "(func $deep (param i64) (result i64) local.get 0 i64.const 1 i64.add call $deep i64.const 1 i64.add) "
        '(func (export "run") call $ready drop i64.const 0 call $deep drop))'
    )


def grower() -> bytes:
    """Grows its memory until it is refused, and exits with the number of 64 KiB pages that it has then."""
    return _module(
        "call $ready drop",
        "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) "
        "memory.size call $exit",
        f'(import "{_WASI}" "proc_exit" (func $exit (param i32)))',
    )


def hoarder() -> bytes:
    """Publishes 60 kB again and again to itself, and takes none of it. Needs grants for `hoard.all`."""
    program = Program()
    handle = program.call("ipc_subscribe", text("hoard.all"), quiet=True)
    program.call("ready", quiet=True)
    part = program.part()
    part.call("ipc_publish", text("hoard.all"), text(cbor2.dumps(bytes(60_000))), quiet=True)
    part.call("ipc_poll", handle, buffer(1), quiet=True)  # too small a buffer: it is taken in, and not out
    program.loop(50_000, part)
    return program.wasm()


def chatterer(lines: int, size: int) -> bytes:
    """Logs so many lines of so many bytes as fast as it can, then is ready and waits. Needs the grant `QUIET`."""
    program = Program()
    part = program.part()
    part.call("log", 2, text("x" * size), quiet=True)
    program.loop(lines, part)
    handle = program.call("ipc_subscribe", text("quiet.never"), quiet=True)
    program.call("ready", quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(64), quiet=True)
    return program.wasm()


def counter(lines: int, pause: int = 0) -> bytes:
    """Logs the numbers from 000000 on, then is ready and waits. With a `pause` of so many milliseconds after each, it
    is ready before, and returns when it is cancelled. Needs the grant `QUIET`."""
    program = Program()
    handle = program.call("ipc_subscribe", text("quiet.never"), quiet=True)
    if pause:
        program.call("ready", quiet=True)
    part = program.part()
    part.raw("(drop (call $log (i32.const 2) (i32.const 100) (i32.const 6))) (call $count)")
    if pause:
        part.call("ipc_recv", handle, pause, buffer(64), quiet=True)
        cancelled = part.call("cancelled", quiet=True)
        part.raw(f"local.get $r{cancelled.number} i32.wrap_i64 br_if 1")
    program.loop(lines, part)
    if not pause:
        program.call("ready", quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(64), quiet=True)
    return program.wasm(_COUNT)


_COUNT = """(data (i32.const 100) "000000")
(func $count (local $at i32)
  (local.set $at (i32.const 105))
  (block $done (loop $next
    (i32.store8 (local.get $at) (i32.add (i32.load8_u (local.get $at)) (i32.const 1)))
    (br_if $done (i32.le_u (i32.load8_u (local.get $at)) (i32.const 57)))
    (i32.store8 (local.get $at) (i32.const 48))
    (local.set $at (i32.sub (local.get $at) (i32.const 1)))
    (br $next))))"""
"""One more, in the six digits at 100."""


def printer(output: bytes, count: int) -> bytes:
    """Writes `output` to its standard output so many times, by WASI, and returns."""
    size, escaped = len(output), "".join(f"\\{byte:02x}" for byte in output)
    return wat(
        f'(module (import "{_WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32))) {_READY} '
        f'(memory (export "memory") 1) (data (i32.const 8) "\\10\\00\\00\\00") '
        f'(data (i32.const 16) "{escaped}") (func (export "run") (local $n i32) call $ready drop '
        f"(i32.store (i32.const 8) (i32.const 16)) (i32.store (i32.const 12) (i32.const {size})) "
        f"i32.const {count} local.set $n (loop $again "
        "(drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 4))) "
        "(br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"
    )


def caller(calls: int) -> bytes:
    """Is ready, and asks for the time so often in one `run`. After each tenth it says so, and waits for a message.

    Needs a grant for `go.on`.
    """
    program = Program()
    handle = program.call("ipc_subscribe", text("go.on"), quiet=True)
    program.call("ready", quiet=True)
    for _ in range(10):
        part = program.part()
        part.call("monotonic_ns", quiet=True)
        program.loop(calls // 10, part)
        program.call("log", 2, text("another tenth"), quiet=True)
        program.call("ipc_recv", handle, 60_000, buffer(4096), quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(64), quiet=True)
    return program.wasm()


def _module(first: str, then: str, imports: str = "", more: str = "") -> bytes:
    return wat(
        f'(module {_READY} {imports} (memory (export "memory") 2) {more} '
        f'(func (export "run") {first} {then}))'
    )
