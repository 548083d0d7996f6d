"""What a worker or a compiler is confined by: what it is told to do itself, and its user and control group."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager

from capsuled.proto.order import Confinement
from capsuled.supervisor import cgroups, modes
from capsuled.supervisor.cgroup_layout import Caps
from capsuled.supervisor.cgroups import Group, Groups
from capsuled.supervisor.modes import Probed
from capsuled.supervisor.users import Users


class Confining:
    """What all instances share."""

    def __init__(self, probed: Probed, users: range, groups: Groups) -> None:
        self.probed = probed
        why = probed.layers["cgroup"].why
        self._groups = groups if probed.held("cgroup") else cgroups.none(why)
        self._users = Users(users) if modes.own_users(probed) else None

    @contextmanager
    def confinement(self) -> Generator[Confinement, None, None]:
        """What one worker is told; its user is its own until the end of the block. Raises `NoUserLeft`."""
        if self._users is None:
            yield modes.confinement(self.probed, None)
            return
        user = self._users.take()
        try:
            yield modes.confinement(self.probed, user)
        finally:
            self._users.give_back(user)

    def group(self, name: str, caps: Caps) -> AbstractAsyncContextManager[Group]:
        """A control group for one process, or for none where there are none. Raises `SpawnError`."""
        return self._groups.group(name, caps)
