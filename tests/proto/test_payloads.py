"""Payloads: what a guest may send."""

from __future__ import annotations

import json
import random
import sys
import tracemalloc
from collections.abc import Callable
from datetime import date, datetime, time
from pathlib import Path
from typing import TypedDict, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capsuled.proto import envelopes, items, payloads
from capsuled.proto.payloads import Kind, NotCbor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Example(TypedDict):
    hex: str


class Accepted(Example, total=False):
    json: str


class Refused(Example):
    rule: str


class Vectors(TypedDict):
    accepted: list[Accepted]
    refused: list[Refused]
    malformed: list[str]


VECTORS = cast(
    "Vectors", tomllib.loads((Path(__file__).resolve().parents[1] / "vectors/cbor.toml").read_text())
)

FILLER = b"\x5a" + payloads.WALKED_BYTES.to_bytes(4, "big") + bytes(payloads.WALKED_BYTES)
"""An item that makes any payload which holds it too large to be decoded."""

Check = Callable[[bytes], object]

CHECKS: dict[str, Check] = {
    "small": payloads.check,
    "large": lambda payload: payloads.check(b"\x82" + FILLER + payload),
    "decoded": payloads.decode,
    "walked": items.check,
}
"""All ways in which bytes are judged: they must agree."""

every_way = pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)


def nested_lists(depth: int) -> object:
    item: object = 0
    for _ in range(depth):
        item = [item]
    return item


def accepts(check: Check, payload: bytes) -> bool:
    try:
        check(payload)
    except NotCbor:
        return False
    return True


@every_way
@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["hex"][:16])
def test_accepted_example(vector: Accepted, check: Check) -> None:
    """Each example of the RFC with definite lengths, no tags and no keys but strings is accepted."""
    check(bytes.fromhex(vector["hex"]))


@pytest.mark.parametrize(
    ("data", "expected"), [(each["hex"], each.get("json")) for each in VECTORS["accepted"]]
)
def test_value_of_example(data: str, expected: str | None) -> None:
    """An example is decoded to the value that the RFC gives, where JSON can say it."""
    value = payloads.decode(bytes.fromhex(data))
    if expected is not None:
        # Compared as text, for 1, 1.0 and true are equal, and so are 0.0 and -0.0.
        assert json.dumps(value) == json.dumps(json.loads(expected))


@every_way
@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["hex"][:16])
def test_refused_example(vector: Refused, check: Check) -> None:
    """Each other example is refused by the rule that it breaks, which the sentence names."""
    with pytest.raises(NotCbor, match=vector["rule"]):
        check(bytes.fromhex(vector["hex"]))


@every_way
@pytest.mark.parametrize("data", VECTORS["malformed"])
def test_malformed_example(data: str, check: Check) -> None:
    """Each example of the RFC that is not well-formed is refused."""
    with pytest.raises(NotCbor, match=r"^not one well-formed CBOR item: "):
        check(bytes.fromhex(data))


@every_way
@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (b"\xa2\x61a\x00\x61a\x00", "occurs twice"),
        (b"\xa2\x61a\x00\x78\x01a\x00", "occurs twice"),
        (b"\xa2\x41a\x00\x41a\x00", "occurs twice"),
        (b"\xa1\xf9\x7e\x00\x00", "map key"),
        (b"\xa1\x80\x00", "map key"),
        (b"\x61\xff", "not UTF-8"),
        (b"\xa1\x61\xff\x00", "not UTF-8"),
        (b"\x81" * 65 + b"\x00", "nested deeper"),
        (b"\x00\x00", "behind it"),
    ],
)
def test_each_rule_holds_in_every_way(payload: bytes, rule: str, check: Check) -> None:
    """What breaks a rule is refused by it, however the bytes are judged."""
    with pytest.raises(NotCbor, match=rule):
        check(payload)


CONTENTS = [
    b"\x00",
    b"\x60",
    b"\x40",
    b"\x80",
    b"\xa0",
    b"\xf6",
    b"\x82\x00\x01",
    b"\x44\x01\x02\x03\x04",
    b"\x50" + bytes(16),
]
"""For each tag that decoders interpret, something that it may hold is among these."""


@every_way
@pytest.mark.parametrize("content", CONTENTS, ids=bytes.hex)
def test_no_tag_is_accepted(content: bytes, check: Check) -> None:
    """Each tag is refused, those too that the decoder would interpret, whatever they hold."""
    numbers = [*range(300), 1004, 1040, 43000, 55799, 2**32, 2**64 - 1]
    if check is CHECKS["large"]:
        numbers = numbers[::30]  # each is a copy of a large payload
    assert [each for each in numbers if accepts(check, envelopes.head(6, each) + content)] == []


PIECES = [
    *(
        bytes((first,))
        for first in (0x00, 0x20, 0x40, 0x60, 0x80, 0xA0, 0xF4, 0xF7, 0xE0, 0xFF, 0x9F, 0xBF, 0x1C, 0xC0)
    ),
    *(
        b"\x81",
        b"\x82",
        b"\xa1",
        b"\xa2",
        b"\x61a",
        b"\x61b",
        b"\x41a",
        b"\x78\x01a",
        b"\x61\xff",
        b"\x62\xc3\xa4",
    ),
    *(
        b"\x18\x18",
        b"\xf9\x7e\x00",
        b"\xf8\x20",
        b"\xf8\x1f",
        b"\xd8\x34",
        b"\x98\x02",
        b"\xb8\x01",
        b"\x9a\xff\xff\xff\xff",
    ),
]
PAYLOAD = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | st.binary(max_size=12)


@given(PAYLOAD)
@example(b"\x81" * 64 + b"\x80")
@example(b"\x81" * 64 + b"\x00")
@example(b"\x81" * 65 + b"\x80")
@example(b"\xa1\x60" * 64 + b"\xa0")
@example(b"\xa1\x60" * 64 + b"\x00")
@example(b"\xa1\x60" * 65 + b"\xa0")
def test_every_way_agrees(payload: bytes) -> None:
    """Invariant: a payload is judged alike whether it is decoded, walked, or part of a larger one."""
    verdicts = {name: accepts(check, payload) for name, check in CHECKS.items() if name != "large"}
    if payload:
        verdicts["in an array"] = accepts(payloads.check, b"\x81" + payload)
        if b"\x81" * 64 in payload or b"\xa1\x60" * 64 in payload:  # one level deeper is another question
            del verdicts["in an array"]
    assert len(set(verdicts.values())) == 1, verdicts


@given(st.lists(PAYLOAD, max_size=8))
def test_each_payload_is_judged_alone(sequence: list[bytes]) -> None:
    """Invariant: what was decoded before, accepted or refused, has no influence."""
    assert [accepts(payloads.check, each) for each in sequence] == [
        accepts(items.check, each) for each in sequence
    ]


@pytest.mark.parametrize(
    "size", [payloads.WALKED_BYTES - 1, payloads.WALKED_BYTES, payloads.WALKED_BYTES + 1]
)
def test_sizes_about_the_border(size: int) -> None:
    """On both sides of the size from which on they are walked, only an item without a tail is accepted."""
    count = size - 5
    payload = b"\x5a" + count.to_bytes(4, "big") + bytes(count)
    payloads.check(payload)
    with pytest.raises(NotCbor, match="1 bytes stand behind it"):
        payloads.check(payload + b"\x00")


def test_a_large_payload_takes_little_memory() -> None:
    """Of many empty arrays, 80 bytes each to a decoder, nothing is made: 5 MiB of them would be 400 MB."""
    count = 256 * 1024
    payload = b"\x9a" + count.to_bytes(4, "big") + b"\x80" * count
    tracemalloc.start()
    try:
        payloads.check(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024


def test_depth_is_refused_however_large() -> None:
    """5 MiB of nesting are refused as 65 levels are: nothing calls itself for each level."""
    for first in (b"\x81", b"\xa1\x60", b"\xc0", b"\xd8\x34"):
        with pytest.raises(NotCbor):
            payloads.check(first * (payloads.MAX_BYTES // len(first)))


ITEM: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.binary(), inner, max_size=4),
    max_leaves=12,
)


@given(ITEM)
def test_round_trip(item: object) -> None:
    """Invariant: what is encoded is accepted, and decoded to the same values."""
    payload = payloads.encode(item)
    payloads.check(payload)
    assert payloads.decode(payload) == item


@pytest.mark.parametrize(
    "item",
    [
        date(2024, 2, 29),
        datetime(2024, 2, 29, 12),
        time(12),
        2**64,
        {1: 2},
        {1, 2},
        object(),
        [nested_lists(65)],
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_has_no_accepted_form_is_not_encoded(item: object) -> None:
    """What could only be written with a tag, a number as a key or too many levels raises NotCbor."""
    with pytest.raises(NotCbor):
        payloads.encode(item)


def test_random_bytes_raise_nothing_else() -> None:
    """Of 20 000 random payloads each is accepted or raises NotCbor."""
    chance = random.Random(1)
    verdicts = [accepts(payloads.check, chance.randbytes(chance.randrange(1, 40))) for _ in range(20_000)]
    assert set(verdicts) == {True, False}


@pytest.mark.parametrize(
    ("item", "content"),
    [
        ({"type": "custom", "data": [1]}, [1]),
        ({"data": None, "type": "custom"}, None),
    ],
)
def test_a_custom_payload_carries_its_data(item: object, content: object) -> None:
    """A map with the type custom and with data, and no more, carries that data."""
    assert payloads.kind(item) == Kind("custom", content)


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"data": 1},
        {"type": "custom"},
        {"type": "custom", "data": 1, "more": 2},
        {"type": "other", "data": 1},
        {"type": b"custom", "data": 1},
        {"type": ["custom"], "data": 1},
        {b"type": "custom", "data": 1},
        [1, 2],
        "custom",
        None,
        7,
    ],
    ids=repr,
)
def test_everything_else_is_custom_and_carried_whole(item: object) -> None:
    """No type, an unknown one, other fields, and what is not a map: nothing of it is lost."""
    assert payloads.kind(item) == Kind("custom", item)
