"""The C header of the guest ABI, written from the table in `abi`."""

from __future__ import annotations

from capsuled.proto import abi, control, refusals

_HEAD = f"""\
/* capsule.h: the host functions of capsuled's guest ABI, version {abi.VERSION}.
 * Generated from proto/abi.py by scripts/generate; do not edit.
 *
 * Every function returns zero, a count or a handle on success and a negated WASI errno on refusal
 * (-CAPSULE_E…); capsule_error_message() then tells the rule and the value in a sentence.
 * Text is UTF-8 with a length and no terminating zero. Payloads are one CBOR item (RFC 8949).
 */
#ifndef CAPSULE_H
#define CAPSULE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define CAPSULE_ABI_VERSION {abi.VERSION}
#define CAPSULE_IMPORT(name) __attribute__((import_module("{abi.MODULE}"), import_name(name)))
#define CAPSULE_EXPORT(name) __attribute__((export_name(name), visibility("default")))
"""

_TAIL = """
#ifdef __cplusplus
}
#endif

#endif
"""

_C_RESULTS = {"i32": "int32_t", "i64": "int64_t"}


def text() -> str:
    """The whole header."""
    parts = [_HEAD, "\n/* Refusals, to be compared with a negated result. */\n"]
    parts += [f"#define CAPSULE_E{errno.name} {errno.value}\n" for errno in refusals.Errno]
    parts.append("\n/* Levels of capsule_log(). */\n")
    parts += [
        f"#define CAPSULE_LOG_{name.upper()} {level}\n" for level, name in enumerate(control.LOG_LEVELS)
    ]
    parts += [_declaration(function) for function in abi.FUNCTIONS]
    parts.append(_TAIL)
    return "".join(parts)


def _declaration(function: abi.Function) -> str:
    params = ", ".join(f"{p.c}{'' if p.c.endswith('*') else ' '}{p.name}" for p in function.params)
    return (
        f"\n/* Returns {function.meaning}. */\n"
        f'CAPSULE_IMPORT("{function.name}")\n'
        f"{_C_RESULTS[function.result]} capsule_{function.name}({params or 'void'});\n"
    )
