"""Kept blobs: within their bound, the least used goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.blobs import Compiled, Shelf


def of(size: int) -> Compiled:
    return Compiled("wasmer", b"x" * size)


def test_what_is_kept_is_found() -> None:
    """Under its key, and under no other."""
    shelf: Shelf[str] = Shelf(10)
    shelf.put("a", of(3))
    assert shelf.get("a") == of(3)
    assert shelf.get("b") is None


def test_the_least_used_goes_first() -> None:
    """At the bound all stay; one byte more, and the one goes whose last use is longest ago."""
    shelf: Shelf[str] = Shelf(10)
    shelf.put("a", of(5))
    shelf.put("b", of(5))
    assert (len(shelf), shelf.bytes) == (2, 10)
    assert shelf.get("a") is not None
    shelf.put("c", of(1))
    assert [shelf.get(key) is not None for key in "abc"] == [True, False, True]


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    """And pushes nothing out; one at the bound pushes out all."""
    shelf: Shelf[str] = Shelf(10)
    shelf.put("a", of(1))
    shelf.put("b", of(11))
    assert shelf.get("b") is None
    assert shelf.get("a") is not None
    shelf.put("b", of(10))
    assert shelf.get("a") is None
    assert shelf.get("b") is not None


def test_the_newer_takes_the_place_of_the_older() -> None:
    """Under one key there is one blob; when the newer is too large, there is none."""
    shelf: Shelf[str] = Shelf(10)
    shelf.put("a", of(4))
    shelf.put("a", of(2))
    assert (shelf.get("a"), shelf.bytes) == (of(2), 2)
    shelf.put("a", of(11))
    assert (shelf.get("a"), shelf.bytes) == (None, 0)


def test_forgotten_is_gone() -> None:
    """Also when it was never there."""
    shelf: Shelf[str] = Shelf(10)
    shelf.put("a", of(4))
    shelf.forget("a")
    shelf.forget("a")
    assert (shelf.get("a"), shelf.bytes, len(shelf)) == (None, 0, 0)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "get", "forget"]), st.integers(0, 5), st.integers(0, 30))
    )
)
def test_the_bound_holds(steps: list[tuple[str, int, int]]) -> None:
    """For every sequence of steps: the bytes are those of what is kept, and within the bound."""
    shelf: Shelf[int] = Shelf(25)
    for step, key, size in steps:
        if step == "put":
            shelf.put(key, of(size))
        elif step == "get":
            shelf.get(key)
        else:
            shelf.forget(key)
        kept = [found for each in range(6) if (found := shelf.get(each)) is not None]
        assert shelf.bytes == sum(len(each.blob) for each in kept) <= 25
        assert len(shelf) == len(kept)
