"""Traces: whole chains, in order, for as long as they are remembered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.backbone import traces as traces_module
from capsuled.supervisor.backbone.traces import MAX_HOPS, MAX_TRACE, Hop, Traces


def hop(seq: int, cause: int = 0) -> Hop:
    return Hop(seq, cause, 1000 + seq, b"a.b", 0)


def note(traces: Traces, seq: int, cause: int) -> None:
    """`cause` has caused `seq`."""
    traces.note(hop(seq, cause), hop(cause))


def chain(traces: Traces, seq: int) -> list[tuple[int, int]]:
    """The numbers and causes of a chain that was not cut."""
    found, cut = traces.chain(seq)
    assert not cut
    return [(each.seq, each.cause) for each in found]


def test_a_chain_is_found_from_each_of_its_messages() -> None:
    """From its first cause, in order."""
    traces = Traces()
    note(traces, 2, 1)
    note(traces, 5, 2)
    note(traces, 9, 5)
    for seq in (1, 2, 5, 9):
        assert chain(traces, seq) == [(1, 0), (2, 1), (5, 2), (9, 5)]


def test_a_fan_out() -> None:
    """What several messages were caused by is one chain; what has another cause is another."""
    traces = Traces()
    for seq, cause in ((3, 1), (4, 1), (5, 2), (6, 3)):
        note(traces, seq, cause)
    assert chain(traces, 4) == [(1, 0), (3, 1), (4, 1), (6, 3)]
    assert chain(traces, 5) == [(2, 0), (5, 2)]


def test_an_unknown_message_has_no_chain() -> None:
    """Neither a number that never was nor a message without a cause and without effects."""
    assert Traces().chain(7) == ([], False)


def test_a_chain_of_the_most_hops_and_one_more() -> None:
    """`MAX_TRACE` messages are told whole; of one more the latest is cut, and it is said."""
    traces = Traces()
    for seq in range(2, MAX_TRACE + 1):
        note(traces, seq, 1)
    assert len(chain(traces, 1)) == MAX_TRACE
    note(traces, MAX_TRACE + 1, 2)
    found, cut = traces.chain(1)
    assert cut
    assert [each.seq for each in found] == list(range(1, MAX_TRACE + 1))


def test_so_many_are_remembered() -> None:
    """`MAX_HOPS` messages are; one more has the oldest forgotten, and the rest of its chain stands without it."""
    traces = Traces()
    note(traces, 2, 1)
    for seq in range(3, MAX_HOPS + 1):
        note(traces, seq, seq - 1)
    assert [each.seq for each in traces.chain(MAX_HOPS)[0][:2]] == [1, 2]
    note(traces, MAX_HOPS + 1, MAX_HOPS)
    assert traces.chain(1) == ([], False)
    assert traces.chain(2)[0][0].seq == 2


@given(st.lists(st.integers(0, 40), max_size=300))
def test_nothing_is_kept_for_what_is_forgotten(causes: list[int]) -> None:
    """Invariant: whatever names whatever as its cause, no more is kept than is remembered."""
    most = traces_module.MAX_HOPS
    traces_module.MAX_HOPS = 8
    try:
        traces = Traces()
        for seq, cause in enumerate(causes, 100):
            note(traces, seq, cause + 1)
        assert len(traces._hops) <= 8  # pyright: ignore[reportPrivateUsage]
        assert traces._effects.keys() <= traces._hops.keys()  # pyright: ignore[reportPrivateUsage]
    finally:
        traces_module.MAX_HOPS = most
