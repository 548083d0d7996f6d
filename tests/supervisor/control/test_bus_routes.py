"""The bus at the control socket: what may be published, tapped and traced, and what is refused."""

from __future__ import annotations

from urllib.parse import quote

import cbor2
import pytest
import trio
import trio.testing

from capsuled.proto import topics
from capsuled.proto.control import Level
from capsuled.supervisor.control.access import Access, Peer

from .serving import Daemon, Reply, ask, request, run, serving, talking

CBOR = "Content-Type: application/cbor"


def published(target: str, body: bytes, *headers: str) -> tuple[Reply, list[tuple[object, ...]]]:
    """What an admin is answered, and what the daemon was asked."""
    found: list[Reply] = []
    daemon = Daemon()

    async def main() -> None:
        async with serving(daemon) as served, talking(served) as talk:
            length = f"Content-Length: {len(body)}"
            await talk.send(request("POST", target, length, *headers, body=body))
            found.append(await talk.reply())

    run(main)
    return found[0], daemon.asked


@pytest.mark.parametrize(
    ("body", "item"),
    [
        (b'{"n": [1, 2.5, null, true, "\\u00fc"]}', {"n": [1, 2.5, None, True, "ü"]}),
        (b" 7 ", 7),
        (b'"text"', "text"),
        (b"-18446744073709551616", -(2**64)),
    ],
)
@pytest.mark.parametrize("media", [(), ("Content-Type: application/x-www-form-urlencoded",)])
def test_json_becomes_cbor(body: bytes, item: object, media: tuple[str, ...]) -> None:
    """The body is one item of JSON, whatever curl says that it is; the answer has topic and number."""
    reply, asked = published("/v1/bus/publish?topic=a.b", body, *media)
    assert (reply.status, reply.value) == (200, {"topic": "a.b", "seq": 7})
    ((what, topic, payload),) = asked
    assert (what, topic) == ("publish", "a.b")
    assert isinstance(payload, bytes)
    assert cbor2.loads(payload) == item


def test_cbor_goes_as_it_came() -> None:
    """Byte for byte, for nothing reads it on its way."""
    body = b"\x18\x07"  # not the shortest form
    reply, asked = published("/v1/bus/publish?topic=a.b", body, CBOR)
    assert reply.status == 200
    assert asked == [("publish", "a.b", body)]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", ()),
        (b"{", ()),
        (b"1 2", ()),
        (b"NaN", ()),
        (b"[-Infinity]", ()),
        (b"\xff", ()),
        (b'"\\ud800"', ()),
        (b"18446744073709551616", ()),
        (b"[" * 100_000, ()),
        (b"[" * 500 + b"]" * 500, ()),
        (b"9" * 10_000, ()),
        (b"", (CBOR,)),
        (b"\x01\x02", (CBOR,)),
        (b"\xc0\x60", (CBOR,)),
        (b"\x9f\xff", (CBOR,)),
        (b"\xa1\x01\x01", (CBOR,)),
        (b"\x9a\xff\xff\xff\xff", (CBOR,)),
    ],
)
def test_a_body_that_is_no_payload(body: bytes, headers: tuple[str, ...]) -> None:
    """It is 400 and a sentence with its kind; nothing is published."""
    reply, asked = published("/v1/bus/publish?topic=a.b", body, *headers)
    assert (reply.status, reply.code) == (400, "malformed-request")
    kind = "CBOR" if headers else "JSON"
    assert reply.message.startswith(f"cannot publish the body: it is no {kind} of the accepted form: ")
    assert asked == []


LONGEST = "x" * topics.MAX_BYTES
DEEPEST = "a" + ".b" * (topics.MAX_SEGMENTS - 1)


@pytest.mark.parametrize("topic", [LONGEST, DEEPEST, "a.*", "kernels.x", "a.kernel"])
def test_topics(topic: str) -> None:
    """As long and as deep as a topic may be; `*` is a literal in it."""
    reply, asked = published(f"/v1/bus/publish?topic={quote(topic)}", b"1")
    assert reply.status == 200
    assert asked == [("publish", topic, b"\x01")]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "write a topic"),
        ("?topic=", "write a topic"),
        ("?topic=a..b", "empty segment"),
        ("?topic=a%00", "NUL"),
        (f"?topic={LONGEST}x", "257 bytes"),
        (f"?topic={DEEPEST}.b", "9 segments"),
        ("?topic=kernel", "the supervisor's own"),
        ("?topic=kernel.lifecycle.echo.ready", "the supervisor's own"),
    ],
)
def test_what_is_no_topic_for_the_operator(query: str, sentence: str) -> None:
    """It is 400, named by its parameter, with the rule; nothing is published."""
    reply, asked = published(f"/v1/bus/publish{query}", b"1")
    assert (reply.status, reply.code) == (400, "bad-parameter")
    assert sentence in reply.message
    assert asked == []


@pytest.mark.parametrize(
    ("pattern", "fine"), [("a.*.b", True), ("*", True), ("kernel.*", True), ("a..b", False)]
)
def test_a_tap_has_any_pattern(pattern: str, fine: bool) -> None:
    """Inner wildcards too, for it is no guest's; it streams until the supervisor ends it."""
    daemon = Daemon()

    async def end() -> None:
        await daemon.followed.wait()
        daemon.happenings.publish({"topic": "a.x.b"})
        daemon.happenings.close()

    async def main() -> None:
        async with serving(daemon) as served, trio.open_nursery() as nursery:
            if fine:
                nursery.start_soon(end)
            reply = await ask(served, "GET", f"/v1/bus/tap?pattern={quote(pattern)}")
        assert reply.status == (200 if fine else 400)
        assert daemon.asked == ([("tap", pattern)] if fine else [])
        if fine:
            assert reply.lines == [{"topic": "a.x.b"}]

    run(main)


def test_a_tap_ends_with_its_peer() -> None:
    """Who hangs up taps no longer."""
    daemon = Daemon()

    async def main() -> None:
        async with serving(daemon) as served:
            async with talking(served) as talk:
                await talk.send(request("GET", "/v1/bus/tap?pattern=a"))
                await daemon.followed.wait()
            while daemon.happenings._followers:  # pyright: ignore[reportPrivateUsage]
                await trio.testing.wait_all_tasks_blocked()

    run(main)


@pytest.mark.parametrize("number", ["0", "7", str(2**64 - 1)])
def test_a_trace_is_asked_by_number(number: str) -> None:
    """Whatever has 64 bits; of what is not remembered the answer is empty, and no error."""
    daemon = Daemon()

    async def main() -> None:
        async with serving(daemon) as served:
            reply = await ask(served, "GET", f"/v1/bus/trace?id={number}")
        assert reply.value == {"id": int(number), "hops": [], "cut": False}

    run(main)
    assert daemon.asked == [("trace", int(number))]


@pytest.mark.parametrize("number", ["", "-1", "1.5", "x", "%C2%B2", str(2**64), "9" * 21])
def test_what_is_no_number(number: str) -> None:
    """It is 400, named by its parameter."""
    daemon = Daemon()

    async def main() -> None:
        async with serving(daemon) as served:
            reply = await ask(served, "GET", f"/v1/bus/trace?id={number}")
        assert (reply.status, reply.code) == (400, "bad-parameter")

    run(main)
    assert daemon.asked == []


@pytest.mark.parametrize("level", [Level.READ, Level.OPERATE])
def test_what_is_published_and_tapped_is_the_admins(level: Level) -> None:
    """Messages are others' business: who may only read or operate neither sees nor sends any."""
    daemon = Daemon()

    async def main() -> None:
        async with serving(
            daemon,
            Access(1, {10: level}),
            credentials=lambda _: Peer(1, 4711, 10),
            groups=lambda peer: frozenset((peer.gid,)),
        ) as served:
            for method, target in (("POST", "/v1/bus/publish?topic=a"), ("GET", "/v1/bus/tap?pattern=a")):
                assert (await ask(served, method, target)).status == 403

    run(main)
    assert daemon.asked == []
