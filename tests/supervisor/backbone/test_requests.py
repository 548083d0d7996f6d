"""Requests: each comes to an end, once, and the sums say so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.records import MAX_REQUESTS
from capsuled.proto.refusals import Errno
from capsuled.supervisor.backbone.members import Route
from capsuled.supervisor.backbone.outbox import Stamp
from capsuled.supervisor.backbone.requests import MAX_OVER, Pending, Requests

ASKER, ONE, TWO = 1, 2, 3


def pending(seq: int, *responders: int, asker: int = ASKER) -> Pending:
    """A request whose handle is ten times its number."""
    return Pending(asker, 10 * seq, Stamp(seq, 0, Route((), {}, b"ask.it")), set(responders))


def opened(*responders: int) -> Requests:
    """One request, number 5."""
    requests = Requests()
    assert requests.open(5, pending(5, *responders)) is None
    return requests


def test_the_first_answer_ends_it() -> None:
    """Whoever has it may answer, once; the others are late, once, and then they have none."""
    requests = opened(ONE, TWO)
    found = requests.answer(5, TWO)
    assert found is not None
    assert (found.asker, found.handle) == (ASKER, 50)
    assert requests.waiting(ASKER) == 0
    assert requests.answer(5, ONE) is None
    assert [requests.late(5, ONE), requests.late(5, ONE)] == [True, False]
    assert not requests.late(5, TWO), "an answer that is said again was in time the first time"


def test_only_who_has_it_answers() -> None:
    """Another member and another number are answers to nothing, before its end and after it."""
    requests = opened(ONE)
    assert requests.answer(5, TWO) is None
    assert requests.answer(6, ONE) is None
    assert not requests.late(5, ONE)
    assert requests.waiting(ASKER) == 1
    requests.answer(5, ONE)
    assert not requests.late(5, TWO)


def test_it_fails_when_the_last_copy_is_lost() -> None:
    """One copy fewer is nobody's failure; the last one is, and it names the topic and the reason."""
    requests = opened(ONE, TWO)
    assert requests.lost(5, ONE) is None
    failure = requests.lost(5, TWO)
    assert failure is not None
    assert (failure.asker, failure.handle, failure.errno) == (ASKER, 50, Errno.CONNRESET)
    assert failure.why.startswith("the request on 'ask.it' will not be answered: its receiver has lost it")
    assert requests.lost(5, TWO) is None
    assert not requests.late(5, ONE), "who has never got it can not be late"


def test_it_fails_when_the_last_responder_ends() -> None:
    """Of two responders the first one's end is nothing, the second one's ends the request."""
    requests = opened(ONE, TWO)
    assert requests.ended(TWO) == []
    (failure,) = requests.ended(ONE)
    assert failure.why == "the request on 'ask.it' will not be answered: its receiver has ended"
    assert requests.pending == {}


def test_it_ends_with_its_asker() -> None:
    """Nobody is told; an answer is late."""
    requests = opened(ONE)
    assert requests.ended(ASKER) == []
    assert requests.answer(5, ONE) is None
    assert requests.late(5, ONE)


def test_a_request_to_oneself() -> None:
    """Asker and responder may be one; its end is the end of the request, and no failure."""
    requests = opened(ASKER)
    assert requests.ended(ASKER) == []
    assert requests.pending == {}


def test_the_oldest_is_given_up_for_one_too_many() -> None:
    """`MAX_REQUESTS` of one capsule wait; one more gives up its oldest, and nobody else's."""
    requests = Requests()
    requests.open(1, pending(1, ONE, asker=TWO))
    for seq in range(2, MAX_REQUESTS + 2):
        assert requests.open(seq, pending(seq, ONE)) is None
    failure = requests.open(99, pending(99, ONE))
    assert failure is not None
    assert (failure.handle, failure.errno) == (20, Errno.CONNRESET)
    assert "given up for newer ones: 16 may wait at once" in failure.why
    assert (requests.waiting(ASKER), requests.waiting(TWO)) == (MAX_REQUESTS, 1)
    assert requests.late(2, ONE)


def test_so_many_are_remembered_after_their_end() -> None:
    """`MAX_OVER` requests are; the end of one more has the first forgotten, and then anybody may be late for it."""
    requests = Requests()
    for seq in range(1, MAX_OVER + 2):
        requests.open(seq, pending(seq, ONE, TWO))
        requests.answer(seq, ONE)
    assert requests.late(1, TWO)
    assert requests.late(1, 99), "who had it is not known any more"
    assert not requests.late(2, 99)
    assert requests.late(2, TWO)
    assert not requests.late(2, TWO), "once"


def test_an_old_request_that_waits_is_nobody_elses() -> None:
    """However many have ended since: who was not asked is not late with an answer to it."""
    requests = Requests()
    requests.open(1, pending(1, ONE, asker=99))
    for seq in range(2, MAX_OVER + 4):
        requests.open(seq, pending(seq, ONE))
        requests.answer(seq, ONE)
    assert requests.late(2, TWO)
    assert not requests.late(1, TWO)
    assert requests.holds(1, ONE)


def test_giving_up_ends_one() -> None:
    """The asker's own of that handle, and no other's; once."""
    requests = Requests()
    requests.open(5, pending(5, ONE))
    requests.open(6, pending(6, ONE))
    assert not requests.give_up(TWO, 50)
    assert requests.give_up(ASKER, 50)
    assert not requests.give_up(ASKER, 50)
    assert list(requests.pending) == [6]
    assert requests.late(5, ONE)


MEMBER = st.integers(1, 4)
STEP = st.one_of(
    st.tuples(st.just("open"), MEMBER, st.sets(MEMBER, min_size=1)),
    st.tuples(st.just("answer"), st.integers(0, 30), MEMBER),
    st.tuples(st.just("lost"), st.integers(0, 30), MEMBER),
    st.tuples(st.just("ended"), MEMBER, st.just(0)),
)


@given(st.lists(STEP, max_size=60))
def test_each_request_ends_once(steps: list[tuple[str, int, int | set[int]]]) -> None:
    """Invariant: opened = answered + failed + ended with the asker + waiting, for each asker, whatever happens."""
    requests, seq = Requests(), 0
    opened, done, gone = [dict.fromkeys(range(1, 5), 0) for _ in range(3)]
    for what, number, more in steps:
        failures = []
        if isinstance(more, set):
            seq += 1
            opened[number] += 1
            failures = [requests.open(seq, pending(seq, *more, asker=number))]
        elif what == "answer":
            found = requests.answer(number, more)
            if found is not None:
                done[found.asker] += 1
        elif what == "lost":
            failures = [requests.lost(number, more)]
        else:
            gone[number] += requests.waiting(number)
            failures = [*requests.ended(number)]
        for failure in failures:
            if failure is not None:
                done[failure.asker] += 1
        for asker in range(1, 5):
            assert opened[asker] == done[asker] + gone[asker] + requests.waiting(asker)
    assert len(requests.pending) == sum(requests.waiting(asker) for asker in range(1, 5))
