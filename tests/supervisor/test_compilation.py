"""Compilation: the bounds of a compiler, and what its end means."""

from __future__ import annotations

import signal

import pytest

from capsuled.proto import blob
from capsuled.proto.blob import Head
from capsuled.proto.compiling import CompileOrder
from capsuled.supervisor.blobs import Compiled
from capsuled.supervisor.compilation import (
    BOUNDS,
    ENGINES,
    Ended,
    Job,
    LoadError,
    NotSealed,
    verdict,
)
from capsuled.supervisor.quantities import MIB

from ..support.machines import BARE

ORDER = CompileOrder("auto", "", MIB, 256 * MIB, 30, BARE, b"x" * 1024)
BLOB = blob.pack(Head("wasmer", "1.1.0", "cranelift"), b"code")


def ended(
    status: int | None = None,
    signal: int | None = None,
    *,
    output: bytes = b"",
    cpu_seconds: float = 0.5,
    whole: bool = True,
    too_long: bool = False,
    too_late: bool = False,
    printed: str = "",
    oom_kills: int = 0,
) -> Ended:
    return Ended(status, signal, cpu_seconds, output, whole, too_long, too_late, printed, oom_kills)


def test_a_blob_is_taken() -> None:
    """What a compiler has made comes with the engine that it is for."""
    assert verdict(ended(0, output=BLOB), ORDER, BOUNDS) == Compiled("wasmer", BLOB)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("made", [*ENGINES, "v8", "auto"])
def test_a_blob_is_for_the_engine_that_was_asked_for(engine: str, made: str) -> None:
    """`auto` takes either; another engine's, or one's that there is not, is refused."""
    output = blob.pack(Head(made, "1", "c"), b"")
    order = CompileOrder(engine, "", MIB, MIB, 30, BARE, b"")
    found = verdict(ended(0, output=output), order, BOUNDS)
    if made in ENGINES and engine in ("auto", made):
        assert found == Compiled(made, output)
    else:
        assert found == LoadError(
            f"it was not compiled: the compiler wrote a blob for '{made}', asked for '{engine}'"
        )


SMALLER = "build the module smaller, or with smaller functions"
OTHER = "build the module with another toolchain, or choose the other engine in its manifest"
KILLED = "it was not compiled: the compiler was killed:"

LOAD_ERRORS = {
    "rejected": (ended(65, output=b"it exports nothing"), "it exports nothing"),
    "rejected, in bytes that are no text": (ended(65, output=b"\xffa"), "\ufffda"),
    "no blob": (
        ended(0, output=b"hello"),
        "it was not compiled: what the compiler wrote is no blob: it has 5 bytes; a head alone has 112",
    ),
    "too late": (
        ended(signal=9, too_late=True),
        f"{KILLED} it took longer than 60 s for a module of 1024 bytes: {SMALLER}",
    ),
    "too long": (
        ended(signal=9, too_long=True),
        f"{KILLED} it wrote more than 1081344 bytes for a module of 1024 bytes, or printed 65536: {SMALLER}",
    ),
    "CPU": (ended(signal=signal.SIGXCPU), f"{KILLED} CPU limit 30 s for a module of 1024 bytes: {SMALLER}"),
    "CPU, at the hard limit": (
        ended(signal=signal.SIGKILL, cpu_seconds=30.0),
        f"{KILLED} CPU limit 30 s for a module of 1024 bytes: {SMALLER}",
    ),
    "killed by somebody": (
        ended(signal=signal.SIGKILL, cpu_seconds=29.9),
        f"it was not compiled: the compiler was ended by SIGKILL: {OTHER}",
    ),
    "memory, killed": (
        ended(signal=signal.SIGKILL, oom_kills=1),
        "it was not compiled: the compiler had reached its limit of 256 MiB of memory for a module of 1024 bytes: "
        + SMALLER,
    ),
    "memory, told": (
        ended(77, output=b"x"),
        "it was not compiled: the compiler had reached its limit of 256 MiB of memory for a module of 1024 bytes: "
        + SMALLER,
    ),
    "memory, in a panic": (
        ended(signal=signal.SIGABRT, printed='Os { code: 12, message: "Cannot allocate memory" }\nnote: run'),
        "it was not compiled: the compiler had reached its limit of 256 MiB of memory for a module of 1024 bytes: "
        + SMALLER,
    ),
    "memory, aborted": (
        ended(signal=signal.SIGABRT, printed="memory allocation of 77 bytes failed\nand so on\n"),
        "it was not compiled: the compiler had reached its limit of 256 MiB of memory for a module of 1024 bytes: "
        + SMALLER,
    ),
    "crashed": (
        ended(signal=signal.SIGSEGV, printed="p" * 201),
        f"it was not compiled: the compiler was ended by SIGSEGV (it printed: {'p' * 200}): {OTHER}",
    ),
    "a call that it may not make": (
        ended(signal=signal.SIGSYS),
        f"it was not compiled: the compiler was ended by SIGSYS: {OTHER}",
    ),
    "failed": (
        ended(71, output=b"PanicException: why"),
        f"it was not compiled: the compiler failed: PanicException: why: {OTHER}",
    ),
    "failed, and said nothing": (
        ended(71),
        f"it was not compiled: the compiler ended with status 71: {OTHER}",
    ),
    "rejected, and said nothing": (
        ended(65),
        f"it was not compiled: the compiler ended with status 65: {OTHER}",
    ),
    "an exit of another's": (
        ended(1, printed="before\n Traceback \nnote: and more\n\n"),
        f"it was not compiled: the compiler ended with status 1 (it printed: Traceback): {OTHER}",
    ),
    "output without an end": (
        ended(0, output=BLOB, whole=False),
        f"it was not compiled: the compiler ended with status 0: {OTHER}",
    ),
}


@pytest.mark.parametrize(("end", "sentence"), LOAD_ERRORS.values(), ids=LOAD_ERRORS)
def test_every_other_end_is_a_sentence(end: Ended, sentence: str) -> None:
    """It names the limit that was met, or what is known, and what may help."""
    assert verdict(end, ORDER, BOUNDS) == LoadError(sentence)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (b"cannot seal: rlimits", "cannot seal: rlimits"),
        (b"", "cannot seal the compiler: it has not said why"),
    ],
)
def test_not_sealed_is_not_the_modules_fault(output: bytes, sentence: str) -> None:
    """A compiler that could not seal itself says by which step."""
    assert verdict(ended(97, output=output), ORDER, BOUNDS) == NotSealed(sentence, 97)


def test_a_sentence_is_cut() -> None:
    """However much a compiler writes, of its sentence 4096 characters are told."""
    found = verdict(ended(65, output=b"x" * 5000), ORDER, BOUNDS)
    assert found == LoadError("x" * 4096)


@pytest.mark.parametrize(
    ("module", "memory", "output"),
    [
        (0, 256 * MIB, MIB),
        (MIB, 320 * MIB, 33 * MIB),
        (60 * MIB, 4096 * MIB, 256 * MIB),
        (64 * MIB, 4096 * MIB, 256 * MIB),
    ],
)
def test_bounds_grow_with_the_module(module: int, memory: int, output: int) -> None:
    """Memory and output of a compiler by the size of its module, up to where they end."""
    assert (BOUNDS.memory(module), BOUNDS.output(module)) == (memory, output)


def test_bounds_end() -> None:
    """One byte below and above where a bound ends."""
    edge = (4096 - 256) * MIB // 64
    assert BOUNDS.memory(edge - 1) == 4096 * MIB - 64
    assert BOUNDS.memory(edge + 1) == 4096 * MIB
    edge = 255 * MIB // 32
    assert BOUNDS.output(edge - 1) == 256 * MIB - 32
    assert BOUNDS.output(edge + 1) == 256 * MIB


@pytest.mark.parametrize(
    "other",
    [
        Job("wasmtime", "", MIB, b"a"),
        Job("wasmer", "sha256:0", MIB, b"a"),
        Job("wasmer", "", 2 * MIB, b"a"),
        Job("wasmer", "", MIB, b"b"),
    ],
)
def test_each_difference_makes_another_job(other: Job) -> None:
    """Engine, expected hash, limit and module; the same of all is the same job."""
    assert other.key != Job("wasmer", "", MIB, b"a").key
    assert Job("wasmer", "", MIB, b"a").key == Job("wasmer", "", MIB, bytes([97])).key
