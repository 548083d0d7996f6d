"""Loading: the module is the one that is meant, and asks only for what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import import_module

import pytest

from capsuled.sandbox import loading
from capsuled.sandbox.engine.binary import inspect
from capsuled.sandbox.engine.seam import ModuleRejected, Signature

Wat = Callable[[str], bytes]

OFFERED: dict[tuple[str, str], Signature] = {
    ("capsule", "ready"): ((), ("i32",)),
    ("capsule", "log"): (("i32", "i32", "i32"), ("i32",)),
    ("wasi", "exit"): (("i32",), ()),
}

MEMORY = '(memory (export "memory") 1)'
RUN = '(func (export "run"))'


@pytest.fixture(scope="module")
def wat() -> Wat:
    """From WebAssembly's text to a module."""
    compiled: Wat = import_module("wasmtime").wat2wasm
    return compiled


def test_the_hash_that_is_meant_passes() -> None:
    """The module's own, and none at all."""
    loading.verify(b"module", f"sha256:{hashlib.sha256(b'module').hexdigest()}")
    loading.verify(b"module", "")


@pytest.mark.parametrize("expected", ["sha256:" + "0" * 64, "sha256:", "md5:x"])
def test_another_hash_is_rejected_with_both(expected: str) -> None:
    """What was found and what was meant."""
    found = hashlib.sha256(b"module").hexdigest()
    with pytest.raises(ModuleRejected) as caught:
        loading.verify(b"module", expected)
    assert str(caught.value).startswith(
        f"the module's hash is sha256:{found}; the manifest says {expected}: "
    )


@pytest.mark.parametrize(
    ("exports", "entry", "initialize"),
    [
        (RUN, "run", False),
        ('(func (export "_start"))', "_start", False),
        (RUN + '(func (export "_start"))', "run", False),
        (RUN + '(func (export "_initialize"))', "run", True),
        (RUN + '(func (export "other") (param i32) (result i64) i64.const 0)', "run", False),
    ],
)
def test_the_entry_is_run_or_else_start(wat: Wat, exports: str, entry: str, initialize: bool) -> None:
    """`run` goes first where both are there; other exports are the module's own affair."""
    module = inspect(wat(f"(module {MEMORY} {exports})"))
    assert loading.entry_of(module, OFFERED) == entry
    assert loading.has_initialize(module) is initialize


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{MEMORY}", "it exports neither 'run' nor '_start': export one as () -> ()"),
        (RUN, "it exports nothing as 'memory': export its linear memory by that name"),
        (f'{RUN} (global (export "memory") i32 i32.const 0)', "it exports global as 'memory'"),
        (
            f'{MEMORY} (func (export "run") (param i32))',
            "it exports 'run' as (i32) -> (); it must be () -> ()",
        ),
        (f'{MEMORY} (func (export "_start") (result i32) i32.const 0)', "it exports '_start' as () -> i32"),
        (f'{MEMORY} (table (export "run") 1 funcref)', "it exports the table 'run'"),
        (f'{MEMORY} {RUN} (func (export "_initialize") (param i32))', "it exports '_initialize' as (i32)"),
    ],
)
def test_exports_that_do_not_fit_are_named(wat: Wat, text: str, message: str) -> None:
    """What is missing or of another kind, and what it should be."""
    with pytest.raises(ModuleRejected) as caught:
        loading.entry_of(inspect(wat(f"(module {text})")), OFFERED)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            '"capsule" "shout" (func)',
            "it imports 'capsule.shout', which is not there: see capsule.h; modules are ['capsule', 'wasi']",
        ),
        ('"env" "ready" (func (result i32))', "it imports 'env.ready', which is not there"),
        ('"capsule" "ready" (func)', "it imports 'capsule.ready' as () -> (); it is () -> i32"),
        (
            '"capsule" "log" (func (param i32 i32 i64) (result i32))',
            "it imports 'capsule.log' as (i32, i32, i64) -> i32; it is (i32, i32, i32) -> i32",
        ),
        ('"wasi" "exit" (func (param i32) (result i32))', "it imports 'wasi.exit' as (i32) -> i32"),
        ('"capsule" "ready" (global i32)', "it imports the global 'capsule.ready': only functions"),
        ('"capsule" "memory" (memory 1)', "it imports the memory 'capsule.memory': only functions"),
        ('"capsule" "ready" (table 1 funcref)', "it imports the table 'capsule.ready': only functions"),
    ],
)
def test_imports_that_do_not_fit_are_named(wat: Wat, what: str, message: str) -> None:
    """Names, kinds and signatures: found and offered."""
    with pytest.raises(ModuleRejected) as caught:
        loading.entry_of(
            inspect(wat(f"(module (import {what}) {MEMORY if 'memory' not in what else ''} {RUN})")), OFFERED
        )
    assert str(caught.value).startswith(message)


def test_imports_that_fit_pass(wat: Wat) -> None:
    """Any of those that are offered, also twice."""
    imports = """(import "capsule" "ready" (func (result i32))) (import "capsule" "ready" (func (result i32)))
        (import "wasi" "exit" (func (param i32)))"""
    assert loading.entry_of(inspect(wat(f"(module {imports} {MEMORY} {RUN})")), OFFERED) == "run"
