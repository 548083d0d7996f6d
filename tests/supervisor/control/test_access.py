"""Which peer may do what."""

from __future__ import annotations

import pytest

from capsuled.proto.control import Level
from capsuled.supervisor.control.access import Access

ACCESS = Access(1000, {10: Level.READ, 11: Level.OPERATE})


@pytest.mark.parametrize(("uid", "level"), [(0, Level.ADMIN), (1000, Level.ADMIN), (1001, None)])
def test_root_and_the_own_user_are_admin(uid: int, level: Level | None) -> None:
    """Root and the supervisor's user have all levels; no other user has any by itself."""
    assert ACCESS.of_user(uid) is level


@pytest.mark.parametrize(
    ("gids", "level"),
    [
        ((), None),
        ((12,), None),
        ((10,), Level.READ),
        ((11, 12), Level.OPERATE),
        ((10, 11), Level.OPERATE),
        ((0,), None),
    ],
)
def test_the_highest_group_counts(gids: tuple[int, ...], level: Level | None) -> None:
    """A peer has the highest level of its groups, and a group that is not configured gives none."""
    assert ACCESS.of_groups(frozenset(gids)) is level


def test_without_groups_nobody_else_gets_in() -> None:
    """With no group configured no membership gives a level."""
    assert Access(1000).of_groups(frozenset(range(100))) is None
