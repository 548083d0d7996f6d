"""The shim: a WebAssembly module of ours between guest and host, generated from the signatures it serves.

wasmer converts each argument of a host call into a Python object and keeps it until the guest's outermost
call returns: 217 bytes a call, for ever in a capsule that lives in `run`. So the guest calls the shim, whose
functions store their arguments in a memory that only shim and host have, 8 bytes each and zero-extended,
call a host function that has neither parameters nor result, and return what that left in the first slot.
Measured: 260 ns a call instead of 825, 8 bytes kept instead of 217 (and those go with the drain: `wasmer`).
"""

from __future__ import annotations

from collections.abc import Sequence

from capsuled.sandbox.engine.binary import value_code
from capsuled.sandbox.engine.reader import CODE, EXPORT, FUNCTION, IMPORT, MAGIC, TYPE, leb128
from capsuled.sandbox.engine.seam import Signature

HOST = "host"
"""Import module of the memory, and of the host functions, which are named by their number in text."""
MEMORY = "arguments"
PAGES = 1
"""Least and most pages of that memory: room for 8192 arguments, more than a WebAssembly function may have."""
SLOT = 8

_I32_CONST, _LOCAL_GET, _CALL, _END = 0x41, 0x20, 0x10, 0x0B
_I64_STORE, _I64_LOAD = bytes((0x37, 3)), bytes((0x29, 3))  # alignment 2**3; the offset follows
_I64_EXTEND_I32_U, _I32_WRAP_I64 = 0xAD, 0xA7


def build(signatures: Sequence[Signature]) -> bytes:
    """A module that exports function `i` under the name `str(i)` with signature `i`."""
    count = len(signatures)
    types = [_function_type(((), ()))] + [_function_type(signature) for signature in signatures]
    imports = [_name(HOST) + _name(str(i)) + bytes((0, 0)) for i in range(count)]
    imports.append(_name(HOST) + _name(MEMORY) + bytes((2, 1, PAGES, PAGES)))
    functions = [leb128(i + 1) for i in range(count)]
    exports = [_name(str(i)) + b"\0" + leb128(count + i) for i in range(count)]
    bodies = [_body(i, signature) for i, signature in enumerate(signatures)]
    return MAGIC + b"".join(
        (
            _section(TYPE, types),
            _section(IMPORT, imports),
            _section(FUNCTION, functions),
            _section(EXPORT, exports),
            _section(CODE, bodies),
        )
    )


def _body(index: int, signature: Signature) -> bytes:
    params, results = signature
    code = bytearray((0,))  # no locals
    for i, kind in enumerate(params):
        code += bytes((_I32_CONST, 0, _LOCAL_GET, *leb128(i)))
        if kind == "i32":
            code.append(_I64_EXTEND_I32_U)
        code += _I64_STORE + leb128(i * SLOT)
    code += bytes((_CALL, *leb128(index)))
    if results:
        code += bytes((_I32_CONST, 0)) + _I64_LOAD + leb128(0)
        if results[0] == "i32":
            code.append(_I32_WRAP_I64)
    code.append(_END)
    return leb128(len(code)) + bytes(code)


def _function_type(signature: Signature) -> bytes:
    params, results = signature
    encoded = [leb128(len(part)) + bytes(value_code(kind) for kind in part) for part in (params, results)]
    return b"\x60" + b"".join(encoded)


def _section(identity: int, entries: Sequence[bytes]) -> bytes:
    content = leb128(len(entries)) + b"".join(entries)
    return bytes((identity,)) + leb128(len(content)) + content


def _name(text: str) -> bytes:
    data = text.encode()
    return leb128(len(data)) + data
