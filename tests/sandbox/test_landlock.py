"""The attribute of a Landlock ruleset."""

from __future__ import annotations

import struct

import pytest

from capsuled.sandbox import landlock

FS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF, 6: 0xFFFF, 7: 0xFFFF, 8: 0xFFFF, 99: 0xFFFF}


@pytest.mark.parametrize("abi", FS)
def test_each_version_handles_all_that_it_knows(abi: int) -> None:
    """Files in every version, TCP from 4, scopes from 6; a newer kernel is given what stands here."""
    expected = [FS[abi], *([3] if abi >= 4 else []), *([3] if abi >= 6 else [])]
    assert landlock.attribute(abi) == struct.pack(f"={len(expected)}Q", *expected)


@pytest.mark.parametrize("abi", [0, -1])
def test_there_is_no_version_below_1(abi: int) -> None:
    """Such a version is refused, and makes no ruleset that handles nothing."""
    with pytest.raises(ValueError, match=f"no Landlock version {abi}"):
        landlock.attribute(abi)
