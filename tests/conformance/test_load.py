"""Modules that do not load: each is told what is wrong with it by name, and disturbs nobody else."""

from __future__ import annotations

import pytest

from ..support.guests import Program, wat
from .stage import Actor, Stage

MEMORY = '(memory (export "memory") 1)'
RUN = '(func (export "run"))'

MODULES = {
    "no-run": (f"(module {MEMORY})", "exports neither 'run' nor '_start'"),
    "run-takes": (
        f'(module {MEMORY} (func (export "run") (param i32)))',
        "it exports 'run' as (i32) -> (); it must be () -> ()",
    ),
    "run-returns": (
        f'(module {MEMORY} (func (export "run") (result i32) i32.const 0))',
        "it exports 'run' as () -> i32; it must be () -> ()",
    ),
    "run-is-a-memory": (
        f'(module {MEMORY} (global (export "run") i32 i32.const 0))',
        "it exports the global 'run': that name is for a function () -> ()",
    ),
    "bad-start": (
        f'(module {MEMORY} (func (export "_start") (param i64)))',
        "it exports '_start' as (i64) -> ()",
    ),
    "bad-initialize": (
        f'(module {MEMORY} {RUN} (func (export "_initialize") (param i64)))',
        "it exports '_initialize' as (i64) -> ()",
    ),
    "no-memory": (f"(module {RUN})", "it exports nothing as 'memory': export its linear memory by that name"),
    "memory-is-a-function": (
        f'(module {RUN} (func (export "memory")))',
        "it exports function as 'memory'",
    ),
    "unknown-import": (
        f'(module (import "capsule" "ipc_shout" (func (param i32))) {MEMORY} {RUN})',
        "it imports 'capsule.ipc_shout', which is not there: see capsule.h; "
        "modules are ['capsule', 'wasi_snapshot_preview1']",
    ),
    "unknown-module": (
        f'(module (import "env" "abort" (func)) {MEMORY} {RUN})',
        "it imports 'env.abort', which is not there",
    ),
    "wrong-signature": (
        f'(module (import "capsule" "ready" (func (param i32) (result i32))) {MEMORY} {RUN})',
        "it imports 'capsule.ready' as (i32) -> i32; it is () -> i32",
    ),
    "wrong-result": (
        f'(module (import "capsule" "clock_ms" (func (result i32))) {MEMORY} {RUN})',
        "it imports 'capsule.clock_ms' as () -> i32; it is () -> i64",
    ),
    "imported-memory": (
        f'(module (import "env" "memory" (memory 1)) (export "memory" (memory 0)) {RUN})',
        "it imports the memory 'env.memory': only functions can be imported",
    ),
    "imported-global": (
        f'(module (import "env" "g" (global i32)) {MEMORY} {RUN})',
        "it imports the global 'env.g': only functions can be imported",
    ),
    "large-memory": (
        f'(module (memory (export "memory") 17) {RUN})',
        "it asks for a memory of 17 pages of 64 KiB; the limit is 16 (1048576 bytes)",
    ),
}
"""Names and modules, and what their messages must hold. The memory limit is 16 pages."""

NOT_WASM = {
    "text": (b"hello", "not a WebAssembly module of version 1"),
    "empty": (b"", "not a WebAssembly module of version 1"),
    "cut": (wat(f"(module {MEMORY} {RUN})")[:-3], "cut off at byte"),
}


class Cast:
    """The modules of this file, and one that is well."""

    def __init__(self, stage: Stage) -> None:
        limits = 'memory = "1MiB"'
        self.rejected: dict[str, Actor] = {
            name: stage.add(name, wat(source), limits=limits) for name, (source, _) in MODULES.items()
        }
        self.no_wasm = {name: stage.add(name, data) for name, (data, _) in NOT_WASM.items()}
        stage.daemon.capsule(
            "changed",
            wat(f"(module {MEMORY} {RUN})"),
            digest="0" * 64,
            engine=stage.engine,
            extra='[supervision]\nrestart = "never"',
        )
        self.changed = Actor(stage.daemon, "changed")
        at_limit = Program(pages=16)
        self.size = at_limit.load("(i64.extend_i32_u (memory.size))")
        self.well = stage.add("well", at_limit, limits=limits)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_does_not_fit_is_a_load_error_with_its_name(guests: Cast, name: str) -> None:
    """The reason is load-error, and the message names the thing, what was found and what would be right."""
    ended = guests.rejected[name].ended()
    assert ended["reason"] == "load-error"
    assert MODULES[name][1] in ended["message"]


@pytest.mark.parametrize("name", NOT_WASM)
def test_what_is_no_module_is_said_so(guests: Cast, name: str) -> None:
    """Text, nothing, and half a module."""
    ended = guests.no_wasm[name].ended()
    assert ended["reason"] == "load-error"
    assert NOT_WASM[name][1] in ended["message"]


def test_a_module_with_another_hash_is_not_run(guests: Cast) -> None:
    """The message has both hashes."""
    ended = guests.changed.ended()
    assert ended["reason"] == "load-error"
    assert "the module's hash is sha256:" in ended["message"]
    assert f"; the manifest says sha256:{'0' * 64}" in ended["message"]


def test_a_module_at_the_memory_limit_loads(guests: Cast) -> None:
    """Sixteen pages where sixteen may be; the others' errors have not disturbed it."""
    assert guests.well.value(guests.size) == 16
