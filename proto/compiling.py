"""What the supervisor tells a compiler process, and how that answers.

The order, with the module in it, comes on the process's standard input, up to its end: a pipe, into which the
supervisor writes when the process is where it is limited, and not before. Its standard output is the blob (`blob`), or
the sentence that says why there is none; which of the two, its exit status says. Where it confines itself in
namespaces, it goes on in a clone, and a line with the pid of that comes before all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cbor2

from capsuled.proto.order import Confinement

VERSION = 1

DONE = 0
"""Exit status: the output is a blob."""
REJECTED = 65
"""The module is not one that can run: the output is a sentence for its author. As `reports.STATUS`."""
FAILED = 71
"""The compiler itself has failed: the output is a sentence with the name of the error."""
NO_MEMORY = 77
"""It has reached its `process_memory`."""
SEALING_FAILED = 97
"""It could not seal itself, and has not looked at the module; the output names the step."""

CLONE = b"clone "
"""How the line begins that tells of a clone."""

MAX_CLONE_LINE = 24
"""Bytes of the line with the clone's pid: a pid has 22 bits (proc(5), pid_max)."""

MAX_SENTENCE = 4 * 1024
"""Characters of a sentence: what a report of a worker holds, too."""


class CompileOrderError(ValueError):
    """Bytes that are not an order to a compiler of this version."""


@dataclass(frozen=True)
class CompileOrder:
    """One module to compile, and what the process that does it may use up."""

    engine: str
    """`wasmer`, `wasmtime` or `auto`."""
    module_hash: str
    """`sha256:` and hex, as the manifest has it; empty: any."""
    memory: int
    """Bytes of linear memory that the guest may have."""
    process_memory: int
    """Bytes of data that the process may have."""
    cpu_seconds: int
    """Processor time of the process, over all of its threads."""
    confinement: Confinement
    """As a worker's: it is no less trusted, and no more."""
    module: bytes


def encode(order: CompileOrder) -> bytes:
    """The order's bytes."""
    return cbor2.dumps({"version": VERSION, **asdict(order)})


def decode(data: bytes) -> CompileOrder:
    """The order in `data`. Raises `CompileOrderError`, which guards against mixed versions alone."""
    try:
        fields: dict[str, Any] = cbor2.loads(data)
        version = fields.pop("version")
        if version != VERSION:
            raise CompileOrderError(
                f"the compile order has version {version}; this compiler reads {VERSION}: restart the supervisor"
            )
        return CompileOrder(confinement=Confinement(**fields.pop("confinement")), **fields)
    except (cbor2.CBORError, AttributeError, KeyError, TypeError) as exc:
        raise CompileOrderError(f"not a compile order: {exc}") from exc


def clone_line(pid: int) -> bytes:
    """The line that tells of a clone, from the process that ends now; the pid is the one that it sees."""
    return CLONE + b"%d\n" % pid


def split_clone_line(output: bytes) -> tuple[int, bytes] | None:
    """The pid, and what follows the line; None while the line is not whole. Raises ValueError where it is no such line.

    The process writes it before it has seen the module.
    """
    line, end, _ = output[:MAX_CLONE_LINE].partition(b"\n")
    if not end and len(line) < MAX_CLONE_LINE and line[:6] == CLONE[: len(line)]:
        return None
    word, _, number = line.partition(b" ")
    if not end or word != b"clone" or not number.isdigit():
        raise ValueError(f"{line!r} tells of no clone")
    return int(number), output[len(line) + 1 :]


def cut(sentence: str) -> str:
    """A sentence at its longest."""
    return sentence if len(sentence) <= MAX_SENTENCE else sentence[: MAX_SENTENCE - 1] + "…"
