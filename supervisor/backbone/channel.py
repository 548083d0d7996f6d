"""The backbone's end of the socket to the supervisor: messages in, messages out, never blocking the loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from capsuled.supervisor.backbone import protocol
from capsuled.supervisor.backbone.protocol import Json

READ_BYTES = 256 * 1024
"""Read at once."""


class SupervisorGone(Exception):
    """The supervisor's end is closed, or it reads no more: there is nobody left to carry messages for."""


class Channel:
    """The stream to the supervisor, cut into messages."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._unpacker = protocol.Unpacker()
        self._outgoing = bytearray()

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    @property
    def written(self) -> bool:
        """Whether all that was told is in the kernel's hands, where the supervisor finds it whatever happens here."""
        return not self._outgoing

    @property
    def waiting(self) -> int:
        """Bytes that the supervisor has not taken yet."""
        return len(self._outgoing)

    def receive(self) -> Iterator[Json]:
        """The messages that have come. Raises `SupervisorGone`, and `protocol.ProtocolError`."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError as exc:
            raise SupervisorGone("the supervisor has closed its socket") from exc
        if not data:
            raise SupervisorGone("the supervisor has closed its socket")
        yield from self._unpacker.feed(data)

    def tell(self, message: Json) -> None:
        """Have a message written with the next `write`. Raises `SupervisorGone` when too much waits already."""
        self._outgoing += protocol.pack(message)
        if len(self._outgoing) > protocol.MAX_MESSAGE:
            raise SupervisorGone(f"the supervisor has left more than {protocol.MAX_MESSAGE} bytes unread")

    def write(self) -> None:
        """Write what the socket takes. Raises `SupervisorGone`."""
        while self._outgoing:
            try:
                sent = self._socket.send(self._outgoing)
            except BlockingIOError:
                return
            except ConnectionError as exc:
                raise SupervisorGone("the supervisor has closed its socket") from exc
            del self._outgoing[:sent]
