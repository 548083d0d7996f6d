"""The restart policy: who is started again, after how long, and when no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.control import Reason
from capsuled.supervisor.restart import JITTER, LEAST_DELAY, NO_FAILURE, Budget, Mode, Next, Policy, delay

POLICY = Policy(
    mode="on-failure",
    backoff_initial=0.5,
    backoff_max=30.0,
    backoff_factor=2.0,
    stable_after=30.0,
    start_limit=5,
    start_limit_interval=60.0,
)
"""The manifest's defaults."""

UNLIMITED = replace(POLICY, start_limit=0)

FAILURES = [each for each in Reason if each not in NO_FAILURE]


def fail(budget: Budget, now: float, ready: float = 0.0, random: float = 0.0) -> tuple[Next, float]:
    return budget.ended(Reason.TRAP, ready, now, random)


@pytest.mark.parametrize(
    ("mode", "ok", "failure"),
    [
        ("never", Next.STAY, Next.STAY),
        ("on-failure", Next.STAY, Next.RETRY),
        ("always", Next.RETRY, Next.RETRY),
    ],
)
def test_the_mode_decides(mode: Mode, ok: Next, failure: Next) -> None:
    """never restarts nothing, on-failure each failure, always success too; none what somebody stopped."""
    policy = replace(POLICY, mode=mode)
    for reason in Reason:
        wanted = failure if reason in FAILURES else ok if reason is Reason.OK else Next.STAY
        assert Budget(policy).ended(reason, 0.0, 0.0, 0.0).next is wanted, reason


def test_these_are_no_failures() -> None:
    """What was asked for is no failure, and everything else is one."""
    assert {each.value for each in NO_FAILURE} == {
        "ok",
        "cancelled",
        "killed-by-operator",
        "supervisor-shutdown",
    }


def test_pauses_grow_to_their_maximum() -> None:
    """Each restart in a row waits longer by the factor, until backoff_max."""
    budget = Budget(UNLIMITED)
    pauses = [fail(budget, now)[1] for now in range(9)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_success_under_always_waits_longer_too() -> None:
    """A capsule that returns at once, again and again, is slowed down but not given up."""
    budget = Budget(replace(POLICY, mode="always"))
    verdicts = [budget.ended(Reason.OK, 0.0, float(now), 0.0) for now in range(10)]
    assert {each.next for each in verdicts} == {Next.RETRY}
    assert [each.delay for each in verdicts[:3]] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("ready", "pause", "attempt"), [(29.9, 4.0, 5), (30.0, 0.5, 2)])
def test_only_a_stable_run_begins_the_backoff_anew(ready: float, pause: float, attempt: int) -> None:
    """Ready for stable_after, and the next pause is the first again; not a moment before."""
    budget = Budget(UNLIMITED)
    for now in range(3):
        fail(budget, now)
    assert budget.attempt == 4
    assert fail(budget, 100.0, ready=ready) == (Next.RETRY, pause)
    assert budget.attempt == attempt


def test_the_limit_is_met_by_the_failure_that_reaches_it() -> None:
    """start_limit - 1 failures are tried again, and the next one within the interval is not."""
    budget = Budget(POLICY)
    assert [fail(budget, now)[0] for now in range(5)] == [Next.RETRY] * 4 + [Next.EXHAUSTED]


@pytest.mark.parametrize(("last", "follows"), [(59.9, Next.EXHAUSTED), (60.0, Next.RETRY)])
def test_failures_age_out_of_the_interval(last: float, follows: Next) -> None:
    """A failure counts for start_limit_interval and not for a moment longer."""
    budget = Budget(POLICY)
    for now in (0.0, 57.0, 58.0, 59.0):
        fail(budget, now)
    assert fail(budget, last)[0] is follows


def test_a_stable_run_does_not_clear_the_failures() -> None:
    """A capsule that is stable for a while, fails, and so on, still meets the limit."""
    policy = replace(POLICY, stable_after=1.0)
    budget = Budget(policy)
    assert [fail(budget, now, ready=2.0)[0] for now in range(5)][-1] is Next.EXHAUSTED


def test_without_a_limit_it_is_tried_for_ever() -> None:
    """start_limit = 0 never gives up, and remembers no failures for it."""
    budget = Budget(UNLIMITED)
    assert {fail(budget, 0.0)[0] for _ in range(1000)} == {Next.RETRY}


@pytest.mark.parametrize("reason", sorted(NO_FAILURE))
def test_what_was_asked_for_costs_nothing(reason: Reason) -> None:
    """Ends that somebody asked for do not count towards the limit, nor for the backoff."""
    budget = Budget(POLICY)
    for now in range(20):
        assert budget.ended(reason, 0.0, float(now), 0.0).next is Next.STAY
    assert [fail(budget, 20.0) for _ in range(2)] == [(Next.RETRY, 0.5), (Next.RETRY, 1.0)]


def test_forget_begins_anew() -> None:
    """After forget neither failures nor pauses of before are left."""
    budget = Budget(POLICY)
    for now in range(5):
        fail(budget, now)
    budget.forget()
    assert budget.attempt == 1
    assert [fail(budget, 5.0) for _ in range(5)] == [
        *((Next.RETRY, pause) for pause in (0.5, 1.0, 2.0, 4.0)),
        (Next.EXHAUSTED, 0.0),
    ]


@pytest.mark.parametrize("restarts", [1023, 1024, 10**6])
@pytest.mark.parametrize("factor", [2.0, 2])
def test_a_pause_does_not_overflow(restarts: int, factor: float) -> None:
    """However often it was restarted, the pause is the maximum, and a pause of 0 stays 0."""
    assert delay(replace(POLICY, backoff_factor=factor), restarts) == 30.0
    assert delay(replace(POLICY, backoff_factor=factor, backoff_initial=0.0), restarts) == 0.0


def test_no_crash_loop_without_a_pause() -> None:
    """Where the manifest wants no pause at all, there is a short one."""
    budget = Budget(replace(UNLIMITED, backoff_initial=0.0))
    assert fail(budget, 0.0) == (Next.RETRY, LEAST_DELAY)


@given(
    st.lists(
        st.tuples(st.sampled_from(FAILURES), st.floats(0.0, 60.0), st.floats(0.0, 1.0, exclude_max=True))
    )
)
def test_chance_only_shortens(ends: list[tuple[Reason, float, float]]) -> None:
    """Invariant: a pause is nine tenths to all of its unshortened length, so that backoff_max holds."""
    budget = Budget(UNLIMITED)
    steady = Budget(UNLIMITED)
    for reason, ready, random in ends:
        pause = budget.ended(reason, ready, 0.0, random).delay
        longest = steady.ended(reason, ready, 0.0, 0.0).delay
        assert longest * (1.0 - JITTER) <= pause <= longest <= POLICY.backoff_max


@given(st.integers(1, 6), st.lists(st.floats(0.0, 40.0), max_size=40))
def test_never_more_failures_than_the_limit(limit: int, gaps: list[float]) -> None:
    """Invariant: it gives up exactly at a failure that makes `start_limit` of them within the interval."""
    budget = Budget(replace(POLICY, start_limit=limit))
    now, failed = 0.0, list[float]()
    for gap in gaps:
        now += gap
        failed.append(now)
        recent = sum(now - each < POLICY.start_limit_interval for each in failed)
        assert (fail(budget, now)[0] is Next.EXHAUSTED) == (recent >= limit)
