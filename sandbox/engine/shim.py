"""The shim: a WebAssembly module of ours between guest and host, generated from the signatures it serves.

wasmer converts each argument of a host call into a Python object and keeps it until the guest's outermost
call returns: 217 bytes a call, for ever in a capsule that lives in `run`. So the guest calls the shim instead.
A shim function stores its arguments in the shim's own memory, 8 bytes each and zero-extended, calls a host
function that has neither parameters nor result, and returns what that left in the first slot. Measured:
260 ns a call instead of 825, 8 bytes kept instead of 217 (and those go with the drain, see `wasmer`).
"""

from __future__ import annotations

from collections.abc import Sequence

from capsuled.sandbox.engine.binary import MAGIC, leb128, value_code
from capsuled.sandbox.engine.seam import Signature

HOST = "host"
"""Import module of the host functions; they are named by their number in text."""
MEMORY = "arguments"
SLOT = 8

_I32_CONST, _LOCAL_GET, _CALL, _END = 0x41, 0x20, 0x10, 0x0B
_I64_STORE, _I64_LOAD = bytes((0x37, 3, 0)), bytes((0x29, 3, 0))  # alignment 2**3, offset 0
_I64_EXTEND_I32_U, _I32_WRAP_I64 = 0xAD, 0xA7


def build(signatures: Sequence[Signature]) -> bytes:
    """A module that exports function `i` under the name `str(i)` with signature `i`, and `MEMORY`."""
    count = len(signatures)
    types = [_function_type(((), ()))] + [_function_type(signature) for signature in signatures]
    imports = [_name(HOST) + _name(str(i)) + bytes((0, 0)) for i in range(count)]
    functions = [leb128(i + 1) for i in range(count)]
    exports = [_name(str(i)) + b"\0" + leb128(count + i) for i in range(count)]
    exports.append(_name(MEMORY) + b"\x02\0")
    bodies = [_body(i, signature) for i, signature in enumerate(signatures)]
    return MAGIC + b"".join(
        (
            _section(1, types),
            _section(2, imports),
            _section(3, functions),
            _section(5, [bytes((1, 1, 1))]),
            _section(7, exports),
            _section(10, bodies),
        )
    )


def _body(index: int, signature: Signature) -> bytes:
    params, results = signature
    code = bytearray((0,))  # no locals
    for i, kind in enumerate(params):
        code += bytes((_I32_CONST, *_signed(i * SLOT), _LOCAL_GET, *leb128(i)))
        if kind == "i32":
            code.append(_I64_EXTEND_I32_U)
        code += _I64_STORE
    code += bytes((_CALL, *leb128(index)))
    if results:
        code += bytes((_I32_CONST, 0)) + _I64_LOAD
        if results[0] == "i32":
            code.append(_I32_WRAP_I64)
    code.append(_END)
    return leb128(len(code)) + bytes(code)


def _signed(value: int) -> bytes:
    """LEB128 of a small signed number: one byte holds up to 63."""
    return bytes((value,)) if value < 0x40 else bytes((value & 0x7F | 0x80, value >> 7))


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
