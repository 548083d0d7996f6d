"""The spine's sockets with ordinary programs of ZeroMQ: what they get, what they may say, what they cannot hold up."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zmq

from capsuled.proto import records, spine
from capsuled.proto.records import DownKind, UpKind
from capsuled.supervisor.backbone import protocol
from capsuled.supervisor.backbone.display import TAP_BYTES, TAP_MESSAGES
from capsuled.supervisor.backbone.protocol import Settings
from capsuled.supervisor.backbone.spine import SEND_BYTES, SEND_HWM, send_hwm
from capsuled.supervisor.backbone.watchers import MAX_PREFIXES

from ...support.edge_peer import DEADLINE_MS, EdgePeer
from .process import DEADLINE, Backbone

LISTENS = ((1, "a.*", True),)

Socket = zmq.Socket[bytes]


class Spined(Backbone):
    """A backbone with a spine; `folder / "spine"`."""

    def __init__(self, folder: Path, epoch: int = 1, largest_payload: int = 5 << 20) -> None:
        super().__init__(folder, epoch)
        self.spine = folder / "spine"
        self.spine.mkdir(exist_ok=True)
        self.tell(protocol.configure(Settings(epoch, 1 << 30, largest_payload, str(self.spine))))

    def __enter__(self) -> Spined:
        return self

    def spine_figures(self) -> dict[str, Any]:
        """What it says of its spine."""
        self.tell({"op": "figures", "request": 0})
        found: dict[str, Any] = self.expect("figures")["spine"]
        return found

    def await_prefixes(self, count: int) -> None:
        """Until so many are known."""
        until(lambda: self.spine_figures()["prefixes"] == count)

    def tap(self, number: int, pattern: str) -> None:
        self.tell({"op": "tap", "tap": number, "pattern": pattern})


def until(reached: Callable[[], bool]) -> None:
    """Ask again until it is so, within the deadline: the sockets of others have no event of ours."""
    deadline = time.monotonic() + DEADLINE
    while not reached():
        assert time.monotonic() < deadline, reached


@pytest.fixture
def backbone(tmp_path: Path) -> Iterator[Spined]:
    with Spined(tmp_path) as running:
        running.begin()
        running.ping()
        yield running


@contextmanager
def client(kind: int, path: Path, **options: int) -> Generator[Socket, None, None]:
    """An ordinary program's socket, connected."""
    context: zmq.Context[Socket] = zmq.Context()
    made = context.socket(kind)
    try:
        made.linger = 0
        made.rcvtimeo = made.sndtimeo = DEADLINE_MS
        made.setsockopt(zmq.RECONNECT_IVL, 10)
        for option, value in options.items():
            made.setsockopt(getattr(zmq, option), value)
        made.connect(f"ipc://{path}")
        yield made
    finally:
        made.close(0)
        context.term()


@contextmanager
def subscriber(backbone: Spined, *prefixes: bytes) -> Generator[Socket, None, None]:
    """A SUB whose prefixes the backbone knows."""
    before = backbone.spine_figures()["prefixes"]
    with client(zmq.SUB, backbone.spine / spine.SUBSCRIBERS) as made:
        for prefix in prefixes:
            made.setsockopt(zmq.SUBSCRIBE, prefix)
        backbone.await_prefixes(before + len(prefixes))
        yield made


def topics_of(sock: Socket, count: int) -> list[bytes]:
    return [sock.recv_multipart()[0] for _ in range(count)]


# ── what goes out ────────────────────────────────────────────────────────────────────────────────


def test_a_message(backbone: Spined) -> None:
    """Three frames: the topic and a NUL, the stamps of its receivers, the payload as it came."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    with subscriber(backbone, b"a.b\0") as sub:
        one.publish("a.b", b"\x18\x2a")
        topic, stamps, payload = sub.recv_multipart()
        assert (topic, payload) == (b"a.b\0", b"\x18\x2a")
        message = two.message()
        found = cbor2.loads(stamps)
        assert found == {
            "source": "c1",
            "instance": (1).to_bytes(16, "big"),
            "principal": "p1",
            "seq": message.b,
            "time": message.c,
        }
        two.publish("a.b", b"\0", cause=message.b)
        found = cbor2.loads(sub.recv_multipart()[1])
        assert (found["source"], found["principal"], found["cause"]) == ("c2", "p1", message.b)


@pytest.mark.parametrize(
    ("prefix", "topics"),
    [
        (b"a.b\0", [b"a.b\0"]),
        (b"a.b.", [b"a.b.c\0"]),
        (b"a.b", [b"a.b\0", b"a.bb\0", b"a.b.c\0"]),
        (b"", [b"a.a\0", b"a.b\0", b"a.bb\0", b"a.b.c\0"]),
    ],
)
def test_prefixes(backbone: Spined, prefix: bytes, topics: list[bytes]) -> None:
    """With its NUL a topic is exact, with its dot the subtree; a bare one is ZeroMQ's prefix and no more."""
    one = backbone.peer(1)
    with subscriber(backbone, prefix, b"a.end\0") as sub:
        for topic in ("a.a", "a.b", "a.bb", "a.b.c", "a.end"):
            one.publish(topic)
        assert topics_of(sub, len(topics) + 1) == [*topics, b"a.end\0"]


def test_what_nobody_wants_is_not_sent(backbone: Spined) -> None:
    """A subscription that has ended, of a program that lives or of one that has gone, costs nothing any more."""
    with subscriber(backbone, b"a.", b"b.") as sub:
        sub.setsockopt(zmq.UNSUBSCRIBE, b"b.")
        backbone.await_prefixes(1)
    backbone.await_prefixes(0)
    assert backbone.spine_figures() == {"published": 0, "refused": {}, "prefixes": 0, "taps": 0}


def test_retained_messages_and_answers_are_not_sent_again(backbone: Spined) -> None:
    """The spine carries what is published, once: requests too, and no answer."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    with subscriber(backbone, b"") as sub:
        one.send(records.up(UpKind.REQUEST, b"a.b", a=1, body=b"\0"))
        two.next(DownKind.ORIGIN)
        asked = two.next(DownKind.REQUEST)
        two.send(records.up(UpKind.REPLY, b"", b=asked.b, body=b"\0"))
        two.publish("a.end")
        assert topics_of(sub, 2) == [b"a.b\0", b"a.end\0"]


def test_a_subscriber_that_reads_nothing(backbone: Spined) -> None:
    """It loses its own; capsules and other subscribers get every message, and the backbone does not wait."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    size, count = 20_000, 3 * send_hwm(5 << 20)
    with (
        subscriber(backbone, b"a.") as fast,
        client(zmq.SUB, backbone.spine / spine.SUBSCRIBERS, RCVHWM=1, RCVBUF=4096) as slow,
    ):
        slow.setsockopt(zmq.SUBSCRIBE, b"")
        backbone.await_prefixes(2)
        for n in range(count):
            one.publish("a.b", n.to_bytes(2, "big") + bytes(size))
            assert two.message().body[:2] == n.to_bytes(2, "big")
            assert fast.recv_multipart()[2][:2] == n.to_bytes(2, "big")
        got = 0
        slow.rcvtimeo = 200
        while True:
            try:
                slow.recv_multipart()
            except zmq.Again:
                break
            got += 1
        assert 0 < got < count


def test_how_many_wait_for_a_slow_one() -> None:
    """`SEND_HWM` messages, fewer where they are large, and never fewer than 64."""
    assert send_hwm(1) == send_hwm(SEND_BYTES // SEND_HWM) == SEND_HWM
    assert (
        send_hwm(SEND_BYTES // SEND_HWM + 1) == SEND_HWM - 1
        or send_hwm(SEND_BYTES // SEND_HWM + 1) == SEND_HWM
    )
    assert send_hwm(SEND_BYTES // 999) == 999
    assert send_hwm(5 << 20) == 64


def test_a_flood_of_subscriptions(backbone: Spined) -> None:
    """Thousands of prefixes are taken in turns with the capsules' frames; all of them match, and their end is seen."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    count = 4 * MAX_PREFIXES
    # Without SNDHWM=0 the SUB itself would drop what goes beyond its high-water mark.
    with client(zmq.SUB, backbone.spine / spine.SUBSCRIBERS, SNDHWM=0) as sub:
        for n in range(count):
            sub.setsockopt(zmq.SUBSCRIBE, b"a.t%d\0" % n)
        for _ in range(20):
            one.publish("a.b")
            assert two.message().text == b"a.b"
        backbone.await_prefixes(count)
        one.publish("a.b")
        one.publish(f"a.t{count - 1}")
        assert topics_of(sub, 1) == [b"a.t%d\0" % (count - 1)]
    backbone.await_prefixes(0)


# ── what comes in ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def publisher(backbone: Spined) -> Generator[Socket, None, None]:
    """A PUB that the backbone hears: a PUB drops what it sends before it is connected."""
    with client(zmq.PUB, backbone.spine / spine.PUBLISHERS) as made:
        before = backbone.spine_figures()["refused"].get("malformed", 0)

        def heard() -> bool:
            made.send(b"hello")
            return bool(backbone.spine_figures()["refused"].get("malformed", 0) > before)

        until(heard)
        yield made


def test_the_operator_publishes(backbone: Spined) -> None:
    """As `operator`, with the topic's NUL or without, and with another spine's stamps between, which do not count."""
    two = backbone.peer(2, subscriptions=LISTENS)
    with publisher(backbone) as pub:
        pub.send_multipart([b"a.b", b"\x01"])
        pub.send_multipart([b"a.c\0", b"\x02"])
        pub.send_multipart([b"a.d\0", cbor2.dumps({"source": "c7", "seq": 1}), b"\x03"])
        origin = two.next(DownKind.ORIGIN)
        assert (origin.text, origin.body) == (b"operator", bytes(16) + b"operator")
        found = [two.next(DownKind.MESSAGE) for _ in range(3)]
        assert [(each.text, each.body) for each in found] == [
            (b"a.b", b"\x01"),
            (b"a.c", b"\x02"),
            (b"a.d", b"\x03"),
        ]
        assert {each.a for each in found} == {origin.a}
    assert backbone.spine_figures()["published"] == 3
    assert backbone.figures()[2]["subscriptions"][0]["matched"] == 3


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([b"kernel.lifecycle.echo.ready", b"\0"], "kernel"),
        ([b"kernel", b"\0"], "kernel"),
        ([b"kernel.x\0", b"\0"], "kernel"),
        ([b"a..b", b"\0"], "malformed"),
        ([b"", b"\0"], "malformed"),
        ([b"a.\xff", b"\0"], "malformed"),
        ([b"a.b\0\0", b"\0"], "malformed"),
        ([b"a." + b"x" * 255, b"\0"], "malformed"),
        ([b"a.b"], "malformed"),
        ([b"a.b", b"\0", b"\0", b"\0"], "malformed"),
    ],
)
def test_what_is_passed_over(backbone: Spined, frames: list[bytes], why: str) -> None:
    """What is the supervisor's own, no topic, or of another shape is counted by its reason, and goes nowhere."""
    two = backbone.peer(2, subscriptions=LISTENS)
    with publisher(backbone) as pub, subscriber(backbone, b"") as sub:
        before = backbone.spine_figures()["refused"].get(why, 0)
        pub.send_multipart(frames)
        pub.send_multipart([b"a.end", b"\0"])
        assert topics_of(sub, 1) == [b"a.end\0"]
        assert two.message().text == b"a.end"
        found = backbone.spine_figures()
        assert found["refused"][why] > before
        assert found["published"] == 1


def test_a_payload_at_the_limit_and_one_past_it(tmp_path: Path) -> None:
    """A frame of more than the largest payload costs its connection; ZeroMQ makes another, and the rest goes on."""
    with Spined(tmp_path, largest_payload=1000) as backbone:
        backbone.begin()
        two = backbone.peer(2, subscriptions=LISTENS)
        with publisher(backbone) as pub:
            pub.send_multipart([b"a.b", bytes(1000)])
            assert len(two.message().body) == 1000
            pub.send_multipart([b"a.b", bytes(1001)])
        with publisher(backbone) as pub:
            pub.send_multipart([b"a.c", b"\0"])
            assert two.message().text == b"a.c"


# ── taps ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_tap(backbone: Spined) -> None:
    """It is told each message that its pattern matches, stamped, until it ends."""
    one = backbone.peer(1)
    backbone.tap(4, "a.*.c")
    backbone.ping()
    one.publish("a.b")
    one.publish("a.b.c", b"\x18\x2a")
    found = backbone.expect("tapped")
    assert (found["tap"], found["topic"], found["payload"], found["lost"]) == (4, "a.b.c", b"\x18\x2a", 0)
    assert (found["source"], found["principal"], found["cause"]) == ("c1", "p1", 0)
    assert found["instance"] == (1).to_bytes(16, "big")
    backbone.tell({"op": "untap", "tap": 4})
    backbone.tell({"op": "untap", "tap": 99})
    backbone.ping()
    one.publish("a.b.c")
    one.bye()
    assert backbone.ping() == 1
    assert backbone.spine_figures()["taps"] == 0


def test_a_tap_over_its_rate_loses_and_is_told(backbone: Spined) -> None:
    """What is told and what is lost make up all, the last message is told, and subscribers get everything."""
    one = backbone.peer(1, queue_messages=100_000)
    backbone.tap(4, "a.b")
    count = 2 * TAP_MESSAGES
    listener = backbone.peer(2, queue_messages=100_000, subscriptions=LISTENS)
    for start in range(0, count, 100):
        one.send(*(one.publish_record("a.b", cbor2.dumps(n)) for n in range(start, start + 100)))
    told, lost = list[int](), 0
    while len(told) + lost < count:
        found = backbone.expect("tapped")
        told.append(cbor2.loads(found["payload"]))
        lost += found["lost"]
    assert told[-1] == count - 1
    assert lost > 0
    assert [cbor2.loads(listener.message().body) for _ in range(count)] == list(range(count))


def test_a_supervisor_that_does_not_read_its_taps(backbone: Spined) -> None:
    """What waits for it is bounded: taps lose messages, capsules do not, and nothing else is lost to it."""
    one = backbone.peer(1)
    listener = backbone.peer(2, subscriptions=LISTENS)
    taps = range(4, 8)
    for tap in taps:
        backbone.tap(tap, "a.*")
    backbone.ping()
    count, size = 30, 1 << 19
    for n in range(count):
        one.publish("a.b", n.to_bytes(1, "big") + bytes(size))
        assert listener.message().body[0] == n
    seen, lost = {tap: list[int]() for tap in taps}, dict.fromkeys(taps, 0)
    last = count
    while any(not each or each[-1] < count for each in seen.values()):
        # What a tap has lost is told with the next message that it gets, which may be none of the large ones.
        one.publish("a.b", last.to_bytes(1, "big"))
        assert listener.message().body[0] == last
        last += 1
        found = backbone.expect("tapped")
        seen[found["tap"]].append(found["payload"][0])
        lost[found["tap"]] += found["lost"]
    for tap in taps:
        assert len(seen[tap]) + lost[tap] == seen[tap][-1] + 1
        assert seen[tap] == sorted(seen[tap])
    # Together they could have been told of four times as much within their rates.
    told = sum(number < count for each in seen.values() for number in each)
    assert told * size < 2 * protocol.MAX_TAPPED + len(taps) * TAP_BYTES
    assert backbone.pong()["epoch"] == 1


# ── its life ─────────────────────────────────────────────────────────────────────────────────────


def test_its_files(backbone: Spined) -> None:
    """Two sockets that only its user may open."""
    for name in (spine.SUBSCRIBERS, spine.PUBLISHERS):
        assert os.stat(backbone.spine / name).st_mode & 0o777 == 0o600


def test_another_backbone_takes_over(tmp_path: Path) -> None:
    """The files of one that was killed are in nobody's way, and a SUB finds the next one by itself."""
    with Spined(tmp_path) as first:
        first.begin()
        with subscriber(first, b"a.b\0") as sub:
            first.kill()
            with Spined(tmp_path, epoch=2) as second:
                second.begin()
                # A SUB says again what it wants when its program receives, which one that waits does.
                until(lambda: not sub.poll(0) and second.spine_figures()["prefixes"] == 1)
                peer = EdgePeer(tmp_path / "later.edge")
                one = second.peer(1, peer=peer)
                one.publish("a.b", b"\x07")
                assert sub.recv_multipart()[2] == b"\x07"


def test_a_stranger_who_speaks_no_zeromq(backbone: Spined) -> None:
    """Bytes that are no ZMTP on either socket harm nobody."""
    one = backbone.peer(1)
    with subscriber(backbone, b"a.") as sub:
        for name in (spine.SUBSCRIBERS, spine.PUBLISHERS):
            for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, b"\xff\0\0\0\0\0\0\0\x01\x7f\x03"):
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.connect(os.fspath(backbone.spine / name))
                    raw.sendall(data)
        one.publish("a.b")
        assert topics_of(sub, 1) == [b"a.b\0"]
