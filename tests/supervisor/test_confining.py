"""Users of their own for workers that run at the same time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor import cgroups, modes
from capsuled.supervisor.confining import Confining
from capsuled.supervisor.users import NoUserLeft, Users

from ..support.machines import probed


@given(st.lists(st.booleans(), max_size=60))
def test_no_two_have_one_number(steps: list[bool]) -> None:
    """Whatever is taken and given back, all that are taken at one time differ and are in the range."""
    users, taken = Users(range(1000, 1005)), list[int]()
    for take in steps:
        if not take and taken:
            users.give_back(taken.pop(0))
        elif len(taken) == 5:
            with pytest.raises(NoUserLeft):
                users.take()
        else:
            taken.append(users.take())
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(1000, 1005))


def test_one_that_was_given_back_comes_last() -> None:
    """A number is used again only when all others have been: what its last owner left can be found until then."""
    users = Users(range(1000, 1003))
    users.give_back(users.take())
    assert [users.take() for _ in range(3)] == [1001, 1002, 1000]


def test_one_more_than_there_are() -> None:
    """The sentence says how many there are, which, and where to widen the range."""
    users = Users(range(1000, 1002))
    users.take()
    users.take()
    with pytest.raises(NoUserLeft, match=r"all 2 from 1000 to 1001 are in use: widen users in \[isolation\]"):
        users.take()


def test_a_number_is_free_again_after_the_block() -> None:
    """Also when the block fails: the worker is gone by then, whatever happened."""
    confining = Confining(probed(), range(1000, 1001), cgroups.none("none"))

    def fail() -> None:
        with confining.confinement() as confinement:
            assert confinement == modes.confinement(probed(), 1000)
            raise RuntimeError("it failed")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="it failed"):
            fail()


def test_where_there_are_no_users_of_their_own() -> None:
    """All workers are the supervisor's user, and as many run as there are."""
    confining = Confining(probed("uid"), range(1000, 1001), cgroups.none("none"))
    with confining.confinement() as first, confining.confinement() as second:
        assert first == second == modes.confinement(probed("uid"), None)
