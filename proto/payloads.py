"""Payloads: one CBOR item (RFC 8949), opaque to the backbone, checked where it enters and leaves a guest.

Accepted is what every small reader can walk: definite lengths, map keys that are text or byte strings and
occur once, no tags, `MAX_DEPTH` levels at most, nothing behind the item. Each rule closes a hole that was
measured: trailing bytes are silently ignored by decoders, integer keys can be made to collide (76 KB cost
0.3 s), tags run code (regular expressions, e-mail parsers), and indefinite lengths defeat every size check.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NoReturn

import cbor2

MAX_BYTES = 5 * 1024 * 1024
"""Largest payload that any manifest may allow."""

MAX_DEPTH = 64
"""Most nested arrays and maps; far below what exhausts a decoder's stack."""

_BUILT_IN_TAGS = (*range(6), 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 261, 1004, 43000, 55799)
"""Tags that the decoder would interpret by itself; all others come to its tag hook."""


class NotCbor(ValueError):
    """Bytes that are not one CBOR item of the accepted form; the message says what is wrong with them."""


def check(payload: bytes) -> None:
    """Raise `NotCbor` unless `payload` is exactly one item of the accepted form."""
    decode(payload)


def decode(payload: bytes) -> object:
    """The item as Python values. Raises `NotCbor`."""
    stream = BytesIO(payload)
    try:
        item: object = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_REFUSE_BUILT_IN,
            tag_hook=_refuse_tag,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
    except (cbor2.CBORError, ValueError, OverflowError) as exc:
        raise NotCbor(f"not one well-formed CBOR item: {_reason(exc)}") from exc
    behind = len(payload) - stream.tell()
    if behind:
        raise NotCbor(f"not one well-formed CBOR item: {behind} bytes stand behind it")
    return item


def encode(item: object) -> bytes:
    """`item` in CBOR with definite lengths."""
    return cbor2.dumps(item)


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("it holds a tag, and tags are not accepted")


_REFUSE_BUILT_IN: dict[int, Callable[..., object]] = dict.fromkeys(_BUILT_IN_TAGS, _refuse_tag)


def _reason(exc: BaseException) -> str:
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return str(exc) or type(exc).__name__
