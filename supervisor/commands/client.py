"""HTTP to the control socket, by the standard library alone. Its errors carry the command's exit code."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import NamedTuple, cast
from urllib.parse import quote, urlencode

from capsuled.proto.control import Exit
from capsuled.supervisor.control.shapes import JSON, JSON_LINES, OPENMETRICS, Json, JsonObject

ANSWER_SECONDS = 30.0
"""For an answer that waits for nothing; a supervisor that needs longer is stuck."""

GRACE_SECONDS = 5.0
"""On top of the time that a request waits in the supervisor, whose own answer "timed out" says more."""

CONNECT_SECONDS = 5.0
"""For a place in the supervisor's backlog; one that accepts nobody for so long is stopped or stuck."""

AT_ONCE = 16
"""Connections that one command opens at once: a quarter of what the supervisor gives to all."""

CHUNK = 64 * 1024
"""Bytes taken from a stream at once."""

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of one answer, far more than any is."""

ROOT = 0


class CannotAsk(Exception):
    """No answer; the message is a sentence for the operator."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


class Answer(NamedTuple):
    status: int
    value: JsonObject
    """An empty object when the body is none."""
    lines: Sequence[JsonObject] = ()
    """The lines of an answer that is a list of them."""
    text: str = ""
    """The body of an answer that is text for other programs."""


class Ask(NamedTuple):
    """One request. `waits` is how long the supervisor may take on purpose, None for ever, 0 not at all."""

    method: str
    path: str
    query: Mapping[str, str] = {}
    waits: float | None = 0.0
    body: bytes | None = None
    media: str = JSON

    @property
    def target(self) -> str:
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path

    @property
    def timeout(self) -> float | None:
        return None if self.waits is None else self.waits + (GRACE_SECONDS if self.waits else ANSWER_SECONDS)


def socket_path(env: Mapping[str, str], uid: int) -> str:
    """The control socket: what `CAPSULED_SOCKET` names, or else where a supervisor of that user puts it."""
    if given := env.get("CAPSULED_SOCKET"):
        return given
    if uid == ROOT:
        return "/run/capsuled/control.sock"
    runtime = env.get("XDG_RUNTIME_DIR", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    # /tmp is safe to look in: the supervisor tells the peer apart, not the peer the supervisor.
    folder = f"{runtime}/capsuled" if runtime.startswith("/") else f"/tmp/capsuled-{uid}"
    return f"{folder}/control.sock"


def capsule_path(name: str, *rest: str) -> str:
    return "/".join(("/v1/capsules", quote(name, safe=""), *rest))


class Client:
    """Asks the supervisor at one socket. Each request has a connection of its own."""

    def __init__(self, path: str) -> None:
        self._path = path

    def ask(self, ask: Ask) -> Answer:
        with self._sent(ask) as pending:
            return pending.answer()

    def ask_all(self, asks: Sequence[Ask]) -> Iterator[Answer | CannotAsk]:
        """The answers in the order of `asks`. A wave of them is sent before the first answer is awaited."""
        for start in range(0, len(asks), AT_ONCE):
            with ExitStack() as stack:
                wave: list[_Pending | CannotAsk] = []
                for ask in asks[start : start + AT_ONCE]:
                    try:
                        wave.append(stack.enter_context(self._sent(ask)))
                    except CannotAsk as error:
                        wave.append(error)
                for pending in wave:
                    try:
                        yield pending if isinstance(pending, CannotAsk) else pending.answer()
                    except CannotAsk as error:
                        yield error

    @contextmanager
    def follow(self, ask: Ask) -> Generator[Answer | Stream, None, None]:
        """A stream that is open, or the answer that says why it is not."""
        with self._sent(ask) as pending:
            yield pending.stream()

    @contextmanager
    def _sent(self, ask: Ask) -> Generator[_Pending, None, None]:
        with ExitStack() as opened:
            yield _Pending(opened, self._path, ask)


class Stream:
    """Lines of JSON as they come. The supervisor ends them properly, or `CannotAsk` says that it didn't."""

    def __init__(self, response: http.client.HTTPResponse, sock: socket.socket) -> None:
        self._response = response
        self._sock = sock
        self._waiting = b""

    def line(self, timeout: float | None) -> JsonObject | None:
        """The next line; None at the end. Raises TimeoutError when it takes longer than `timeout` seconds."""
        try:
            self._sock.settimeout(timeout)
            while b"\n" not in self._waiting:
                # Not readline(), which takes a connection that breaks off for the end of the stream.
                data = self._response.read1(CHUNK)
                if not data:
                    return None
                self._waiting += data
            raw, _, self._waiting = self._waiting.partition(b"\n")
            return _object(raw)
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as exc:
            raise CannotAsk(
                "cannot follow any longer: the supervisor closed the connection", Exit.FAILED
            ) from exc


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self.opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        """Kept apart, since http.client forgets its socket when an answer ends the connection."""

    def connect(self) -> None:
        # Blocking, with a limit of the kernel's: with a timeout of Python's, connect(2) would not wait for a
        # place in the supervisor's backlog but fail at once, and without any it would wait for ever.
        self.opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(CONNECT_SECONDS))
        self.opened.connect(self._path)
        self.opened.settimeout(self.timeout)
        self.sock = self.opened

    def close(self) -> None:
        super().close()
        self.opened.close()


class _Pending:
    """A request that was sent. What it opens is left to `opened` to close."""

    def __init__(self, opened: ExitStack, path: str, ask: Ask) -> None:
        self._opened = opened
        self._path = path
        self._connection = connection = opened.enter_context(
            closing(_UnixConnection(self._path, ask.timeout))
        )
        try:
            connection.connect()
        except OSError as exc:
            raise self._unreachable(exc) from exc
        # A refusal at accept is written and closed before we send: what is to be read then is the refusal.
        with self._answering(), suppress(BrokenPipeError, ConnectionResetError):
            headers = {} if ask.body is None else {"Content-Type": ask.media}
            connection.request(ask.method, ask.target, ask.body, headers)

    def answer(self) -> Answer:
        with self._answering():
            return _read(self._response())

    def stream(self) -> Answer | Stream:
        with self._answering():
            response = self._response()
            if response.status != http.client.OK:
                return _read(response)
            return Stream(response, self._connection.opened)

    def _response(self) -> http.client.HTTPResponse:
        # It has to be closed as well: the socket is shared by the two, and stays open until both are.
        return self._opened.enter_context(closing(self._connection.getresponse()))

    @contextmanager
    def _answering(self) -> Generator[None, None, None]:
        try:
            yield
        except TimeoutError as exc:
            raise CannotAsk(
                f"cannot wait any longer for the supervisor at {self._path}", Exit.TIMED_OUT
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise CannotAsk(
                f"cannot read an answer from {self._path}: {exc!r}: is it a capsuled supervisor?",
                Exit.FAILED,
            ) from exc

    def _unreachable(self, exc: OSError) -> CannotAsk:
        if isinstance(exc, (BlockingIOError, TimeoutError)):
            return CannotAsk(
                f"cannot get through to the supervisor at {self._path}: it accepts no connection: "
                "is it stopped, or busy?",
                Exit.FAILED,
            )
        if isinstance(exc, PermissionError):
            return CannotAsk(
                f"cannot open {self._path}: not permitted: ask as root or as the supervisor's user",
                Exit.NOT_PERMITTED,
            )
        return CannotAsk(
            f"cannot reach a supervisor at {self._path}: {os.strerror(exc.errno) if exc.errno else exc}: "
            "start capsuled, or name its socket with --socket or CAPSULED_SOCKET",
            Exit.NO_SUPERVISOR,
        )


def _timeval(seconds: float) -> bytes:
    # `struct timeval` of socket(7): seconds and microseconds.
    return struct.pack("@ll", *divmod(round(seconds * 1_000_000), 1_000_000))


def _read(response: http.client.HTTPResponse) -> Answer:
    body = response.read(MAX_ANSWER)
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    if response.getheader("Content-Type") == JSON_LINES:
        return Answer(response.status, {}, [_object(raw) for raw in body.splitlines() if raw])
    if response.getheader("Content-Type") == OPENMETRICS:
        return Answer(response.status, {}, text=body.decode(errors="backslashreplace"))
    return Answer(response.status, _object(body) if body else {})


def _object(raw: bytes) -> JsonObject:
    try:
        value = cast(Json, json.loads(raw))
    except ValueError as exc:
        raise http.client.HTTPException("not JSON") from exc
    if not isinstance(value, Mapping):
        raise http.client.HTTPException("not a JSON object")
    return value
