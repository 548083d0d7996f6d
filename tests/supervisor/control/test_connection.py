"""One peer, one request after the other: what HTTP has in store, and each bound and deadline."""

from __future__ import annotations

import logging

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from capsuled.supervisor.control.limits import Limits

from .serving import DEFAULTS, event, request, run, serving, talking

QUICK = Limits(head=4096, body=8192)
"""Small, so that going one past takes little."""

STATUS = request("GET", "/v1/status")
FOLLOW = request("GET", "/v1/events?follow")
WAIT = request("POST", "/v1/capsules/slow/start?wait=ready")


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\nhello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/status\r\n\r\n",
        b"GET  /v1/status HTTP/1.1\r\n\r\n",
        b"GET /v1/sta tus HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",
        b"GET /v1/status FTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20) + b"\r\n\r\n",
        b'{"op": "status"}\n\n',
        "GET /v1/capsules/ü HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ],
)
def test_what_is_no_http_is_answered(raw: bytes) -> None:
    """A peer that does not speak HTTP/1.1 is told so, and the connection ends."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(raw)
            reply = await talk.reply()
            assert (reply.status, reply.code) == (400, "malformed-request")
            assert reply.message.startswith("cannot read the request as HTTP/1.1: ")
            assert reply.headers["connection"] == "close"
            assert await talk.at_end()

    run(main)


def test_a_request_that_breaks_off_is_answered() -> None:
    """A peer that stops in the middle of a request, and reads on, is told."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(b"GET /v1/st")
            await talk.stream.send_eof()
            assert (await talk.reply()).code == "malformed-request"

    run(main)


def test_an_unknown_coding_is_answered() -> None:
    """A transfer coding other than chunked is 501."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(request("POST", "/v1/shutdown", "Transfer-Encoding: gzip"))
            reply = await talk.reply()
            assert (reply.status, reply.code) == (501, "unsupported-coding")
            assert not served.daemon.stopping.is_set()

    run(main)


def sized(size: int) -> bytes:
    """A request whose head has `size` bytes."""
    bare = len(request("GET", "/v1/status", "X: "))
    return request("GET", "/v1/status", "X: " + "x" * (size - bare))


@pytest.mark.parametrize("limits", [QUICK, Limits()])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 431)])
def test_the_head_is_bounded(limits: Limits, pieces: int, over: int, status: int) -> None:
    """A head of exactly the bound is read, one byte more is refused, however it arrives."""

    async def main() -> None:
        async with serving(limits=limits) as served, talking(served) as talk:
            raw = sized(limits.head + over)
            step = len(raw) // pieces + 1
            for start in range(0, len(raw), step):
                await talk.send(raw[start : start + step])
                await wait_all_tasks_blocked()
            reply = await talk.reply()
            assert reply.status == status
            if over:
                assert reply.code == "head-too-large"
                assert reply.error["detail"] == {"limit": limits.head}
                assert await talk.at_end()

    run(main)


def test_a_head_without_end_is_refused_in_the_middle() -> None:
    """A head that only grows is refused when it is past the bound, not at its end."""

    async def main() -> None:
        async with serving(limits=QUICK) as served, talking(served) as talk:
            await talk.send(sized(QUICK.head + 100)[: QUICK.head + 1])
            assert (await talk.reply()).code == "head-too-large"

    run(main)


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("limits", [QUICK, Limits()])
@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize(("over", "status"), [(0, 202), (1, 413)])
def test_the_body_is_bounded(limits: Limits, coding: str, over: int, status: int) -> None:
    """A body of exactly the bound is read, one byte more is refused, however it is coded."""
    body = bytes(limits.body + over)
    if coding == "length":
        raw = request("POST", "/v1/capsules/echo/stop", f"Content-Length: {len(body)}", body=body)
    else:
        coded = chunked(body, 100_000)
        raw = request("POST", "/v1/capsules/echo/stop", "Transfer-Encoding: chunked", body=coded)

    async def main() -> None:
        async with serving(limits=limits) as served, talking(served) as talk:
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    try:
                        await talk.send(raw)
                    except trio.BrokenResourceError:
                        assert over, "the server hung up on a body that it has to take"

                nursery.start_soon(send)
                reply = await talk.reply()
            assert reply.status == status
            assert bool(served.daemon.acted) is not bool(over)
            if over:
                assert reply.code == "body-too-large"
                assert reply.error["detail"] == {"limit": limits.body}

    run(main)


def test_a_body_that_is_announced_too_large_is_refused_unread() -> None:
    """The length alone is enough, also when the peer waits for leave to send."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(
                request("POST", "/v1/shutdown", "Content-Length: 99999999999", "Expect: 100-continue")
            )
            assert (await talk.reply()).code == "body-too-large"

    run(main)


def test_a_peer_that_waits_for_leave_gets_it() -> None:
    """A body within its bound is asked for with 100 Continue."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(
                request("POST", "/v1/capsules/echo/stop", "Content-Length: 2", "Expect: 100-continue")
            )
            assert await talk.stream.receive_some(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await talk.send(b"{}")
            assert (await talk.reply()).status == 202

    run(main)


@pytest.mark.parametrize(
    "raw",
    [
        STATUS[:1],
        STATUS[:-2],
        request("POST", "/v1/shutdown", "Content-Length: 5", body=b"four"),
        request("POST", "/v1/shutdown", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n"),
    ],
)
def test_a_slow_request_is_answered_and_ended(raw: bytes) -> None:
    """A request that was begun and is not finished in time is 408, and nothing is done."""
    clock = MockClock()

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await wait_all_tasks_blocked()
            clock.jump(DEFAULTS.idle - 1)  # Silence before its first byte does not count.
            await talk.send(raw)
            await wait_all_tasks_blocked()
            clock.jump(DEFAULTS.request - 0.1)
            await wait_all_tasks_blocked()
            assert talk.is_silent()
            clock.jump(0.2)
            reply = await talk.reply()
            assert (reply.status, reply.code) == (408, "request-timed-out")
            assert reply.message == "cannot wait any longer: a request has to be sent within 10 s"
            assert await talk.at_end()
            assert not served.daemon.stopping.is_set()

    run(main, clock)


@pytest.mark.parametrize("requests", [0, 1])
def test_a_silent_peer_gives_its_place_back(requests: int) -> None:
    """A connection without a request ends after the idle limit, also after the first request."""
    clock = MockClock()

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            for _ in range(requests):
                await talk.send(STATUS)
                assert (await talk.reply()).status == 200
            await wait_all_tasks_blocked()
            clock.jump(DEFAULTS.idle - 0.1)
            await wait_all_tasks_blocked()
            assert talk.is_silent()
            clock.jump(0.2)
            assert await talk.at_end()

    run(main, clock)


def test_a_connection_is_kept() -> None:
    """One connection serves one request after the other, also after a refusal of a route."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            for target, status in (("/v1/status", 200), ("/v1/nothing", 404), ("/v1/capsules/echo", 200)):
                await talk.send(request("GET", target))
                assert (await talk.reply()).status == status
            await talk.send(request("POST", "/v1/capsules/echo/stop", "Content-Length: 3", body=b"abc"))
            assert (await talk.reply()).status == 202
            await talk.send(request("GET", "/v1/status", "Connection: close"))
            reply = await talk.reply()
            assert reply.headers["connection"] == "close"
            assert await talk.at_end()

    run(main)


def test_pipelined_requests_are_answered_in_order() -> None:
    """Requests sent without waiting are answered one after the other, none lost, though one waits."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(STATUS + WAIT + request("GET", "/v1/capsules/echo") + b"GET /v1/capsules/i")
            assert (await talk.reply()).value["version"] == "1.2.3"
            await served.daemon.waiting.wait()
            await talk.send(b"dle HTTP/1.1\r\nHost: x\r\n\r\n")
            served.daemon.release.set()
            assert (await talk.reply()).value["change"] == "c1"
            assert (await talk.reply()).value["name"] == "echo"
            assert (await talk.reply()).value["name"] == "idle"

    run(main)


def test_bytewise_requests_are_read() -> None:
    """However a request is cut, it is the same request."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            for byte in STATUS:
                await talk.send(bytes((byte,)))
                await wait_all_tasks_blocked()
            assert (await talk.reply()).status == 200

    run(main)


def test_head_is_answered_without_a_body() -> None:
    """No route has HEAD; the refusal has no body, so that the connection goes on in step."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(request("HEAD", "/v1/status") + STATUS)
            reply = await talk.reply("HEAD")
            assert (reply.status, reply.body, reply.headers["allow"]) == (405, b"", "GET")
            assert (await talk.reply()).status == 200

    run(main)


@pytest.mark.parametrize(
    "raw",
    [
        request("CONNECT", "/v1/status"),
        request("GET", "/v1/nothing", "Connection: Upgrade", "Upgrade: websocket"),
        request("GET", "/v1/nothing", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    ],
)
def test_no_other_protocol_is_spoken(raw: bytes) -> None:
    """A peer that wants to change the protocol is answered in this one, and goes on."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            await talk.send(raw)
            assert (await talk.reply()).status in (404, 405)
            await talk.send(STATUS)
            assert (await talk.reply()).status == 200

    run(main)


def test_http_1_0_is_answered_until_the_end() -> None:
    """An old client gets its document, or its lines without chunks, and then the end of the connection."""

    async def main() -> None:
        async with serving() as served:
            async with talking(served) as talk:
                await talk.send(b"GET /v1/capsules/echo HTTP/1.0\r\n\r\n")
                assert (await talk.reply()).value["name"] == "echo"
                assert await talk.at_end()
            async with talking(served) as talk:
                await talk.send(b"GET /v1/events?follow HTTP/1.0\r\n\r\n")
                await served.daemon.followed.wait()
                served.daemon.happenings.publish(event("echo", "stopped"))
                served.daemon.happenings.close()
                reply = await talk.reply()
                assert reply.lines == [event("echo", "stopped")]
                assert "transfer-encoding" not in reply.headers

    run(main)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *(b"GET", b"POST", b"HEAD", b" ", b"/v1/status", b"/", b"?", b"%", b"HTTP/1.1", b"HTTP/1.0"),
                *(
                    b"\r\n",
                    b"\n",
                    b"\r\n\r\n",
                    b"Host: x\r\n",
                    b"Content-Length: 3\r\n",
                    b"abc",
                    b"0\r\n\r\n",
                ),
                *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Upgrade: x\r\n"),
                b"Expect: 100-continue\r\n",
                STATUS,
            ]
        )
        | st.binary(max_size=20),
        max_size=12,
    )
)
def test_any_bytes_end_in_answers(pieces: list[bytes]) -> None:
    """Whatever bytes a peer sends and ends, it gets whole answers and then the end: no defect, no silence."""
    raw = b"".join(pieces)
    seen: list[str] = []

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            try:
                await talk.send(raw)
                await talk.stream.send_eof()
            except trio.BrokenResourceError:
                pass
            data = b""
            while more := await talk.stream.receive_some(65536):
                data += more
            assert not raw.strip(b"\r\n") or data.startswith(b"HTTP/1.1 ")

    class Watching(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger = logging.getLogger("capsuled.control")
    handler = Watching()
    logger.addHandler(handler)
    try:
        run(main)
    finally:
        logger.removeHandler(handler)
    assert seen == []
