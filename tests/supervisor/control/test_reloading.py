"""The plan of a reload, as it is read."""

from __future__ import annotations

import pytest

from capsuled.supervisor.control import reloading
from capsuled.supervisor.control.shapes import JsonObject

PLANS: list[tuple[JsonObject, list[str]]] = [
    ({}, []),
    ({"unchanged": ["a"], "kept": ["b"]}, []),
    ({"added": ["b"], "removed": ["a"], "changed": [{"name": "c", "why": []}]}, ["a", "b", "c"]),
    ({"removed": ["a"], "added": ["a"]}, ["a"]),
    ({"added": "abc", "removed": None, "changed": [{"why": []}, 7, "a"]}, ["a"]),
]


@pytest.mark.parametrize(("plan", "moved"), PLANS)
def test_who_moves(plan: JsonObject, moved: list[str]) -> None:
    """Who is added, removed or changed, each once; what a newer supervisor says otherwise is passed over."""
    assert list(reloading.moved(plan)) == moved
