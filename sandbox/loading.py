"""The module before a compiler sees it: is it the one that is meant, and does it ask only for what is there?

Every refusal names the thing, what was found and what would be right: its reader is the capsule's author.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from capsuled.proto import abi
from capsuled.sandbox import wasi
from capsuled.sandbox.engine.binary import Import, ModuleInfo, signature_text
from capsuled.sandbox.engine.seam import ModuleRejected, Signature

NO_SIGNATURE: Signature = ((), ())
"""Of the exports that the worker calls."""

Offered = Mapping[tuple[str, str], Signature]
"""Host functions by import module and name."""

OFFERED: Offered = {**{(abi.MODULE, each.name): each.signature for each in abi.FUNCTIONS}, **wasi.SIGNATURES}
"""All that a guest may import."""


def verify(wasm: bytes, expected: str) -> None:
    """Raise `ModuleRejected` unless the module has this hash, ``sha256:`` and hex; an empty one allows any."""
    found = f"sha256:{hashlib.sha256(wasm).hexdigest()}"
    if expected and found != expected:
        raise ModuleRejected(
            f"the module's hash is {found}; the manifest says {expected}: build it anew, or write the hash that it has"
        )


def entry_of(info: ModuleInfo, offered: Offered) -> str:
    """The export to call: `run`, or WASI's `_start` where there is no `run`.

    Raises `ModuleRejected` for a module that imports what is not offered, or exports neither.
    """
    _check_imports(info.imports, offered)
    kind, _ = info.exports.get(abi.MEMORY_EXPORT, ("nothing", None))
    if kind != "memory":
        raise ModuleRejected(
            f"it exports {kind} as '{abi.MEMORY_EXPORT}': export its linear memory by that name"
        )
    entry = abi.RUN_EXPORT if abi.RUN_EXPORT in info.exports else abi.START_EXPORT
    if entry not in info.exports:
        raise ModuleRejected(
            f"it exports neither '{abi.RUN_EXPORT}' nor '{abi.START_EXPORT}': export one as () -> ()"
        )
    _check_export(info, entry)
    if abi.INITIALIZE_EXPORT in info.exports:
        _check_export(info, abi.INITIALIZE_EXPORT)
    return entry


def has_initialize(info: ModuleInfo) -> bool:
    """Whether the module is a WASI reactor, whose `_initialize` is called first."""
    return abi.INITIALIZE_EXPORT in info.exports


def _check_imports(imports: Iterable[Import], offered: Offered) -> None:
    modules = sorted({module for module, _ in offered})
    for each in imports:
        what = f"'{each.module}.{each.name}'"
        if each.kind != "function" or each.signature is None:
            raise ModuleRejected(f"it imports the {each.kind} {what}: only functions can be imported")
        expected = offered.get((each.module, each.name))
        if expected is None:
            raise ModuleRejected(
                f"it imports {what}, which is not there: see capsule.h; modules are {modules}"
            )
        if each.signature != expected:
            raise ModuleRejected(
                f"it imports {what} as {signature_text(each.signature)}; it is {signature_text(expected)}"
            )


def _check_export(info: ModuleInfo, name: str) -> None:
    kind, signature = info.exports[name]
    if kind != "function" or signature is None:
        raise ModuleRejected(f"it exports the {kind} '{name}': that name is for a function () -> ()")
    if signature != NO_SIGNATURE:
        raise ModuleRejected(f"it exports '{name}' as {signature_text(signature)}; it must be () -> ()")
