"""The server: who gets past accept, and how many.

A peer that has no level is told so and closed, without that a byte of it is read and without a place of its
own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn

import trio

from capsuled.proto.control import Level
from capsuled.supervisor.control import peers, routes
from capsuled.supervisor.control.access import Access, Peer
from capsuled.supervisor.control.connection import Connection
from capsuled.supervisor.control.counts import Counts
from capsuled.supervisor.control.errors import NoLevel, TooManyConnections
from capsuled.supervisor.control.limits import LOOKUPS, REFUSED, Limits
from capsuled.supervisor.control.messages import Answer, Request, Streamed
from capsuled.supervisor.control.operations import Operations, Refused

LOG = logging.getLogger("capsuled.control")

DEFAULT_LIMITS = Limits()


async def serve(
    listener: trio.SocketListener,
    operations: Operations,
    access: Access,
    *,
    limits: Limits = DEFAULT_LIMITS,
    credentials: Callable[[trio.socket.SocketType], Peer] = peers.credentials,
    groups: Callable[[Peer], frozenset[int]] = peers.groups,
    counts: Counts | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Answer the peers of `listener` until cancelled; then the listener and all connections are closed.

    `credentials` and `groups` say who a peer is; `groups` may block, and runs in a thread. `counts` is kept up to date.
    """
    server = _Server(operations, access, limits, credentials, groups, counts or Counts())
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.accepted, [listener])
        task_status.started()
    raise AssertionError("serving ends only by being cancelled")


class _Server:
    def __init__(
        self,
        operations: Operations,
        access: Access,
        limits: Limits,
        credentials: Callable[[trio.socket.SocketType], Peer],
        groups: Callable[[Peer], frozenset[int]],
        counts: Counts,
    ) -> None:
        self._operations = operations
        self._access = access
        self._limits = limits
        self._credentials = credentials
        self._groups = groups
        self._counts = counts
        self._refused = 0
        """Refused ones that are given time to notice at this moment."""
        # Not trio's default one: look-ups that hang in a directory service would take all its threads.
        self._lookups = trio.CapacityLimiter(LOOKUPS)

    async def accepted(self, stream: trio.SocketStream) -> None:
        """Serve one accepted connection; it is closed afterwards."""
        try:
            await self._admit(stream)
        except Exception:
            # A defect in serving one peer ends that peer's connection, not everybody's supervisor.
            LOG.exception("cannot serve a connection of the control socket any longer")

    async def _admit(self, stream: trio.SocketStream) -> None:
        peer = self._credentials(stream.socket)
        level = self._access.of_user(peer.uid)
        if level is None and not self._access.groups:
            await self._refuse(stream, _no_level(peer))
            return
        if self._counts.open >= self._limits.connections:
            most = self._limits.connections
            await self._refuse(
                stream,
                TooManyConnections(
                    f"cannot take more than {most} connections at once: close one, or try again later",
                    {"limit": most},
                ),
            )
            return
        self._counts.open += 1
        try:
            level = level or await self._level_of_groups(peer)
            if level is not None:
                await self._serve(stream, level)
        finally:
            self._counts.open -= 1
        if level is None:
            await self._refuse(stream, _no_level(peer))

    async def _refuse(self, stream: trio.SocketStream, refused: Refused) -> None:
        self._counts.refused += 1
        await Connection(stream, self._limits).refuse(refused)
        if self._refused < REFUSED:
            self._refused += 1
            try:
                with trio.move_on_after(self._limits.refused):
                    await trio.lowlevel.wait_readable(stream.socket)
            finally:
                self._refused -= 1

    async def _level_of_groups(self, peer: Peer) -> Level | None:
        # In a thread and with a deadline, for the user database may be on the network; too late is no.
        with trio.move_on_after(self._limits.groups):
            gids = await trio.to_thread.run_sync(
                self._groups, peer, abandon_on_cancel=True, limiter=self._lookups
            )
            return self._access.of_groups(gids)
        LOG.warning("cannot learn the groups of %s in %g s: refused", peer, self._limits.groups)
        return None

    async def _serve(self, stream: trio.SocketStream, level: Level) -> None:
        async def respond(request: Request, held: ExitStack) -> Answer | Streamed:
            return await routes.respond(self._operations, level, request, held)

        await Connection(stream, self._limits).serve(respond)


def _no_level(peer: Peer) -> NoLevel:
    return NoLevel(
        f"cannot let you in ({peer}): ask as root, as the supervisor's user, or as a member of a group "
        "that its configuration names",
        {"uid": peer.uid, "gid": peer.gid},
    )
