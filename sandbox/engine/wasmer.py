"""wasmer 1.1.0: the default engine, with what must be done so that a guest can live in one call for ever.

*The drain.* wasmer's binding frees Python objects only when its outermost pool closes, which is when the
outermost guest call returns: a capsule that lives in `run` would grow without bound. So the guest runs in a
greenlet that the main one resumes from *inside* a wasmer function called from Python: a pool older than the
guest's is then open. Every `DRAIN_CALLS` host calls the guest's greenlet switches to the main one, which
returns from that function (its pool closes, all in it is freed), calls it again and switches back.

*Traps.* wasmer tells a trap as a `RuntimeError` with a text, and passes on a host function's exception as the
same object, which may be a `RuntimeError` too: so what a host function raised is remembered, and never taken
for a trap. After either the engine may be damaged and nothing goes on: the caller reports and exits.

*Backtraces.* One has a line for each frame, and is cut before anything keeps it. Making it takes 110 MiB when
8 MiB of stack overflow, and the process aborts where it may not have them: with `RLIMIT_STACK` at 2 MiB, 30.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from capsuled.proto import abi
from capsuled.proto.blob import Head
from capsuled.sandbox.engine import binary, shim
from capsuled.sandbox.engine.code import Code, pack, unpack
from capsuled.sandbox.engine.memory import ViewedMemory
from capsuled.sandbox.engine.seam import (
    MAX_BACKTRACE,
    MAX_MESSAGE,
    CacheRejected,
    Counter,
    EngineUnavailable,
    GuestLimits,
    GuestTrap,
    HostFunction,
    Imports,
    ModuleRejected,
    Offered,
    TrapKind,
)

try:
    import wasmer
    from greenlet import getcurrent, greenlet
except ImportError as exc:  # on other Pythons PyPI's wasmer is a stub that fails like this
    raise EngineUnavailable(
        f"cannot run wasmer: its binding needs CPython 3.10 on x86-64 ({exc}); "
        "install capsuled there, or choose the engine 'wasmtime'"
    ) from exc

HEAD = Head("wasmer", wasmer.__version__, "cranelift")

DRAIN_CALLS = 1_000
"""Host calls between two drains: each keeps 8 bytes until then, and the switch costs nothing measurable."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF

_PREFIX = "RuntimeError: "
_TRAPS: dict[str, TrapKind] = {
    "unreachable": "unreachable",
    "out of bounds": "memory",
    "out of bounds memory access": "memory",
    "misaligned heap": "memory",
    "unaligned atomic access": "memory",
    "integer divide by zero": "divide",
    "integer overflow": "overflow",
    "invalid conversion to integer": "conversion",
    "indirect call type mismatch": "indirect-call",
    "uninitialized element": "indirect-call",
    "undefined element: out of bounds table access": "indirect-call",
    "call stack exhausted": "stack",
}
"""All messages of wasmer 2.1's trap codes: a trap's first line is one of them, whole."""


class WasmerGuest:
    """An instance, and the greenlet that it runs in."""

    def __init__(self, store: Any, info: binary.ModuleInfo, calls: Counter) -> None:
        self.memory = ViewedMemory()
        self._store = store
        self._info = info
        # wasmer frees an instance with its Python object, though its exports are in use: a crash, measured.
        self._kept: list[Any] = []
        self._exports: Any = None
        self._main = getcurrent()
        self._calls = calls
        self._raised: BaseException | None = None

    @property
    def host_calls(self) -> int:
        return self._calls[0]

    def call(self, export: str) -> None:
        binary.entry(self._info, export)
        self._run(getattr(self._exports, export))

    def keep(self, instance: Any) -> None:
        """Hold an instance for as long as this guest."""
        self._kept.append(instance)

    def start(self, module: Any, imports: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the instance, which runs its start section. Before, only `host` may be used."""

        def make() -> None:
            instance = wasmer.Instance(module, imports)
            self.keep(instance)
            self._exports = instance.exports
            memory = getattr(self._exports, abi.MEMORY_EXPORT)
            self.memory.bind(lambda: memoryview(memory.buffer))

        self._run(make)

    def _run(self, function: Callable[[], object]) -> None:
        """Run `function` in a greenlet of its own, drained as the module's docstring says."""
        guest = greenlet(function)

        def resume() -> None:
            guest.switch()

        resume_in_pool = wasmer.Function(self._store, resume, wasmer.FunctionType([], []))
        self._main = getcurrent()
        trap: GuestTrap | ModuleRejected | None = None
        try:
            while not guest.dead:
                resume_in_pool()
        except RuntimeError as exc:
            trap = _trap(exc)
        if self._raised is not None:  # even if nothing was caught: GreenletExit ends a greenlet like a return
            raise self._raised
        if trap is not None:
            raise trap  # here, so that it does not hold the exception with the whole backtrace

    def host(self, function: HostFunction, arguments: memoryview) -> Callable[[], None]:
        """The zero-argument function that the shim calls: arguments from its memory, the result back.

        It is counted first, so that a call in progress counts, and drained last, with the result in place.
        """
        call, count, calls = function.call, len(function.signature[0]), self._calls
        if count == 0:

            def enter() -> None:
                calls[0] = so_far = calls[0] + 1
                try:
                    arguments[0] = call() & _MASK
                except BaseException as exc:
                    self._fail(exc)
                if not so_far % DRAIN_CALLS:
                    self._main.switch()
        elif count == 4:  # publishing and receiving

            def enter() -> None:
                calls[0] = so_far = calls[0] + 1
                try:
                    arguments[0] = call(arguments[0], arguments[1], arguments[2], arguments[3]) & _MASK
                except BaseException as exc:
                    self._fail(exc)
                if not so_far % DRAIN_CALLS:
                    self._main.switch()
        else:

            def enter() -> None:
                calls[0] = so_far = calls[0] + 1
                try:
                    arguments[0] = call(*arguments[:count].tolist()) & _MASK
                except BaseException as exc:
                    self._fail(exc)
                if not so_far % DRAIN_CALLS:
                    self._main.switch()

        return enter

    def _fail(self, exc: BaseException) -> NoReturn:
        self._raised = exc
        raise exc


class WasmerCompiler:
    """Cranelift. It starts a pool of threads with the first module, and a child forked after that hangs in it."""

    name = "wasmer"

    def __init__(self) -> None:
        try:
            from wasmer_compiler_cranelift import Compiler
        except ImportError as exc:
            raise EngineUnavailable(
                f"cannot compile for wasmer: its compiler is not installed ({exc}); "
                "install 'wasmer_compiler_cranelift==1.1.0', or choose the engine 'wasmtime'"
            ) from exc
        self._store = wasmer.Store(wasmer.engine.Universal(Compiler))

    def compile(self, wasm: bytes, offered: Offered, limits: GuestLimits) -> bytes:
        info, functions, capped = binary.prepare(wasm, offered, limits)
        try:
            module = self._native(capped)
        except RuntimeError as exc:
            raise ModuleRejected(f"the engine rejects it: {_first_line(exc)}") from exc
        between = self._native(shim.build(list(functions.values()))) if functions else b""
        return pack(HEAD, Code(info, module, between))

    def _native(self, wasm: bytes) -> bytes:
        return bytes(wasmer.Module(self._store, wasm).serialize())


class WasmerEngine:
    """See the module's docstring. It has no compiler, and starts no thread."""

    name = "wasmer"

    def load(self, blob: bytes) -> Code:
        return unpack(blob, HEAD)

    def instantiate(
        self, code: Code, imports: Imports, limits: GuestLimits, calls: Counter | None = None
    ) -> WasmerGuest:
        functions = binary.bound(code.info, imports)
        store = wasmer.Store(wasmer.engine.Universal())
        module = _loaded(store, code.module)
        guest = WasmerGuest(store, code.info, [0] if calls is None else calls)
        guest.start(module, _bind(store, guest, functions, code.shim))
        return guest


def _loaded(store: Any, native: bytes) -> Any:
    try:
        return wasmer.Module.deserialize(store, native)
    except RuntimeError as exc:
        raise CacheRejected(f"the engine does not load what was compiled: {_first_line(exc)}") from exc


def _bind(
    store: Any, guest: WasmerGuest, functions: Mapping[tuple[str, str], HostFunction], native: bytes
) -> dict[str, dict[str, Any]]:
    """The guest's imports: exports of a shim whose own imports are our host functions."""
    if not functions:
        return {}
    module = _loaded(store, native)
    memory = wasmer.Memory(store, wasmer.MemoryType(shim.PAGES, shim.PAGES, False))
    arguments = memoryview(memory.buffer).cast("B").cast("Q")
    hosts: dict[str, Any] = {
        str(i): wasmer.Function(store, guest.host(each, arguments), wasmer.FunctionType([], []))
        for i, each in enumerate(functions.values())
    }
    instance = wasmer.Instance(module, {shim.HOST: {**hosts, shim.MEMORY: memory}})
    guest.keep(instance)
    bound: dict[str, dict[str, Any]] = {}
    for i, (module_name, name) in enumerate(functions):
        bound.setdefault(module_name, {})[name] = getattr(instance.exports, str(i))
    return bound


def _trap(exc: RuntimeError) -> GuestTrap | ModuleRejected:
    """Which trap it is, by its first line. What is no trap comes before the guest's first instruction."""
    first = _first_line(exc)
    if not str(exc).startswith(_PREFIX):
        return ModuleRejected(f"the engine cannot start it: {first}")
    return GuestTrap(_TRAPS.get(first, "unknown"), first, str(exc)[:MAX_BACKTRACE])


def _first_line(exc: BaseException) -> str:
    return str(exc).partition("\n")[0].removeprefix(_PREFIX)[:MAX_MESSAGE]
