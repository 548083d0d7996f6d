"""Blobs: what is compiled is loaded by the engine that it was made for, whole, and otherwise by none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import cast

import cbor2
import pytest

from capsuled.proto import blob as blobs
from capsuled.proto.blob import Head
from capsuled.sandbox.engine import code, seam
from capsuled.sandbox.engine.binary import Import, ModuleInfo
from capsuled.sandbox.engine.code import Code
from capsuled.sandbox.engine.seam import CacheRejected, EngineUnavailable, GuestLimits, HostFunction

Wat = Callable[[str], bytes]

LIMITS = GuestLimits(65536)
HEAD = Head("wasmer", "1.1.0", "cranelift")
CODE = Code(
    ModuleInfo(
        [Import("h", "f", "function", (("i32", "i64"), ("i32",)))],
        {"memory": ("memory", None), "run": ("function", ((), ())), "é": ("function", (("i64",), ()))},
    ),
    b"module",
    b"shim",
)

RUN = """(module (import "h" "f" (func $f (param i32) (result i32))) (memory (export "memory") 1)
  (func (export "run") (drop (call $f (i32.const 7)))))"""
F: seam.Signature = (("i32",), ("i32",))


@pytest.fixture
def blob(engine: str, wat: Wat) -> bytes:
    """A blob of `RUN` for `engine`."""
    return seam.load_compiler(engine).compile(wat(RUN), {("h", "f"): F}, LIMITS)


def test_what_is_packed_is_unpacked() -> None:
    """Imports, exports, module and shim come back as they were."""
    assert code.unpack(code.pack(HEAD, CODE), HEAD) == CODE


@pytest.mark.parametrize(
    ("made_for", "told"),
    [
        (Head("wasmtime", "1.1.0", "cranelift"), "it is for wasmtime 1.1.0 with cranelift"),
        (
            Head("wasmer", "1.1.1", "cranelift"),
            "it is for wasmer 1.1.1 with cranelift, and this is wasmer 1.1.0",
        ),
        (Head("wasmer", "1.1.0", "singlepass"), "it is for wasmer 1.1.0 with singlepass"),
    ],
)
def test_anothers_code_is_rejected(made_for: Head, told: str) -> None:
    """Of another engine, version or compiler: the message has both, and the next step."""
    with pytest.raises(
        CacheRejected, match=f"cannot load what was compiled: {told}.*: start the capsule again"
    ):
        code.unpack(code.pack(made_for, CODE), HEAD)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        cbor2.dumps(7),
        cbor2.dumps(cast("list[object]", [[], [], b""])),
        cbor2.dumps([[["h", "f", "function"]], [], b"", b""]),
        cbor2.dumps([[], [["run", "function", [1]]], b"", b""]),
        cbor2.dumps([[], [["run", "function", 7]], b"", b""]),
    ],
)
def test_malformed_content_is_rejected(content: bytes) -> None:
    """A whole blob whose content is no code of ours is told so."""
    with pytest.raises(CacheRejected, match="its content is malformed"):
        code.unpack(blobs.pack(HEAD, content), HEAD)


def test_no_changed_bit_reaches_the_engine(engine: str, blob: bytes) -> None:
    """A blob with one bit flipped, wherever it is, is rejected: by its hash or by its head, and never by a crash."""
    loaded = seam.load(engine)
    places = [*range(blobs.HEAD_BYTES), *range(blobs.HEAD_BYTES, len(blob), 97), len(blob) - 1]
    for place in places:
        damaged = bytearray(blob)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(CacheRejected):
            loaded.load(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, blobs.HEAD_BYTES - 1, blobs.HEAD_BYTES, -1])
def test_part_of_a_blob_is_rejected(engine: str, blob: bytes, length: int) -> None:
    """What was cut off anywhere is no blob."""
    with pytest.raises(CacheRejected):
        seam.load(engine).load(blob[:length])


def test_engine_refuses_what_is_not_its_own(engine: str) -> None:
    """A blob with a right head and hash whose code no engine has made is the engine's to reject: in our words."""
    head, _ = blobs.unpack(seam.load_compiler(engine).compile(EMPTY, {}, LIMITS))
    forged = code.pack(head, Code(ModuleInfo([], {"memory": ("memory", None)}), b"no code", b""))
    loaded = seam.load(engine)
    with pytest.raises(CacheRejected, match="the engine does not load what was compiled: "):
        loaded.instantiate(loaded.load(forged), {}, LIMITS)


EMPTY = b"\0asm\x01\0\0\0" + b"\x05\x03\x01\0\x01" + b"\x07\x0a\x01\x06memory\x02\0"


def test_an_import_that_has_gone_is_rejected(engine: str, blob: bytes) -> None:
    """What was offered to the compiler must be there when its blob is loaded, with the same signature."""
    loaded = seam.load(engine)
    for imports in ({}, {("h", "f"): HostFunction(((), ("i32",)), lambda: 0)}):
        with pytest.raises(seam.ModuleRejected, match="it imports the function 'f' from 'h'"):
            loaded.instantiate(loaded.load(blob), imports, LIMITS)


ALONE = """
import json, resource, sys
sys.modules["wasmer_compiler_cranelift"] = None
from capsuled.sandbox.engine import seam
engine = seam.load(sys.argv[1])
blob, said = bytes.fromhex(sys.stdin.read()), []
for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    resource.setrlimit(which, (0, 0))
f = seam.HostFunction((("i32",), ("i32",)), lambda n: said.append(n) or 0)
engine.instantiate(engine.load(blob), {("h", "f"): f}, seam.GuestLimits(65536)).call("run")
print(json.dumps([said, sorted(name for name in sys.modules if "compiler" in name and sys.modules[name])]))
"""


def test_a_blob_runs_where_no_compiler_is(engine: str, blob: bytes) -> None:
    """A process that has no compiler, and may open no file, loads a blob and runs it."""
    run = subprocess.run(
        [sys.executable, "-c", ALONE, engine], input=blob.hex(), check=True, capture_output=True, text=True
    )
    assert run.stdout == "[[7], []]\n"


THREADS = """
import os, sys
from capsuled.sandbox.engine import seam
engine = seam.load(sys.argv[1])
f = seam.HostFunction((("i32",), ("i32",)), lambda n: 0)
code = engine.load(bytes.fromhex(sys.stdin.read()))
engine.instantiate(code, {("h", "f"): f}, seam.GuestLimits(65536)).call("run")
print(len(os.listdir("/proc/self/task")))
"""


def test_loading_starts_no_thread(engine: str, blob: bytes) -> None:
    """A worker that loads has one thread, whichever the engine: it may be sealed against any other."""
    run = subprocess.run(
        [sys.executable, "-c", THREADS, engine], input=blob.hex(), check=True, capture_output=True, text=True
    )
    assert run.stdout == "1\n"


@pytest.mark.parametrize(
    ("name", "missing", "told"),
    [
        ("auto", "", "wasmer" if sys.version_info < (3, 11) else "wasmtime"),
        ("auto", "wasmer_compiler_cranelift", "wasmtime"),
        ("auto", "wasmer", "wasmtime"),
        ("wasmtime", "wasmer", "wasmtime"),
        ("wasmtime", "wasmtime", "cannot run wasmtime: it is not installed"),
    ],
)
def test_auto_compiles_for_wasmer_where_it_can(name: str, missing: str, told: str) -> None:
    """`auto` chooses as the engine does, and goes on to wasmtime where wasmer's compiler alone is missing."""
    assert compiler_without(name, missing).startswith(told)


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="wasmer needs CPython 3.10")
def test_missing_compiler_is_told() -> None:
    """wasmer without its compiler is told by the package that is missing."""
    told = compiler_without("wasmer", "wasmer_compiler_cranelift")
    assert told.startswith("cannot compile for wasmer: its compiler is not installed (")
    assert "install 'wasmer_compiler_cranelift==1.1.0'" in told


@pytest.mark.parametrize("name", ["v8", "", "Wasmer"])
def test_unknown_engine_has_no_compiler(name: str) -> None:
    """An engine that is not built in is refused by its name."""
    with pytest.raises(EngineUnavailable, match=f"cannot run the engine '{name}': choose"):
        seam.load_compiler(name)


WITHOUT = """
import importlib.util, sys
for name in sys.argv[2].split():
    sys.modules[name] = None  # an import of it fails, as where it is not installed
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in sys.argv[2].split() else find(name)
from capsuled.sandbox.engine import seam
try:
    print(seam.load_compiler(sys.argv[1]).name)
except seam.EngineUnavailable as exc:
    print(exc)
"""


def compiler_without(name: str, missing: str) -> str:
    """The name of the compiler that is chosen in a process without these packages, or the sentence why none is."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, name, missing], check=True, capture_output=True, text=True
    )
    return run.stdout
