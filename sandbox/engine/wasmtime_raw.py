"""wasmtime 50 through its C API, called by hand: what the engine needs of it, as one class without ctypes.

The library comes with PyPI's `wasmtime`; that package's own Python layer is not imported. It converts what a host
function gets and returns value by value, which makes a call 15 to 20 times dearer than one of wasmer, and
importing its 744 declarations takes 45 ms of each worker's start. A test compares the declarations below with
those of the package, which are generated from the C headers. The C API changes with each release: 50 only.

Ownership, by the headers: `*_new` gives an object to us, `*_delete` takes it; a function, memory or instance is
the store's, a name for it is a plain value. An error or a trap that a call hands out is ours to delete.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import (
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
)
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

from capsuled.sandbox.engine.seam import EngineUnavailable

RELEASE = 50

STACK_BYTES = 1024 * 1024
"""Of the thread's stack for the guest: half of a worker's 2 MiB (`sealing`). The rest is for the host function that
it calls when it has used up its own: wasmtime checks the guest's depth alone."""

RESERVATION = 4 * 1024**3
"""Addresses reserved for each memory, all that 32 bits reach: it never moves, and no access needs a check."""


class Refused(Exception):
    """wasmtime answers with an error; the text is its own, in one line."""


class Trapped(Exception):
    """The guest was ended by a trap. `code` is `wasmtime_trap_code_t`, or None where a host function ended it."""

    def __init__(self, code: int | None, text: str) -> None:
        super().__init__(text)
        self.code = code


class Found(NamedTuple):
    """The library of an installed package, and the version of it: `50.0.1`."""

    path: Path
    version: str


def library_in(package: Path) -> Found:
    """The library in an installed package `wasmtime`. Raises `EngineUnavailable`."""
    installed = sorted(package.parent.glob(f"wasmtime-{RELEASE}.*.dist-info"))
    if not installed:
        raise EngineUnavailable(
            f"cannot run wasmtime: {package} is not release {RELEASE}, the only one whose C API is known here; "
            f"install 'wasmtime>={RELEASE},<{RELEASE + 1}'"
        )
    path = package / f"linux-{os.uname().machine}" / "_libwasmtime.so"
    if not path.exists():
        raise EngineUnavailable(
            f"cannot run wasmtime: {path} is not there; PyPI has it for Linux on x86_64 and aarch64"
        )
    return Found(path, installed[-1].name.removeprefix("wasmtime-").removesuffix(".dist-info"))


def _load() -> tuple[ctypes.CDLL, str]:
    spec = find_spec("wasmtime")  # a look into the path; nothing of the package runs
    places = None if spec is None else spec.submodule_search_locations
    if not places:
        raise EngineUnavailable(
            f"cannot run wasmtime: it is not installed; install 'wasmtime>={RELEASE},<{RELEASE + 1}'"
        )
    path, version = library_in(Path(places[0]))
    try:
        # CDLL, not PyDLL: Python's lock is free while the guest computes, and a callback takes it.
        return ctypes.CDLL(str(path)), version
    except OSError as exc:
        raise EngineUnavailable(
            f"cannot run wasmtime: {path} cannot be loaded: {exc}; install what it names"
        ) from exc


# ── structures ───────────────────────────────────────────────────────────────────────────────────────────────────────
# What is passed by pointer to a structure whose content concerns us; everything else of wasmtime's is an opaque
# address. The sizes are compared with the package's by the same test as the declarations.


class Vector(Structure):
    """`wasm_byte_vec_t`, and any other `wasm_*_vec_t`: a length and an address."""

    _fields_ = (("size", c_size_t), ("data", c_void_p))


class Limits(Structure):
    """`wasm_limits_t`."""

    _fields_ = (("min", c_uint32), ("max", c_uint32))


class Name(Structure):
    """`wasmtime_func_t`, `wasmtime_memory_t` or `wasmtime_instance_t`: opaque, the largest has 24 bytes."""

    _fields_ = (("words", c_uint64 * 3),)


class Extern(Structure):
    """`wasmtime_extern_t`: what an instance imports or exports."""

    _fields_ = (("kind", c_uint8), ("of", Name))


_FUNCTION, _MEMORY = 0, 3  # WASMTIME_EXTERN_FUNC, WASMTIME_EXTERN_MEMORY in wasmtime/extern.h

RAW_BYTES = 16  # sizeof(wasmtime_val_raw_t) in wasmtime/val.h: a v128 is the largest of its kinds

Callback = ctypes.CFUNCTYPE(c_void_p)
"""`wasmtime_func_unchecked_callback_t`, which returns a trap or null. Its four parameters are not declared: we need
none of them, and ctypes would make an object of each in every call. Safe: on both machines that there is a library
for (System V AMD64, AAPCS64) they come in registers, which the callee may ignore and the caller cleans up."""


# ── functions ────────────────────────────────────────────────────────────────────────────────────────────────────────
# Of each: name, result, parameters, in the order of the header named above it. Addresses are ints, null is None.


library, VERSION = _load()


def _declare(name: str, result: Any, *parameters: Any, of: ctypes.CDLL = library) -> Callable[..., Any]:
    function = getattr(of, name)
    function.argtypes, function.restype = parameters, result
    return cast(Callable[..., Any], function)


# wasm.h, wasmtime/engine.h: the engine takes the configuration over, and is counted: a store holds it too.
_config_new: Callable[[], int] = _declare("wasm_config_new", c_void_p)
_engine_new: Callable[[int], int] = _declare("wasm_engine_new_with_config", c_void_p, c_void_p)
_engine_delete: Callable[[int], None] = _declare("wasm_engine_delete", None, c_void_p)

# wasmtime/module.h: reads so many bytes and keeps none of them; the module is given out where there is no error.
_module_new: Callable[..., int | None] = _declare(
    "wasmtime_module_new", c_void_p, c_void_p, c_char_p, c_size_t, c_void_p
)
_module_delete: Callable[[int], None] = _declare("wasmtime_module_delete", None, c_void_p)
# The vector becomes ours. What is read back must be what was written here: it is run as it is (`code`).
_module_serialize: Callable[..., int | None] = _declare(
    "wasmtime_module_serialize", c_void_p, c_void_p, c_void_p
)
_module_deserialize: Callable[..., int | None] = _declare(
    "wasmtime_module_deserialize", c_void_p, c_void_p, c_char_p, c_size_t, c_void_p
)

# wasmtime/store.h: our data and its finalizer are null. The context is the store's, and lives as long as it.
_store_new: Callable[..., int] = _declare("wasmtime_store_new", c_void_p, c_void_p, c_void_p, c_void_p)
_store_delete: Callable[[int], None] = _declare("wasmtime_store_delete", None, c_void_p)
_store_context: Callable[[int], int] = _declare("wasmtime_store_context", c_void_p, c_void_p)
_store_limiter: Callable[..., None] = _declare("wasmtime_store_limiter", None, c_void_p, *(c_int64,) * 5)

# wasm.h: the type takes both vectors over; we delete the type when the function is made.
_types_empty: Callable[[object], None] = _declare("wasm_valtype_vec_new_empty", None, c_void_p)
_functype_new: Callable[[object, object], int] = _declare("wasm_functype_new", c_void_p, c_void_p, c_void_p)
_functype_delete: Callable[[int], None] = _declare("wasm_functype_delete", None, c_void_p)

# wasmtime/func.h: the callback's address is kept as long as the store; its data and finalizer are null.
_func_new: Callable[..., None] = _declare(
    "wasmtime_func_new_unchecked", None, c_void_p, c_void_p, Callback, c_void_p, c_void_p, c_void_p
)
# The array holds the parameters before and the results after: as many of 16 bytes as the larger number of the two.
_func_call: Callable[..., int | None] = _declare(
    "wasmtime_func_call_unchecked", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p
)

# wasm.h, wasmtime/memory.h: the address of the bytes is good for so many of them as the size told after it.
_memorytype_new: Callable[[object], int] = _declare("wasm_memorytype_new", c_void_p, c_void_p)
_memorytype_delete: Callable[[int], None] = _declare("wasm_memorytype_delete", None, c_void_p)
_memory_new: Callable[..., int | None] = _declare(
    "wasmtime_memory_new", c_void_p, c_void_p, c_void_p, c_void_p
)
_memory_data: Callable[..., int] = _declare("wasmtime_memory_data", c_void_p, c_void_p, c_void_p)
_memory_size: Callable[..., int] = _declare("wasmtime_memory_data_size", c_size_t, c_void_p, c_void_p)

# wasmtime/instance.h: the imports are as many as the module has, which wasmtime checks, with the type of each.
_instance_new: Callable[..., int | None] = _declare(
    "wasmtime_instance_new", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p
)
_export_get: Callable[..., bool] = _declare(
    "wasmtime_instance_export_get", c_bool, c_void_p, c_void_p, c_char_p, c_size_t, c_void_p
)

# wasmtime/trap.h, wasmtime/error.h: a text is a vector that becomes ours. A trap that a callback returns is wasmtime's.
_trap_new: Callable[[bytes, int], int] = _declare("wasmtime_trap_new", c_void_p, c_char_p, c_size_t)
_trap_code: Callable[..., bool] = _declare("wasmtime_trap_code", c_bool, c_void_p, c_void_p)
_trap_message: Callable[..., None] = _declare("wasm_trap_message", None, c_void_p, c_void_p)
_trap_delete: Callable[[int], None] = _declare("wasm_trap_delete", None, c_void_p)
_error_message: Callable[..., None] = _declare("wasmtime_error_message", None, c_void_p, c_void_p)
_error_delete: Callable[[int], None] = _declare("wasmtime_error_delete", None, c_void_p)
_bytes_delete: Callable[[object], None] = _declare("wasm_byte_vec_delete", None, c_void_p)

# Python's own C API: a view of memory that it neither owns nor keeps alive; whoever holds it holds the store.
_view_of: Callable[[int, int, int], memoryview] = _declare(
    "PyMemoryView_FromMemory", py_object, c_void_p, c_ssize_t, c_int, of=ctypes.pythonapi
)
_PYBUF_WRITE = 0x200

SETTINGS: tuple[tuple[str, Any, int], ...] = (
    # No thread pool: a worker may start no thread once it is sealed, and a forked child would wait for it for ever.
    ("parallel_compilation", c_bool, False),
    ("max_wasm_stack", c_size_t, STACK_BYTES),
    ("memory_reservation", c_uint64, RESERVATION),
    ("memory_may_move", c_bool, False),
    # Otherwise data segments go into a memory file: a descriptor, and bytes that RLIMIT_FSIZE forbids.
    ("memory_init_cow", c_bool, False),
    # What our reader refuses in a module's types and sections anyway: so no instruction reaches wasmtime's code for it.
    # What stays on and wasmer lacks harms nothing: tail calls, extended constants, the rest of SIMD and relaxed SIMD.
    ("wasm_threads", c_bool, False),
    ("wasm_multi_memory", c_bool, False),
    ("wasm_memory64", c_bool, False),
    ("wasm_exceptions", c_bool, False),
    ("wasm_gc", c_bool, False),
    ("wasm_function_references", c_bool, False),
)
"""Setter, type and value, each by wasmtime/config.h. All else is at its default: no cache, no WASI, no profiler."""


# ── objects ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Engine:
    """Compiles modules. Several stores may share one."""

    def __init__(self) -> None:
        config = _config_new()
        for name, kind, value in SETTINGS:
            _declare(f"wasmtime_config_{name}_set", None, c_void_p, kind)(config, value)
        self.address = _engine_new(config)

    def __del__(self, delete: Callable[[int], None] = _engine_delete) -> None:
        delete(self.address)


class Module:
    """Native code of a module. Raises `Refused` where wasmtime finds it invalid."""

    def __init__(self, engine: Engine, wasm: bytes) -> None:
        self.address: int | None = None
        made = c_void_p()
        _raise_error(_module_new(engine.address, wasm, len(wasm), byref(made)))
        self.address = made.value

    @classmethod
    def deserialize(cls, engine: Engine, native: bytes) -> Module:
        """What `serialize` gave. Raises `Refused` where another version or other settings made it.

        Nothing else is noticed: changed bytes crash, or run.
        """
        module = cls.__new__(cls)
        module.address = None
        made = c_void_p()
        _raise_error(_module_deserialize(engine.address, native, len(native), byref(made)))
        module.address = made.value
        return module

    def serialize(self) -> bytes:
        """The native code, for `deserialize` in another process."""
        vector = Vector()
        _raise_error(_module_serialize(self.address, byref(vector)))
        native = ctypes.string_at(vector.data, vector.size)  # copied, before the vector goes
        _bytes_delete(byref(vector))
        return native

    def __del__(self, delete: Callable[[int], None] = _module_delete) -> None:
        if self.address is not None:
            delete(self.address)


class Store:
    """What instances live in: their memories, tables and functions. All of it goes with this object."""

    def __init__(self, engine: Engine) -> None:
        self._address = _store_new(engine.address, None, None)
        self._context = _store_context(self._address)
        self._callbacks: list[object] = []  # kept, for wasmtime has their addresses until the store is gone

    def __del__(self, delete: Callable[[int], None] = _store_delete) -> None:
        delete(self._address)

    def limit(self, memory_bytes: int, table_elements: int) -> None:
        """Bounds for each memory and each table that is made or grows from now on."""
        # Negative: wasmtime's own bound for the number of instances, tables and memories.
        _store_limiter(self._address, memory_bytes, table_elements, -1, -1, -1)

    def function(self, enter: Callable[[], int]) -> Extern:
        """A function of no parameters and no result that calls `enter`.

        `enter` returns 0, or what `stop` returned to end the guest. It must not raise: ctypes would print the
        exception, and return to the guest what happened to be in a register.
        """
        parameters, results = Vector(), Vector()
        _types_empty(byref(parameters))
        _types_empty(byref(results))
        kind = _functype_new(byref(parameters), byref(results))
        callback = Callback(enter)
        self._callbacks.append(callback)
        made = Extern(_FUNCTION)
        _func_new(self._context, kind, callback, None, None, byref(made, Extern.of.offset))
        _functype_delete(kind)
        return made

    def memory(self, pages: int) -> Extern:
        """A memory of so many pages that does not grow."""
        kind = _memorytype_new(byref(Limits(pages, pages)))
        made = Extern(_MEMORY)
        error = _memory_new(self._context, kind, byref(made, Extern.of.offset))
        _memorytype_delete(kind)
        _raise_error(error)
        return made

    def instantiate(self, module: Module, imports: Sequence[Extern]) -> Name:
        """An instance; `imports` are in the module's order. Runs the start section.

        Raises `Refused` where an import does not fit or there is no room, and `Trapped`.
        """
        made, trap = Name(), c_void_p()
        array = (Extern * len(imports))(*imports)
        error = _instance_new(self._context, module.address, array, len(imports), byref(made), byref(trap))
        _raise_error(error)
        _raise_trap(trap.value)
        return made

    def export(self, instance: Name, name: str) -> Extern:
        """What an instance exports under this name; there must be something."""
        found, encoded = Extern(), name.encode()
        if not _export_get(self._context, byref(instance), encoded, len(encoded), byref(found)):
            raise Refused(f"no export {name!r}")
        return found

    def call(self, function: Extern, results: int) -> None:
        """Call a function of no parameters and so many results, which are dropped. Raises `Trapped`."""
        room = (c_uint8 * (RAW_BYTES * results))()
        trap = c_void_p()
        error = _func_call(self._context, byref(function, Extern.of.offset), room, results, byref(trap))
        _raise_error(error)
        _raise_trap(trap.value)

    def view(self, memory: Extern) -> memoryview:
        """All bytes of a memory as it is now. Whoever holds the view must hold the store: it keeps nothing alive."""
        size = _memory_size(self._context, byref(memory, Extern.of.offset))
        return _view_of(_memory_data(self._context, byref(memory, Extern.of.offset)), size, _PYBUF_WRITE)


def stop() -> int:
    """What a host function returns to end the guest that called it: `Trapped` with no code. Not to be kept."""
    return _trap_new(_STOPPED, len(_STOPPED))


_STOPPED = b"ended by a host function"


def _raise_error(error: int | None) -> None:
    if error is not None:
        text = _text(_error_message, error)
        _error_delete(error)
        raise Refused(" ".join(text.split()))


def _raise_trap(trap: int | None) -> None:
    if trap is not None:
        code = c_uint8()
        has_code = _trap_code(trap, byref(code))
        text = _text(_trap_message, trap)
        _trap_delete(trap)
        raise Trapped(code.value if has_code else None, text)


def _text(of: Callable[..., None], what: int) -> str:
    vector = Vector()
    of(what, byref(vector))
    text = ctypes.string_at(vector.data, vector.size)  # copied, before the vector goes
    _bytes_delete(byref(vector))
    return text.decode(errors="replace").rstrip("\0\n")
