"""The backbone as a process: real edges of ZeroMQ, and peers that do what workers do or must not do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capsuled.proto import records
from capsuled.proto.records import DownKind, UpKind
from capsuled.supervisor.backbone import protocol
from capsuled.supervisor.backbone.members import CONTROL_RATE
from capsuled.supervisor.backbone.outbox import MAX_CONTROL

from ...support.edge_peer import identity
from .making import admission
from .process import COMMAND, DEADLINE, Backbone, gone

LISTENS = ((1, "a.*", True),)


@pytest.fixture
def backbone(tmp_path: Path) -> Iterator[Backbone]:
    with Backbone(tmp_path) as running:
        running.begin()
        yield running


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


def test_subscribe_publish_receive(backbone: Backbone) -> None:
    """A message published after the acknowledgement arrives, stamped with who sent it, when, and its number."""
    one, two = backbone.peer(1), backbone.peer(2)
    answer = two.subscribe(7, "a.*")
    assert (answer.a, answer.b) == (7, 0)
    before = time.time_ns() // 1_000_000
    one.publish("a.b", b"\x18\x2a")
    origin = two.next(DownKind.ORIGIN)
    message = two.next(DownKind.MESSAGE)
    assert (origin.text, origin.body) == (b"c1", (1).to_bytes(16, "big") + b"p1")
    assert (message.text, message.body, message.a) == (b"a.b", b"\x18\x2a", origin.a)
    assert message.b == answer.c + 1 == (1 << records.EPOCH_SHIFT) + 1
    assert before <= message.c <= time.time_ns() // 1_000_000
    assert message.d == 0


def test_greeting(backbone: Backbone) -> None:
    """The first record of a connection is HELLO with the epoch."""
    hello = backbone.attach(1).next(DownKind.HELLO)
    assert (hello.b, hello.c) == (1, 0)
    assert backbone.ping() == 1


@pytest.mark.parametrize("size", [1, 4096, 4097, 48 * 1024, 64 * 1024, 1 << 20])
def test_payloads_of_every_size(backbone: Backbone, size: int) -> None:
    """A payload arrives as it was sent, gathered with others, alone, or handed over without a copy."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    sent = [os.urandom(size), b"\0", os.urandom(size)]
    for payload in sent:
        one.publish("a.b", payload)
    assert [two.message().body for _ in sent] == sent


def test_order(backbone: Backbone) -> None:
    """One publisher's messages arrive in the order in which it sent them, whatever the frames."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    for start in range(0, 600, 12):
        one.send(*(one.publish_record("a.b", n.to_bytes(2, "big")) for n in range(start, start + 12)))
    assert [int.from_bytes(two.message().body, "big") for _ in range(600)] == list(range(600))


def test_bye_is_answered_after_what_came_before_it(backbone: Backbone) -> None:
    """When the answer to BYE is there, all that was published before it has been routed."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    for _ in range(100):
        one.publish("a.b")
    assert one.bye().b == 100
    figures = backbone.figures()
    assert (figures[1]["published"], figures[1]["missing"]) == (100, 0)
    assert figures[2]["subscriptions"][0]["matched"] == 100
    assert [two.message().text for _ in range(100)] == [b"a.b"] * 100


def test_a_cause(backbone: Backbone) -> None:
    """What a received message causes carries its principal on; a cause that was not received is refused."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    three = backbone.peer(3, subscriptions=((1, "a.c", True),))
    one.publish("a.b")
    cause = two.message().b
    two.publish("a.c", cause=cause + 1)
    two.publish("a.c", cause=cause)
    principals: dict[int, bytes] = {}
    while three.peek() == DownKind.ORIGIN:
        origin = three.next(DownKind.ORIGIN)
        principals[origin.a] = origin.body[16:]
    message = three.next(DownKind.MESSAGE)
    assert (principals[message.a], message.d) == (b"p1", cause)
    assert backbone.figures()[2]["refused"] == {"badf": 1}


# ── what a worker must not do ────────────────────────────────────────────────────────────────────


def test_without_a_grant_nothing_passes(backbone: Backbone) -> None:
    """A worker that publishes or subscribes beyond its grants is refused here, whatever it has let its guest do."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    one.publish("b.c")
    one.publish("a.b")
    assert two.message().text == b"a.b"
    answer = one.subscribe(5, "b.*")
    assert (answer.a, answer.b, answer.text) == (5, 76, b"subscribe to 'b.*' is not granted")
    assert backbone.figures()[1]["refused"] == {"notcapable": 2}


def test_a_malformed_frame_is_counted(backbone: Backbone) -> None:
    """A frame that is none is counted, told once, and harms neither its sender's next one nor anybody else."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    one.send(one.publish_record("a.b", b"before"), b"\xff" * 30)
    one.send(b"\0")
    one.publish("a.b", b"after")
    assert [two.message().body for _ in range(2)] == [b"before", b"after"]
    assert backbone.figures()[1]["refused"] == {"malformed": 2}
    ((index, fault),) = backbone.faults
    assert index == 1
    assert fault.startswith("malformed frame: the record at ")


def test_an_oversize_frame_costs_its_own_connection(backbone: Backbone) -> None:
    """A frame over the limit ends the edge with a fault; one of the limit passes, and others go on."""
    limit = records.max_frame(1000)
    one, two = backbone.peer(1, max_payload=1000), backbone.peer(2, subscriptions=LISTENS)
    one.send(b"\0" * limit)
    one.publish("a.b")
    assert two.message().text == b"a.b"
    one.send(b"\0" * (limit + 1))
    backbone.expect("fault")  # the malformed frame of the limit's size
    backbone.expect("fault")
    assert backbone.faults[1] == (
        1,
        f"broke the protocol: a frame of more than {limit} bytes, or none of ZeroMQ's",
    )
    two.publish("a.b")
    assert two.message().text == b"a.b"
    assert backbone.detach(1)["published"] == 1


def test_what_does_not_speak_zeromq(backbone: Backbone) -> None:
    """A listener that answers with something else is cut off with a fault."""
    path = backbone.folder / "raw"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(1)
        listener.settimeout(DEADLINE)
        backbone.tell(attach_path(9, path))
        # ZeroMQ overlooks what breaks the protocol before its own connect() has returned; nothing is sent there.
        backbone.ping()
        connection, _ = listener.accept()
        with connection:
            # A greeting of version 3 with a mechanism that is none.
            connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NONE".ljust(20, b"\0") + bytes(32))
            index = backbone.expect("fault")["index"]
    assert index == 9
    assert backbone.faults[0][1].startswith("broke the protocol")


def attach_path(index: int, path: Path) -> dict[str, object]:
    return protocol.attach(admission(index, path=os.fspath(path), peer=identity()))


def test_somebody_else(backbone: Backbone) -> None:
    """Somebody else than the worker gets the greeting and no message, is cut off, and the fault names both."""
    who = f"{os.getuid()}:{os.getgid()}:1"
    one, wrong = backbone.peer(1), backbone.attach(2, who=who, subscriptions=LISTENS)
    wrong.next(DownKind.HELLO)
    one.publish("a.b")
    one.bye()
    assert backbone.figures()[2]["sent"] == 0
    wrong.publish("a.b")
    assert backbone.expect("fault")["index"] == 2
    assert backbone.faults == [(2, f"peer {identity()} where {who} was expected (uid:gid:pid)")]
    figures = backbone.figures()
    assert (figures[2]["received"], figures[2]["sent"], figures[2]["queued"]) == (0, 0, 1)
    assert not wrong.hears(0)
    assert backbone.detach(2)["queued"] == 1


def test_nothing_is_sent_before_the_peer_is_known(backbone: Backbone) -> None:
    """Messages wait for the answer to HELLO, the first frame that says who is there; then they come."""
    one, two = backbone.peer(1), backbone.attach(2, subscriptions=LISTENS)
    two.next(DownKind.HELLO)
    one.publish("a.b")
    one.bye()
    assert backbone.figures()[2]["queued"] == 1
    two.send(records.up(UpKind.HELLO))
    assert two.message().text == b"a.b"


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


def test_a_subscriber_that_does_not_read(backbone: Backbone) -> None:
    """It loses its own oldest, counted exactly: sent, lost and queued make up all; others get every message."""
    one = backbone.peer(1)
    slow = backbone.peer(2, queue_messages=5, receive_hwm=2, subscriptions=LISTENS)
    fast = backbone.peer(3, subscriptions=LISTENS)
    for n in range(120):
        one.publish("a.b", n.to_bytes(1, "big") + bytes(60_000))
        assert fast.message().body[0] == n
    figures = backbone.figures()[2]
    (only,) = figures["subscriptions"]
    assert figures["queued"] == 5
    assert figures["lost"] == only["lagged"] > 0
    assert figures["sent"] + figures["lost"] + figures["queued"] == only["matched"] == 120
    slow.next(DownKind.ORIGIN)
    sent = [slow.next(DownKind.MESSAGE).body[0] for _ in range(figures["sent"])]
    lagged = slow.next(DownKind.LAGGED)
    rest = [slow.next(DownKind.MESSAGE).body[0] for _ in range(5)]
    assert (lagged.a, lagged.b) == (1, figures["lost"])
    assert sent == list(range(figures["sent"]))
    assert rest == list(range(115, 120))
    assert backbone.figures()[2]["sent"] == figures["sent"] + 5


def test_all_queues_together_are_bounded(tmp_path: Path) -> None:
    """What waits for all who do not read is bounded together, also for one whose edge was cut."""
    with Backbone(tmp_path, total_queue_bytes=300_000) as backbone:
        backbone.begin()
        one = backbone.peer(1)
        slow = [backbone.peer(n, receive_hwm=2, subscriptions=LISTENS) for n in (2, 3)]
        cut = backbone.attach(4, who="1:1:1", subscriptions=LISTENS)
        cut.greet()
        backbone.expect("fault")
        for _ in range(100):
            one.publish("a.b", bytes(60_000))
        one.bye()
        figures = backbone.figures()
        assert len(slow) == 2
        assert sum(each["queued_bytes"] for each in figures.values()) <= 300_000
        assert all(figures[n]["queued"] >= 1 and figures[n]["lost"] > 0 for n in (2, 3, 4))


def test_over_its_rate_a_worker_is_not_read(backbone: Backbone) -> None:
    """A worker over its rate waits until its bucket has refilled, alone, and costs nothing meanwhile."""
    # Two messages at once (the bucket may fall below zero by what has been read), the third a second later.
    limited = backbone.peer(1, message_rate=1, subscriptions=((1, "a.news", True),))
    other = backbone.peer(2, subscriptions=((1, "a.b", True),))
    for _ in range(3):
        limited.publish("a.b")
    stamps = [other.message().c for _ in range(2)]
    used = backbone.cpu_seconds()
    for n in range(100):  # news for the one that is not read: it takes them, and its edge says so
        other.publish("a.news", bytes([n]))
        assert limited.message().body == bytes([n])
    stamps.append(other.message().c)
    assert stamps[2] - stamps[1] >= 900
    assert backbone.cpu_seconds() - used < 0.5


def test_a_long_pause_is_no_defect(backbone: Backbone) -> None:
    """A worker that must wait for weeks does not stop the loop, whose waits have 31 bits of milliseconds."""
    limited = backbone.peer(1, byte_rate=1, max_payload=3 << 20)
    other = backbone.peer(2, subscriptions=LISTENS)
    limited.publish("a.b", bytes(3 << 20))
    assert len(other.message().body) == 3 << 20
    assert backbone.ping() == 1
    other.publish("a.b")
    assert other.message().text == b"a.b"


def test_a_flood_of_subscriptions_waits_alone(backbone: Backbone) -> None:
    """A worker that asks without end is not read on: others are served, and answers do not pile up."""
    flooding, other = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    frame = b"".join(records.up(UpKind.SUBSCRIBE, b"a.b", a=n) for n in range(1, 129)) + b"".join(
        records.up(UpKind.UNSUBSCRIBE, a=n) for n in range(1, 129)
    )
    begun = time.monotonic()
    for _ in range(20):
        flooding.send(frame)
    for _ in range(50):
        other.publish("a.b")
        assert other.message().text == b"a.b"
    # The burst, one frame over it, and what has been refilled meanwhile.
    answers = 0
    while flooding.hears(0):
        flooding.next(DownKind.SUBSCRIBED if answers % 256 < 128 else DownKind.UNSUBSCRIBED)
        answers += 1
    assert answers <= CONTROL_RATE * (2 + time.monotonic() - begun)
    assert backbone.figures()[1]["refused"] == {}


def test_a_worker_that_takes_no_answers_is_not_read_until_it_does(backbone: Backbone) -> None:
    """Its edge is full and too many answers wait; once it reads, it is read again."""
    one = backbone.peer(1)
    stuck = backbone.peer(2, receive_hwm=2, subscriptions=((1, "a.x", True),))
    listener = backbone.peer(3, subscriptions=((1, "a.y", True),))
    while not backbone.figures()[2]["queued"]:
        one.publish("a.x", bytes(60_000))
    for _ in range(MAX_CONTROL // 256):
        stuck.send(*(records.up(UpKind.SUBSCRIBE, b"b", a=9) for _ in range(256)))
    stuck.publish("a.y")
    while backbone.figures()[2]["refused"].get("notcapable", 0) < MAX_CONTROL:
        listener.bye()
    answers = 0
    while answers < MAX_CONTROL:
        kind = DownKind(stuck.peek())
        stuck.next(kind)
        answers += kind == DownKind.SUBSCRIBED
    assert listener.message().text == b"a.y"
    assert not backbone.faults


# ── coming and going ─────────────────────────────────────────────────────────────────────────────


def test_nobody_is_greeted_before_begin(tmp_path: Path) -> None:
    """Members of the last epoch are attached with their subscriptions first; then all are greeted."""
    with Backbone(tmp_path, epoch=5) as backbone:
        listener, path = socket.socket(socket.AF_UNIX), tmp_path / "early"
        with listener:
            listener.bind(os.fspath(path))
            listener.listen(1)
            listener.setblocking(False)
            backbone.tell(attach_path(9, path))
            one = backbone.attach(1)
            two = backbone.attach(2, subscriptions=((3, "a.b", False),))
            assert backbone.ping() == 5
            with pytest.raises(BlockingIOError):
                listener.accept()
            backbone.begin()
            assert [one.greet().b, two.greet().b] == [5, 5]
            standing = two.next(DownKind.SUBSCRIBED)
            assert (standing.a, standing.b, standing.c) == (3, 0, 5 << records.EPOCH_SHIFT)
            one.publish("a.b")
            assert two.message().b == (5 << records.EPOCH_SHIFT) + 1


def test_another_backbone_takes_over(tmp_path: Path) -> None:
    """After a crash the next one greets the same listener, and what was told of subscriptions stands at once."""
    with Backbone(tmp_path) as first:
        first.begin()
        one, two = first.peer(1), first.peer(2)
        two.subscribe(4, "a.b")
        first.expect("subscriptions")
        first.kill()
        with Backbone(tmp_path, epoch=2) as second:
            second.attach(1, peer=one)
            second.attach(2, peer=two, subscriptions=first.tables[2])
            second.begin()
            assert (one.greet().b, two.greet().b) == (2, 2)
            assert two.next(DownKind.SUBSCRIBED).a == 4
            one.publish("a.b")
            assert two.message().b == (2 << records.EPOCH_SHIFT) + 1
            assert second.figures()[2]["subscriptions"][0]["handle"] == 4
            again = two.subscribe(4, "a.b")
            assert (again.b, again.c) == (0, 2 << records.EPOCH_SHIFT)


def test_no_acknowledgement_before_the_supervisor_can_know(backbone: Backbone) -> None:
    """While the supervisor reads nothing a subscription is not acknowledged; others' messages pass."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    requests = 5000  # far more than the socket's buffers take of the answers
    for request in range(requests):
        backbone.tell({"op": "figures", "request": request})
    backbone.peer(3)  # now it has obeyed them all
    one.send(records.up(UpKind.SUBSCRIBE, b"a.z", a=8))
    two.publish("a.b")
    assert two.message().text == b"a.b"
    assert not one.hears(200)
    for _ in range(requests):
        backbone.expect("figures")
    assert one.next(DownKind.SUBSCRIBED).a == 8
    backbone.ping()
    assert backbone.tables == {1: ((8, "a.z", False),)}


def test_detach_tells_the_last_figures(backbone: Backbone) -> None:
    """They have what was queued and what the worker sent last; afterwards the member is no more."""
    one = backbone.peer(1)
    two = backbone.peer(2, queue_messages=5, receive_hwm=2, subscriptions=LISTENS)
    while not (queued := backbone.figures()[2]["queued"]):
        one.publish("a.b", bytes(60_000))
    one.bye()
    figures = backbone.detach(2)
    (only,) = figures["subscriptions"]
    assert figures["queued"] == only["queued"] >= queued
    assert only["matched"] == only["sent"] + only["queued"] + only["lagged"] == one.published
    one.publish("a.b")
    one.bye()
    assert set(backbone.figures()) == {1}
    two.close()


def test_what_a_worker_sent_before_it_ended_is_routed(backbone: Backbone) -> None:
    """A worker that publishes and is gone at once has its messages delivered, though it is detached."""
    one, two = backbone.peer(1), backbone.peer(2, subscriptions=LISTENS)
    one.publish("a.b", b"last")
    assert two.message().body == b"last"
    one.close()
    assert backbone.detach(1)["published"] == 1


def test_an_index_may_come_back(backbone: Backbone) -> None:
    """Hundreds of members that come and go leave no descriptor behind, and the last one is served."""
    descriptors = Path(f"/proc/{backbone.process.pid}/fd")
    backbone.peer(0)
    backbone.peer(1).close()
    backbone.detach(1)
    before = len(list(descriptors.iterdir()))
    for _ in range(100):
        backbone.peer(1).close()
        backbone.detach(1)
    last = backbone.peer(1, subscriptions=LISTENS)
    last.publish("a.b")
    assert last.message().text == b"a.b"
    # ZeroMQ closes what is left of a socket in a thread of its own: a few may be under way.
    assert len(list(descriptors.iterdir())) <= before + 3 * 10


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_stop(backbone: Backbone) -> None:
    """It answers what it was asked before, and ends with status 0."""
    backbone.peer(1)
    backbone.tell({"op": "figures", "request": 77})
    backbone.tell({"op": "stop"})
    assert backbone.expect("figures")["request"] == 77
    assert backbone.ends() == 0


def test_it_ends_when_its_socket_is_closed(backbone: Backbone) -> None:
    """Without a supervisor there is nobody to carry messages for."""
    backbone.peer(1)
    backbone.socket.close()
    assert backbone.ends() == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"op": "dance"}, "there is no op 'dance' for the backbone"),
        ({"op": "attach"}, "an attach that cannot be read"),
        ({"op": "configure", "epoch": -1, "total_queue_bytes": 1, "largest_payload": 1}, "an epoch of -1"),
        (protocol.attach(admission(1)), "the index 1 is attached already: detach it first"),
    ],
)
def test_a_supervisor_that_is_broken(backbone: Backbone, message: dict[str, object], reason: str) -> None:
    """What the backbone cannot obey ends it, with status 1 and the reason on standard error."""
    backbone.peer(1)
    backbone.tell(message)
    assert backbone.ends() == 1
    assert reason in backbone.errors()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_only_the_supervisor_ends_it(backbone: Backbone, number: signal.Signals) -> None:
    """A terminal's Ctrl-C, or a TERM to the whole group, does not take the messages away from under the capsules."""
    backbone.ping()
    backbone.process.send_signal(number)
    assert backbone.ping() == 1


def _run_on(_pid: int) -> None:
    """A process as it is."""


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


@pytest.mark.parametrize("before", [_run_on, _stop])
def test_it_is_killed_when_its_life_ends(backbone: Backbone, before: Callable[[int], None]) -> None:
    """When the supervisor's end of the pipe is closed, the kernel kills the backbone, a stopped one too."""
    backbone.ping()
    before(backbone.process.pid)
    os.close(backbone.hold)
    backbone.hold = -1
    assert backbone.ends() == -signal.SIGKILL


def test_it_does_not_start_without_a_supervisor() -> None:
    """A supervisor that died before the backbone had asked for the signal is noticed all the same."""
    mine, theirs = socket.socketpair()
    life, hold = os.pipe()
    os.close(hold)
    with mine, theirs:
        process = subprocess.Popen(COMMAND, stdin=theirs.fileno(), stdout=life)
        os.close(life)
        assert process.wait(DEADLINE) in (1, -signal.SIGKILL)


SUPERVISOR = f"""
import os, socket, subprocess, sys
mine, theirs = socket.socketpair()
life, hold = os.pipe()
process = subprocess.Popen({COMMAND!r}, stdin=theirs, stdout=life)
from capsuled.supervisor.backbone import protocol
mine.sendall(protocol.pack({{"op": "ping"}}))
assert mine.recv(1000)
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_it_does_not_outlive_a_supervisor_that_is_killed(stopped: bool) -> None:
    """SIGKILL of the supervisor takes the backbone with it, a stopped one too."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SUPERVISOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        pidfd = os.pidfd_open(pid)
        try:
            if stopped:
                signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            supervisor.kill()
            assert gone(pidfd)
        finally:
            os.close(pidfd)
