"""A blob: native code of one module, as a compiler process writes it and a worker loads it. A head, and the content.

The head says for whom the content is, and its hash. An engine that is given another's code, or code of which some
bits have changed, does not refuse it: it crashes, or runs on. So neither reaches it.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

MAGIC = b"capsuled blob\r\n\0"
FORMAT = 1
"""Of the head and of the content: raised with each change of either."""

_HEAD = struct.Struct(
    "<16sI12s24s24s32s"
)  # magic, format, engine, its version, compiler, hash of the content
HEAD_BYTES = _HEAD.size


class BlobError(ValueError):
    """Bytes that are no blob, or not a whole one; the message says what is wrong with them."""


class Head(NamedTuple):
    """Who made the content, and so who can load it."""

    engine: str
    version: str
    """The engine's own."""
    compiler: str


def pack(head: Head, content: bytes) -> bytes:
    """The blob. Raises `ValueError` where a text of the head is too long for it."""
    texts = [_field(text, size) for text, size in zip(head, _SIZES, strict=True)]
    return _HEAD.pack(MAGIC, FORMAT, *texts, hashlib.sha256(content).digest()) + content


def head_of(blob: bytes) -> Head:
    """The head alone; the content is not looked at. Raises `BlobError`."""
    return _head(blob)[0]


def unpack(blob: bytes) -> tuple[Head, bytes]:
    """Head and content. Raises `BlobError`, also where the content has another hash than the head says."""
    head, digest = _head(blob)
    content = blob[HEAD_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise BlobError(f"its {len(content)} bytes of content have another hash than its head says")
    return head, content


_SIZES = (12, 24, 24)
"""Bytes of the texts in the head."""


def _head(blob: bytes) -> tuple[Head, bytes]:
    if len(blob) < HEAD_BYTES:
        raise BlobError(f"it has {len(blob)} bytes; a head alone has {HEAD_BYTES}")
    magic, number, engine, version, compiler, digest = _HEAD.unpack_from(blob)
    if magic != MAGIC:
        raise BlobError(f"it begins with {magic!r}, and a blob with {MAGIC!r}")
    if number != FORMAT:
        raise BlobError(f"it has format {number}; this version reads {FORMAT}")
    return Head(*(_text(each) for each in (engine, version, compiler))), digest


def _field(text: str, size: int) -> bytes:
    data = text.encode("ascii")
    if not data or len(data) > size:
        raise ValueError(f"'{text}' does not fit a blob's head: 1 to {size} characters")
    return data


def _text(data: bytes) -> str:
    text = data.rstrip(b"\0")
    if not text.isascii() or not text.decode("ascii", "replace").isprintable():
        raise BlobError(f"its head holds {data!r}, which is no name")
    return text.decode("ascii")
