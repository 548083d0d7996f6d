"""Who is reaped as an orphan, and who is not."""

from __future__ import annotations

import pytest

from capsuled.supervisor import reaper
from capsuled.supervisor.reaper import Child


@pytest.mark.parametrize(
    ("stat", "child"),
    [
        (b"7 (sh) Z 1 7 7 0 -1", Child(7, "Z", 1, 7)),
        (b"7 (a) Z 9 9 (b) S 1 5 7 0 -1", Child(7, "S", 1, 5)),
        (b"7 (\n) R 2) Z 1 5 7 0", Child(7, "Z", 1, 5)),
        (b"7 () Z 1 0 0 0", Child(7, "Z", 1, 0)),
    ],
)
def test_a_name_says_nothing(stat: bytes, child: Child) -> None:
    """A process names itself: what looks like another state or parent in its name is none."""
    assert reaper.parse(stat) == child


def test_orphans() -> None:
    """Ended, our child, and neither started by us nor in a group that was: only that one."""
    processes = [
        Child(10, "Z", 1, 10),
        Child(11, "S", 1, 11),  # has not ended
        Child(12, "Z", 5, 12),  # somebody else's child
        Child(20, "Z", 1, 20),  # started by us
        Child(21, "Z", 1, 20),  # its clone, or what it has started
        Child(30, "Z", 1, 99),  # its clone that left its group
    ]
    assert reaper.orphans(processes, 1, {20, 30}) == [10]
