"""Landlock: a ruleset that handles all that the kernel can, and allows nothing of it.

landlock(7), linux/landlock.h. What a ruleset handles is refused unless a rule allows it, and there are no rules: no
file can be opened, no TCP port bound or connected to, no abstract socket and no process outside be reached.
"""

from __future__ import annotations

import struct

KNOWN_ABI = 7
"""The newest version whose rights stand here. Of a newer kernel these are used, for it understands them."""

_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many rights for files there are from a version on, each the next bit: 2 added REFER, 3 TRUNCATE, 5 IOCTL_DEV."""

_NET_RIGHTS = 0b11
"""BIND_TCP and CONNECT_TCP, from version 4 on."""

_SCOPES = 0b11
"""ABSTRACT_UNIX_SOCKET and SIGNAL, from version 6 on."""


def attribute(abi: int) -> bytes:
    """`struct landlock_ruleset_attr` for a kernel of this version, as long as that kernel knows it.

    Raises ValueError for a version below 1, which is none.
    """
    if abi < 1:
        raise ValueError(f"there is no Landlock version {abi}: the first is 1")
    rights = max(count for since, count in _FS_RIGHTS.items() if since <= abi)
    fields = [(1 << rights) - 1]
    if abi >= 4:
        fields.append(_NET_RIGHTS)
    if abi >= 6:
        fields.append(_SCOPES)
    return struct.pack(f"={len(fields)}Q", *fields)
