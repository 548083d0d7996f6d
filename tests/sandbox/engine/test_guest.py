"""A guest: its traps, its memory, its limits, its host calls, the same on each engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import cast

import pytest
from greenlet import GreenletExit, getcurrent

from capsuled.sandbox.engine import seam
from capsuled.sandbox.engine.seam import (
    Guest,
    GuestLimits,
    GuestTrap,
    HostFunction,
    ModuleRejected,
    OutOfBounds,
)

PAGE = 64 * 1024

MEMORY = '(memory (export "memory") 1)'
CALLS = '(import "h" "f" (func $f))'

MakeGuest = Callable[..., Guest]
Measure = Callable[..., subprocess.CompletedProcess[str]]
Wat = Callable[[str], bytes]


def calling(times: int) -> str:
    """Text of a function body that calls `$f` so often."""
    return f"""(local $left i32) (local.set $left (i32.const {times}))
      (loop $again (call $f)
        (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))"""


def nothing() -> HostFunction:
    return HostFunction(((), ()), lambda: 0)


def raising(exc: BaseException) -> HostFunction:
    def fail() -> int:
        raise exc

    return HostFunction(((), ()), fail)


def reporting(told: list[int]) -> HostFunction:
    """A function that keeps what it is told, as the guest's signed number."""

    def tell(number: int) -> int:
        told.append(number - (1 << 32) if number >> 31 else number)
        return 0

    return HostFunction((("i32",), ()), tell)


# ── traps ────────────────────────────────────────────────────────────────────────────────────────

TABLE = "(table 2 funcref) (elem (i32.const 0) $run) (type $none (func)) (type $one (func (param i32)))"

TRAPS = [
    ("unreachable", "unreachable", "unreachable"),
    ("(drop (i32.load (i32.const 65533)))", "memory", "out of bounds memory access"),
    ("(i64.store (i32.const -8) (i64.const 0))", "memory", "out of bounds memory access"),
    ("(memory.fill (i32.const 65535) (i32.const 0) (i32.const 2))", "memory", "out of bounds memory access"),
    ("(memory.copy (i32.const 0) (i32.const 65535) (i32.const 2))", "memory", "out of bounds memory access"),
    ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", "divide", "integer divide by zero"),
    ("(drop (i64.rem_u (i64.const 1) (i64.const 0)))", "divide", "integer divide by zero"),
    ("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", "overflow", "integer overflow"),
    ("(drop (i32.trunc_f32_s (f32.const 1e30)))", "overflow", "integer overflow"),
    ("(drop (i32.trunc_f64_u (f64.const nan)))", "conversion", "invalid conversion to integer"),
    ("(call_indirect (type $none) (i32.const 1))", "indirect-call", "uninitialized element"),
    (
        "(call_indirect (type $none) (i32.const 2))",
        "indirect-call",
        "undefined element: out of bounds table access",
    ),
    (
        "(call_indirect (type $one) (i32.const 0) (i32.const 0))",
        "indirect-call",
        "indirect call type mismatch",
    ),
    (
        "(drop (table.get 0 (i32.const 2)))",
        "indirect-call",
        "undefined element: out of bounds table access",
    ),
]

FRAME = {"wasmer": "at <unnamed>", "wasmtime": "<wasm function "}
"""What stands in a backtrace for a function without a name: names do not reach an engine."""


@pytest.mark.parametrize(("body", "kind", "message"), TRAPS)
def test_trap_is_told_by_its_kind(
    make_guest: MakeGuest, engine: str, body: str, kind: str, message: str
) -> None:
    """Each way to trap has its kind, the same message on each engine, and a backtrace."""
    guest = make_guest(f'(module {TABLE} {MEMORY} (func $run (export "run") {body}))')
    with pytest.raises(GuestTrap) as told:
        guest.call("run")
    assert (told.value.kind, str(told.value)) == (kind, message)
    assert FRAME[engine] in told.value.backtrace
    assert told.value.__cause__ is None  # nor does the exception hold on to the engine's


@pytest.mark.parametrize(("body", "kind", "message"), TRAPS)
def test_trap_after_many_calls_is_told_by_its_kind(
    make_guest: MakeGuest, body: str, kind: str, message: str
) -> None:
    """A trap far into a run is told alike, and leaves Python in the greenlet that made the call."""
    before = getcurrent()
    guest = make_guest(
        f'(module {CALLS} {TABLE} {MEMORY} (func $run (export "run") {calling(2500)} {body}))', f=nothing()
    )
    with pytest.raises(GuestTrap) as told:
        guest.call("run")
    assert (told.value.kind, str(told.value)) == (kind, message)
    assert getcurrent() is before
    assert guest.host_calls == 2500


IN_ITS_OWN_PROCESS = """
import faulthandler, json, resource, sys
faulthandler.enable()
from capsuled.sandbox.engine import seam
engine, wasm, calls = sys.argv[1], bytes.fromhex(sys.argv[2]), []
f = seam.HostFunction(((), ()), lambda: calls.append(1) or 0)
limits = seam.GuestLimits(65536)
blob = seam.load_compiler(engine).compile(wasm, {("h", "f"): f.signature}, limits)
loaded = seam.load(engine)
guest = loaded.instantiate(loaded.load(blob), {("h", "f"): f}, limits)
resource.setrlimit(resource.RLIMIT_STACK, (2 << 20, 2 << 20))
resource.setrlimit(resource.RLIMIT_DATA, (64 << 20, 64 << 20))
try:
    guest.call("run")
except seam.GuestTrap as trap:
    print(json.dumps([trap.kind, str(trap), len(trap.backtrace), len(calls)]))
"""


@pytest.mark.parametrize("times", [1, 2500])
def test_stack_overflow_is_told(wat: Wat, engine: str, times: int) -> None:
    """The stack's end is a trap too, before and after drains, told within a worker's limits and cut."""
    wasm = wat(
        f"(module {CALLS} {MEMORY} (func $down (call $down))"
        f' (func (export "run") {calling(times)} (call $down)))'
    )
    # In a process of its own, for wasmer may damage the interpreter here.
    run = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_PROCESS, engine, wasm.hex()],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    kind, message, length, calls = json.loads(run.stdout)
    assert (kind, message, calls) == ("stack", "call stack exhausted", times)
    assert 0 < length <= 4096


def test_trap_while_it_is_instantiated(make_guest: MakeGuest) -> None:
    """A start section that traps, and a segment that leaves its memory or table, are traps of the guest."""
    for text, kind in (
        (f"(module {MEMORY} (func $s unreachable) (start $s))", "unreachable"),
        (f'(module {MEMORY} (data (i32.const 65535) "ab"))', "memory"),
        (f"(module {MEMORY} (table 1 funcref) (func $s) (elem (i32.const 1) $s))", "indirect-call"),
    ):
        with pytest.raises(GuestTrap) as told:
            make_guest(text)
        assert told.value.kind == kind


# ── exceptions of the host ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("times", [1, 2500])
@pytest.mark.parametrize(
    "exc",
    [
        RuntimeError("host broke"),
        RuntimeError("RuntimeError: unreachable"),
        ModuleRejected("by the host"),
        KeyError("x"),
        SystemExit(3),
        KeyboardInterrupt(),
        GreenletExit(),
    ],
    ids=repr,
)
def test_exception_of_the_host_passes_through(make_guest: MakeGuest, exc: BaseException, times: int) -> None:
    """What a host function raises leaves `call` as the same object and is never taken for a trap."""
    run = f'(func (export "run") {calling(times)} (call $bad))'
    guest = make_guest(
        f'(module (import "h" "bad" (func $bad)) {CALLS} {MEMORY} {run})', f=nothing(), bad=raising(exc)
    )
    with pytest.raises(type(exc)) as raised:
        guest.call("run")
    assert raised.value is exc
    assert guest.host_calls == times + 1


def test_exception_in_a_start_section_passes_through(make_guest: MakeGuest) -> None:
    """What a host function raises while the start section runs leaves `instantiate` unchanged."""
    exc = RuntimeError("Link error: not at all")
    with pytest.raises(RuntimeError) as raised:
        make_guest(f"(module {CALLS} {MEMORY} (func $s (call $f)) (start $s))", f=raising(exc))
    assert raised.value is exc


# ── counts ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("times", [1, 999, 1000, 1001, 2500])
def test_host_calls_are_counted(make_guest: MakeGuest, times: int) -> None:
    """Each host call counts once, the one that is running included, on either side of a drain."""
    seen: list[int] = []
    guest: Guest | None = None

    def look() -> int:
        assert guest is not None
        seen.append(guest.host_calls)
        return 0

    guest = make_guest(
        f'(module {CALLS} {MEMORY} (func (export "run") {calling(times)}))', f=HostFunction(((), ()), look)
    )
    assert guest.host_calls == 0
    guest.call("run")
    guest.call("run")
    assert seen == list(range(1, 2 * times + 1))
    assert guest.host_calls == 2 * times


def test_start_section_is_counted(make_guest: MakeGuest) -> None:
    """A start section may make any number of host calls, and `run` goes on counting."""
    module = f'(module {CALLS} {MEMORY} (func $s {calling(2500)}) (start $s) (func (export "run") (call $f)))'
    guest = make_guest(module, f=nothing())
    assert guest.host_calls == 2500
    guest.call("run")
    assert guest.host_calls == 2501


def test_deep_recursion_calls_the_host(make_guest: MakeGuest) -> None:
    """Host calls from up to 5 000 frames deep return there, drained or not, and all locals are as they were."""
    total: list[int] = []
    guest = make_guest(
        f"""(module {CALLS} (import "h" "sum" (func $sum (param i32))) {MEMORY}
          (func $down (param $n i32) (result i32)
            (if (i32.eqz (local.get $n)) (then (return (i32.const 0))))
            (call $f)
            (i32.add (call $down (i32.sub (local.get $n) (i32.const 1))) (local.get $n)))
          (func (export "run") (call $sum (call $down (i32.const 5000)))))""",
        f=nothing(),
        sum=reporting(total),
    )
    guest.call("run")
    assert total == [5000 * 5001 // 2]
    assert guest.host_calls == 5001


def test_host_calls_leave_no_memory_behind(measure: Measure, engine: str) -> None:
    """Over a million host calls inside one `run`, resident memory stays within 4 MiB."""
    run = measure(engine)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("/10:") == 10
    assert f"{engine}: memory grew by" in run.stdout


# ── memory and tables ────────────────────────────────────────────────────────────────────────────


def test_memory_grows_to_the_limit(make_guest: MakeGuest) -> None:
    """`memory.grow` gives the last page of the limit and answers -1 to one more."""
    told: list[int] = []
    guest = make_guest(
        f"""(module (import "h" "tell" (func $tell (param i32))) {MEMORY}
          (func (export "run") (call $tell (memory.grow (i32.const 4)))
            (call $tell (memory.grow (i32.const 3)))
            (call $tell (memory.grow (i32.const 1)))))""",
        tell=reporting(told),
    )
    assert guest.memory.size() == PAGE
    guest.call("run")
    assert told == [-1, 1, -1]
    assert guest.memory.size() == 4 * PAGE


def test_table_grows_to_the_limit(make_guest: MakeGuest) -> None:
    """`table.grow` gives the last element of the limit and answers -1 to one more."""
    told: list[int] = []
    guest = make_guest(
        f"""(module (import "h" "tell" (func $tell (param i32))) (table 1 funcref) {MEMORY}
          (func (export "run") (call $tell (table.grow 0 (ref.null func) (i32.const 10)))
            (call $tell (table.grow 0 (ref.null func) (i32.const 9)))
            (call $tell (table.grow 0 (ref.null func) (i32.const 1)))))""",
        tell=reporting(told),
    )
    guest.call("run")
    assert told == [-1, 1, -1]


def test_minimum_above_the_limit_is_rejected(make_guest: MakeGuest) -> None:
    """A memory of one page more than the limit is not made, and no table of one element more."""
    with pytest.raises(ModuleRejected, match="a memory of 5 pages of 64 KiB; the limit is 4"):
        make_guest('(module (memory (export "memory") 5))')
    with pytest.raises(ModuleRejected, match="it asks for 11 elements in its tables; the limit is 10"):
        make_guest(f"(module (table 11 funcref) {MEMORY})")


def test_ranges_are_checked(make_guest: MakeGuest) -> None:
    """A range may end with the memory or be empty there, and go no byte further."""
    memory = make_guest(f"(module {MEMORY})").memory
    memory.write(PAGE - 2, b"ab")
    assert memory.read(PAGE - 2, 2) == b"ab"
    assert memory.read(PAGE, 0) == b""
    memory.check(0, PAGE)
    for pointer, length in (
        (PAGE - 2, 3),
        (PAGE + 1, 0),
        (0, PAGE + 1),
        (2**32 - 1, 1),
        (2**32 - 1, 2**32 - 1),
    ):
        with pytest.raises(OutOfBounds, match=f"{length} bytes at {pointer} leave the memory"):
            memory.read(pointer, length)
        with pytest.raises(OutOfBounds):
            memory.check(pointer, length)
    with pytest.raises(OutOfBounds):
        memory.write(PAGE - 2, b"xyz")
    assert memory.read(PAGE - 2, 2) == b"ab"


def test_memory_of_no_page(make_guest: MakeGuest) -> None:
    """A memory may be empty: nothing is in range but the empty range at 0."""
    memory = make_guest('(module (memory (export "memory") 0))').memory
    assert (memory.size(), memory.read(0, 0)) == (0, b"")
    with pytest.raises(OutOfBounds):
        memory.read(0, 1)


def test_grown_memory_is_seen(make_guest: MakeGuest) -> None:
    """What the guest writes to a page that it has just got, its next host call reads."""
    seen: list[bytes] = []
    guest: Guest | None = None

    def look(pointer: int) -> int:
        assert guest is not None
        seen.append(guest.memory.read(pointer, 2))
        return 0

    guest = make_guest(
        f"""(module (import "h" "look" (func $look (param i32))) {MEMORY}
          (func (export "run") (drop (memory.grow (i32.const 1)))
            (i32.store (i32.const 65535) (i32.const 0x4241)) (call $look (i32.const 65535))))""",
        look=HostFunction((("i32",), ()), look),
    )
    with pytest.raises(OutOfBounds):
        guest.memory.read(65535, 2)
    guest.call("run")
    assert seen == [b"AB"]


# ── what is not accepted ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (f"(module {CALLS} {MEMORY})", "the function 'f' from 'h', which is not there"),
        ('(module (import "h" "memory" (memory 1)) (export "memory" (memory 0)))', "the memory 'memory'"),
        (f'(module (import "h" "t" (table 1 funcref)) {MEMORY})', "imports the table 't'"),
        (f'(module (import "h" "g" (global i32)) {MEMORY})', "imports the global 'g'"),
        ("(module (memory 1))", "it exports no memory as 'memory'"),
        ('(module (func (export "memory")))', "it exports no memory as 'memory'"),
    ],
)
def test_module_that_does_not_fit_is_rejected(make_guest: MakeGuest, module: str, told: str) -> None:
    """An import that nobody offers and a memory that is not exported are told by name, before compiling."""
    with pytest.raises(ModuleRejected, match=told):
        make_guest(module)


@pytest.mark.parametrize("export", ["nothing", "memory", "with", "line\nbreak"])
def test_export_that_cannot_be_called_is_rejected(make_guest: MakeGuest, export: str) -> None:
    """`call` takes an exported function without parameters, and tells the name otherwise."""
    guest = make_guest(f'(module {MEMORY} (func (export "with") (param i32)))')
    with pytest.raises(ModuleRejected, match=r"it exports no function '[a-z\\]+' without parameters"):
        guest.call(export)


def test_results_of_an_export_are_dropped(make_guest: MakeGuest) -> None:
    """A `run` that returns something is run all the same."""
    guest = make_guest(
        f'(module {CALLS} {MEMORY} (func (export "run") (result i32) (call $f) (i32.const 7)))', f=nothing()
    )
    guest.call("run")
    assert guest.host_calls == 1


@pytest.mark.parametrize("text", ["(module)", b"(module)"])
def test_text_is_not_accepted(engine: str, text: str | bytes) -> None:
    """WebAssembly's text, which engines would compile, is rejected as `str` and as bytes."""
    with pytest.raises(ModuleRejected, match="begins otherwise"):
        seam.load_compiler(engine).compile(cast(bytes, text), {}, GuestLimits(PAGE))


def test_invalid_body_is_rejected_by_the_engine(make_guest: MakeGuest) -> None:
    """What only the engine can judge, a function body, ends in the same error, in one line."""
    with pytest.raises(ModuleRejected, match=r"the engine rejects it: .*expected") as told:
        make_guest(f"(module {MEMORY} (func (result i32)))")
    assert "\n" not in str(told.value)
