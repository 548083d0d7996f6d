"""The ZeroMQ side of the backbone: one DEALER socket for each capsule, and no other.

So the sender of a frame is the socket that it was read from. The worker listens, on a descriptor that it
inherited, and the backbone connects; after a restart it simply connects again.

A connection that breaks ZeroMQ's protocol (`MAXMSGSIZE` is part of it) is not made again: ZeroMQ takes the
socket's only pipe away, and `Edge.look` sees it. (ZeroMQ itself overlooks what comes before its connect() has
returned. Such an edge stays unverified: nothing but the greeting is ever sent to it.) A connection that the worker
merely closes is made again by ZeroMQ for as long as somebody listens. No honest worker closes and listens on, and
none is greeted twice: who does so hears nothing new and harms itself.
"""

from __future__ import annotations

from typing import NamedTuple

import zmq

from capsuled.proto import records
from capsuled.supervisor.backbone.members import Member

NOBLOCK = int(zmq.NOBLOCK)  # a plain int: enum flags cost 2.6 µs a call
_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_EVENTS = int(zmq.EVENTS)

MAX_SOCKETS = 16_384
"""ZeroMQ's own default of 1023 would be the first bound that an operator met."""

SEND_HWM = 16
"""Frames that ZeroMQ holds for one capsule at most. The real queue is the outbox, which counts exactly."""

RECONNECT_MS = 10
"""Pause between attempts to connect: short, since a worker is about to listen when it is attached."""

ZERO_COPY_BYTES = 64 * 1024
"""From this size on a frame is handed over by reference: the copy costs more than the bookkeeping."""


class PeerMismatch(Exception):
    """Somebody else than the worker is at the other end of an edge."""


class Events(NamedTuple):
    """What ZeroMQ says about a socket."""

    readable: bool
    writable: bool
    broken: bool
    """The connection has broken the protocol, and there will be no other."""


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context with room for every capsule's socket."""
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    made.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    return made


class Edge:
    """The socket of one member, and what the loop remembers about it."""

    __slots__ = (
        "_had_room",
        "closed",
        "deaf",
        "faulted",
        "fd",
        "full",
        "member",
        "pending",
        "resume_at",
        "socket",
        "untold",
        "verified",
    )

    def __init__(self, ctx: zmq.Context[zmq.Socket[bytes]], member: Member, largest_payload: int) -> None:
        self.member = member
        self.pending = b""
        """A frame that ZeroMQ had no room for yet; it counts as sent."""
        self.verified = False
        """The kernel has said who is at the other end; nothing but the greeting is sent before."""
        self.full = False
        """ZeroMQ has no room for a frame."""
        self.untold = False
        """Its subscriptions have changed and the supervisor has not been told yet: neither read nor sent to."""
        self.resume_at = 0.0
        """When it is read again, having been over its rate (monotonic seconds); 0.0: it is not over it."""
        self.deaf = False
        """Too many answers wait for it: not read until it has taken some."""
        self.faulted = False
        """A malformed frame of it has been told to the supervisor; further ones are only counted."""
        self.closed = False
        self._had_room = False
        admission = member.admission
        self.socket = ctx.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.SNDHWM, min(SEND_HWM, records.receive_hwm(largest_payload)))
        self.socket.setsockopt(zmq.RCVHWM, records.receive_hwm(admission.max_payload))
        self.socket.setsockopt(zmq.MAXMSGSIZE, records.max_frame(admission.max_payload))
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        # A worker that is stopped between listen and accept must find one connection, not one for each 30 s.
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, 0)
        self.fd = int(self.socket.getsockopt(zmq.FD))

    @property
    def resting(self) -> bool:
        """Whether it must not be read for now."""
        return self.untold or self.deaf or self.resume_at > 0.0

    @property
    def mute(self) -> bool:
        """Whether nothing may be sent to it for now."""
        return self.full or self.untold or self.closed or not self.verified

    def connect(self, greeting: bytes) -> None:
        """Connect to the worker's listener, with the greeting as the first frame that it reads.

        ZeroMQ tries again by itself until somebody listens.
        """
        self.socket.connect(f"ipc://{self.member.admission.path}")
        self.send(greeting)
        # The pipe is new and takes two frames at least. Who breaks the protocol before the first look is seen too.
        self._had_room = True

    def receive(self) -> bytes | None:
        """The next frame, None when there is none. Raises `PeerMismatch` on the first one, if at all."""
        try:
            if self.verified:
                return self.socket.recv(NOBLOCK)
            return self._receive_first()
        except zmq.Again:
            return None

    def send(self, frame: bytes) -> bool:
        """Hand a frame over; False when ZeroMQ has no room."""
        self._had_room = False
        try:
            self.socket.send(frame, NOBLOCK, len(frame) < ZERO_COPY_BYTES)
        except zmq.Again:
            self.full = True
            return False
        return True

    def look(self) -> Events:
        """Ask ZeroMQ. That takes the edge of the descriptor, for both directions: act on all that is said."""
        events = int(self.socket.getsockopt(_EVENTS))
        writable = bool(events & _POLLOUT)
        # Room can only grow while nothing is sent, unless the pipe itself has gone.
        broken = self._had_room and not writable
        self._had_room = writable
        self.full = not writable
        return Events(bool(events & _POLLIN), writable, broken)

    def close(self) -> None:
        self.closed = True
        self.socket.close(0)

    def _receive_first(self) -> bytes:
        """The kernel's word about who is at the other end is asked for once: it costs 2 µs a frame."""
        frame: zmq.Frame = self.socket.recv(NOBLOCK, copy=False)
        peer = str(frame.get("Peer-Address")).partition(":")[2]
        if peer != self.member.admission.peer:
            raise PeerMismatch(f"peer {peer} where {self.member.admission.peer} was expected (uid:gid:pid)")
        self.verified = True
        return frame.bytes
