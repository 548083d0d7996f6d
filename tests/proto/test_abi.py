"""The guest ABI: what a guest may import, as the loader, the worker and the C header have it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from capsuled.proto import abi, control, header, refusals

from ..support.guests import BY_NAME

HEADER = Path(__file__).resolve().parents[2] / "proto/capsule.h"

IMPORTS = """
ipc_publish         topic topic_len payload payload_len                   -> i32
ipc_publish_caused  topic topic_len payload payload_len cause:i64         -> i32
ipc_request         topic topic_len payload payload_len timeout_ms        -> i32
ipc_reply           request:i64 payload payload_len                       -> i32
ipc_decline         request:i64 reason reason_len                         -> i32
ipc_subscribe       pattern pattern_len                                   -> i32
ipc_unsubscribe     handle                                                -> i32
ipc_poll            handle buf cap                                        -> i32
ipc_recv            handle timeout_ms buf cap                             -> i32
ipc_interceptors    buf cap                                               -> i32
config_get          key key_len buf cap                                   -> i32
error_message       buf cap                                               -> i32
needed                                                                    -> i32
log                 level text text_len                                   -> i32
clock_ms                                                                  -> i64
monotonic_ns                                                              -> i64
random              buf len                                               -> i32
ready                                                                     -> i32
cancelled                                                                 -> i32
"""
"""Version 1, which guests are compiled for: what is added breaks none of them, any other change is a new version.
Parameters are i32 where not said."""

USES = """
#include "capsule.h"

int32_t use(void *buf);
int32_t use(void *buf)
{
    if (capsule_ipc_publish("a", 1, buf, 1) == -CAPSULE_ENOTCAPABLE)
        return capsule_log(CAPSULE_LOG_WARN, "x", 1);
    return capsule_ipc_publish_caused("a", 1, buf, 1, UINT64_C(7)) + (int32_t)capsule_clock_ms();
}
"""


def written(function: abi.Function) -> str:
    """A function as a line of `IMPORTS`, with single blanks."""
    params = [f"{p.name}:{p.type}" if p.type != "i32" else p.name for p in function.params]
    return " ".join([function.name, *params, "->", function.result])


def test_table_is_version_1() -> None:
    """The table has these functions in this order, with these parameters and results, and no others."""
    assert abi.VERSION == 1
    lines = [" ".join(line.split()) for line in IMPORTS.strip().splitlines()]
    assert [written(function) for function in abi.FUNCTIONS] == lines


def test_signature_is_as_webassembly_has_it() -> None:
    """A signature is the types of the parameters and those of the results."""
    caused = BY_NAME["ipc_publish_caused"]
    assert caused.signature == (("i32", "i32", "i32", "i32", "i64"), ("i32",))
    assert BY_NAME["clock_ms"].signature == ((), ("i64",))


def test_every_function_is_found_by_name() -> None:
    """No two functions share a name, and each is found by its own."""
    assert tuple(BY_NAME.values()) == abi.FUNCTIONS
    assert all(name == function.name for name, function in BY_NAME.items())


@pytest.mark.parametrize("function", abi.FUNCTIONS, ids=lambda function: function.name)
def test_types_in_c_are_as_wide(function: abi.Function) -> None:
    """In C a parameter has the width that it has in WebAssembly: pointers and uint32_t are i32."""
    for param in function.params:
        assert (param.c == "uint64_t") == (param.type == "i64")
        assert param.c in ("uint32_t", "uint64_t") or param.c.endswith("*")


def test_limits() -> None:
    """A log text has 64 KiB at most, and a receive waits for 60 seconds at most."""
    assert (abi.MAX_LOG_TEXT, abi.MAX_RECV_TIMEOUT_MS) == (65_536, 60_000)


def test_header_is_fresh() -> None:
    """The header that guests are compiled with is what the table gives; scripts/generate writes it."""
    assert HEADER.read_text() == header.text()


def test_header_has_every_name() -> None:
    """Each function, error and log level of the tables is declared, under its name."""
    lines = header.text().splitlines()
    for function in abi.FUNCTIONS:
        assert f'CAPSULE_IMPORT("{function.name}")' in lines
    for errno in refusals.Errno:
        assert f"#define CAPSULE_E{errno.name} {errno.value}" in lines
    for level, name in enumerate(control.LOG_LEVELS):
        assert f"#define CAPSULE_LOG_{name.upper()} {level}" in lines
    assert "#define CAPSULE_ABI_VERSION 1" in lines


@pytest.mark.parametrize("language", ["c", "c++"])
def test_header_compiles(tmp_path: Path, language: str) -> None:
    """A compiler for C and one for C++ take the header, with all warnings as errors."""
    compiler = shutil.which("gcc" if language == "c" else "g++")
    if compiler is None:
        pytest.skip(f"no GNU compiler for {language}")
    source = tmp_path / "use.c"
    source.write_text(USES)
    # Only compilers for WebAssembly know import_module, import_name and export_name.
    warnings = ["-Wall", "-Wextra", "-Wstrict-prototypes", "-Werror", "-Wno-attributes"]
    if language == "c++":
        warnings.remove("-Wstrict-prototypes")
    run = subprocess.run(
        [compiler, "-fsyntax-only", *warnings, "-x", language, f"-I{HEADER.parent}", str(source)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
