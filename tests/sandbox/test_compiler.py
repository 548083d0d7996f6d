"""The compiler process: what it answers, what it has given up, and modules made to break it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from capsuled.proto import blob, compiling
from capsuled.proto.compiling import CompileOrder
from capsuled.sandbox import compiler, loading

from ..support import mutations
from ..support.machines import BARE
from ..support.mutations import EXAMPLES

ENGINES = ["wasmer", "wasmtime"] if sys.version_info < (3, 11) else ["wasmtime"]

MIB = 1024 * 1024
SENSOR = next(path for path in EXAMPLES if path.stem == "sensor").read_bytes()
ORDER = CompileOrder(
    engine="auto",
    module_hash=f"sha256:{sha256(SENSOR).hexdigest()}",
    memory=MIB,
    process_memory=256 * MIB,
    cpu_seconds=30,
    confinement=BARE,
    module=SENSOR,
)

COMMAND = [sys.executable, "-I", "-B", "-m", "capsuled.sandbox.compiler"]


def answer(data: bytes, command: list[str] = COMMAND) -> subprocess.CompletedProcess[bytes]:
    """How the process answers an order."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return subprocess.run(command, stdin=file, capture_output=True, check=False, env={})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_module_becomes_a_blob(engine: str) -> None:
    """The output is a whole blob for the engine that was asked for, the status says so, and nothing is printed."""
    done = answer(compiling.encode(replace(ORDER, engine=engine)))
    assert (done.returncode, done.stderr) == (compiling.DONE, b"")
    head, _ = blob.unpack(done.stdout)
    assert (head.engine, head.compiler) == (engine, "cranelift")


NO_IMPORT = (
    b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x09\x01\x03env\x01f\0\0\x03\x02\x01\0\x05\x03\x01\0\x01"
    b"\x07\x10\x02\x06memory\x02\0\x03run\0\1\x0a\x04\x01\x02\0\x0b"
)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (replace(ORDER, engine="v8"), "cannot run the engine 'v8': choose 'wasmer', 'wasmtime' or 'auto'"),
        (replace(ORDER, module_hash="sha256:0"), "the module's hash is sha256:"),
        (replace(ORDER, module=b"hello", module_hash=""), "not a WebAssembly module of version 1"),
        (replace(ORDER, module=NO_IMPORT, module_hash=""), "it imports 'env.f', which is not there"),
        (replace(ORDER, memory=65535), "it asks for a memory of"),
    ],
)
def test_a_module_that_does_not_fit_is_told(order: CompileOrder, told: str) -> None:
    """The output is the sentence for its author."""
    done = answer(compiling.encode(order))
    assert (done.returncode, done.stderr) == (compiling.REJECTED, b"")
    assert done.stdout.decode().startswith(told)


def test_what_is_offered_is_all_that_there_is() -> None:
    """A module may import every function of ours and of WASI, and there are two import modules."""
    assert {module for module, _ in loading.OFFERED} == {"capsule", "wasi_snapshot_preview1"}
    assert ("capsule", "ipc_publish") in loading.OFFERED


def test_another_versions_order_is_not_carried_out() -> None:
    """An order that it does not understand ends it, with a trace for whoever reads the log."""
    done = answer(b"no order")
    assert done.returncode == 1
    assert b"CompileOrderError" in done.stderr


INSTEAD = """
import json, os, resource, sys
from capsuled.sandbox import compiler, loading
def look(_compiler, order):
    {look}
compiler.compile_module = look
compiler.main()
"""


def instead(look: str) -> subprocess.CompletedProcess[bytes]:
    """The process with other code in the place where it would compile."""
    return answer(compiling.encode(ORDER), [sys.executable, "-c", INSTEAD.format(look=look)])


LIMITS = ["DATA", "CPU", "NOFILE", "FSIZE", "CORE", "MEMLOCK"]


def test_it_is_held_to_its_limits() -> None:
    """When it looks at the module its limits are in force, and it has three descriptors and no new privileges."""
    code = (
        f"found = {{n: resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in {LIMITS}}};"
        "fds = [fd for fd in range(100) if os.path.exists(f'/proc/self/fd/{fd}')];"
        "status = dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines() if ':\\t' in line);"
        "return json.dumps([found, fds, status['NoNewPrivs']]).encode()"
    )
    done = instead(code)
    assert done.returncode == compiling.DONE, done
    limits, fds, no_new_privs = json.loads(done.stdout)
    assert limits == {
        "DATA": [256 * MIB, 256 * MIB],
        "CPU": [30, 31],
        "NOFILE": [compiler.SPARE_DESCRIPTORS, compiler.SPARE_DESCRIPTORS],
        "FSIZE": [0, 0],
        "CORE": [0, 0],
        "MEMLOCK": [0, 0],
    }
    assert fds == [0, 1, 2]
    assert no_new_privs == "1"


def test_its_address_space_is_bounded() -> None:
    """Memory that RLIMIT_DATA does not count: as much as its threads need, and one byte more is refused."""
    code = (
        "import mmap; most = resource.getrlimit(resource.RLIMIT_AS)[1];"
        "used = int(open('/proc/self/statm').read().split()[0]) * mmap.PAGESIZE;"
        "take = lambda size: mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ).close();"
        "take(most - used - 8 * 1024 * 1024);"
        "refused = 0\n"
        "    try: take(most - used + mmap.PAGESIZE)\n"
        "    except OSError as exc: refused = exc.errno\n"
        "    return json.dumps([most - used, refused]).encode()"
    )
    done = instead(code)
    assert done.returncode == compiling.DONE, done
    room, refused = json.loads(done.stdout)
    assert refused == errno.ENOMEM
    assert 0 < room <= ORDER.process_memory + compiler.NO_DATA


@pytest.mark.parametrize(
    ("look", "status", "told"),
    [
        ("raise MemoryError", compiling.NO_MEMORY, b"the compiler has reached its process_memory"),
        ("raise ValueError('why')", compiling.FAILED, b"ValueError: why"),
        ("raise BaseException('a panic')", compiling.FAILED, b"BaseException: a panic"),
        ("raise ValueError('x' * 5000)", compiling.FAILED, b"ValueError: " + b"x" * 4083 + "…".encode()),
        ("raise ValueError('\\udcff')", compiling.FAILED, b"ValueError: ?"),
        ("return bytearray(1 << 30)", compiling.NO_MEMORY, b"the compiler has reached its process_memory"),
    ],
)
def test_however_it_fails_it_says_so(look: str, status: int, told: bytes) -> None:
    """Exhausted, wrong or panicking: the status and the sentence."""
    done = instead(look)
    assert (done.returncode, done.stdout) == (status, told)


def test_a_step_that_fails_ends_it() -> None:
    """Half-sealed, it does not look at the module: the output names the step."""
    code = (
        "import sys\nfrom capsuled.sandbox import compiler, loading, kernel\n"
        "def fail(): raise OSError(1, 'not here')\n"
        "kernel.set_no_new_privileges = fail\n"
        "compiler.compile_module = lambda *_: b'looked'\n"
        "compiler.main()"
    )
    done = answer(compiling.encode(ORDER), [sys.executable, "-c", code])
    assert done.returncode == compiling.SEALING_FAILED
    assert b"no new privileges" in done.stdout
    assert b"looked" not in done.stdout


def test_it_does_not_start_without_a_supervisor() -> None:
    """When nobody reads its output any more it ends before it looks at the module."""
    reader, writer = os.pipe()
    os.close(reader)
    with tempfile.TemporaryFile() as file:
        file.write(compiling.encode(ORDER))
        file.seek(0)
        done = subprocess.run(COMMAND, stdin=file, stdout=writer, stderr=subprocess.PIPE, check=False, env={})
    os.close(writer)
    assert done.returncode == compiling.SEALING_FAILED


# ── fuzz ─────────────────────────────────────────────────────────────────────────────────────────

COUNT = 400
"""Damaged modules for each engine: two seconds. `scripts/fuzz_modules` takes as long as it is told."""

LOADING = """
import faulthandler, resource, sys
faulthandler.enable()
from capsuled.proto.compiling import CompileOrder
from capsuled.proto.order import Confinement
from capsuled.sandbox import compiler, loading
from capsuled.sandbox.engine import seam
resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, 512 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (60, 61))
made = seam.load_compiler(sys.argv[1])
free = Confinement(None, "none", False, False)
for line in sys.stdin:
    order = CompileOrder(sys.argv[1], "", 16 << 20, 0, 0, free, bytes.fromhex(line))
    try:
        compiler.compile_module(made, order)
        print("compiled", flush=True)
    except BaseException as exc:
        print(type(exc).__name__, flush=True)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_module_is_compiled_or_rejected(engine: str) -> None:
    """Of 400 damaged modules each is compiled, or rejected with a sentence: none raises anything else, or crashes."""
    made = [mutations.damaged(seed) for seed in range(COUNT)]
    run = subprocess.run(
        [sys.executable, "-c", LOADING, engine],
        input="".join(f"{each.wasm.hex()}\n" for each in made),
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = run.stdout.split()
    assert len(outcomes) == COUNT, f"seed {len(outcomes)}: {made[len(outcomes)].kind}: {run.stderr}"
    found = Counter(outcomes)
    assert set(found) == {"compiled", "ModuleRejected"}, found


def test_damages_are_what_they_are_called() -> None:
    """The same seed makes the same module; every kind of damage and of bomb is among the first thousand."""
    assert [mutations.made(seed) for seed in range(20)] == [mutations.made(seed) for seed in range(20)]
    damages = {mutations.damaged(seed).kind for seed in range(200)}
    assert damages == set(mutations.DAMAGES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_sections_are_put_together_as_they_were(path: Path) -> None:
    """What is damaged is nothing but what is meant to be: a module that is taken apart and put together is itself."""
    assert mutations.module(mutations.sections(path.read_bytes())) == path.read_bytes()
