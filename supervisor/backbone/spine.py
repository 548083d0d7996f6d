"""The spine's two ZeroMQ sockets, for the operator's own tools: an XPUB going out, an XSUB coming in.

Both are in a folder that only the supervisor's user may enter. Whoever gets in is trusted with every message; it is
not trusted with the time of the backbone: what a subscriber does not take is dropped by ZeroMQ beyond `SEND_HWM`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import zmq

from capsuled.proto import spine
from capsuled.supervisor.backbone.edges import NOBLOCK

SEND_HWM = 1000
"""Messages that wait for one slow subscriber; newer ones are dropped for it alone."""

RECEIVE_PER_TURN = 64
"""Messages taken from the operator's publishers before the capsules have their turn."""

_SUBSCRIBE, _UNSUBSCRIBE = 1, 0


class Spine:
    """See the module's docstring."""

    def __init__(self, ctx: zmq.Context[zmq.Socket[bytes]], folder: str, max_payload: int) -> None:
        self._out = ctx.socket(zmq.XPUB)
        self._in = ctx.socket(zmq.XSUB)
        for sock, name in ((self._out, spine.SUBSCRIBERS), (self._in, spine.PUBLISHERS)):
            path = Path(folder, name)
            path.unlink(missing_ok=True)  # of a backbone that was killed: only we may write here
            sock.linger = 0
            sock.setsockopt(zmq.SNDHWM, SEND_HWM)
            sock.setsockopt(zmq.MAXMSGSIZE, max_payload)
            sock.bind(f"ipc://{path}")
            os.chmod(path, 0o600)
        self._in.send(bytes((_SUBSCRIBE,)))  # an XSUB gets what it asks for: everything
        self.fds = (int(self._out.getsockopt(zmq.FD)), int(self._in.getsockopt(zmq.FD)))

    def subscriptions(self) -> Iterator[tuple[bool, bytes]]:
        """Prefixes that subscribers want, or want no more, since the last time."""
        while True:
            try:
                message = self._out.recv(NOBLOCK)
            except zmq.Again:
                return
            # What a client sends upstream beyond subscriptions means nothing here.
            if message and message[0] in (_SUBSCRIBE, _UNSUBSCRIBE):
                yield message[0] == _SUBSCRIBE, message[1:]

    def publications(self) -> Iterator[tuple[bytes, bytes]]:
        """Topic and payload of what the operator's tools publish; other shapes are passed over."""
        for _ in range(RECEIVE_PER_TURN):
            try:
                frames = self._in.recv_multipart(NOBLOCK)
            except zmq.Again:
                return
            if len(frames) in (
                2,
                3,
            ):  # with stamps in between, as they come out of a spine: ours are put instead
                yield frames[0].removesuffix(spine.END), frames[-1]

    def publish(self, frames: list[bytes]) -> None:
        self._out.send_multipart(frames, NOBLOCK)

    def pending(self) -> bool:
        """Whether there is something to take. Asking takes the edge of both descriptors."""
        events = int(self._out.getsockopt(zmq.EVENTS)) | int(self._in.getsockopt(zmq.EVENTS))
        return bool(events & int(zmq.POLLIN))

    def close(self) -> None:
        self._out.close(0)
        self._in.close(0)
