"""Blobs: the head says whose the content is, and no changed or missing byte goes unseen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import blob
from capsuled.proto.blob import HEAD_BYTES, BlobError, Head

HEAD = Head("wasmer", "1.1.0", "cranelift")
BLOB = blob.pack(HEAD, b"native code")


@given(content=st.binary(max_size=200))
def test_what_is_packed_is_unpacked(content: bytes) -> None:
    """For every content: head and content come back as they were."""
    packed = blob.pack(HEAD, content)
    assert blob.unpack(packed) == (HEAD, content)
    assert blob.head_of(packed) == HEAD


@given(place=st.integers(0, len(BLOB) * 8 - 1))
def test_a_changed_bit_is_seen(place: int) -> None:
    """For every bit of a blob: when it is another one, the blob is refused, or is for another engine."""
    damaged = bytearray(BLOB)
    damaged[place // 8] ^= 1 << place % 8
    try:
        head, _ = blob.unpack(bytes(damaged))
    except BlobError:
        return
    assert head != HEAD


@given(length=st.integers(0, len(BLOB) - 1))
def test_part_of_a_blob_is_refused(length: int) -> None:
    """For every length: the beginning of a blob is none."""
    with pytest.raises(BlobError):
        blob.unpack(BLOB[:length])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", f"it has 0 bytes; a head alone has {HEAD_BYTES}"),
        (BLOB[: HEAD_BYTES - 1], f"it has {HEAD_BYTES - 1} bytes"),
        (b"\0asm" + BLOB[4:], "it begins with b'\\x00asmuled blob\\r\\n\\x00'"),
        (BLOB[:16] + b"\2\0\0\0" + BLOB[20:], "it has format 2; this version reads 1"),
        (BLOB[:20] + b"\xff" * 12 + BLOB[32:], "which is no name"),
        (BLOB[:20] + b"was\nmer" + BLOB[27:], "which is no name"),
        (BLOB + b"x", "its 12 bytes of content have another hash than its head says"),
    ],
)
def test_what_is_wrong_is_told(data: bytes, told: str) -> None:
    """The message has what was found, and what a blob has there."""
    with pytest.raises(BlobError) as caught:
        blob.unpack(data)
    assert told in str(caught.value)


def test_the_head_alone_does_not_look_at_the_content() -> None:
    """Whoever only passes a blob on need not read all of it."""
    assert blob.head_of(BLOB[:-1]) == HEAD


@pytest.mark.parametrize(
    ("head", "fits"),
    [
        (Head("e" * 12, "v" * 24, "c" * 24), True),
        (Head("e" * 13, "v", "c"), False),
        (Head("e", "v" * 25, "c"), False),
        (Head("e", "v", "c" * 25), False),
        (Head("", "v", "c"), False),
    ],
)
def test_texts_fit_the_head(head: Head, fits: bool) -> None:
    """A text at its longest fits; one character more is refused, and none at all too."""
    if fits:
        assert blob.unpack(blob.pack(head, b""))[0] == head
    else:
        with pytest.raises(ValueError, match="does not fit a blob's head"):
            blob.pack(head, b"")
