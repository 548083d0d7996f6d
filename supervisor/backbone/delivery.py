"""Delivery: the members, their outboxes, and the numbers and names that messages carry.

What every kind of message needs on its way, whoever decides where it goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from capsuled.proto import records
from capsuled.supervisor.backbone.members import Member, Route
from capsuled.supervisor.backbone.origins import Origin, Origins
from capsuled.supervisor.backbone.outbox import Item, Outbox


@dataclass
class Delivery:
    """All members and what waits for them, in one epoch of the backbone."""

    epoch: int
    members: dict[int, Member] = field(init=False, default_factory=dict[int, Member])
    seq: int = field(init=False)
    """Global sequence number of the last message; of none, to begin with."""
    flush: list[Outbox] = field(init=False, default_factory=list[Outbox])
    """Outboxes that this turn has put something into."""
    origins: Origins = field(init=False, default_factory=Origins)

    def __post_init__(self) -> None:
        self.seq = self.epoch << records.EPOCH_SHIFT

    def push(self, route: Route, item: Item) -> None:
        """What `Router.take` does inline, for what is not its busy path."""
        route.count += 1
        for outbox in route.outboxes:
            outbox.items.append(item)
            outbox.bytes += len(item[0])
            outbox.overflow()
            self.mark(outbox)

    def tell(self, member: Member, record: bytes) -> None:
        """Put a control record before all messages that wait for a member."""
        member.outbox.control.append(record)
        self.mark(member.outbox)

    def mark(self, outbox: Outbox) -> None:
        """Have an outbox flushed at the end of this turn."""
        if not outbox.dirty:
            outbox.dirty = True
            self.flush.append(outbox)

    def origin(self, index: int) -> Origin:
        """What an origin index stands for."""
        return self.origins[index]

    def introduce(self, member: Member, origin: int) -> None:
        """Tell a member what an origin index stands for, if it has not been told."""
        if origin not in member.known_origins:
            member.known_origins.add(origin)
            self.tell(member, self.origins[origin].introduction(origin, self.epoch))

    def caused(self, member: Member, cause: int, receivers: Iterable[int]) -> int:
        """The origin of a message of `member` that carries on the principal of the origin `cause`; introduced to
        its receivers."""
        principal = self.origins[cause].principal
        if principal == member.admission.principal:
            return member.origin
        origin = self.origins.index(Origin(member.admission.name, member.admission.instance, principal))
        for index in receivers:
            self.introduce(self.members[index], origin)
        return origin
