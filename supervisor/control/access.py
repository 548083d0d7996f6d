"""Which peer may do what: from the kernel's word about a peer to its level.

Root and the supervisor's own user are admin, for they could attach a debugger as well. Members of a
configured group have that group's level, the highest one when they are in several. Nobody else has any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from capsuled.proto.control import Level

ROOT = 0


class Peer(NamedTuple):
    """A process at the other end, as it was when it connected."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"uid {self.uid}, gid {self.gid}, pid {self.pid}"


def no_groups() -> Mapping[int, Level]:
    return {}


@dataclass(frozen=True)
class Access:
    """The supervisor's own uid, and the level of each configured group by its gid."""

    own_uid: int
    groups: Mapping[int, Level] = field(default_factory=no_groups)

    def of_user(self, uid: int) -> Level | None:
        """What the user alone gives, without a look at groups."""
        return Level.ADMIN if uid in (ROOT, self.own_uid) else None

    def of_groups(self, gids: frozenset[int]) -> Level | None:
        """The highest level that one of these groups gives."""
        return max((level for gid, level in self.groups.items() if gid in gids), default=None)
