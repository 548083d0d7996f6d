"""What is compiled, what that may use up, and what the end of a compiler process means. A rule.

Nothing that a compiler wrote is believed beyond its form: a module may have taken it over. Whatever its end was, there
is native code or a sentence.
"""

from __future__ import annotations

import hashlib
import signal
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from capsuled.proto import blob as blobs
from capsuled.proto import compiling
from capsuled.proto.blob import BlobError
from capsuled.proto.compiling import CompileOrder
from capsuled.supervisor import exits
from capsuled.supervisor.blobs import Compiled
from capsuled.supervisor.quantities import MIB

ENGINES = ("wasmer", "wasmtime")

LINE_CHARACTERS = 200
"""Of what it has printed, in a sentence."""


@dataclass(frozen=True)
class Bounds:
    """What one compiler process may use up."""

    seconds: float = 60.0
    """From start to end: twice its processor time, since two of them share two cores with everybody else."""
    cpu_seconds: int = 30
    """The largest module that is read, 64 MiB, takes 26 s; one of 800 KB takes half a second."""
    base_memory: int = 256 * MIB
    """An idle compiler with its threads has 100 MiB of data, little of it touched."""
    memory_per_byte: int = 64
    """Of the module: cranelift was seen to take 33."""
    most_memory: int = 4096 * MIB
    output_per_byte: int = 32
    """Of the module: more than 16 were seen, in a module of nothing but small functions."""
    base_output: int = MIB
    """An empty module, with its shim, makes 30 KB."""
    most_output: int = 256 * MIB
    most_printed: int = 64 * 1024
    """On its standard error: an honest one prints nothing, or some lines before it aborts."""

    def memory(self, module_bytes: int) -> int:
        """Bytes of data that the process may have."""
        return min(self.base_memory + self.memory_per_byte * module_bytes, self.most_memory)

    def output(self, module_bytes: int) -> int:
        """Bytes that it may write."""
        return min(self.base_output + self.output_per_byte * module_bytes, self.most_output)


BOUNDS = Bounds()


@dataclass(frozen=True)
class Job:
    """A module, and what its native code depends on besides."""

    engine: str
    module_hash: str
    """As the manifest has it; empty: any."""
    memory: int
    """Bytes that the guest may have."""
    wasm: bytes

    @cached_property
    def key(self) -> Key:
        """Two jobs with the same key make the same. The first look takes a while: 0.2 s for the largest module."""
        return Key(self.engine, self.module_hash, self.memory, hashlib.sha256(self.wasm).digest())


class Key(NamedTuple):
    """Version and compiler of the engine are not in it: a blob that does not fit is refused by who loads it."""

    engine: str
    module_hash: str
    memory: int
    digest: bytes


class LoadError(NamedTuple):
    """Why a module has no native code: a sentence for its author."""

    message: str


class NotSealed(NamedTuple):
    """No compiler could be started and sealed, and none has looked at the module: a sentence for the operator."""

    message: str
    status: int | None = None
    """With which the one that could not be sealed exited; None when there was none."""


Outcome = Compiled | LoadError | NotSealed


class Ended(NamedTuple):
    """How a compiler process ended, and what it left."""

    status: int | None
    signal: int | None
    """One of the two."""
    cpu_seconds: float
    output: bytes
    whole: bool
    """Its output has come to its end."""
    too_long: bool
    """It wrote or printed more than it may, and was killed."""
    too_late: bool
    """It took longer than it may, and was killed."""
    printed: str
    """On its standard error."""
    oom_kills: int = 0
    """Counted by its control group."""


def verdict(ended: Ended, order: CompileOrder, bounds: Bounds) -> Outcome:
    """What it means that the compiler of `order` has ended so."""
    if ended.status == compiling.SEALING_FAILED:
        sentence = _sentence(ended.output) or "cannot seal the compiler: it has not said why"
        return NotSealed(sentence, ended.status)
    if ended.status == compiling.REJECTED and ended.output:
        return LoadError(_sentence(ended.output))
    if ended.status == compiling.DONE and ended.whole:
        return _compiled(ended.output, order.engine)
    return LoadError(f"it was not compiled: {_why(ended, order, bounds)}")


def last_line(printed: str) -> str:
    """The last line that says something, cut; Rust ends with notes on how to get a backtrace."""
    lines = (line.strip() for line in reversed(printed.split("\n")))
    return next((line for line in lines if line and not line.startswith("note: ")), "")[:LINE_CHARACTERS]


def _compiled(output: bytes, asked: str) -> Compiled | LoadError:
    try:
        engine = blobs.head_of(output).engine
    except BlobError as exc:
        return LoadError(f"it was not compiled: what the compiler wrote is no blob: {exc}")
    if engine not in ENGINES or asked not in ("auto", engine):
        return LoadError(
            f"it was not compiled: the compiler wrote a blob for '{engine}', asked for '{asked}'"
        )
    return Compiled(engine, output)


def _why(ended: Ended, order: CompileOrder, bounds: Bounds) -> str:
    """How a compiler came to no result: the limit that it met, or what is known; and what may help."""
    number, last = ended.signal, last_line(ended.printed)
    module = f"a module of {len(order.module)} bytes"
    smaller = "build the module smaller, or with smaller functions"
    memory = f"the compiler had reached its limit of {order.process_memory // MIB} MiB of memory for {module}"
    if ended.too_late:
        return f"the compiler was killed: it took longer than {bounds.seconds:g} s for {module}: {smaller}"
    if ended.too_long:
        most = f"{bounds.output(len(order.module))} bytes for {module}, or printed {bounds.most_printed}"
        return f"the compiler was killed: it wrote more than {most}: {smaller}"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and ended.cpu_seconds >= order.cpu_seconds):
        return f"the compiler was killed: CPU limit {order.cpu_seconds} s for {module}: {smaller}"
    if (
        ended.status == compiling.NO_MEMORY
        or ended.oom_kills
        or any(each in ended.printed for each in _OUT_OF_MEMORY)
    ):
        return f"{memory}: {smaller}"
    printed = f" (it printed: {last})" if last else ""
    if number is not None:
        return f"the compiler was ended by {exits.signal_name(number)}{printed}: {_OTHER}"
    if ended.status == compiling.FAILED and ended.output:
        return f"the compiler failed: {_sentence(ended.output)}{printed}: {_OTHER}"
    return f"the compiler ended with status {ended.status}{printed}: {_OTHER}"


_OUT_OF_MEMORY = ("memory allocation of", "Cannot allocate memory")
"""What Rust's allocator prints before it aborts, and how ENOMEM is told."""

_OTHER = "build the module with another toolchain, or choose the other engine in its manifest"


def _sentence(output: bytes) -> str:
    return output[: compiling.MAX_SENTENCE * 4].decode(errors="replace")[: compiling.MAX_SENTENCE]
