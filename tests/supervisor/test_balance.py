"""The ledger's balance, against the real router and a worker that counts as workers promise to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import ledger, records, topics
from capsuled.proto.grants import Grants
from capsuled.proto.ledger import Claims, Row
from capsuled.proto.records import DownKind, UpKind
from capsuled.supervisor import balance
from capsuled.supervisor.backbone.members import Admission
from capsuled.supervisor.backbone.router import Router
from capsuled.supervisor.balance import Figures, Line, Sheet, Standing, SubscriptionFigures

EPOCH = 7


def row(
    handle: int, received: int = 0, delivered: int = 0, dropped: int = 0, queued: int = 0, carried: int = 0
) -> Row:
    return Row(handle, received, delivered, dropped, queued, carried)


def claims(received: int, *rows: Row, closed: Row | None = None, epoch: int = EPOCH) -> Claims:
    empty = ledger.claims([0] * ledger.SLOTS)
    return empty._replace(epoch=epoch, received=received, closed=closed or row(0), rows=rows)


def at_backbone(handle: int, matched: int, lagged: int = 0, queued: int = 0) -> SubscriptionFigures:
    return {"handle": handle, "pattern": "a.*", "matched": matched, "lagged": lagged, "queued": queued}


def figures(sent: int, *subscriptions: SubscriptionFigures, closed: tuple[int, int] = (0, 0)) -> Figures:
    matched, lagged = closed
    return {
        "sent": sent,
        "closed_matched": matched,
        "closed_lagged": lagged,
        "subscriptions": list(subscriptions),
    }


def line(
    handle: int,
    matched: int,
    delivered: int = 0,
    dropped: int = 0,
    lagged: int = 0,
    queued: int = 0,
    left: int = 0,
) -> Line:
    """A line of capsule `c` to which nothing was carried."""
    pattern = "a.*" if handle else ""
    return Line("c", handle, pattern, matched, 0, delivered, dropped, lagged, queued, left)


# ── one by one ───────────────────────────────────────────────────────────────────────────────────

CASES: dict[str, tuple[Figures, Claims, list[Line]]] = {
    "nothing": (figures(0), claims(0), []),
    "all at rest": (figures(3, at_backbone(1, 3)), claims(3, row(1, 3, 2, 1)), [line(1, 3, 2, 1)]),
    "in every place": (
        figures(6, at_backbone(1, 10, lagged=1, queued=3)),
        claims(4, row(1, 4, 1, 1, 2)),
        [line(1, 10, 1, 1, 1, 3 + 2 + 2)],
    ),
    "two for each message": (
        figures(4, at_backbone(1, 4), at_backbone(2, 4)),
        claims(3, row(1, 3, 3), row(2, 3, 3)),
        [line(1, 4, 3, queued=1), line(2, 4, 3, queued=1)],
    ),
    "just begun, nothing read": (
        figures(5, at_backbone(1, 3), at_backbone(2, 2)),
        claims(3, row(1, 3, 3)),
        [line(1, 3, 3), line(2, 2, queued=2)],
    ),
    "just begun, not acknowledged": (
        figures(3, at_backbone(1, 3)),
        claims(3, row(1, 3, 3), row(2)),
        [line(1, 3, 3)],
    ),
    "ended on both sides": (
        figures(5, closed=(6, 1)),
        claims(5, closed=row(0, 4, 2, 1, 1)),
        [line(0, 6, 2, 1, 1, left=1 + 1)],
    ),
    "ended since the page was read": (
        figures(5, closed=(5, 0)),
        claims(5, row(1, 5, 3, 0, 2)),
        [line(0, 5, 3, left=2)],
    ),
    "ended, which the backbone has not heard": (
        figures(9, at_backbone(1, 9)),
        claims(5, closed=row(0, 3, 3)),
        [line(0, 9, 3, left=6)],
    ),
    "ended, and it could just have begun": (
        figures(10, at_backbone(1, 5), at_backbone(2, 5)),
        claims(3, row(2), closed=row(0, 3, 3)),
        [line(2, 5, queued=5), line(0, 5, 3, left=2)],
    ),
    "ended, and read for nobody": (
        figures(4, at_backbone(1, 4)),
        claims(4),
        [line(0, 4, left=4)],
    ),
    "ended unheard, in every place": (
        figures(6, at_backbone(1, 10, lagged=1, queued=3)),
        claims(6, closed=row(0, 4, 2, 1, 1)),
        [line(0, 10, 2, 1, 1, left=3 + 2 + 1)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_lines(name: str) -> None:
    """Wherever messages are, and whichever side has heard of a subscription, each one is in one place."""
    backbone, worker, lines = CASES[name]
    assert balance.sheet("c", backbone, EPOCH, worker) == Sheet(Standing.BALANCED, tuple(lines))


def test_carried_counts_as_come() -> None:
    """What stood in the queue when the backbone's epoch began is accounted for, in open and in ended ones."""
    worker = claims(2, row(1, 2, 4, 0, 1, carried=3), closed=row(0, 0, 1, 0, 1, carried=2))
    assert balance.sheet("c", figures(2, at_backbone(1, 2)), EPOCH, worker) == Sheet(
        Standing.BALANCED,
        (Line("c", 1, "a.*", 2, 3, 4, 0, 0, 1, 0), Line("c", 0, "", 0, 2, 1, 0, 0, 0, 1)),
    )


def test_last_figures_leave_what_was_on_its_way() -> None:
    """Of an ended instance nothing is queued: what was held anywhere is left, and balances."""
    backbone = figures(6, at_backbone(1, 10, lagged=1, queued=3))
    found = balance.sheet("c", backbone, EPOCH, claims(4, row(1, 4, 1, 1, 2)), ended=True)
    assert found == Sheet(Standing.BALANCED, (line(1, 10, 1, 1, 1, left=3 + 2 + 2),))


@pytest.mark.parametrize(
    "worker", [None, claims(9, row(1, 9, 9), epoch=EPOCH - 1)], ids=["torn", "restarted"]
)
def test_unknown_is_not_unbalanced(worker: Claims | None) -> None:
    """A torn page and one of another epoch say nothing: there is the backbone's side, and no verdict."""
    found = balance.sheet("c", figures(2, at_backbone(1, 6, 1, 3), closed=(4, 1)), EPOCH, worker)
    assert found == Sheet(
        Standing.UNKNOWN,
        (
            Line("c", 1, "a.*", 6, None, None, None, 1, 3, 0),
            Line("c", 0, "", 4, None, None, None, 1, 0, 0),
        ),
    )
    assert balance.balanced([found])


FAULTS: dict[str, tuple[Figures, Claims, str]] = {
    "read more than was sent": (
        figures(2, at_backbone(1, 3)),
        claims(3, row(1, 3, 3)),
        "in all: the worker has read 3 where 2 were sent",
    ),
    "received more than was sent to it": (
        figures(9, at_backbone(1, 3), at_backbone(2, 7)),
        claims(9, row(1, 4, 4), row(2, 6, 6)),
        "the subscription 1 to 'a.*': the worker has received 4 where 3 were sent",
    ),
    "one more is missing than is on the way": (
        figures(5, at_backbone(1, 5), at_backbone(2, 5)),
        claims(3, row(1, 2, 2), row(2, 3, 3)),
        "the subscription 1 to 'a.*': 3 are neither lost nor received, and 2 are on the way",
    ),
    "one message is for nobody": (
        figures(5, at_backbone(1, 4)),
        claims(3, row(1, 3, 3)),
        "in all: 2 are on the way, and its subscriptions know of 1",
    ),
    "the worker lost one": (
        figures(5, at_backbone(1, 5)),
        claims(5, row(1, 5, 2, 1, 1)),
        "the subscription 1 to 'a.*': 5 came to the worker, and it accounts for 4",
    ),
    "the worker made one up": (
        figures(5, at_backbone(1, 5)),
        claims(5, row(1, 5, 2, 1, 3)),
        "the subscription 1 to 'a.*': 5 came to the worker, and it accounts for 6",
    ),
    "an ended one received too much": (
        figures(5, closed=(5, 1)),
        claims(5, closed=row(0, 5, 5)),
        "what has ended: the worker has received 5 where 4 were sent",
    ),
    "an ended one received what still waits": (
        figures(6, at_backbone(1, 10, queued=5)),
        claims(6, closed=row(0, 6, 6)),
        "what has ended: the worker has received 6 where 5 were sent",
    ),
    "an ended one lost one": (
        figures(5, closed=(5, 0)),
        claims(5, closed=row(0, 5, 3, 0, 1)),
        "what has ended: 5 came to the worker, and it accounts for 4",
    ),
    "a row that the backbone never had": (
        figures(5, at_backbone(1, 5)),
        claims(5, row(1, 5, 5), row(2, 1, 1)),
        "what has ended: the worker has received 1 where 0 were sent",
    ),
    "the backbone has lost more than it matched": (
        figures(5, at_backbone(1, 1, lagged=1, queued=1), closed=(5, 0)),
        claims(5, closed=row(0, 5, 5)),
        "the subscription 1 to 'a.*': the worker has received 0 where -1 were sent",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name: str) -> None:
    """What cannot be is named, with its numbers, and the capsule is out of balance."""
    backbone, worker, sentence = FAULTS[name]
    found = balance.sheet("c", backbone, EPOCH, worker)
    assert found.standing is Standing.UNBALANCED
    assert any(fault.startswith(f"c, {sentence}") for fault in found.faults), found.faults
    assert not balance.balanced([balance.sheet("d", figures(0), EPOCH, claims(0)), found])


def test_shape() -> None:
    """A line travels with the names of the control contract."""
    assert line(1, 10, 1, 2, 3, 4).shape() == {
        "capsule": "c",
        "handle": 1,
        "pattern": "a.*",
        "matched": 10,
        "carried": 0,
        "delivered": 1,
        "dropped": 2,
        "lagged": 3,
        "queued": 4,
        "left": 0,
    }


# ── a run of messages ────────────────────────────────────────────────────────────────────────────

TOPICS = ("a.b", "a.c", "a.b.c")
PATTERNS = ("a.*", "a.b", "a.b.*", "a.c")
SOURCE, SINK = 0, 1
OUTBOX, QUEUE = 6, 3
"""Bounds in messages, so small that runs reach them."""


@dataclass
class Handle:
    """A worker's subscription."""

    pattern: topics.Segments
    since: int | None = None
    """Sequence number from which on messages are its own; None before it is acknowledged."""
    received: int = 0
    delivered: int = 0
    dropped: int = 0
    queued: int = 0
    carried: int = 0


@dataclass
class Worker:
    """A worker that keeps the promise of the ledger page."""

    handles: dict[int, Handle] = field(default_factory=dict[int, Handle])
    closed: Handle = field(default_factory=lambda: Handle(()))
    epoch: int = 0
    received: int = 0
    next_handle: int = 1
    up: deque[bytes] = field(default_factory=deque[bytes])
    """What it has said and the backbone has not read."""

    def subscribe(self, pattern: str) -> None:
        self.handles[self.next_handle] = Handle(topics.split_subscribable(pattern))
        self.up.append(records.up(UpKind.SUBSCRIBE, pattern.encode(), a=self.next_handle))
        self.next_handle += 1

    def unsubscribe(self, handle: int) -> None:
        gone, closed = self.handles.pop(handle), self.closed
        closed.received += gone.received
        closed.delivered += gone.delivered
        closed.dropped += gone.dropped
        closed.carried += gone.carried
        closed.queued += gone.queued
        self.up.append(records.up(UpKind.UNSUBSCRIBE, a=handle))

    def read(self, frame: bytes) -> None:
        for each in records.split_down(frame):
            if each.kind == DownKind.MESSAGE:
                self._message(topics.split(each.text.decode()), each.b)
            elif each.kind == DownKind.HELLO:
                self._begin(each.b)
            elif each.kind == DownKind.SUBSCRIBED and each.a in self.handles:
                assert not each.b, each.text
                self.handles[each.a].since = each.c

    def take(self, handle: int) -> None:
        """The guest takes what waits."""
        mine = self.handles[handle]
        mine.delivered += mine.queued
        mine.queued = 0

    def page(self) -> Claims:
        rows = [row_of(number, each) for number, each in self.handles.items()]
        return claims(self.received, *rows, closed=row_of(0, self.closed), epoch=self.epoch)

    def _message(self, topic: topics.Segments, seq: int) -> None:
        self.received += 1
        for each in self.handles.values():
            if each.since is None or seq <= each.since or not topics.matches(each.pattern, topic):
                continue
            each.received += 1
            if each.queued == QUEUE:
                each.dropped += 1
            else:
                each.queued += 1

    def _begin(self, epoch: int) -> None:
        self.epoch, self.received, self.closed = epoch, 0, Handle(())
        for each in self.handles.values():
            each.carried, each.received, each.delivered, each.dropped = each.queued, 0, 0, 0
            each.since = 0 if each.since is not None else None


def row_of(handle: int, each: Handle) -> Row:
    return row(handle, each.received, each.delivered, each.dropped, each.queued, each.carried)


def admission(index: int, subscriptions: tuple[tuple[int, str, bool], ...] = ()) -> Admission:
    return Admission(
        index=index,
        name=f"c{index}",
        instance=bytes(16),
        principal="p",
        path="",
        peer="",
        grants=Grants(("a.*",), ("a.*",)),
        max_payload=1024,
        publish_bytes_per_second=1 << 20,
        publish_messages_per_second=1 << 20,
        queue_messages=OUTBOX,
        queue_bytes=1 << 20,
        subscriptions=subscriptions,
    )


class Run:
    """A source, the router, the wire, and a worker; each step moves messages from one place to the next."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.table: list[tuple[int, str, bool]] = []
        self.wire: deque[bytes] = deque()
        self.published = 0
        self.epoch = 0
        self.restart()

    def restart(self) -> None:
        """The backbone falls and another one takes its place; what was on its way is lost."""
        # Settled first: what the worker and a fallen backbone disagreed on is not the ledger's business.
        self.settle()
        self.epoch += 1
        self.router = Router(self.epoch, self._keep)
        self.wire.clear()
        self.source = self.router.attach(admission(SOURCE), 0.0)
        self.sink = self.router.attach(admission(SINK, tuple(self.table)), 0.0)
        self.router.greet(self.sink)

    def _keep(self, _index: int, table: list[tuple[int, str, bool]]) -> None:
        self.table = table

    def settle(self) -> None:
        """Until nothing is on its way any more."""
        if self.epoch:
            self.control()
            self.send()
            while self.wire:
                self.read()

    def publish(self, topic: str) -> None:
        frame = records.up(UpKind.PUBLISH, topic.encode(), a=self.published, body=b"\0")
        self.published += 1
        self.router.take(self.source, frame, 0.0, 0)

    def control(self) -> None:
        """The backbone reads what the worker has said."""
        while self.worker.up:
            self.router.take(self.sink, self.worker.up.popleft(), 0.0, 0)

    def send(self) -> None:
        """Put what waits on the wire, in one frame: so few and so small that they all fit."""
        if frame := self.sink.outbox.take_frame():
            self.wire.append(frame)

    def read(self) -> None:
        """The worker reads a frame."""
        if self.wire:
            self.worker.read(self.wire.popleft())

    def do(self, name: str, value: int) -> None:
        """One step; `value` chooses what it is about."""
        handles = sorted(self.worker.handles)
        if name == "publish":
            self.publish(TOPICS[value % len(TOPICS)])
        elif name == "subscribe":
            self.worker.subscribe(PATTERNS[value % len(PATTERNS)])
        elif name == "unsubscribe" and handles:
            self.worker.unsubscribe(handles[value % len(handles)])
        elif name == "take" and handles:
            self.worker.take(handles[value % len(handles)])
        elif name == "control":
            self.control()
        elif name == "send":
            self.send()
        elif name == "read":
            self.read()
        elif name == "restart":
            self.restart()

    def figures(self) -> Figures:
        self.router.settle()
        return cast("Figures", self.router.figures(self.sink))


MOVES = ("publish", "publish", "publish", "send", "read", "take", "control")
CHANGES = ("subscribe", "unsubscribe")


def steps(*names: str, least: int = 0, most: int = 20) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 20)), min_size=least, max_size=most)


def run_of(before: list[tuple[str, int]]) -> Run:
    """A run that begins with a subscription to everything."""
    run = Run()
    run.worker.subscribe("a.*")
    run.settle()
    for name, value in before:
        run.do(name, value)
    return run


def adds_up(lines: tuple[Line, ...]) -> bool:
    return all(
        each.matched + (each.carried or 0)
        == (each.delivered or 0) + (each.dropped or 0) + each.lagged + each.queued + each.left
        for each in lines
    )


@given(steps(*MOVES, *CHANGES, "restart", least=20, most=60), steps(*MOVES, *CHANGES), st.booleans())
def test_every_run_balances(
    before: list[tuple[str, int]], between: list[tuple[str, int]], ended: bool
) -> None:
    """Invariant: however messages, subscriptions and restarts interleave, and whatever happens between the
    page and the figures, the ledger is balanced, each line adds up, and no count in it is negative."""
    run = run_of(before)
    page = run.worker.page()
    for name, value in [] if ended else between:
        run.do(name, value)
    found = balance.sheet("c", run.figures(), run.epoch, page, ended=ended)
    if page.epoch != run.epoch:
        assert found.standing is Standing.UNKNOWN
        return
    assert (found.standing, found.faults) == (Standing.BALANCED, ())
    assert adds_up(found.lines)
    assert all(count >= 0 for each in found.lines for count in each[3:] if isinstance(count, int))
    assert not ended or all(each.queued == 0 for each in found.lines)


@given(steps(*MOVES, *CHANGES), steps(*MOVES, *CHANGES))
def test_a_restart_in_between_is_unknown(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
    """Invariant: a page of before a restart of the backbone is never held against the new one."""
    run = run_of(before)
    page = run.worker.page()
    run.restart()
    for name, value in after:
        run.do(name, value)
    assert balance.sheet("c", run.figures(), run.epoch, page).standing is Standing.UNKNOWN


WORKER_COUNTS = ("received", "delivered", "dropped", "queued", "carried")
BACKBONE_COUNTS = ("matched", "lagged", "queued")


@given(
    steps(*MOVES, "subscribe", "restart", most=40),
    st.sampled_from(["sent", "read", *(f"row {each}" for each in WORKER_COUNTS), *BACKBONE_COUNTS]),
    st.integers(-3, 3).filter(bool),
    st.integers(0, 20),
)
def test_a_wrong_count_does_not_balance(
    before: list[tuple[str, int]], count: str, by: int, which: int
) -> None:
    """Invariant: when nothing is on the way, each single count that is wrong, by however little, is found."""
    run = run_of(before)
    run.settle()
    backbone, page = run.figures(), run.worker.page()
    assert balance.sheet("c", backbone, run.epoch, page).standing is Standing.BALANCED
    number = which % len(page.rows)
    if count == "sent":
        backbone["sent"] += by
    elif count == "read":
        page = page._replace(received=page.received + by)
    elif count in ("matched", "lagged", "queued"):
        cast("dict[str, int]", backbone["subscriptions"][number])[count] += by
    else:
        rows, column = list(page.rows), count.removeprefix("row ")
        at = Row._fields.index(column)
        values = list(rows[number])
        values[at] += by
        rows[number] = Row(*values)
        page = page._replace(rows=tuple(rows))
    assert balance.sheet("c", backbone, run.epoch, page).standing is Standing.UNBALANCED
