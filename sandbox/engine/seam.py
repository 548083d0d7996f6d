"""What an engine and a guest are, and the errors that leave them.

Neither engine is trusted: whatever it promises, the process around it is sealed. The seam makes the two
alike: the same limits, the same errors, the same host functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from capsuled.proto.abi import ValueType

if TYPE_CHECKING:
    from capsuled.sandbox.engine.code import Code

Signature = tuple[tuple[ValueType, ...], tuple[ValueType, ...]]
"""Types of the parameters and of the results (none or one)."""

TrapKind = Literal[
    "unreachable",
    "memory",
    "divide",
    "overflow",
    "conversion",
    "indirect-call",
    "stack",
    "interrupted",
    "fuel",
    "unknown",
]

MAX_BACKTRACE = 4096
"""Characters kept of a trap's backtrace: the innermost frames, about a hundred, tell where it was."""

MAX_MESSAGE = 500
"""Characters of an engine's own texts in a message: they may repeat names of any length from the module."""


class EngineError(Exception):
    """Base of what engines raise."""


class ModuleRejected(EngineError):
    """The module is malformed, uses what is not supported, or asks for what is not there."""


class CacheRejected(EngineError):
    """What was compiled earlier does not fit this engine, or is damaged; no engine has seen it."""


class EngineUnavailable(EngineError):
    """The engine does not run here; the message says why and what to choose instead."""


class GuestTrap(EngineError):
    """The guest broke a rule of WebAssembly. Its process must end: the engine may be damaged."""

    def __init__(self, kind: TrapKind, message: str, backtrace: str = "") -> None:
        super().__init__(message)
        self.kind: TrapKind = kind
        self.backtrace = backtrace


class OutOfBounds(Exception):
    """A range that leaves the guest's memory."""


@dataclass(frozen=True)
class HostFunction:
    """One function for the guest: `call` gets unsigned integers and returns one that fits its result.

    A signed result may be given as it is; a function without a result returns 0. What it raises leaves
    `Guest.call` unchanged and is the end of the guest, so a refusal is a result. It may also end the
    process, as WASI's `proc_exit` does: then nothing crosses the engine.
    """

    signature: Signature
    call: Callable[..., int]


Made = TypeVar("Made")

Imports = Mapping[tuple[str, str], HostFunction]
"""By import module and name."""

Offered = Mapping[tuple[str, str], Signature]
"""What may be imported, before there is anything to call: by import module and name."""


def signatures(imports: Imports) -> Offered:
    """What imports are as an offer."""
    return {key: function.signature for key, function in imports.items()}


@dataclass(frozen=True)
class GuestLimits:
    """What the module is held to by rewriting it before it is compiled."""

    memory_bytes: int
    table_elements: int = 100_000
    """For all tables together. They are outside of linear memory: 8 bytes an element."""


class Counter(Protocol):
    """A number at index 0: a list, or a view of shared memory."""

    def __getitem__(self, index: Literal[0], /) -> int: ...

    def __setitem__(self, index: Literal[0], value: int, /) -> None: ...


class GuestMemory(Protocol):
    """The guest's linear memory. Pointers and lengths are unsigned; every range is checked."""

    def read(self, pointer: int, length: int) -> bytes:
        """A copy of a range. Raises `OutOfBounds`."""
        ...

    def write(self, pointer: int, data: bytes) -> None:
        """Raises `OutOfBounds`, and then has written nothing."""
        ...

    def check(self, pointer: int, length: int) -> None:
        """Raise `OutOfBounds` when the range leaves the memory."""
        ...

    def size(self) -> int:
        """Bytes of it now, as the guest has grown it."""
        ...


class Guest(Protocol):
    """An instance of a module."""

    @property
    def memory(self) -> GuestMemory:
        """What the module exports as `memory`. While a start section runs, every range is out of bounds."""
        ...

    @property
    def host_calls(self) -> int:
        """Host calls so far, the one that is running and those of the start section included."""
        ...

    def call(self, export: str) -> None:
        """Run an exported function of no parameters to its end; what it returns is dropped.

        Raises `ModuleRejected` where there is no such function, `GuestTrap`, and what a host function raised.
        After any exception the process may only report and exit.
        """
        ...


class Compiler(Protocol):
    """What makes blobs for one engine. It may start threads: in a process of its own, and never before a fork."""

    @property
    def name(self) -> str:
        """The engine's, as a manifest names it."""
        ...

    def compile(self, wasm: bytes, offered: Offered, limits: GuestLimits) -> bytes:
        """A blob of the module, with the limits in it, for the engine of this name. Raises `ModuleRejected`.

        An import that is not offered, has another signature or is no function is rejected; so is a module that
        does not export its memory as `memory`.
        """
        ...


class Engine(Protocol):
    """One engine. Everything of it must be made and used in one thread."""

    @property
    def name(self) -> str:
        """As a manifest names it."""
        ...

    def load(self, blob: bytes) -> Code:
        """What is in a blob, once it has been compared with its hash; no engine looks at it yet.

        Raises `CacheRejected` for one of another engine, version or compiler, and for a damaged one.
        """
        ...

    def instantiate(
        self, code: Code, imports: Imports, limits: GuestLimits, calls: Counter | None = None
    ) -> Guest:
        """An instance of what was compiled. Raises `EngineError`, and what a host function raised.

        Nothing is compiled, and no thread is started. The limits are those that it was compiled with.

        Host calls are counted in `calls[0]`, from what stands there: the ledger page, which a supervisor reads
        while the guest computes.

        Only the imports that the module names are bound; each must be there, as it was offered to the compiler.
        Its start section, if any, runs in here.
        """
        ...


def load(name: str) -> Engine:
    """The engine of that name; `auto` is wasmer where it runs, else wasmtime. Raises `EngineUnavailable`.

    Opens all files that the engine needs: afterwards it makes guests in a process that can open none.
    """

    def wasmer() -> Engine:
        from capsuled.sandbox.engine.wasmer import WasmerEngine

        return WasmerEngine()

    def wasmtime() -> Engine:
        from capsuled.sandbox.engine.wasmtime import WasmtimeEngine

        return WasmtimeEngine()

    return _choose(name, wasmer, wasmtime)


def load_compiler(name: str) -> Compiler:
    """The compiler for the engine of that name, chosen as `load` does. Raises `EngineUnavailable`.

    Opens all files that it needs, as `load` does.
    """

    def wasmer() -> Compiler:
        from capsuled.sandbox.engine.wasmer import WasmerCompiler

        return WasmerCompiler()

    def wasmtime() -> Compiler:
        from capsuled.sandbox.engine.wasmtime import WasmtimeCompiler

        return WasmtimeCompiler()

    return _choose(name, wasmer, wasmtime)


def _choose(name: str, wasmer: Callable[[], Made], wasmtime: Callable[[], Made]) -> Made:
    if name not in ("auto", "wasmer", "wasmtime"):
        raise EngineUnavailable(f"cannot run the engine '{name}': choose 'wasmer', 'wasmtime' or 'auto'")
    if name != "wasmtime":
        try:
            return wasmer()
        except EngineUnavailable:
            if name == "wasmer":
                raise
    return wasmtime()
