"""What is wasmtime's own: the C API by hand, its store, its settings, and that it needs nothing once it is sealed."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from capsuled.sandbox.engine import binary
from capsuled.sandbox.engine import wasmtime as engine_module
from capsuled.sandbox.engine import wasmtime_raw as raw
from capsuled.sandbox.engine.seam import (
    EngineUnavailable,
    Guest,
    HostFunction,
    ModuleRejected,
)

PAGE = 64 * 1024
MEMORY = '(memory (export "memory") 1)'

MakeGuest = Callable[..., Guest]
Wat = Callable[[str], bytes]

bindings: Any = import_module("wasmtime._bindings")
"""The package's own declarations, which are generated from the C headers of the release that is installed."""


@pytest.fixture(scope="session")
def engine() -> str:
    """wasmtime alone."""
    return "wasmtime"


# ── the C API ────────────────────────────────────────────────────────────────────────────────────


SCALARS = (ctypes.c_bool, ctypes.c_uint8, ctypes.c_int64, ctypes.c_uint64, ctypes.c_size_t)


def shape(kind: Any) -> object:
    """What a C compiler passes for this type: every pointer is alike, to data or to a function."""
    if kind is None or kind in SCALARS:
        return kind
    assert not issubclass(kind, (ctypes.Structure, ctypes.Union))  # by value: nothing that we call has one
    return "pointer"


DECLARED = {name: function for name, function in vars(raw.library).items() if name.startswith("wasm")}


@pytest.mark.parametrize("name", DECLARED)
def test_declaration_is_the_packages(name: str) -> None:
    """Each function that we call has the parameters and the result that its header says."""
    ours, theirs = DECLARED[name], getattr(bindings, f"_{name}")
    assert [shape(kind) for kind in ours.argtypes] == [shape(kind) for kind in theirs.argtypes]
    assert shape(ours.restype) == shape(theirs.restype)


def test_declarations_are_found() -> None:
    """The test above looks at all of them: one for each setting, and those of objects."""
    settings = {f"wasmtime_config_{name}_set" for name, _, _ in raw.SETTINGS}
    raw.Engine()
    assert settings <= set(vars(raw.library))
    assert {"wasmtime_instance_new", "wasmtime_func_call_unchecked", "wasm_trap_message"} <= set(DECLARED)


@pytest.mark.parametrize("setting", raw.SETTINGS, ids=lambda setting: setting[0])
def test_setter_is_the_packages(setting: tuple[str, Any, int]) -> None:
    """Each setter takes the configuration and a value of the type that its header says."""
    name, kind, _ = setting
    theirs = getattr(bindings, f"_wasmtime_config_{name}_set")
    assert [shape(each) for each in theirs.argtypes] == ["pointer", kind]
    assert theirs.restype is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (raw.Vector, "wasm_byte_vec_t"),
        (raw.Vector, "wasm_valtype_vec_t"),
        (raw.Limits, "wasm_limits_t"),
        (raw.Extern, "wasmtime_extern_t"),
        (raw.Name, "wasmtime_extern_union_t"),
    ],
)
def test_structure_has_the_packages_size(ours: type[ctypes.Structure], theirs: str) -> None:
    """A structure that we hand over has the room that the header says."""
    assert ctypes.sizeof(ours) == ctypes.sizeof(getattr(bindings, theirs))


def test_what_is_handed_over_is_large_enough() -> None:
    """A name has room for each kind of thing, a slot of a call for each kind of value, in the place they have there."""
    for each in ("wasmtime_func_t", "wasmtime_memory_t", "wasmtime_instance_t"):
        assert ctypes.sizeof(getattr(bindings, each)) <= ctypes.sizeof(raw.Name)
    assert ctypes.sizeof(bindings.wasmtime_val_raw_t) == raw.RAW_BYTES
    assert raw.Extern.of.offset == bindings.wasmtime_extern_t.of.offset


def test_trap_codes_are_the_headers() -> None:
    """The codes that have a kind of ours are those that the header gives these names."""
    names = {
        each.value: each.name.removeprefix("WASMTIME_TRAP_CODE_") for each in bindings.wasmtime_trap_code_enum
    }
    assert {names[code]: kind for code, (kind, _) in engine_module.TRAPS.items()} == {
        "STACK_OVERFLOW": "stack",
        "MEMORY_OUT_OF_BOUNDS": "memory",
        "HEAP_MISALIGNED": "memory",
        "TABLE_OUT_OF_BOUNDS": "indirect-call",
        "INDIRECT_CALL_TO_NULL": "indirect-call",
        "BAD_SIGNATURE": "indirect-call",
        "INTEGER_OVERFLOW": "overflow",
        "INTEGER_DIVISION_BY_ZERO": "divide",
        "BAD_CONVERSION_TO_INTEGER": "conversion",
        "UNREACHABLE_CODE_REACHED": "unreachable",
        "INTERRUPT": "interrupted",
        "OUT_OF_FUEL": "fuel",
    }


@pytest.mark.parametrize("code", [None, 12, 255])
def test_other_traps_are_unknown(code: int | None) -> None:
    """A trap that has no kind is told by wasmtime's last line, cut, and its backtrace is cut too."""
    trap = engine_module.told(raw.Trapped(code, "x" * 4097 + "\n    " + "y" * 501))
    assert (trap.kind, str(trap), trap.backtrace) == ("unknown", "y" * 500, "x" * 4096)


# ── which library ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("release", "machine", "told"),
    [
        ("49.0.0", os.uname().machine, r"is not release 50, .*; install 'wasmtime>=50,<51'"),
        ("51.0.0", os.uname().machine, "is not release 50"),
        ("500.0.0", os.uname().machine, "is not release 50"),
        ("50.0.0", "vax", "_libwasmtime.so is not there; PyPI has it for Linux on x86_64 and aarch64"),
    ],
)
def test_package_that_does_not_fit_is_refused(tmp_path: Path, release: str, machine: str, told: str) -> None:
    """Another release, whose C API may differ, and a machine without a library are told before anything is loaded."""
    package = tmp_path / "wasmtime"
    (package / f"linux-{machine}").mkdir(parents=True)
    (package / f"linux-{machine}/_libwasmtime.so").touch()
    (tmp_path / f"wasmtime-{release}.dist-info").mkdir()
    with pytest.raises(EngineUnavailable, match=f"cannot run wasmtime: .*{told}"):
        raw.library_in(package)


def test_package_that_fits_is_found(tmp_path: Path) -> None:
    """Any patch of the release will do."""
    library = tmp_path / f"wasmtime/linux-{os.uname().machine}/_libwasmtime.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "wasmtime-50.7.1.dist-info").mkdir()
    assert raw.library_in(tmp_path / "wasmtime") == (library, "50.7.1")


# ── features ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        '(func $f (call $f)) (func (export "run") (return_call $f))',
        '(global i32 (i32.add (i32.const 1) (i32.const 2))) (func (export "run"))',
        '(func (export "run") (drop (i8x16.popcnt (v128.const i32x4 1 2 3 4))))',
        '(func (export "run") (drop (i8x16.relaxed_swizzle (v128.const i32x4 0 0 0 0) (v128.const i32x4 0 0 0 0))))',
    ],
    ids=["tail call", "extended constant", "all of SIMD", "relaxed SIMD"],
)
def test_what_wasmer_lacks_and_wasmtime_has(make_guest: MakeGuest, body: str) -> None:
    """These are the features that wasmtime takes and wasmer does not."""
    make_guest(f"(module {MEMORY} {body})")


@pytest.mark.parametrize(
    "body",
    [
        "(func (drop (i32.atomic.load (i32.const 0))))",
        "(func (drop (ref.i31 (i32.const 1))))",
        "(type $t (func)) (func (local (ref null $t)))",
        "(tag)",
        "(memory 1)",
        "(memory i64 1)",
        "(memory 1 1 shared)",
        "(type (struct))",
        "(type (array i8))",
    ],
)
def test_what_our_reader_refuses_is_off(make_guest: MakeGuest, body: str) -> None:
    """Threads, garbage collection, typed references, exceptions, further memories and wide ones are no part of it."""
    memory = "" if "memory" in body else MEMORY
    with pytest.raises(ModuleRejected):
        make_guest(f"(module {memory} {body} {'' if memory else MEMORY})")


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_store_is_a_second_wall(wat: Wat) -> None:
    """A module that was not capped is held to the same limits by its store, at the start and when it grows."""
    made = raw.Engine()

    def instance(text: str) -> tuple[raw.Store, raw.Name]:
        store = raw.Store(made)
        store.limit(4 * PAGE, 10)
        return store, store.instantiate(raw.Module(made, wat(text)), [])

    for text in ("(module (memory 5))", "(module (table 11 funcref))"):
        with pytest.raises(raw.Refused, match="exceed"):
            instance(text)
    store, found = instance(
        """(module (memory (export "memory") 4) (table 10 funcref)
          (func (export "run")
            (i32.store (i32.const 0) (memory.grow (i32.const 1)))
            (i32.store (i32.const 4) (table.grow 0 (ref.null func) (i32.const 1)))))"""
    )
    store.call(store.export(found, "run"), 0)
    assert bytes(store.view(store.export(found, "memory"))[:8]) == b"\xff" * 8


def test_engine_puts_the_second_wall_up(make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a module not capped, its guest's store would refuse it."""

    def leave(wasm: bytes, _memory_bytes: int, _table_elements: int) -> bytes:
        return wasm

    monkeypatch.setattr(binary, "cap", leave)
    with pytest.raises(
        ModuleRejected, match=r"the engine cannot start it: .*memory minimum size of 5 pages exceeds"
    ):
        make_guest('(module (memory (export "memory") 5))')


def test_store_has_no_such_export(wat: Wat) -> None:
    """An export that is not there is told by its name."""
    made = raw.Engine()
    store = raw.Store(made)
    found = store.instantiate(raw.Module(made, wat("(module)")), [])
    with pytest.raises(raw.Refused, match="no export 'run'"):
        store.export(found, "run")


SEALED = """
import faulthandler, json, resource, sys
faulthandler.enable()
from capsuled.sandbox.engine import seam
compiler, engine = seam.load_compiler("wasmtime"), seam.load("wasmtime")
wasm, said = bytes.fromhex(sys.argv[1]), []
data = int(sys.argv[2])
for which, limit in (
    (resource.RLIMIT_DATA, data), (resource.RLIMIT_STACK, 2 << 20), (resource.RLIMIT_NOFILE, 0),
    (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0),
):
    resource.setrlimit(which, (limit, limit))
def say(number):
    json.loads("[" * 400 + "]" * 400)  # a host function needs stack of its own
    said.append(number)
    return 0
imports = {("h", "say"): seam.HostFunction((("i32",), ()), say)}
blob = compiler.compile(wasm, seam.signatures(imports), seam.GuestLimits(2**32))
guest = engine.instantiate(engine.load(blob), imports, seam.GuestLimits(2**32))
try:
    guest.call("run")
    end = "returned"
except seam.GuestTrap as trap:
    end = trap.kind
print(json.dumps([end, len(said), said[-1], guest.memory.size()]))
"""


def sealed(wasm: bytes, data: int) -> list[Any]:
    """How a guest ends in a process with a worker's limits that can open no file; how often and what it said last;
    the size of its memory."""
    run = subprocess.run(
        [sys.executable, "-c", SEALED, wasm.hex(), str(data)], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found: list[Any] = json.loads(run.stdout)
    return found


SAY = '(import "h" "say" (func $say (param i32)))'


def test_sealed_process_runs_a_guest(wat: Wat) -> None:
    """Once it is loaded it needs no file: segments, tables, growth, and a trap in the end go on without."""
    wasm = wat(
        f"""(module {SAY} {MEMORY} (data (i32.const 8) "\\2a") (table 1 funcref) (elem (i32.const 0) $f)
          (func $f (call $say (i32.load8_u (i32.const 8))))
          (func (export "run")
            (drop (memory.grow (i32.const 16))) (drop (table.grow 0 (ref.null func) (i32.const 9)))
            (call_indirect (i32.const 0)) (drop (i32.load (i32.const -1)))))"""
    )
    assert sealed(wasm, 512 << 20) == ["memory", 1, 42, 17 * PAGE]


def test_growth_ends_where_the_process_may_have_no_more(wat: Wat) -> None:
    """Where RLIMIT_DATA is below the guest's limit `memory.grow` answers -1 in time, and all goes on."""
    wasm = wat(
        f"""(module {SAY} {MEMORY} (func (export "run") (local $pages i32)
          (loop $more (local.set $pages (memory.size))
            (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
          (i32.store (i32.sub (i32.mul (local.get $pages) (i32.const 65536)) (i32.const 4)) (i32.const 7))
          (call $say (i32.load (i32.sub (i32.mul (local.get $pages) (i32.const 65536)) (i32.const 4))))))"""
    )
    end, times, number, size = sealed(wasm, 128 << 20)
    assert (end, times, number) == ("returned", 1, 7)
    assert 64 << 20 < size < 128 << 20


def test_host_has_stack_when_the_guest_has_none_left(wat: Wat) -> None:
    """A guest that calls the host at every depth of its recursion ends with a trap, not with the process."""
    wasm = wat(
        f"""(module {SAY} {MEMORY} (func $down (param $n i32) (local i64 i64 i64 i64)
            (call $say (local.get $n)) (call $down (i32.add (local.get $n) (i32.const 1))))
          (func (export "run") (call $down (i32.const 1))))"""
    )
    end, times, deepest, _ = sealed(wasm, 512 << 20)
    assert end == "stack"
    assert times == deepest > 1000


def test_it_starts_no_thread(wat: Wat) -> None:
    """Loading, compiling and running start none: a sealed worker may not have one."""
    code = (
        "import os, sys; from capsuled.sandbox.engine import seam;"
        "b = seam.load_compiler('wasmtime').compile(bytes.fromhex(sys.argv[1]), {}, seam.GuestLimits(65536));"
        "e = seam.load('wasmtime'); g = e.instantiate(e.load(b), {}, seam.GuestLimits(65536));"
        "g.call('run'); print(len(os.listdir('/proc/self/task')))"
    )
    wasm = wat(f'(module {MEMORY} {"(func)" * 300} (func (export "run")))')
    run = subprocess.run([sys.executable, "-c", code, wasm.hex()], check=True, capture_output=True, text=True)
    assert run.stdout == "1\n"


# ── lifetimes ────────────────────────────────────────────────────────────────────────────────────


def test_memory_outlives_its_guest(make_guest: MakeGuest) -> None:
    """What still holds a guest's memory may use it when the guest is gone: it holds the store."""
    memory = make_guest(f'(module {MEMORY} (data (i32.const 0) "abc"))').memory
    gc.collect()
    memory.write(1, b"x")
    assert memory.read(0, 3) == b"axc"


def addresses() -> int:
    """Bytes of addresses that this process has reserved."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_guest_that_is_gone_gives_its_addresses_back(make_guest: MakeGuest) -> None:
    """A guest reserves 4 GiB for its memory and as much for its arguments, and none of it when it is collected."""
    function = HostFunction(((), ()), lambda: 0)
    text = f'(module (import "h" "f" (func $f)) {MEMORY} (func (export "run") (call $f)))'
    gc.collect()
    before = addresses()
    for _ in range(10):
        guest = make_guest(text, f=function)
        guest.call("run")
        assert addresses() - before > 2 * raw.RESERVATION
        del guest
        gc.collect()
    assert addresses() - before < raw.RESERVATION
