"""One peer, one request after the other: h11 knows the protocol, this the deadlines.

A request's clock starts with its first byte, and an answer's with each piece of it: what is slow and moves on
is served, what stands still is answered (while it asks) or left (while it is answered).

We close with part of a refused request unread. On an AF_UNIX socket that is safe: Linux lets the peer read
what was sent before it reports the reset.
"""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from http import HTTPStatus

import h11
import trio

from capsuled.supervisor.control import messages, shapes
from capsuled.supervisor.control.errors import (
    BodyTooLarge,
    HeadTooLarge,
    Malformed,
    RequestTimedOut,
    UnsupportedCoding,
)
from capsuled.supervisor.control.limits import CHUNK, PIECE, Limits
from capsuled.supervisor.control.messages import Answer, Request, Streamed
from capsuled.supervisor.control.operations import Refused

Respond = Callable[[Request, ExitStack], Awaitable[Answer | Streamed]]
"""It raises nothing; what it puts on the stack is closed when its answer has ended."""


class Connection:
    """The server's end of one connection."""

    def __init__(self, stream: trio.SocketStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head)
        self._head_only = False

    async def serve(self, respond: Respond) -> None:
        """Answer requests until the peer, a deadline or a refusal ends the connection."""
        more = True
        while more:
            try:
                request = await self._request()
            except Refused as refused:
                await self.refuse(refused)
                return
            more = request is not None and await self._exchange(respond, request)
            if more:
                self._http.start_next_cycle()

    async def refuse(self, refused: Refused) -> None:
        """Say no. Nothing of this connection is read any more, so that it has to be closed then."""
        await self._send_answer(messages.refusal(refused), last=True)

    # Reading a request.

    async def _request(self) -> Request | None:
        """The next request; None when the peer has no more, or is silent for the idle limit."""
        self._head_only = False
        try:
            buffered, ended = self._http.trailing_data
            if not buffered and not ended:
                with trio.move_on_after(self._limits.idle) as idle:
                    await self._receive()
                if idle.cancelled_caught:
                    return None
            with trio.fail_after(self._limits.request):
                return await self._read_request()
        except trio.TooSlowError as exc:
            raise RequestTimedOut(
                f"cannot wait any longer: a request has to be sent within {self._limits.request:g} s"
            ) from exc
        except h11.RemoteProtocolError as exc:
            raise self._misread(exc) from exc
        except trio.BrokenResourceError:
            return None

    async def _read_request(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        taken = len(self._http.trailing_data[0])
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, reason="Continue", headers=[])
                    await self._send(self._http.send(go_on), self._limits.write)
                taken += await self._receive()
            elif isinstance(event, h11.Request):
                head = event
                self._head_only = head.method == b"HEAD"
                self._check_sizes(taken - len(self._http.trailing_data[0]), _content_length(head))
            elif isinstance(event, h11.Data):
                body += event.data
                self._check_sizes(0, len(body))
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                method, target = head.method.decode("ascii"), head.target.decode("ascii")
                return Request(method, target, bytes(body), _media(head))
            else:
                return None

    async def _receive(self) -> int:
        data = await self._stream.receive_some(CHUNK)
        self._http.receive_data(data)
        return len(data)

    def _check_sizes(self, head: int, body: int) -> None:
        # h11 bounds a head only while it is incomplete: one that arrives whole may have grown past it.
        if head > self._limits.head:
            raise self._head_too_large()
        if body > self._limits.body:
            raise BodyTooLarge(
                f"cannot take a body of {body} bytes or more: {self._limits.body} are allowed",
                {"limit": self._limits.body},
            )

    def _head_too_large(self) -> HeadTooLarge:
        limit = self._limits.head
        return HeadTooLarge(
            f"cannot take a head of more than {limit} bytes: send fewer or shorter headers", {"limit": limit}
        )

    def _misread(self, exc: h11.RemoteProtocolError) -> Refused:
        if exc.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            return self._head_too_large()
        if exc.error_status_hint == HTTPStatus.NOT_IMPLEMENTED:
            return UnsupportedCoding(f"cannot read the request: {exc}")
        return Malformed(f"cannot read the request as HTTP/1.1: {exc}")

    # Answering it.

    async def _exchange(self, respond: Respond, request: Request) -> bool:
        """Answer `request`. False when the connection cannot be used again."""
        sent = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leave_with_peer, nursery.cancel_scope)
            with ExitStack() as held:
                answer = await respond(request, held)
                if isinstance(answer, Streamed):
                    sent = await self._send_stream(answer)
                else:
                    sent = await self._send_answer(answer)
            nursery.cancel_scope.cancel()
        return sent and self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _leave_with_peer(self, answering: trio.CancelScope) -> None:
        """Cancel `answering` when the peer hangs up: nobody waits for a capsule or follows it any more.

        A peer that only closed its sending half wants its answer, and one that sends its next request
        meanwhile has hung up all the same when it closes.
        """
        # Nothing is read to find out: bytes of a next request stay in the kernel, which bounds them. Asked
        # for no event, epoll(7) still reports EPOLLHUP: after close(2), not after half a shutdown(2). And
        # what epoll has to report makes it readable itself.
        with select.epoll() as hung_up:
            hung_up.register(self._stream.socket.fileno(), 0)
            await trio.lowlevel.wait_readable(hung_up.fileno())
        answering.cancel()

    async def _send_answer(self, answer: Answer, *, last: bool = False) -> bool:
        headers = [("Content-Type", answer.media), ("Content-Length", str(len(answer.body))), *answer.headers]
        if last:
            headers.append(("Connection", "close"))
        data = self._head(answer.status, headers)
        if not self._head_only:
            data += self._http.send(h11.Data(data=answer.body))
        data += self._http.send(h11.EndOfMessage())
        return await self._send(data, self._limits.write)

    async def _send_stream(self, answer: Streamed) -> bool:
        """Chunks (or, for HTTP/1.0, bytes until the end) of whole lines, sent as they come."""
        data = self._head(HTTPStatus.OK, [("Content-Type", shapes.JSON_LINES)])
        batch = answer.backlog
        while True:
            if batch:
                data += self._http.send(h11.Data(data=batch))
            if not await self._send(data, self._limits.stalled):
                return False
            batch, data = await answer.follower.receive(), b""
            if not batch:
                return await self._send(self._http.send(h11.EndOfMessage()), self._limits.stalled)

    def _head(self, status: int, headers: list[tuple[str, str]]) -> bytes:
        reason = HTTPStatus(status).phrase
        return self._http.send(h11.Response(status_code=int(status), reason=reason, headers=headers))

    async def _send(self, data: bytes, seconds: float) -> bool:
        """Send `data`, each piece within `seconds`. False when the peer does not take it."""
        for start in range(0, len(data), PIECE):
            with trio.move_on_after(seconds) as deadline:
                try:
                    await self._stream.send_all(data[start : start + PIECE])
                except trio.BrokenResourceError:
                    return False
            if deadline.cancelled_caught:
                return False
        return True


def _media(head: h11.Request) -> str:
    """The media type of the body, without its parameters, in lower case."""
    for name, value in head.headers:
        if name == b"content-type":
            return value.decode("latin-1").partition(";")[0].strip().lower()
    return ""


def _content_length(head: h11.Request) -> int:
    # h11 has checked that it is digits, and the same when it is there more than once.
    return next((int(value) for name, value in head.headers if name == b"content-length"), 0)
