"""What `top` makes of two samples."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.commands.rates import BY_KEY, BY_TITLE, COLUMNS, Column, Meter, Row, Sample, ordered
from capsuled.supervisor.control.shapes import Json


def sample(
    at: float,
    *,
    cpu: float | None = 1.0,
    sampled: str = "2026-01-31T12:00:00.000Z",
    instance: str = "a",
    published: int | None = 0,
    delivered: tuple[int | None, ...] = (0,),
    epoch: int = 1,
) -> Sample:
    usage: dict[str, Json] = {
        "cpu_seconds": cpu,
        "memory": 65536,
        "process_memory": 1000,
        "open_files": 3,
        "sampled_at": sampled,
    }
    capsule: dict[str, Json] = {"name": "echo", "state": "ready", "instance": instance, "usage": usage}
    return Sample(
        at,
        {"capsules": [capsule]},
        {
            "epoch": epoch,
            "capsules": [{"name": "echo", "published": published}],
            "subscriptions": [
                *({"capsule": "echo", "delivered": count, "queued": 2} for count in delivered),
                {"capsule": "other", "delivered": 1000, "queued": 1000},
            ],
        },
    )


def second(first: Sample, then: Sample) -> Row:
    meter = Meter()
    meter.take(first)
    (row,) = meter.take(then)
    return row


def test_first_sample_has_no_rates() -> None:
    """What is so now is known at once; what grows is not."""
    assert Meter().take(sample(0)) == [Row("echo", "ready", None, 65536, 1000, None, None, 2)]


def test_rates() -> None:
    """Counts are divided by the time between the answers, processor time by that between the supervisor's looks."""
    row = second(
        sample(10, published=5, delivered=(1, 2)),
        sample(12, cpu=1.25, sampled="2026-01-31T12:00:01.000Z", published=10, delivered=(4, 9)),
    )
    assert row == Row("echo", "ready", 25.0, 65536, 1000, 2.5, 5.0, 4)


def test_processor_time_that_was_not_looked_at_again() -> None:
    """The same look once more tells what it told the last time, and is no end of anything."""
    meter = Meter()
    meter.take(sample(0))
    later = "2026-01-31T12:00:02.000Z"
    assert meter.take(sample(2, cpu=2.0, sampled=later))[0].cpu == 50.0
    assert meter.take(sample(3, cpu=2.0, sampled=later))[0].cpu == 50.0
    assert meter.take(sample(4, cpu=2.5, sampled="2026-01-31T12:00:04.000Z"))[0].cpu == 25.0


@pytest.mark.parametrize(
    "then",
    [
        sample(2, epoch=2, published=100, delivered=(100,)),
        sample(0, published=100, delivered=(100,)),
        sample(2, published=-1, delivered=(-1,)),
        sample(2, published=None, delivered=(5, None)),
    ],
    ids=["another backbone", "no time between", "set back", "not known"],
)
def test_no_rate_is_guessed(then: Sample) -> None:
    """Counts that cannot be compared give no rate."""
    row = second(sample(0), then)
    assert (row.sent, row.got) == (None, None)


def test_another_instance_has_its_own_processor_time() -> None:
    """The processor time of another process is not compared."""
    assert second(sample(0), sample(2, cpu=9.0, instance="b", sampled="2026-01-31T12:00:02.000Z")).cpu is None


def test_without_a_backbone() -> None:
    """What the ledger tells is unknown, and all else is there."""
    row = second(sample(0), sample(2)._replace(bus=None))
    assert row == Row("echo", "ready", None, 65536, 1000, None, None, None)


def test_who_has_no_subscription_has_taken_nothing() -> None:
    """No line in the ledger is zero, which is known."""
    row = second(sample(0, delivered=()), sample(2, delivered=()))
    assert (row.got, row.queued) == (0.0, 0)


def test_a_stranger_supervisor() -> None:
    """Documents without what is looked for give rows without it."""
    assert Meter().take(Sample(0, {"capsules": [{"usage": None}, 3]}, {"capsules": "x"})) == [
        Row("None", "None", None, None, None, None, None, 0)
    ]
    assert Meter().take(Sample(0, {}, {})) == []


def row(name: str, cpu: float | None) -> Row:
    return Row(name, "ready", cpu, 0, 0, 0.0, 0.0, 0)


def test_order() -> None:
    """Numbers come highest first, words in their order, equals by name, and what is not known last in any case."""
    rows = [row("c", 1.0), row("a", None), row("d", 2.0), row("b", 1.0)]

    def names(title: str, *, backwards: bool) -> str:
        return "".join(each.name for each in ordered(rows, BY_TITLE[title], backwards=backwards))

    assert names("cpu", backwards=False) == "dbca"
    assert names("cpu", backwards=True) == "bcda"
    assert names("name", backwards=False) == "abcd"
    assert names("name", backwards=True) == "dcba"


@given(
    st.lists(st.builds(row, st.text(), st.none() | st.floats(0, 100))),
    st.sampled_from(COLUMNS),
    st.booleans(),
)
def test_order_loses_nobody(rows: list[Row], column: Column, backwards: bool) -> None:
    """Whatever it is ordered by, all rows are there once."""
    assert Counter(ordered(rows, column, backwards=backwards)) == Counter(rows)


def test_keys_are_distinct() -> None:
    """Each column has a key of its own, and none of them is another command's."""
    assert len(BY_KEY) == len(COLUMNS)
    assert not set(BY_KEY) & {"q", "r"}
