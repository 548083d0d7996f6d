"""Bounds of the control socket. A peer may be slow, silent or hostile; it must not hold the others up."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CONNECTIONS = 64
"""Connections at once: an operator, some scrapers and followers. Each costs a task and a descriptor."""

MAX_HEAD = 64 * 1024
"""Bytes of a request line with its headers, about what servers of the trade take at most."""

MAX_BODY = 1024 * 1024
"""Bytes of a request's body: the largest payload a capsule may publish. With 64 connections it is 64 MiB."""

CHUNK = 16 * 1024
"""Bytes taken from a peer at once, so that a request which is too large is noticed soon after it is."""

PIECE = 64 * 1024
"""Bytes of an answer under one write deadline: a slow reader of a long answer that moves on is not failed."""

REQUEST_SECONDS = 10.0
"""From the first byte of a request to its last. The socket is local: what takes longer has stalled."""

IDLE_SECONDS = 60.0
"""Between requests, so that forgotten connections give their places back."""

WRITE_SECONDS = 10.0
"""For a peer to take one piece of an answer."""

STALLED_SECONDS = 300.0
"""For a follower to take one piece of a stream. Longer than for an answer, because a paused terminal or
pager is no fault: it loses events, is told how many, and goes on. After that it gives up its place."""

REFUSED = 64
"""Peers that are given time to notice at once that they were refused; beyond them none is waited for."""

REFUSED_SECONDS = 1.0
"""For a peer that was refused at accept to send its request. One that finds us gone before it sends, as
curl does now and then, reports that nobody is there, and not what it was told."""

LOOKUPS = 8
"""Threads that look up groups at once. One that hangs keeps its thread, also after its peer was refused."""

GROUPS_SECONDS = 5.0
"""To look up a peer's groups, which a directory service on the network may have to answer."""


@dataclass(frozen=True)
class Limits:
    """The bounds that one server keeps, in bytes and seconds."""

    connections: int = MAX_CONNECTIONS
    head: int = MAX_HEAD
    body: int = MAX_BODY
    request: float = REQUEST_SECONDS
    idle: float = IDLE_SECONDS
    write: float = WRITE_SECONDS
    stalled: float = STALLED_SECONDS
    refused: float = REFUSED_SECONDS
    groups: float = GROUPS_SECONDS
