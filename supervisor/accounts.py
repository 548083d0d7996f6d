"""The ledger of all capsules: what lives is compared now, what has ended stays in the sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from capsuled.proto.ledger import Claims
from capsuled.supervisor import balance
from capsuled.supervisor.balance import Line, Sheet, Standing
from capsuled.supervisor.bus import BusFigures, Figures
from capsuled.supervisor.control.shapes import Json, JsonObject

CONVERSATIONS = ("requests", "answered", "failed", "waiting", "late")
"""What the backbone counts of a capsule's requests and answers."""

RETAINED = ("retained", "retained_bytes", "retained_evicted")
"""What the backbone keeps of a capsule's messages for later subscribers, whether it lives or not."""

MAX_FAULTS = 16
"""Sentences that are kept about what did not add up; they are all alike after a few."""


@dataclass
class Account:
    """One capsule's sums over its ended instances. Messages."""

    published: int = 0
    received: int = 0
    host_calls: int = 0
    logs_cut: int = 0
    malformed: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    """By the worker, for its guest's sake."""
    refused_by_backbone: Counter[str] = field(default_factory=Counter[str])
    """An honest worker leaves this empty."""
    conversations: Counter[str] = field(default_factory=Counter[str])
    """Requests of its own: requests = answered + failed + waiting; and what it said of what was over already."""
    routed: int = 0
    """What the backbone passed on."""
    lost_on_the_way: int = 0
    """Counted by the worker and never seen by the backbone."""
    ended: Counter[str] = field(default_factory=Counter[str])
    """Of ended subscriptions: matched, delivered, dropped, lagged, left, carried."""

    def add(self, claims: Claims | None, figures: Figures | None) -> None:
        if claims is not None:
            self.published += claims.published
            self.received += claims.received
            self.host_calls += claims.host_calls
            self.logs_cut += claims.logs_cut
            self.malformed += claims.malformed
            self.refused.update(claims.refused)
        if figures is not None:
            self.routed += figures["published"]
            for key in CONVERSATIONS:
                self.conversations[key] += figures.get(key, 0)
            self.lost_on_the_way += figures["missing"]
            self.refused_by_backbone.update(figures["refused"])

    def copy(self) -> Account:
        made = Account()
        for name, value in vars(self).items():
            setattr(made, name, Counter(cast("Counter[str]", value)) if isinstance(value, Counter) else value)
        return made


class Accounts:
    """All capsules' accounts."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._faults: list[str] = []

    def end(self, capsule: str, epoch: int, claims: Claims | None, figures: Figures | None) -> None:
        """Take an ended instance into the sums."""
        account = self._accounts.setdefault(capsule, Account())
        account.add(claims, figures)
        if figures is None:
            return
        sheet = balance.sheet(capsule, cast("balance.Figures", figures), epoch, claims, ended=True)
        if sheet.standing is Standing.UNKNOWN:
            return  # half of it is not known: it would not add up
        for line in sheet.lines:
            for name in ("matched", "delivered", "dropped", "lagged", "left", "carried"):
                account.ended[name] += getattr(line, name) or 0
        self._note(sheet)

    def document(
        self,
        claims: Mapping[str, Sequence[tuple[int, Claims | None]]],
        figures: BusFigures,
        names: list[str],
    ) -> JsonObject:
        """`/v1/bus`. `claims` of each capsule's instances, with their indices at the backbone, were read before
        `figures` was asked for."""
        lines: list[Line] = []
        sheets: list[Sheet] = []
        capsules: list[JsonObject] = []
        for name in names:
            account = self._accounts.get(name, Account()).copy()
            depth = 0
            for index, claimed in claims.get(name, ()):
                member = figures.members.get(index)
                account.add(claimed, member)
                if member is not None:
                    depth += member["queued"]
                    sheet = balance.sheet(name, cast("balance.Figures", member), figures.epoch, claimed)
                    sheets.append(sheet)
                    lines += sheet.lines
            if any(account.ended.values()):
                lines.append(_ended(name, account))
            kept = figures.retained.get(name, {})
            capsules.append({**_shape(name, account, depth), **{key: kept.get(key, 0) for key in RETAINED}})
        for sheet in sheets:
            for fault in sheet.faults:
                self._remember(fault)
        return {
            "balanced": balance.balanced(sheets) and not self._faults,
            "epoch": figures.epoch,
            "capsules": capsules,
            "subscriptions": [line.shape() for line in lines],
            "faults": list(self._faults),
        }

    def _note(self, sheet: Sheet) -> None:
        if sheet.standing is Standing.UNBALANCED:
            for fault in sheet.faults:
                self._remember(fault)

    def _remember(self, fault: str) -> None:
        if fault not in self._faults and len(self._faults) < MAX_FAULTS:
            self._faults.append(fault)


def _ended(name: str, account: Account) -> Line:
    ended = account.ended
    return Line(
        capsule=name,
        handle=0,
        pattern="(ended)",
        matched=ended["matched"],
        carried=ended["carried"],
        delivered=ended["delivered"],
        dropped=ended["dropped"],
        lagged=ended["lagged"],
        queued=0,
        left=ended["left"],
    )


def _shape(name: str, account: Account, queued: int) -> JsonObject:
    by_code: dict[str, Json] = dict(sorted(account.refused.items()))
    by_backbone: dict[str, Json] = dict(sorted(account.refused_by_backbone.items()))
    return {
        "name": name,
        "published": account.published,
        "routed": account.routed,
        "lost": account.lost_on_the_way,
        "received": account.received,
        "refused": by_code,
        "refused_by_backbone": by_backbone,
        "malformed": account.malformed,
        **{key: account.conversations[key] for key in CONVERSATIONS},
        "queued": queued,
        "host_calls": account.host_calls,
        "logs_cut": account.logs_cut,
    }


def counters(claims: Claims | None, figures: Figures | None) -> JsonObject:
    """What an instance had to do with the bus in its life, by its own word and by the backbone's; messages."""
    said: dict[str, Json] = {}
    if claims is not None:
        said.update(published=claims.published, received=claims.received, host_calls=claims.host_calls)
        said["refused"] = dict(claims.refused)
    if figures is not None:
        said.update(routed=figures["published"], queued=figures["queued"], lost=figures["missing"])
    return said
