"""Payloads: one CBOR item (RFC 8949), opaque to the backbone, checked where it enters and leaves a guest.

Accepted is what every small reader can walk; `items` has the rules. Each of them closes a hole that was
measured: trailing bytes are silently ignored by decoders, integer keys can be made to collide (76 KB cost
0.3 s), tags run code (regular expressions, e-mail parsers), and indefinite lengths defeat every size check.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple, NoReturn, cast

import cbor2

from capsuled.proto import items

NotCbor = items.NotCbor
"""Bytes that are not one CBOR item of the accepted form; the message says what is wrong with them."""

MAX_BYTES = 5 * 1024 * 1024
"""Largest payload that any manifest may allow. A capsule's own limit is compared before `check` is asked."""

WALKED_BYTES = 64 * 1024
"""A larger payload is walked, not decoded. A small one is decoded twice as fast as it is walked; but 5 MiB
of empty arrays become 400 MB in every subscriber's worker, and cbor2 ends a process that has no more."""

CUSTOM = "custom"
"""The kind of every payload that is of no other kind; this version knows no other."""


class Kind(NamedTuple):
    """What a payload is, and what it carries."""

    name: str
    content: object


def check(payload: bytes) -> None:
    """Raise `NotCbor` unless `payload` is exactly one item of the accepted form."""
    if len(payload) > WALKED_BYTES:
        items.check(payload)
    else:
        decode(payload)


def decode(payload: bytes) -> object:
    """The item as Python values. Raises `NotCbor`.

    They may take 80 times the memory of the payload: bound its size first. One decoder serves all calls: not
    for several threads.
    """
    stream = BytesIO(payload)
    _DECODER.fp = stream
    try:
        item = cast("object", _DECODER.decode())
    except (cbor2.CBORError, ValueError, OverflowError) as exc:
        items.check(payload)  # says the same in a better sentence
        raise NotCbor(str(exc)) from exc
    if stream.tell() != len(payload):
        items.check(payload)
        raise NotCbor(f"{len(payload) - stream.tell()} bytes stand behind it")
    return item


def encode(item: object) -> bytes:
    """`item` in CBOR. Raises `NotCbor` for what has no accepted form: a date, a larger integer, a number as a key."""
    try:
        payload = cbor2.dumps(item)
    except (cbor2.CBORError, ValueError, OverflowError, TypeError) as exc:
        raise NotCbor(f"{type(item).__name__} that cannot be written: {exc}") from exc
    check(payload)
    return payload


def kind(item: object) -> Kind:
    """The kind of a decoded payload.

    ``{"type": "custom", "data": x}``, with these two fields and no other, carries x. Everything else is
    custom too and carries the whole item, so that nothing of it is lost.
    """
    if isinstance(item, dict):
        fields = cast("dict[object, object]", item)
        if fields.keys() == {"type", "data"} and fields["type"] == CUSTOM:
            return Kind(CUSTOM, fields["data"])
    return Kind(CUSTOM, item)


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("tags are not accepted")


class _EveryTag(dict[int, Callable[..., object]]):
    """For every tag the refusal. A list of those that cbor2 interprets would miss those that it learns."""

    def __missing__(self, tag: int) -> Callable[..., object]:
        return _refuse_tag


# Made once, for that takes as long as decoding 100 bytes. Setting `fp` begins anew, whatever went before.
_DECODER = cbor2.CBORDecoder(
    BytesIO(),
    semantic_decoders=_EveryTag(),
    tag_hook=_refuse_tag,
    max_depth=items.MAX_DEPTH,
    allow_indefinite=False,
    allow_duplicate_keys=False,
    strict_hashable_types=True,
)
