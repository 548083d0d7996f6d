"""What schemathesis has to be told: which capsules exist, which waits make sense, and how CBOR is made.

Only what is valid already is made more useful: what is meant to be refused stays as it is.
"""

from __future__ import annotations

import re
from typing import Any

import cbor2
import schemathesis
from hypothesis import strategies as st

NAMES = ("ping", "pong", "calculator", "crasher")

DURATION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)?")

_ITEMS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)

schemathesis.openapi.media_type("application/cbor", _ITEMS.map(cbor2.dumps))


@schemathesis.hook
def map_path_parameters(_context: Any, given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Most names are those of capsules."""
    return _named(given, "name")


@schemathesis.hook
def map_query(_context: Any, given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Most timeouts are short, and stand beside what is waited for."""
    given = _named(given, "capsule")
    if not given or not isinstance(text := given.get("timeout"), str) or not DURATION.fullmatch(text):
        return given
    if len(text) % 3 == 0:
        return given
    rest = {key: value for key, value in given.items() if key != "timeout"}
    return {**rest, "timeout": "2s"} if "wait" in given else rest


def _named(given: dict[str, Any] | None, key: str) -> dict[str, Any] | None:
    if given and isinstance(name := given.get(key), str) and len(name) % 4:
        return {**given, key: NAMES[sum(map(ord, name)) % len(NAMES)]}
    return given
