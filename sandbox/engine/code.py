"""The content of a blob: what was read of a module, and native code of it and of its shim.

A worker gets no module, only this: what it must know of imports and exports travels along.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import cbor2

from capsuled.proto import blob
from capsuled.proto.blob import BlobError, Head
from capsuled.sandbox.engine.binary import AnySignature, Import, ModuleInfo
from capsuled.sandbox.engine.seam import CacheRejected

_NO_BLOB = "cannot load what was compiled: {}: start the capsule again, and it is compiled anew"


class Code(NamedTuple):
    """One module, compiled."""

    info: ModuleInfo
    module: bytes
    """The engine's own format; made from the module with the limits in it."""
    shim: bytes
    """As `module`; empty where the module imports nothing."""


def pack(head: Head, code: Code) -> bytes:
    """The blob that `head`'s engine loads."""
    imports = [[each.module, each.name, each.kind, each.signature] for each in code.info.imports]
    exports = [[name, kind, signature] for name, (kind, signature) in code.info.exports.items()]
    return blob.pack(head, cbor2.dumps([imports, exports, code.module, code.shim]))


def unpack(data: bytes, expected: Head) -> Code:
    """What is in a blob that was made for `expected`. Raises `CacheRejected`, and then no engine has seen it."""
    try:
        head, content = blob.unpack(data)
    except BlobError as exc:
        raise CacheRejected(_NO_BLOB.format(exc)) from exc
    if head != expected:
        raise CacheRejected(_NO_BLOB.format(f"it is for {_shown(head)}, and this is {_shown(expected)}"))
    try:
        imports, exports, module, shim = cbor2.loads(content)
        info = ModuleInfo(
            [Import(module, name, kind, _signature(types)) for module, name, kind, types in imports],
            {name: (kind, _signature(types)) for name, kind, types in exports},
        )
    except (cbor2.CBORError, TypeError, ValueError) as exc:
        raise CacheRejected(_NO_BLOB.format(f"its content is malformed: {exc}")) from exc
    return Code(info, module, shim)


def _shown(head: Head) -> str:
    return f"{head.engine} {head.version} with {head.compiler}"


def _signature(types: Any) -> AnySignature | None:
    if types is None:
        return None
    params, results = types
    return cast(AnySignature, (tuple(params), tuple(results)))
