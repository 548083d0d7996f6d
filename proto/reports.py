"""Reports: what a worker and the supervisor tell each other over the control descriptor. One packet each.

The supervisor believes a report only about the worker that sent it, and only as a claim: the exit status,
the signal and the kernel's files are the evidence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import cbor2

from capsuled.proto import payloads

MAX_BYTES = 64 * 1024
"""Largest packet: two texts of `MAX_TEXT` characters, which may need four bytes each, and room to spare."""

MAX_TEXT = 4 * 1024
"""Longest message or backtrace in a report, in characters."""


class ReportError(ValueError):
    """A packet that is not a report."""


@dataclass(frozen=True)
class Cloned:
    """The worker goes on in a process of this pid, in namespaces of its own, once it is told to `Proceed`.

    It comes from the process that was started, which ends with status 0 now.
    """

    pid: int
    kind: ClassVar[str] = "cloned"


@dataclass(frozen=True)
class Listening:
    """The worker is sealed as far as its first stage goes and listens on its edge: connect now."""

    kind: ClassVar[str] = "listening"


@dataclass(frozen=True)
class Started:
    """The module is loaded and the guest's first instruction follows."""

    engine: str
    kind: ClassVar[str] = "started"


@dataclass(frozen=True)
class Ready:
    """The guest has called `ready`."""

    kind: ClassVar[str] = "ready"


How = Literal["returned", "exit", "trap", "load-error", "memory", "failed", "unsealed"]
"""`returned` from `run`; `exit` by proc_exit; `failed`: the worker itself, not its guest; `unsealed`: a step of its
sealing, so that no guest ever ran."""

SEALING_FAILED = 97
"""Exit status of a worker that could not seal itself; its guest was never started."""

STATUS: dict[How, int] = {
    "returned": 0,
    "trap": 70,
    "load-error": 65,
    "memory": 77,
    "failed": 71,
    "unsealed": SEALING_FAILED,
}
"""Exit status of a worker that reports so; `exit` is missing, for its status is the guest's own code modulo 256.
A report is believed when the status agrees. 65, 70 and 71 as in sysexits.h(3head)."""


@dataclass(frozen=True)
class Ended:
    """The guest has ended, and the process ends with it."""

    how: How
    code: int = 0
    trap: str = ""
    message: str = ""
    backtrace: str = ""
    kind: ClassVar[str] = "ended"

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise ReportError(f"an ended report says how {self.how!r}")


@dataclass(frozen=True)
class Cancel:
    """From the supervisor: end by yourself; you will be killed `deadline` seconds from now."""

    deadline: float
    kind: ClassVar[str] = "cancel"


@dataclass(frozen=True)
class Proceed:
    """From the supervisor: it knows the process that was `Cloned`."""

    kind: ClassVar[str] = "proceed"


Report = Cloned | Listening | Started | Ready | Ended
Word = Cancel | Proceed
"""What the supervisor says."""

_KINDS: dict[str, type[Any]] = {
    each.kind: each for each in (Cloned, Listening, Started, Ready, Ended, Cancel, Proceed)
}


def encode(report: Report | Word) -> bytes:
    """The packet of a report."""
    return cbor2.dumps({"kind": report.kind, **asdict(report)})


def decode(packet: bytes) -> Report | Word:
    """The report in a packet. Raises `ReportError` for anything else, whatever it is."""
    if len(packet) > MAX_BYTES:
        raise ReportError(f"a packet of {len(packet)} bytes: {MAX_BYTES} at most")
    try:
        fields: Any = payloads.decode(packet)
        report = _KINDS[fields.pop("kind")](**fields)
    except (cbor2.CBORError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
        raise ReportError(f"not a report: {exc}") from exc
    for name, value in asdict(report).items():
        wanted = _TYPES[name]
        if not isinstance(value, wanted) or (isinstance(value, str) and len(value) > MAX_TEXT):
            raise ReportError(f"the field {name} of a {report.kind} report has a value that does not fit it")
    return report  # type: ignore[no-any-return]


_TYPES: dict[str, type | tuple[type, ...]] = {
    "how": str,
    "code": int,
    "pid": int,
    "trap": str,
    "message": str,
    "backtrace": str,
    "engine": str,
    "deadline": (int, float),
}


def cut(text: str) -> str:
    """`text` at its longest in a report; what is missing is said."""
    if len(text) <= MAX_TEXT:
        return text
    return text[: MAX_TEXT - 20] + f"… ({len(text)} in all)"
