"""The ZeroMQ side of the backbone: one DEALER socket for each capsule, and no other.

So the sender of a frame is the socket that it was read from. The worker listens, on a descriptor that it
inherited, and the backbone connects; after a restart it simply connects again.
"""

from __future__ import annotations

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
"""Pause between attempts to connect: short, since a capsule's listener is there before it is attached."""

ZERO_COPY_BYTES = 64 * 1024
"""From this size on a frame is handed over by reference: the copy costs more than the bookkeeping."""


class PeerMismatch(Exception):
    """Somebody else than the worker is at the other end of an edge."""


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context with room for every capsule's socket."""
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    made.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    return made


class Edge:
    """The socket of one member, and what the loop remembers about it."""

    __slots__ = ("blocked", "deaf", "fd", "member", "paused", "pending", "socket", "verified")

    def __init__(self, ctx: zmq.Context[zmq.Socket[bytes]], member: Member, largest_payload: int) -> None:
        self.member = member
        self.pending = b""
        """A frame that ZeroMQ had no room for yet; it counts as sent."""
        self.blocked = False
        self.paused = False
        """Over its rate: not read until its bucket has refilled."""
        self.deaf = False
        """Too many answers wait for it: not read until it has taken some."""
        self.verified = False
        admission = member.admission
        self.socket = ctx.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.SNDHWM, min(SEND_HWM, records.receive_hwm(largest_payload)))
        self.socket.setsockopt(zmq.RCVHWM, records.receive_hwm(admission.max_payload))
        self.socket.setsockopt(zmq.MAXMSGSIZE, records.max_frame(admission.max_payload))
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.fd = int(self.socket.getsockopt(zmq.FD))

    def connect(self) -> None:
        """Connect to the worker's listener; ZeroMQ tries again by itself until that is there."""
        self.socket.connect(f"ipc://{self.member.admission.path}")

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
        try:
            self.socket.send(frame, NOBLOCK, len(frame) < ZERO_COPY_BYTES)
        except zmq.Again:
            return False
        return True

    def events(self) -> tuple[bool, bool]:
        """Whether it can be read, and written. Asking also takes the edge of its descriptor, for both."""
        events = int(self.socket.getsockopt(_EVENTS))
        return bool(events & _POLLIN), bool(events & _POLLOUT)

    def close(self) -> None:
        self.socket.close(0)

    def _receive_first(self) -> bytes:
        """The kernel's word about who is at the other end is asked for once: it costs 2 µs a frame."""
        frame: zmq.Frame = self.socket.recv(NOBLOCK, copy=False)
        peer = str(frame.get("Peer-Address")).partition(":")[2]
        if peer != self.member.admission.peer:
            raise PeerMismatch(f"peer {peer} where {self.member.admission.peer} was expected (uid:gid:pid)")
        self.verified = True
        return frame.bytes
