"""wasmtime 50: the second engine, for the Pythons that wasmer does not have, and where a manifest asks for it.

The same shim as with wasmer stands between guest and host: here it makes each host function one without arguments,
whose call is a third cheaper than one that reads them where wasmtime leaves them. No drain: nothing is kept.

*Exceptions.* None may cross wasmtime. A host function that raises returns a trap, and what it raised is remembered
and raised again, the same object, when the guest's call has come back.

*Backtraces.* wasmtime has 20 frames in one, the innermost, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable

from capsuled.proto import abi
from capsuled.proto.blob import Head
from capsuled.sandbox.engine import binary, shim
from capsuled.sandbox.engine import wasmtime_raw as raw
from capsuled.sandbox.engine.code import Code, pack, unpack
from capsuled.sandbox.engine.memory import ViewedMemory
from capsuled.sandbox.engine.seam import (
    MAX_BACKTRACE,
    MAX_MESSAGE,
    CacheRejected,
    Counter,
    GuestLimits,
    GuestTrap,
    HostFunction,
    Imports,
    ModuleRejected,
    Offered,
    TrapKind,
)

HEAD = Head("wasmtime", raw.VERSION, "cranelift")

_MASK = 0xFFFF_FFFF_FFFF_FFFF

TRAPS: dict[int, tuple[TrapKind, str]] = {
    0: ("stack", "call stack exhausted"),
    1: ("memory", "out of bounds memory access"),
    2: ("memory", "misaligned heap"),
    3: ("indirect-call", "undefined element: out of bounds table access"),
    4: ("indirect-call", "uninitialized element"),
    5: ("indirect-call", "indirect call type mismatch"),
    6: ("overflow", "integer overflow"),
    7: ("divide", "integer divide by zero"),
    8: ("conversion", "invalid conversion to integer"),
    9: ("unreachable", "unreachable"),
    10: ("interrupted", "interrupted"),
    11: ("fuel", "out of fuel"),
}
"""`wasmtime_trap_code_t` (wasmtime/trap.h) to our kind, and to the message that wasmer has for it."""


class WasmtimeGuest:
    """An instance in a store of its own."""

    def __init__(self, engine: raw.Engine, info: binary.ModuleInfo, calls: Counter) -> None:
        self.memory = ViewedMemory()
        self._store = raw.Store(engine)
        self._info = info
        self._instance: raw.Name | None = None
        self._calls = calls
        self._raised: BaseException | None = None

    @property
    def host_calls(self) -> int:
        return self._calls[0]

    def call(self, export: str) -> None:
        _, results = binary.entry(self._info, export)
        assert self._instance is not None
        function = self._store.export(self._instance, export)
        self._run(lambda: self._store.call(function, len(results)))

    def bind(self, engine: raw.Engine, functions: list[HostFunction], native: bytes) -> list[raw.Extern]:
        """Exports of a shim whose own imports are these functions, in their order."""
        store = self._store
        if not functions:
            return []
        memory = store.memory(shim.PAGES)
        # The host functions hold the view, and the store holds them: it does not outlive the memory.
        arguments = store.view(memory).cast("Q")
        hosts = [store.function(self._host(each, arguments)) for each in functions]
        instance = store.instantiate(_loaded(engine, native), [*hosts, memory])
        return [store.export(instance, str(i)) for i in range(len(functions))]

    def start(self, module: raw.Module, imports: list[raw.Extern], limits: GuestLimits) -> None:
        """Make the instance, which runs its start section."""
        store = self._store
        store.limit(limits.memory_bytes, limits.table_elements)

        def make() -> None:
            self._instance = store.instantiate(module, imports)
            memory = store.export(self._instance, abi.MEMORY_EXPORT)
            # It holds the store too, and so may outlive the guest.
            self.memory.bind(lambda: store.view(memory))

        self._run(make)

    def _run(self, function: Callable[[], None]) -> None:
        failure: GuestTrap | ModuleRejected | None = None
        try:
            function()
        except raw.Trapped as exc:
            failure = told(exc)
        except raw.Refused as exc:
            failure = ModuleRejected(f"the engine cannot start it: {str(exc)[:MAX_MESSAGE]}")
        if self._raised is not None:
            raise self._raised
        if failure is not None:
            raise failure

    def _host(self, function: HostFunction, arguments: memoryview) -> Callable[[], int]:
        """The zero-argument function that the shim calls: arguments from its memory, the result back.

        It is counted first, so that a call in progress counts.
        """
        call, count, calls = function.call, len(function.signature[0]), self._calls
        if count == 0:

            def enter() -> int:
                try:
                    calls[0] += 1
                    arguments[0] = call() & _MASK
                except BaseException as exc:
                    return self._stop(exc)
                return 0
        elif count == 4:  # publishing and receiving

            def enter() -> int:
                try:
                    calls[0] += 1
                    arguments[0] = call(arguments[0], arguments[1], arguments[2], arguments[3]) & _MASK
                except BaseException as exc:
                    return self._stop(exc)
                return 0
        else:

            def enter() -> int:
                try:
                    calls[0] += 1
                    arguments[0] = call(*arguments[:count].tolist()) & _MASK
                except BaseException as exc:
                    return self._stop(exc)
                return 0

        return enter

    def _stop(self, exc: BaseException) -> int:
        self._raised = exc
        return raw.stop()


class WasmtimeCompiler:
    """Cranelift, in this thread."""

    name = "wasmtime"

    def __init__(self) -> None:
        self._engine = raw.Engine()

    def compile(self, wasm: bytes, offered: Offered, limits: GuestLimits) -> bytes:
        info, functions, capped = binary.prepare(wasm, offered, limits)
        try:
            module = self._native(capped)
        except raw.Refused as exc:
            raise ModuleRejected(f"the engine rejects it: {str(exc)[:MAX_MESSAGE]}") from exc
        between = self._native(shim.build(list(functions.values()))) if functions else b""
        return pack(HEAD, Code(info, module, between))

    def _native(self, wasm: bytes) -> bytes:
        return raw.Module(self._engine, wasm).serialize()


class WasmtimeEngine:
    """See the module's docstring."""

    name = "wasmtime"

    def __init__(self) -> None:
        self._engine = raw.Engine()

    def load(self, blob: bytes) -> Code:
        return unpack(blob, HEAD)

    def instantiate(
        self, code: Code, imports: Imports, limits: GuestLimits, calls: Counter | None = None
    ) -> WasmtimeGuest:
        functions = binary.bound(code.info, imports)
        module = _loaded(self._engine, code.module)
        guest = WasmtimeGuest(self._engine, code.info, [0] if calls is None else calls)
        bound = dict(
            zip(functions, guest.bind(self._engine, list(functions.values()), code.shim), strict=True)
        )
        guest.start(module, [bound[each.module, each.name] for each in code.info.imports], limits)
        return guest


def _loaded(engine: raw.Engine, native: bytes) -> raw.Module:
    try:
        return raw.Module.deserialize(engine, native)
    except raw.Refused as exc:
        text = str(exc)[:MAX_MESSAGE]
        raise CacheRejected(f"the engine does not load what was compiled: {text}") from exc


def told(exc: raw.Trapped) -> GuestTrap:
    """Which trap it is, by its code."""
    last = str(exc).rpartition("\n")[2].strip()[:MAX_MESSAGE]
    kind, message = TRAPS.get(-1 if exc.code is None else exc.code, ("unknown", last))
    return GuestTrap(kind, message, str(exc)[:MAX_BACKTRACE])
