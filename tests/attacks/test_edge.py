"""A worker that has been taken over speaks to the backbone: it fails, it is counted, and nobody else notices.

The hostile peer says what it likes on its own edge. Beside it two honest capsules go on talking; each test looks
whether every one of their messages has arrived, and whether their ledgers say so and nothing else.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capsuled.proto import records
from capsuled.proto.records import DownKind, UpKind
from capsuled.supervisor.backbone.figures import Figures
from capsuled.supervisor.backbone.members import CONTROL_RATE

from ..supervisor.backbone.process import DEADLINE, Backbone
from ..support.edge_peer import EdgePeer, identity

TALKER, LISTENER, HOSTILE = 1, 2, 3

ROUND = 40
"""Messages of the honest, before an attack, during it and after it."""

UP, DOWN = records.up, records.down


class Scene:
    """A backbone, two honest capsules on `a.talk`, and one that is not."""

    def __init__(self, backbone: Backbone, *, listens: str = "a.own") -> None:
        """`listens` is what the hostile one has subscribed to."""
        self.backbone = backbone
        self.talker = backbone.peer(TALKER)
        self.listener = backbone.peer(LISTENER, subscriptions=((1, "a.talk", True),))
        self.hostile = backbone.attach(
            HOSTILE, max_payload=1 << 16, subscriptions=((1, listens, True),), receive_hwm=2
        )
        self.said = self.heard = 0
        self.padding = b""
        """Of each message of the honest."""

    def talk(self) -> None:
        """A round of the honest, each message of which arrives in its order."""
        for _ in range(ROUND):
            self.talker.publish("a.talk", self.said.to_bytes(4, "big") + self.padding)
            self.said += 1
        for _ in range(ROUND):
            assert self.listener.message().body == self.heard.to_bytes(4, "big") + self.padding
            self.heard += 1

    @contextmanager
    def attacked(self) -> Generator[EdgePeer, None, None]:
        """The honest talk before, during and after the block; then their ledgers are what they have seen."""
        self.talk()
        yield self.hostile
        self.talk()
        self.backbone.ping()
        self.talk()
        figures = self.backbone.figures()
        talker, listener = figures[TALKER], figures[LISTENER]
        assert (talker["published"], talker["received"], talker["missing"]) == (self.said, self.said, 0)
        (only,) = listener["subscriptions"]
        assert (only["matched"], only["sent"], only["lagged"], only["queued"]) == (self.said, self.said, 0, 0)
        for each in (talker, listener):
            assert (each["refused"], each["lost"], each["late"]) == ({}, 0, 0)
        assert all(index == HOSTILE for index, _ in self.backbone.faults)
        assert self.backbone.errors() == ""

    def counted(self) -> Figures:
        """The figures of the hostile one."""
        return self.backbone.figures()[HOSTILE]

    def await_refused(self, code: str, count: int = 1) -> None:
        """Until so many of that code are counted."""
        deadline = time.monotonic() + DEADLINE
        while (found := self.counted()["refused"]).get(code, 0) != count:
            assert time.monotonic() < deadline, found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Backbone(tmp_path) as backbone:
        backbone.begin()
        made = Scene(backbone)
        made.hostile.greet()
        yield made


# ── frames that are none, and records that there are not ─────────────────────────────────────────

GOOD = UP(UpKind.PUBLISH, b"a.x", body=b"\0")


@pytest.mark.parametrize(
    "frame",
    [
        b"\0",
        b"\xff" * 100,
        GOOD[: records.UP.size - 1],
        GOOD[:-1],
        GOOD + GOOD[:-1],
        records.UP.pack(2**32 - 1, UpKind.PUBLISH, 0, 0, 0),
        records.UP.pack(2**31, UpKind.PUBLISH, 3, 0, 0) + b"a.x",
        records.UP.pack(records.UP.size - 4, UpKind.PUBLISH, 2**16 - 1, 0, 0),
        records.UP.pack(0, UpKind.PUBLISH, 0, 0, 0),
        records.UP.pack(2**32 - 1, UpKind.REQUEST, 3, 7, 0) + b"a.x",
        records.UP.pack(2**32 - 1, UpKind.REPLY, 0, 0, 1),
        UP(0),
        UP(UpKind.LOST, body=bytes(7)),
        UP(UpKind.LOST, body=bytes(8 * records.MAX_LOST + 8)),
        UP(11),
        UP(UpKind.LOST),
        UP(UpKind.LOST, body=bytes(8)) * 2,
        UP(255, b"a.x", 1, 1, b"\0"),
        GOOD * (records.MAX_RECORDS + 1),
    ],
    ids=range(19),
)
def test_a_malformed_frame(scene: Scene, frame: bytes) -> None:
    """Truncated, with lengths of gigabytes, of unknown kinds, too many in one: counted, told once, and passed over."""
    with scene.attacked() as hostile:
        hostile.send(frame)
        hostile.send(frame)
        scene.await_refused("malformed", 2)
        hostile.publish("a.x")
        hostile.send(UP(UpKind.BYE, b=1))
        while hostile.peek() != DownKind.BYE:
            hostile.next(DownKind(hostile.peek()))
    assert [index for index, _ in scene.backbone.faults] == [HOSTILE]
    assert scene.backbone.faults[0][1].startswith("malformed frame: ")


@pytest.mark.parametrize(
    "forged",
    [
        DOWN(DownKind.MESSAGE, b"a.talk", 0, 1, 2, 3, b"\0"),
        DOWN(DownKind.ORIGIN, b"c1", 0, 0, 0, 0, bytes(16) + b"p1"),
        DOWN(DownKind.HELLO, b=99),
        DOWN(DownKind.LAGGED, a=1, b=1000),
        DOWN(DownKind.REPLY, b"reply.1", 0, 1, 2, 3, b"\0"),
        DOWN(DownKind.FAILED, b"you lose", 1, 15),
    ],
    ids=["message", "origin", "hello", "lagged", "reply", "failed"],
)
def test_records_of_the_backbones_own(scene: Scene, forged: bytes) -> None:
    """What only the backbone says means something else from a worker, or nothing: nobody is told any of it."""
    with scene.attacked() as hostile:
        hostile.send(forged)
        hostile.send(UP(UpKind.BYE, b=0))
        while hostile.peek() != DownKind.BYE:
            hostile.next(DownKind(hostile.peek()))


def test_an_oversized_frame(scene: Scene) -> None:
    """It costs its own connection, and the supervisor is told; the limit itself passes."""
    limit = records.max_frame(1 << 16)
    with scene.attacked() as hostile:
        largest = UP(UpKind.PUBLISH, b"a.x", body=bytes(limit - records.UP.size - 3))
        assert len(largest) == limit
        hostile.send(largest)
        scene.await_refused("msgsize")
        assert scene.backbone.faults == []
        hostile.send(largest + b"\0")
        scene.backbone.expect("fault")
        assert scene.backbone.faults == [
            (HOSTILE, f"broke the protocol: a frame of more than {limit} bytes, or none of ZeroMQ's")
        ]


def test_records_without_a_greeting(tmp_path: Path) -> None:
    """Who answers no HELLO is who he is all the same, by his socket: his grants hold, and no more is his."""
    with Backbone(tmp_path) as backbone:
        backbone.begin()
        scene = Scene(backbone)
        with scene.attacked() as hostile:
            hostile.next(DownKind.HELLO)
            hostile.send(
                UP(UpKind.PUBLISH, b"a.own", 77, body=b"\0"), UP(UpKind.PUBLISH, b"b.no", 78, body=b"\0")
            )
            assert hostile.message().text == b"a.own"
        found = scene.counted()
        assert (found["published"], found["missing"], found["refused"]) == (1, 0, {"notcapable": 1})


# ── what belongs to others ───────────────────────────────────────────────────────────────────────


def test_topics_that_are_not_granted(scene: Scene) -> None:
    """Neither published nor subscribed, reserved ones least of all; requests are refused and answered."""
    with scene.attacked() as hostile:
        for topic in (b"b.c", b"kernel.lifecycle.c1.ready", b"", b"a..b", b"a." + b"x" * 255, b"a.\xff"):
            hostile.send(UP(UpKind.PUBLISH, topic, body=b"\0"), UP(UpKind.REQUEST, topic, 5, body=b"\0"))
            failed = hostile.next(DownKind.FAILED)
            assert failed.a == 5
        for pattern in ("*", "kernel.*", "b.c"):
            assert hostile.subscribe(9, pattern).b != 0
        for pattern in ("a.*.b", "*.talk"):
            assert hostile.subscribe(9, pattern).b != 0
    refused = scene.counted()["refused"]
    assert refused == {"notcapable": 7, "inval": 6, "nametoolong": 2, "ilseq": 2}


def test_other_capsules_causes(scene: Scene) -> None:
    """A message that was delivered to another, an invented one, and one that waits carry no principal on."""
    with scene.attacked() as hostile:
        for cause in (1, (1 << records.EPOCH_SHIFT) + 1, (1 << records.EPOCH_SHIFT) + ROUND, (1 << 64) - 1):
            hostile.publish("a.talk", b"forged", cause=cause)
            hostile.send(UP(UpKind.REQUEST, b"a.talk", 5, cause, b"forged"))
            assert hostile.next(DownKind.FAILED).a == 5
    found = scene.counted()
    assert (found["refused"], found["published"]) == ({"badf": 8}, 0)


@pytest.mark.parametrize("kind", [UpKind.REPLY, UpKind.DECLINE, UpKind.LOST])
def test_replies_to_others_requests(scene: Scene, kind: UpKind) -> None:
    """The number of a request that another was asked is no right to answer it: the asker gets the honest answer."""
    with scene.attacked() as hostile:
        asked = ask(scene)
        for number in range(asked - 3, asked + 4):
            if kind == UpKind.LOST:
                hostile.send(UP(kind, body=number.to_bytes(8, "big")))
            else:
                hostile.send(UP(kind, b"", 0, number, b"stolen" if kind == UpKind.REPLY else b""))
        scene.await_refused("badf", 7)
        scene.listener.send(UP(UpKind.REPLY, b"", 0, asked, b"\x07"))
        while scene.talker.peek() == DownKind.ORIGIN:
            scene.talker.next(DownKind.ORIGIN)
        assert scene.talker.next(DownKind.REPLY).body == b"\x07"
        settle_request(scene)


def ask(scene: Scene) -> int:
    """The talker asks the listener; returns the number of the request, which the listener has got."""
    scene.talker.send(UP(UpKind.REQUEST, b"a.talk", 5, 0, b"?"))
    while scene.listener.peek() == DownKind.ORIGIN:
        scene.listener.next(DownKind.ORIGIN)
    return scene.listener.next(DownKind.REQUEST).b


def settle_request(scene: Scene) -> None:
    """A request and its answer are messages too: take them out of the comparison, once they are seen to balance."""
    figures = scene.backbone.figures()
    talker = figures[TALKER]
    assert (talker["requests"], talker["answered"], talker["failed"], talker["waiting"]) == (1, 1, 0, 0)
    scene.backbone.detach(TALKER)
    scene.backbone.detach(LISTENER)
    for index in (TALKER, LISTENER):
        scene.backbone.indices.pop(index).close()
    scene.talker = scene.backbone.peer(TALKER)
    scene.listener = scene.backbone.peer(LISTENER, subscriptions=((1, "a.talk", True),))
    scene.said = scene.heard = 0


def test_a_request_that_is_answered_twice(scene: Scene) -> None:
    """Replayed answers of the one who may answer are refused, and the asker is told once."""
    scene.backbone.detach(HOSTILE)
    scene.hostile.close()
    scene.hostile = scene.backbone.indices[HOSTILE] = scene.backbone.peer(
        HOSTILE, subscriptions=((1, "a.ask", True),)
    )
    asker = scene.backbone.peer(4)
    with scene.attacked() as hostile:
        asker.send(UP(UpKind.REQUEST, b"a.ask", 5, 0, b"?"))
        while hostile.peek() == DownKind.ORIGIN:
            hostile.next(DownKind.ORIGIN)
        asked = hostile.next(DownKind.REQUEST).b
        hostile.send(*[UP(UpKind.REPLY, b"", 0, asked, b"\x01")] * 5, UP(UpKind.DECLINE, b"no", 0, asked))
        scene.await_refused("badf", 5)
        asker.next(DownKind.ORIGIN)
        asker.next(DownKind.REPLY)
        assert asker.bye().kind == DownKind.BYE
    assert scene.backbone.figures()[4]["answered"] == 1


def test_handles_that_are_not_its_to_end(scene: Scene) -> None:
    """Its interceptor's, and the handles that others have, stay; they are refused and counted."""
    with scene.attacked() as hostile:
        hostile.send(*(UP(UpKind.UNSUBSCRIBE, a=handle) for handle in (1, 2, 0, 2**32 - 1)))
        scene.await_refused("badf", 3)
    assert scene.counted()["refused"] == {"perm": 1, "badf": 3}
    assert len(scene.counted()["subscriptions"]) == 1


# ── counts, replays and floods ───────────────────────────────────────────────────────────────────


def test_replayed_and_miscounted_records(scene: Scene) -> None:
    """A record that is sent again is published again, as its own, within its rate; wrong counts spoil its figures."""
    with scene.attacked() as hostile:
        record = UP(UpKind.PUBLISH, b"a.own", 5, body=b"\0")
        hostile.send(*[record] * 3)
        hostile.send(
            UP(UpKind.HELLO, b=2**64 - 1), UP(UpKind.BYE, b=2**63), UP(UpKind.PUBLISH, b"a.own", 2**32 - 1)
        )
        heard = [hostile.next(DownKind(hostile.peek())).kind for _ in range(6)]
    assert sorted(heard) == [*[DownKind.MESSAGE] * 4, DownKind.ORIGIN, DownKind.BYE]
    assert scene.counted()["published"] == 4


def test_a_flood_of_subscriptions(scene: Scene) -> None:
    """Its control records have a rate of their own: it waits, alone."""
    frame = b"".join(UP(UpKind.SUBSCRIBE, b"a.f%d" % n, a=n) for n in range(2, 130)) + b"".join(
        UP(UpKind.UNSUBSCRIBE, a=n) for n in range(2, 130)
    )
    begun = time.monotonic()
    with scene.attacked() as hostile:
        for _ in range(10):
            hostile.send(frame)
    # Of each frame one subscription is too many, and is not there to be ended: so many frames were read.
    refused = scene.counted()["refused"]
    assert set(refused) == {"mfile", "badf"}
    assert refused["mfile"] <= CONTROL_RATE // 256 + 1 + (time.monotonic() - begun)


def test_a_flood_of_malformed_frames(scene: Scene) -> None:
    """Each is charged, so that it is read no faster than its rate; the supervisor is told of one."""
    with scene.attacked() as hostile:
        for _ in range(200):
            hostile.send(b"\xff" * 30)
        scene.talk()
    assert len(scene.backbone.faults) == 1


def test_a_peer_that_never_reads(tmp_path: Path) -> None:
    """What was for it is lost to it alone, exactly counted; its own queue is bounded."""
    with Backbone(tmp_path) as backbone:
        backbone.begin()
        scene = Scene(backbone, listens="a.*")
        scene.hostile.greet()
        scene.padding = bytes(5000)
        with scene.attacked():
            for _ in range(40):
                scene.talk()
        found = scene.counted()
        (only,) = found["subscriptions"]
        assert only["matched"] == scene.said
        assert only["lagged"] == found["lost"] > 0
        assert found["queued"] <= 1024
        assert only["matched"] == only["lagged"] + only["queued"] + only["sent"]


def test_an_asker_that_never_reads(scene: Scene) -> None:
    """Requests that pile up refusals for who reads none of them are not read any more, and nobody else waits."""
    with scene.attacked() as hostile:
        hostile.send(*(UP(UpKind.REQUEST, b"a.nobody", n, body=b"\0") for n in range(200)))
        hostile.send(*(UP(UpKind.REQUEST, b"b.no", n, body=b"\0") for n in range(200)))
        scene.await_refused("notcapable", 200)
    found = scene.counted()
    assert (found["requests"], found["failed"], found["waiting"]) == (400, 400, 0)


# ── below the records: the connection itself ─────────────────────────────────────────────────────


class Raw:
    """A worker's end of an edge by hand: it listens, accepts the backbone, and speaks ZMTP 3.0 byte by byte."""

    def __init__(self, path: Path, accepts: Callable[[], object]) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(path))
        listener.listen(1)
        listener.settimeout(DEADLINE)
        accepts()
        with listener:
            self.connection, _ = listener.accept()
        self.connection.settimeout(DEADLINE)

    def handshake(self, write: Callable[[bytes], None]) -> None:
        """Greeting and READY as RFC 23 has them, each after the backbone's, and then its HELLO is read."""
        write(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31))
        self._read(64)
        ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
        write(b"\x04" + bytes((len(ready),)) + ready)
        for _ in range(2):
            self._read(self._read(2)[1])

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            assert more, "the backbone has hung up"
            data += more
        return data

    def drip(self, data: bytes) -> None:
        """One byte at a time."""
        for each in data:
            self.connection.send(bytes((each,)))

    def frame(self, data: bytes) -> bytes:
        """A message of one frame."""
        return b"\x00" + bytes((len(data),)) + data


@contextmanager
def raw(scene: Scene) -> Generator[Raw, None, None]:
    """The hostile capsule's next instance, by hand."""
    path = scene.backbone.folder / "raw.edge"
    scene.backbone.detach(HOSTILE)
    scene.backbone.indices.pop(HOSTILE).close()

    def attach() -> None:
        peer = EdgePeer(scene.backbone.folder / "unused.edge")
        peer.close()
        peer.path = path
        scene.backbone.attach(HOSTILE, peer=peer)

    made = Raw(path, attach)
    try:
        with made.connection:
            yield made
    finally:
        scene.backbone.indices.pop(HOSTILE, None)


def test_one_byte_at_a_time(scene: Scene) -> None:
    """A frame that comes in drops is whole when it is there, and holds nobody up until then."""
    with raw(scene) as worker, scene.attacked():
        worker.handshake(worker.drip)
        record = UP(UpKind.PUBLISH, b"b.no", body=b"\0")
        drops = worker.frame(record)
        worker.drip(drops[:-1])
        scene.talk()
        assert scene.counted()["received"] == 0
        worker.drip(drops[-1:])
        scene.await_refused("notcapable")


@pytest.mark.parametrize(
    "data",
    [
        b"\x02" + b"\xff" * 8,
        b"\x02" + (4 << 30).to_bytes(8, "big") + bytes(100),
        b"\x02" + (1 << 62).to_bytes(8, "big"),
        b"\xff" * 64,
        b"\x04\x05\x04PING",
    ],
    ids=["all ones", "4 GiB", "4 EiB", "no flags", "a bad command"],
)
def test_lengths_of_gigabytes_on_the_wire(scene: Scene, data: bytes) -> None:
    """A frame that says it has gigabytes is not waited for and not made room for: the connection ends."""
    before = rss(scene.backbone)
    with raw(scene) as worker, scene.attacked():
        worker.handshake(worker.connection.sendall)
        worker.connection.sendall(worker.frame(UP(UpKind.PUBLISH, b"b.no", body=b"\0")))
        scene.await_refused("notcapable")
        worker.connection.sendall(data)
        while worker.connection.recv(4096):
            pass
    assert rss(scene.backbone) - before < 32 << 20


def rss(backbone: Backbone) -> int:
    """Resident bytes of the backbone's process."""
    pages = int(Path(f"/proc/{backbone.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_connection_that_ends_in_the_middle(scene: Scene) -> None:
    """Half a frame is none."""
    with raw(scene) as worker, scene.attacked():
        worker.handshake(worker.connection.sendall)
        worker.connection.sendall(worker.frame(UP(UpKind.PUBLISH, b"b.no", body=b"\0"))[:-3])
        worker.connection.close()
    assert scene.counted()["received"] == 0


# ── somebody else's path ─────────────────────────────────────────────────────────────────────────

THIEF = """
import os, sys, zmq
sock = zmq.Context().socket(zmq.DEALER)
sock.bind("ipc://" + sys.argv[1])
print("listens", flush=True)
while sys.stdin.readline():
    sock.send(bytes.fromhex(sys.argv[2]))
    print("sent", sock.poll(20000) and sock.recv(), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("topic", [b"a.talk", b"a.own"])
def test_a_siblings_path(scene: Scene, topic: bytes) -> None:
    """A process that listens in a sibling's place is told by the kernel's word about it: cut off, and not believed."""
    path = scene.backbone.folder / "4.edge"
    record = UP(UpKind.PUBLISH, topic, body=b"stolen")
    with subprocess.Popen(
        [sys.executable, "-c", THIEF, os.fspath(path), record.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as thief:
        assert thief.stdin is not None
        assert thief.stdout is not None
        assert thief.stdout.readline() == b"listens\n"
        peer = EdgePeer(scene.backbone.folder / "4.true")
        peer.close()
        peer.path = path
        with scene.attacked():
            scene.backbone.attach(4, peer=peer, subscriptions=((1, "a.talk", True),))
            thief.stdin.write(b"now\n")
            thief.stdin.flush()
            assert thief.stdout.readline().startswith(b"sent")
            assert scene.backbone.expect("fault")["index"] == 4
            told = (
                f"peer {os.getuid()}:{os.getgid()}:{thief.pid} where {identity()} was expected (uid:gid:pid)"
            )
            assert scene.backbone.faults == [(4, told)]
            scene.backbone.faults.clear()
            found = scene.backbone.figures()[4]
            assert (found["received"], found["published"], found["sent"]) == (0, 0, 0)
        thief.stdin.close()
    # The sibling itself, in its own place, is as welcome as ever.
    scene.backbone.detach(4)
    scene.backbone.indices.pop(4)
    path.unlink(missing_ok=True)
    true = scene.backbone.peer(4, subscriptions=((1, "a.talk", True),))
    scene.talker.publish("a.talk", b"\x01")
    assert true.message().body == b"\x01"
