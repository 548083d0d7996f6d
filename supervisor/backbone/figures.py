"""Figures: the backbone's side of a member's ledger, as it is told to the supervisor.

For each subscription, at any moment: matched = lagged + queued + sent.
"""

from __future__ import annotations

from typing import TypedDict

from capsuled.supervisor.backbone.members import Member


class SubscriptionFigures(TypedDict):
    """One subscription that stands, in messages."""

    handle: int
    pattern: str
    runtime_owned: bool
    matched: int
    lagged: int
    queued: int
    sent: int


class Figures(TypedDict):
    """One member, in messages where nothing else is said."""

    index: int
    published: int
    """Routed for it."""
    received: int
    """Publishes read from it, refused ones included."""
    missing: int
    """Publishes that it counted and that never arrived."""
    refused: dict[str, int]
    """By code; `malformed` counts frames."""
    sent: int
    lost: int
    queued: int
    queued_bytes: int
    closed_matched: int
    """Of subscriptions that have ended, without what waited for them then: what is not lagged was sent."""
    closed_lagged: int
    requests: int
    """That it has made: answered + failed + waiting."""
    answered: int
    failed: int
    waiting: int
    late: int
    """Answers and losses of requests that were over, and ends of subscriptions that there were no more."""
    subscriptions: list[SubscriptionFigures]


def figures(member: Member, waiting: int) -> Figures:
    """The figures of a member. The counts of all cached routes must have been settled; `waiting` are its requests."""
    outbox = member.outbox
    queued = outbox.queued()
    return {
        "index": member.admission.index,
        "published": member.published,
        "received": member.received,
        "missing": member.missing,
        "refused": dict(member.refused),
        "sent": outbox.sent,
        "lost": outbox.lost,
        "queued": len(outbox.items),
        "queued_bytes": outbox.bytes,
        "closed_matched": member.closed_matched,
        "closed_lagged": member.closed_lagged,
        "requests": member.requests,
        "answered": member.answered,
        "failed": member.failed,
        "waiting": waiting,
        "late": member.late,
        "subscriptions": [
            {
                "handle": each.handle,
                "pattern": each.text,
                "runtime_owned": each.runtime_owned,
                "matched": each.matched,
                "lagged": each.lagged,
                "queued": queued[each],
                "sent": each.matched - each.lagged - queued[each],
            }
            for each in member.subscriptions.values()
        ],
    }
