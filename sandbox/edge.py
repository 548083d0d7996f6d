"""The edge: the worker's one connection, a ZeroMQ DEALER on a socket that it inherited.

The worker listens and the backbone connects, so that a sealed worker needs neither a path nor `socket` and
`connect`, and a backbone that was restarted simply connects again.
"""

from __future__ import annotations

import errno
import socket

import zmq

from capsuled.proto import records

NOBLOCK = int(zmq.NOBLOCK)  # a plain int: enum flags cost 2.6 µs a call
_EVENTS, _ANY = int(zmq.EVENTS), int(zmq.POLLIN | zmq.POLLOUT)

SEND_HWM = 16
"""Frames that ZeroMQ holds for a backbone that does not read: the rest waits in `outgoing`, which is bounded."""


class Edge:
    """Frames out and in. Nothing here blocks; whoever waits polls `fd`.

    The descriptor is edge-triggered, for both directions: after a wake-up send and receive until both say that
    there is nothing, or the next one will not come.
    """

    def __init__(self, descriptor: int, max_payload: int) -> None:
        """Listen on a bound Unix stream socket. listen(2) is called here, and not by who made the socket, because
        what the kernel tells the backbone about its peer are the credentials at that call."""
        with socket.socket(fileno=descriptor) as listener:
            listener.listen(1)
            path = listener.getsockname()
            listener.detach()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.SNDHWM, SEND_HWM)
        self._socket.setsockopt(zmq.RCVHWM, records.receive_hwm(max_payload))
        self._socket.setsockopt(zmq.USE_FD, descriptor)
        self._socket.bind(f"ipc://{path}")
        self.fd = int(self._socket.getsockopt(zmq.FD))

    def send(self, frame: bytes) -> bool:
        """Hand a frame over; False when there is no room or no backbone."""
        try:
            # Always a copy: for frames by reference pyzmq starts a thread, which a sealed process cannot.
            self._socket.send(frame, NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as exc:
            raise _ours(exc) from exc
        return True

    def receive(self) -> bytes | None:
        """The next frame, None when there is none."""
        try:
            return self._socket.recv(NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError as exc:
            raise _ours(exc) from exc

    def has_news(self) -> bool:
        """Whether there is a frame to receive or room to send: for both at once, and of one moment.

        A receive that comes up empty may have eaten the news of room, and a send without room that of a frame.
        """
        return bool(int(self._socket.getsockopt(_EVENTS)) & _ANY)


def _ours(exc: zmq.ZMQError) -> Exception:
    """What ZeroMQ says when `process_memory` is reached, as everything else says it; what else it says, as it is."""
    return MemoryError(str(exc)) if exc.errno == errno.ENOMEM else exc
