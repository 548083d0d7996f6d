"""Messages as JSON: all of CBOR has a form, none is mistaken for a command, and nothing is too large."""

from __future__ import annotations

import json
import math

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import payloads
from capsuled.supervisor import diagnostic
from capsuled.supervisor.control.shapes import Json

STAMPED = {
    "time_ms": 1_700_000_000_123,
    "topic": "a.b",
    "source": "echo",
    "instance": bytes(15) + b"\x07",
    "principal": "alice",
    "seq": 9,
    "cause": 0,
}


def test_a_hop() -> None:
    """The time in RFC 3339, the instance in hexadecimal, and no cause as null."""
    assert diagnostic.hop(STAMPED) == {
        "time": "2023-11-14T22:13:20.123Z",
        "topic": "a.b",
        "source": "echo",
        "instance": "0" * 31 + "7",
        "principal": "alice",
        "seq": 9,
        "cause": None,
    }
    assert diagnostic.hop({**STAMPED, "cause": 4})["cause"] == 4


def test_a_message_is_a_hop_with_its_payload() -> None:
    """The payload is decoded."""
    found = diagnostic.message({**STAMPED, "payload": cbor2.dumps({"n": [1, None]})})
    assert found == {**diagnostic.hop(STAMPED), "payload": {"n": [1, None]}}


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (2**64 - 1, 2**64 - 1),
        (-(2**64), -(2**64)),
        (1.5, 1.5),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (b"\x00\xff", "h'00ff'"),
        ("\x1b[2J", "\x1b[2J"),
        (True, True),
        (None, None),
        (cbor2.undefined, "undefined"),
        (cbor2.CBORSimpleValue(99), "simple(99)"),
        ({b"\x01": 1, "b": [b""]}, {"h'01'": 1, "b": ["h''"]}),
    ],
)
def test_values(item: object, shown: Json) -> None:
    """Each of CBOR's values has a form in JSON."""
    assert diagnostic.value(item) == shown


@pytest.mark.parametrize(
    ("data", "sentence"), [(b"", "ends"), (b"\x01\x02", "behind"), (b"\xc0\x60", "tag"), (b"\x9f", "")]
)
def test_what_is_no_payload_says_so(data: bytes, sentence: str) -> None:
    """Its size, and what is wrong with it; nothing of it is shown."""
    found = diagnostic.payload(data)
    assert isinstance(found, dict)
    assert found["bytes"] == len(data)
    assert sentence in str(found["malformed"])


def test_a_large_payload_is_told_by_its_size() -> None:
    """One of `SHOWN_BYTES` is decoded, one byte more is not."""
    limit = diagnostic.SHOWN_BYTES
    assert diagnostic.payload(cbor2.dumps("x" * (limit - 3))) == "x" * (limit - 3)
    assert diagnostic.payload(cbor2.dumps("x" * (limit - 2))) == {"bytes": limit + 1}


@given(st.binary(max_size=60))
def test_anything_is_json(data: bytes) -> None:
    """Invariant: whatever a publisher sends, the line is JSON that a strict reader takes."""
    found = diagnostic.message({**STAMPED, "payload": data})
    assert json.loads(json.dumps(found, allow_nan=False)) == found


ITEMS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text() | st.binary() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(ITEMS)
def test_what_is_accepted_is_shown(item: object) -> None:
    """Invariant: an item of the accepted form is never shown as malformed, and is JSON."""
    found = diagnostic.payload(payloads.encode(item))
    assert found == diagnostic.value(item) or "nan" in str(found)
    json.dumps(found, allow_nan=False)
