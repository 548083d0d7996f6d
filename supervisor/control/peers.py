"""Who a peer is: SO_PEERCRED for the process, the user database for its supplementary groups."""

from __future__ import annotations

import os
import pwd
import socket
import struct

import trio

from capsuled.supervisor.control.access import Peer

_UCRED = struct.Struct("=iII")
"""``struct ucred`` of unix(7): pid, uid, gid, each of 32 bits."""


def credentials(sock: trio.socket.SocketType) -> Peer:
    """The peer as it was at connect(2): the kernel keeps it, so that a pid used again cannot lie."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(raw))


def groups(peer: Peer) -> frozenset[int]:
    """All groups of the peer: its own gid and those of its user in the database.

    It may block for as long as the directory service behind the database takes. A user without an entry has
    the gid only.
    """
    try:
        name = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        return frozenset((peer.gid,))
    return frozenset((peer.gid, *os.getgrouplist(name, peer.gid)))
