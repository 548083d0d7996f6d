"""Who the kernel says a peer is."""

from __future__ import annotations

import os
import pwd
import socket

import pytest
import trio

from capsuled.supervisor.control import peers
from capsuled.supervisor.control.access import Peer


def test_the_kernel_knows_the_peer() -> None:
    """The peer of a connection is the process that made it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peers.credentials(trio.socket.from_stdlib_socket(ours))
    assert peer == Peer(os.getpid(), os.geteuid(), os.getegid())


def test_groups_come_from_the_user_database() -> None:
    """A peer has the group that it connected with, and all groups that its user is in."""
    user = pwd.getpwuid(os.getuid())
    found = peers.groups(Peer(1, user.pw_uid, 4242))
    assert found == {4242, *os.getgrouplist(user.pw_name, 4242)}


def test_a_user_without_entry_has_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that no database knows has the group of the process, and no other."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert peers.groups(Peer(1, 4711, 4242)) == {4242}
