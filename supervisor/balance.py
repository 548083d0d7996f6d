"""The ledger's balance: whether every message that was routed to a subscription is accounted for.

The backbone counts what it routes to a subscription (`matched`), loses from the capsule's outbox
(`lagged`), and still holds there. The worker counts, and claims, what it has read, handed to its guest,
dropped, and still holds. Between the two lies what has been sent and not been read yet. It cannot be
counted; it follows from the two sides, and it has bounds:

    on the way = sent − read                                      of a capsule; never below 0
    on its way = matched − lagged − queued there − received       of a subscription; within 0 … on the way
    matched + carried = delivered + dropped + lagged + queued     where queued is there, on its way, and here

Each message on the way is for one subscription at least, so that all of theirs add up to no less than the
capsule's.

The worker's page must be read *before* the backbone is asked. The other way round the worker could have
read more than the backbone had sent when it was asked.

A subscription begins and ends on the two sides at different times. Those that the guest has ended are one
line, with handle 0, and so are meanwhile those that only one side knows. What was still on its way to them
when they ended was read for nobody: it is `left`, and no bound for it is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypedDict

from capsuled.proto.ledger import Claims, Row


class SubscriptionFigures(TypedDict):
    """The backbone's side of one subscription, as `Router.figures` gives it."""

    handle: int
    pattern: str
    matched: int
    lagged: int
    queued: int


class Figures(TypedDict):
    """What is used here of a member's figures, as `Router.figures` gives them."""

    sent: int
    closed_matched: int
    closed_lagged: int
    subscriptions: list[SubscriptionFigures]


class Standing(str, Enum):
    """How a capsule's ledger stands."""

    BALANCED = "balanced"
    UNBALANCED = "unbalanced"
    UNKNOWN = "unknown"
    """The worker's page was in the middle of an update, or it has not been greeted by this backbone yet."""


class Line(NamedTuple):
    """One subscription, or with handle 0 and no pattern all those that have ended. In messages.

        matched + carried = delivered + dropped + lagged + queued + left

    `carried` stood in the worker's queue when this epoch of the backbone began. `queued` is in the
    backbone, on the way, or in the worker; `left` is what was there when the subscription or the instance
    ended. What is the worker's to say is None while its claims are of no use.
    """

    capsule: str
    handle: int
    pattern: str
    matched: int
    carried: int | None
    delivered: int | None
    dropped: int | None
    lagged: int
    queued: int
    left: int

    def shape(self) -> dict[str, str | int | None]:
        """The line as it stands in `/v1/bus`."""
        return self._asdict()


class Sheet(NamedTuple):
    """The ledger of one capsule: its lines, and a sentence for each thing that does not add up."""

    standing: Standing
    lines: tuple[Line, ...]
    faults: tuple[str, ...] = ()


def sheet(capsule: str, figures: Figures, epoch: int, claims: Claims | None, *, ended: bool = False) -> Sheet:
    """Compare a member's figures of the backbone in `epoch` with its worker's claims.

    `claims` were read before the backbone was asked; None when the page was in the middle of an update.
    `ended`: the process is gone and these are its last figures, so that nothing is queued any more, and
    what was is left.
    """
    accounts = [
        _Account(each["handle"], each["pattern"], each["matched"], each["lagged"], each["queued"])
        for each in figures["subscriptions"]
    ]
    closed = _Account(0, "", figures["closed_matched"], figures["closed_lagged"], 0)
    if claims is None or claims.epoch != epoch:
        lines = [each.unclaimed(capsule, ended) for each in accounts]
        if closed.matched:
            lines.append(closed.unclaimed(capsule, ended=True))
        return Sheet(Standing.UNKNOWN, tuple(lines))
    on_the_way = figures["sent"] - claims.received
    opened, closed = _pair(accounts, closed, claims, on_the_way)
    faults = [
        *_faults_in_all(figures["sent"], claims.received, [*opened, closed]),
        *(fault for each in opened for fault in each.faults(on_the_way)),
        *closed.faults(None),
    ]
    lines = [each.line(capsule, ended) for each in opened]
    if closed.matched or any(closed.row):
        lines.append(closed.line(capsule, ended=True))
    standing = Standing.UNBALANCED if faults else Standing.BALANCED
    return Sheet(standing, tuple(lines), tuple(f"{capsule}, {fault}" for fault in faults))


def balanced(sheets: Iterable[Sheet]) -> bool:
    """Whether none of them contradicts itself; what is not known contradicts nothing."""
    return all(each.standing is not Standing.UNBALANCED for each in sheets)


_NOTHING = Row(handle=0, received=0, delivered=0, dropped=0, queued=0, carried=0)


@dataclass(frozen=True)
class _Account:
    """Both sides of one subscription, or of several together."""

    handle: int
    pattern: str
    matched: int
    lagged: int
    queued: int
    row: Row = _NOTHING

    @property
    def sent(self) -> int:
        return self.matched - self.lagged - self.queued

    @property
    def on_its_way(self) -> int:
        return self.sent - self.row.received

    def with_row(self, row: Row) -> _Account:
        return _Account(self.handle, self.pattern, self.matched, self.lagged, self.queued, row)

    def plus(self, other: _Account) -> _Account:
        """Both in one line, which keeps the name of this one."""
        row = Row(0, *(mine + its for mine, its in zip(self.row[1:], other.row[1:], strict=True)))
        return _Account(
            self.handle,
            self.pattern,
            self.matched + other.matched,
            self.lagged + other.lagged,
            self.queued + other.queued,
            row,
        )

    def faults(self, on_the_way: int | None) -> list[str]:
        """What does not add up. `on_the_way` is the bound of what may be on its way, None where none is
        known."""
        name = f"the subscription {self.handle} to '{self.pattern}'" if self.handle else "what has ended"
        row, found = self.row, list[str]()
        if self.on_its_way < 0:
            found.append(f"{name}: the worker has received {row.received} where {self.sent} were sent to it")
        if on_the_way is not None and self.on_its_way > max(0, on_the_way):
            found.append(
                f"{name}: {self.on_its_way} are neither lost nor received, and {on_the_way} are on the way"
            )
        came, went = row.carried + row.received, row.delivered + row.dropped + row.queued
        if came != went:
            found.append(f"{name}: {came} came to the worker, and it accounts for {went}")
        return found

    def line(self, capsule: str, ended: bool) -> Line:
        row = self.row
        held = self.queued + self.on_its_way + row.queued
        return Line(
            capsule,
            self.handle,
            self.pattern,
            self.matched,
            row.carried,
            row.delivered,
            row.dropped,
            self.lagged,
            queued=0 if ended else held,
            left=held if ended else 0,
        )

    def unclaimed(self, capsule: str, ended: bool) -> Line:
        return Line(
            capsule,
            self.handle,
            self.pattern,
            self.matched,
            None,
            None,
            None,
            self.lagged,
            queued=0 if ended else self.queued,
            left=self.queued if ended else 0,
        )


def _pair(
    accounts: list[_Account], closed: _Account, claims: Claims, on_the_way: int
) -> tuple[list[_Account], _Account]:
    """The open accounts with their rows, and what has ended or is known to one side only.

    What only the worker has, it has closed since its page was read, or the backbone has never heard of it.
    What only the backbone has is either so new that the worker has read nothing for it, or so old that its
    counts are among the worker's closed ones already; which of the two, the sums must tell.
    """
    rows = {row.handle: row for row in claims.rows}
    opened = [each.with_row(rows.pop(each.handle)) for each in accounts if each.handle in rows]
    paired = {each.handle for each in opened}
    alone = [each for each in accounts if each.handle not in paired]
    closed = closed.with_row(claims.closed)
    for row in rows.values():
        closed = closed.plus(_Account(0, "", 0, 0, 0, row))
    if closed.on_its_way >= 0 and all(0 <= each.on_its_way <= on_the_way for each in alone):
        return opened + alone, closed
    for each in alone:
        if each.sent < 0:  # false whatever the worker says, and not to be lost in the sum
            opened.append(each)
        else:
            closed = closed.plus(each)
    return opened, closed


def _faults_in_all(sent: int, read: int, accounts: list[_Account]) -> list[str]:
    """What does not add up for the capsule as a whole."""
    on_the_way, known = sent - read, sum(each.on_its_way for each in accounts)
    if on_the_way < 0:
        return [f"in all: the worker has read {read} where {sent} were sent to it"]
    if known < on_the_way:
        return [f"in all: {on_the_way} are on the way, and its subscriptions know of {known}"]
    return []
