"""The supervisor's own log: one line of ``key=value`` for each fact, or one of JSON, to standard error.

    time=2026-01-31T12:00:00.000Z level=info logger=capsuled.capsule event=exited capsule=ping reason=trap

The fact is `event`, a word or a sentence; who logs adds keys with `extra=fields(…)`. What a guest or a peer has said
is a value and nothing else: one that could be taken for more is quoted as JSON quotes, which is what readers of logfmt
undo. Where standard error is the journal (systemd.exec(5), JOURNAL_STREAM) the line begins with its priority as in
sd-daemon(3), and has no time, for the journal stamps it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import cast

from capsuled.supervisor.clock import rfc3339
from capsuled.supervisor.configuration import Log
from capsuled.supervisor.control import shapes
from capsuled.supervisor.control.shapes import Json

WAITING_LINES = 10_000
"""Of our own log, while nobody reads our standard error; more are lost, and counted."""

LAST_LINES_SECONDS = 1.0
"""How long the end waits until the last lines have been taken."""

STDERR = 2

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}

_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn"}
"""Words of our levels; all above is an error."""

PRIORITIES: Mapping[str, int] = {"trace": 7, "debug": 7, "info": 6, "warn": 4, "error": 3}
"""Of syslog(3): debug, informational, warning, error."""

_BARE = re.compile(r"""[^\s"=\\]+""")


def fields(**facts: Json) -> Mapping[str, Mapping[str, Json]]:
    """For the `extra` of a logging call: more keys of its line."""
    return {"fields": facts}


def text(facts: Mapping[str, Json]) -> str:
    """``key=value`` pairs on one line. Keys are ours, and are written as they are."""
    return " ".join(f"{key}={_value(value)}" for key, value in facts.items())


def _value(value: Json) -> str:
    if not isinstance(value, str):
        value = json.dumps(value, separators=(",", ":"))
    if value.isprintable() and _BARE.fullmatch(value):
        return value
    # What prints is left to people's eyes; the rest is escaped as JSON does, half surrogates included.
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in quoted)


class Formatter(logging.Formatter):
    """One record, one line."""

    def __init__(self, form: str, *, to_journal: bool = False) -> None:
        super().__init__()
        self._json = form == "json"
        self._to_journal = to_journal

    def format(self, record: logging.LogRecord) -> str:
        level = _NAMES.get(record.levelno, "error" if record.levelno > logging.WARNING else "debug")
        stamp = rfc3339(datetime.fromtimestamp(record.created, timezone.utc))
        own: dict[str, Json] = {} if self._to_journal else {"time": stamp}
        own |= {"level": level, "logger": record.name, "event": record.getMessage()}
        more = cast("Mapping[str, Json]", getattr(record, "fields", {}))
        facts = {**own, **{key: value for key, value in more.items() if key not in own}}
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        line = shapes.line(facts).decode().rstrip("\n") if self._json else text(facts)
        return f"<{PRIORITIES[level]}>{line}" if self._to_journal else line


def is_journal(fd: int, stream: str | None) -> bool:
    """Whether a descriptor is the one that `stream`, the value of JOURNAL_STREAM, tells of: device and inode."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


@contextmanager
def to_stderr(using: Log) -> Generator[None, None, None]:
    """Until the end of the block, all that is logged goes to standard error."""
    to_journal = is_journal(STDERR, os.environ.get("JOURNAL_STREAM"))
    handler = Patient(STDERR, Formatter(using.format, to_journal=to_journal))
    logging.basicConfig(level=_LEVELS[using.level], handlers=[handler])
    try:
        yield
    finally:
        handler.finish()


class Patient(logging.Handler):
    """Lines to a descriptor, by a thread: a reader that has stopped to read holds nobody up."""

    def __init__(self, fd: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(WAITING_LINES)
        self._lost = 0
        # A daemon, so that one which waits for its reader does not outlive us.
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record) + "\n"
        if self._lost:
            lines = self.format(_lost(self._lost)) + "\n" + lines
        try:
            self._lines.put_nowait(lines.encode(errors="backslashreplace"))
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def finish(self) -> None:
        """Write what waits, as far as it is read now."""
        deadline = time.monotonic() + LAST_LINES_SECONDS
        with suppress(queue.Full):
            self._lines.put(None, timeout=LAST_LINES_SECONDS)
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            # Not by sys.stderr, whose lock a write that hangs would hold when the interpreter ends.
            with suppress(OSError):  # a closed one: there is nobody to tell
                while line:
                    line = line[os.write(self._fd, line) :]


def _lost(count: int) -> logging.LogRecord:
    told = f"{count} lines are lost: nobody has read them"
    record = logging.LogRecord("capsuled", logging.WARNING, "", 0, told, None, None)
    record.fields = {"lost": count}
    return record
