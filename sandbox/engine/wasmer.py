"""wasmer 1.1.0: the default engine, with what must be done so that a guest can live in one call for ever.

*The drain.* wasmer's binding frees Python objects only when its outermost pool closes, which is when the
outermost guest call returns: a capsule that lives in `run` would grow without bound. So the guest runs in a
greenlet that the main one resumes from *inside* a wasmer function called from Python: a pool older than the
guest's is then open. Every `DRAIN_CALLS` host calls the guest's greenlet switches to the main one, which
returns from that function (its pool closes, all in it is freed), calls it again and switches back.

*Traps.* After a trap the greenlets' bookkeeping and the engine may be off, so nothing goes on after one: the
caller reports and exits. That is also why host functions never raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from capsuled.sandbox.engine import binary, shim
from capsuled.sandbox.engine.seam import (
    EngineUnavailable,
    GuestLimits,
    GuestTrap,
    HostFunction,
    Imports,
    ModuleRejected,
    OutOfBounds,
    TrapKind,
)

try:
    import wasmer
    from greenlet import getcurrent, greenlet
    from wasmer_compiler_cranelift import Compiler
except ImportError as exc:  # on other Pythons PyPI's wasmer is a stub that fails like this
    raise EngineUnavailable(f"cannot run wasmer: its binding needs CPython 3.10 on x86-64 ({exc})") from exc

DRAIN_CALLS = 1_000
"""Host calls between two drains: each keeps 8 bytes until then, and the switch costs nothing measurable."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF

_TRAPS: tuple[tuple[str, TrapKind], ...] = (
    ("unreachable", "unreachable"),
    ("out of bounds memory access", "memory"),
    ("misaligned", "memory"),
    ("integer divide by zero", "divide"),
    ("integer overflow", "overflow"),
    ("invalid conversion to integer", "conversion"),
    ("indirect call type mismatch", "indirect-call"),
    ("uninitialized element", "indirect-call"),
    ("undefined element", "indirect-call"),
    ("out of bounds table access", "indirect-call"),
    ("call stack exhausted", "stack"),
)


class WasmerMemory:
    """The guest's memory through a cached view, which keeps its old length when the memory has grown."""

    def __init__(self) -> None:
        self._memory: Any = None
        self._view = memoryview(b"")
        self._size = 0

    def bind(self, memory: Any) -> None:
        """From now on, this memory; before, every range is out of bounds."""
        self._memory = memory
        self._refresh()

    def read(self, pointer: int, length: int) -> bytes:
        end = pointer + length
        if end > self._size:
            self.check(pointer, length)
        return self._view[pointer:end].tobytes()

    def write(self, pointer: int, data: bytes) -> None:
        end = pointer + len(data)
        if end > self._size:
            self.check(pointer, len(data))
        self._view[pointer:end] = data

    def check(self, pointer: int, length: int) -> None:
        if pointer + length <= self._size:
            return
        if self._memory is not None:
            self._refresh()
        if pointer + length > self._size:
            raise OutOfBounds(f"{length} bytes at {pointer} leave the memory, which has {self._size}")

    def _refresh(self) -> None:
        self._view = memoryview(self._memory.buffer)
        self._size = len(self._view)


class WasmerGuest:
    """An instance, and the greenlet that it runs in."""

    def __init__(self, store: Any) -> None:
        self.memory = WasmerMemory()
        self._store = store
        self._main = getcurrent()
        self._exports: Any = None
        self._left = DRAIN_CALLS

    def bind(self, instance: Any) -> None:
        self._exports = instance.exports
        self.memory.bind(instance.exports.memory)

    def call(self, export: str) -> None:
        self.run(getattr(self._exports, export))

    def run(self, function: Callable[[], object]) -> None:
        """Run `function` in a greenlet of its own, drained as the module's docstring says."""
        guest = greenlet(function)

        def resume() -> None:
            guest.switch()

        resume_in_pool = wasmer.Function(self._store, resume, wasmer.FunctionType([], []))
        self._main = getcurrent()
        try:
            while not guest.dead:
                resume_in_pool()
        except RuntimeError as exc:
            raise _trap(exc) from exc

    def host(self, function: HostFunction, arguments: memoryview) -> Callable[[], None]:
        """The zero-argument function that the shim calls: arguments from its memory, the result back."""
        call, count = function.call, len(function.signature[0])
        if count == 0:

            def enter() -> None:
                arguments[0] = call() & _MASK
                self._left -= 1
                if not self._left:
                    self._drain()
        elif count == 4:  # publishing and receiving

            def enter() -> None:
                arguments[0] = call(arguments[0], arguments[1], arguments[2], arguments[3]) & _MASK
                self._left -= 1
                if not self._left:
                    self._drain()
        else:

            def enter() -> None:
                arguments[0] = call(*arguments[:count].tolist()) & _MASK
                self._left -= 1
                if not self._left:
                    self._drain()

        return enter

    def _drain(self) -> None:
        self._left = DRAIN_CALLS
        if getcurrent() is not self._main:  # it is while the module's start section runs
            self._main.switch()


class WasmerEngine:
    """See the module's docstring."""

    name = "wasmer"

    def instantiate(self, wasm: bytes, imports: Imports, limits: GuestLimits) -> WasmerGuest:
        capped = binary.cap(wasm, limits.memory_bytes, limits.table_elements)
        wanted = [(each.module, each.name) for each in binary.inspect(wasm).imports]
        functions = {key: imports[key] for key in wanted}
        store = wasmer.Store(wasmer.engine.Universal(Compiler))
        guest = WasmerGuest(store)
        try:
            bound = self._bind(store, guest, functions)
            module = wasmer.Module(store, capped)
        except RuntimeError as exc:
            raise ModuleRejected(f"the engine rejects it: {_first_line(exc)}") from exc

        def start() -> None:
            guest.bind(wasmer.Instance(module, bound))

        try:
            start()
        except RuntimeError as exc:
            text = _first_line(exc)
            if any(text.startswith(prefix) for prefix in ("Insufficient", "Link", "Error while importing")):
                raise ModuleRejected(f"the engine rejects it: {text}") from exc
            raise _trap(exc) from exc
        return guest

    def _bind(
        self, store: Any, guest: WasmerGuest, functions: dict[tuple[str, str], HostFunction]
    ) -> dict[str, dict[str, Any]]:
        """The guest's imports: exports of a shim whose own imports are our host functions."""
        if not functions:
            return {}
        module = wasmer.Module(store, shim.build([each.signature for each in functions.values()]))
        # The shim's memory exists only once the shim does, and the shim needs its imports first.
        entries: list[Callable[[], None]] = []
        hosts = {
            str(i): wasmer.Function(store, _late(entries, i), wasmer.FunctionType([], []))
            for i in range(len(functions))
        }
        instance = wasmer.Instance(module, {shim.HOST: hosts})
        arguments = memoryview(getattr(instance.exports, shim.MEMORY).buffer).cast("B").cast("Q")
        entries += [guest.host(each, arguments) for each in functions.values()]
        bound: dict[str, dict[str, Any]] = {}
        for i, (module_name, name) in enumerate(functions):
            bound.setdefault(module_name, {})[name] = getattr(instance.exports, str(i))
        return bound


def _late(entries: list[Callable[[], None]], i: int) -> Callable[[], None]:
    return lambda: entries[i]()


def _trap(exc: RuntimeError) -> GuestTrap:
    """wasmer tells a trap as text: the first line says which."""
    text = str(exc)
    first = _first_line(exc).lower()
    for sign, kind in _TRAPS:
        if sign in first:
            return GuestTrap(kind, _first_line(exc), text)
    return GuestTrap("unknown", _first_line(exc), text)


def _first_line(exc: BaseException) -> str:
    return str(exc).partition("\n")[0].removeprefix("RuntimeError: ")
