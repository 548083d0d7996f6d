"""Items: whether bytes are one CBOR item (RFC 8949) of the form that every small reader can walk.

Definite lengths, map keys that are text or byte strings and occur once in their map, no tags, `MAX_DEPTH`
levels at most, nothing behind the item. All else that is well-formed is accepted: heads longer than need be,
NaN, undefined, unassigned simple values.

The bytes are walked and no objects are made of them, so that neither a count nor a nesting that somebody
invents can take memory. A decoder makes 80 bytes of each empty array.
"""

from __future__ import annotations

from typing import NoReturn

MAX_DEPTH = 64
"""Most arrays and maps within each other, an empty one not counted; far below what exhausts a stack."""


class NotCbor(ValueError):
    """Bytes that are not one CBOR item of the accepted form; the message says what is wrong with them."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not one well-formed CBOR item: {reason}")


_BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(2, 8)  # major types; 0 and 1 are integers
_NAMES = (
    *("an integer", "an integer", "a byte string", "a text", "an array", "a map", "a tag"),
    "a simple value or a float",
)

_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}
"""Low five bits of a first byte to the bytes of argument that follow; below 24 they are the argument."""


def _size(first: int) -> int:
    major, info = first >> 5, first & 31
    if major in (_BYTES, _TEXT):
        return 1 + info if info < 24 else 0
    if first in (0x80, 0xA0):  # empty
        return 1
    if major in (_ARRAY, _MAP, _TAG) or first == 0xF8:  # 0xf8: its second byte must be looked at
        return 0
    return 1 if info < 24 else 1 + _WIDTHS[info] if info in _WIDTHS else 0


_SIZE = bytes(map(_size, range(256)))
"""First byte to the size of the whole item, where that byte alone tells it; else 0."""

_SIZE_AS_KEY = bytes(_SIZE[first] if first >> 5 in (_BYTES, _TEXT) else 0 for first in range(256))


def check(item: bytes) -> None:
    """Raise `NotCbor` unless `item` is exactly one item of the accepted form.

    Takes a few tenths of a microsecond for each item within it, and memory for the keys of open maps only.
    """
    position, end = 0, len(item)
    left = 1  # in the innermost container: items to come, or pairs where it is a map
    keys: set[bytes] | None = None  # those of the innermost container, where it is a map
    outer: list[tuple[int, set[bytes] | None]] = []
    try:
        while True:
            while left:
                left -= 1
                if keys is not None:
                    size = _SIZE_AS_KEY[item[position]]
                    if size:
                        key = item[position : position + size]
                        position += size
                        if not key.isascii() and key[0] >> 5 == _TEXT and position <= end:
                            _check_utf8(key[1:])
                    else:
                        key, position = _long_key(item, position)
                    if key in keys:
                        raise NotCbor(f"the key {_shown(key[1:])} occurs twice in one map")
                    keys.add(key)
                first = item[position]
                size = _SIZE[first]
                if size:
                    start, position = position, position + size
                    if first >> 5 == _TEXT and not item[start:position].isascii() and position <= end:
                        _check_utf8(item[start + 1 : position])
                    continue
                if 0x80 < first < 0x98:  # the two frequent heads, which `_head` would take apart as well
                    major, argument, position = _ARRAY, first & 31, position + 1
                elif 0xA0 < first < 0xB8:
                    major, argument, position = _MAP, first & 31, position + 1
                else:
                    major, argument, position = _head(item, position)
                if major in (_BYTES, _TEXT):
                    if major == _TEXT and argument <= end - position:
                        _check_utf8(item[position : position + argument])
                    position += argument
                elif major in (_ARRAY, _MAP) and argument:
                    if len(outer) == MAX_DEPTH:
                        raise NotCbor(f"arrays and maps are nested deeper than {MAX_DEPTH} levels")
                    rest = max(0, end - position)
                    if argument > rest:  # each takes a byte: a huge count fails here, not at the end
                        raise NotCbor(f"{argument} items are announced where {rest} bytes are left")
                    outer.append((left, keys))
                    left, keys = argument, set[bytes]() if major == _MAP else None
            if not outer:
                break
            left, keys = outer.pop()
    except IndexError:
        position = end + 1
    if position > end:
        raise NotCbor(f"it ends too early, after {end} bytes")
    if position < end:
        raise NotCbor(f"{end - position} bytes stand behind it")


def _head(item: bytes, position: int) -> tuple[int, int, int]:
    """Major type and argument of the head at `position`, and where it ends: perhaps behind the last byte."""
    major, info = item[position] >> 5, item[position] & 31
    argument, after = info, position + 1
    if info in _WIDTHS:
        after += _WIDTHS[info]
        argument = int.from_bytes(item[position + 1 : after], "big")
    elif info > 27:
        _refuse_head(major, info, position)
    if major == _TAG:
        raise NotCbor(f"the tag {argument} at byte {position}: tags are not accepted")
    if item[position] == 0xF8 and argument < 32 and after <= len(item):
        raise NotCbor(
            f"the simple value {argument} at byte {position} has two bytes: 32 is the least that may"
        )
    return major, argument, after


def _refuse_head(major: int, info: int, position: int) -> NoReturn:
    if info != 31 or major in (0, 1, _TAG):
        raise NotCbor(f"the byte {major << 5 | info:#04x} at byte {position} begins no item")
    if major == _SIMPLE:
        raise NotCbor(f"a break stands at byte {position}, where an item was expected")
    raise NotCbor(f"{_NAMES[major]} of indefinite length at byte {position}: write its length before it")


def _long_key(item: bytes, position: int) -> tuple[bytes, int]:
    """A key whose size its first byte does not tell, in the form that equal keys share, and where it ends."""
    major, length, start = _head(item, position)
    if major not in (_BYTES, _TEXT):
        raise NotCbor(f"the map key at byte {position} is {_NAMES[major]}: write a text or a byte string")
    content = item[start : start + length]
    if major == _TEXT and length <= len(item) - start:
        _check_utf8(content)
    # A short one as with its shortest head, for so it may stand in the same map. Before a long one the head
    # of an empty one: nothing else looks like that.
    return bytes((major << 5 | (length if length < 24 else 0),)) + content, start + length


def _check_utf8(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as exc:
        raise NotCbor(f"the text {_shown(text)} is not UTF-8 at its byte {exc.start}") from None


def _shown(text: bytes) -> str:
    return repr(text) if len(text) <= 32 else f"{text[:32]!r}…"
