"""The spine's two ZeroMQ sockets, for the operator's own tools: an XPUB going out, an XSUB coming in.

Both are in a folder that only the supervisor's user may enter. Whoever gets in is trusted with every message; it is
not trusted with the time of the backbone: what a subscriber does not take is dropped by ZeroMQ, and of what comes in
only so much is taken in a turn. What has come in and not been taken is in ZeroMQ's memory, without a bound for
subscriptions: these sockets are for the operator's own programs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import zmq

from capsuled.proto import spine
from capsuled.supervisor.backbone.edges import NOBLOCK

SEND_HWM, SEND_BYTES = 1000, 256 * 1024 * 1024
"""Messages that wait for one slow subscriber, newer ones being dropped for it alone: fewer where they may be large. Not
below 64, so that a burst passes: 64 of the largest that any manifest may allow are 320 MiB."""

SUBSCRIPTIONS_PER_TURN = 256
"""Subscriptions and their ends taken before the capsules have their turn."""

RECEIVE_PER_TURN = 64
"""The same for messages of the operator's publishers."""

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
            sock.setsockopt(zmq.SNDHWM, send_hwm(max_payload))
            sock.setsockopt(zmq.MAXMSGSIZE, max_payload)
            sock.bind(f"ipc://{path}")
            os.chmod(path, 0o600)
        self._in.send(bytes((_SUBSCRIBE,)))  # an XSUB gets what it asks for: everything
        self.fds = (int(self._out.getsockopt(zmq.FD)), int(self._in.getsockopt(zmq.FD)))

    def subscriptions(self) -> Iterator[tuple[bool, bytes]]:
        """Prefixes that the first subscriber wants, or the last one no more, since the last time."""
        for _ in range(SUBSCRIPTIONS_PER_TURN):
            try:
                message = self._out.recv(NOBLOCK)
            except zmq.Again:
                return
            # What a client sends upstream beyond subscriptions means nothing here.
            if message and message[0] in (_SUBSCRIBE, _UNSUBSCRIBE):
                yield message[0] == _SUBSCRIBE, message[1:]

    def publications(self) -> Iterator[tuple[bytes, bytes] | None]:
        """Topic and payload of what the operator's tools publish; None for what has another shape."""
        for _ in range(RECEIVE_PER_TURN):
            try:
                frames = self._in.recv_multipart(NOBLOCK)
            except zmq.Again:
                return
            # With three there are stamps in between, as they come out of a spine: ours are put instead.
            yield (frames[0].removesuffix(spine.END), frames[-1]) if len(frames) in (2, 3) else None

    def publish(self, frames: list[bytes]) -> None:
        """Send a message to whoever has subscribed; never waits."""
        self._out.send_multipart(frames, NOBLOCK)

    def pending(self) -> bool:
        """Whether there is something to take. Asking takes the edge of both descriptors."""
        events = int(self._out.getsockopt(zmq.EVENTS)) | int(self._in.getsockopt(zmq.EVENTS))
        return bool(events & int(zmq.POLLIN))

    def close(self) -> None:
        self._out.close(0)
        self._in.close(0)


def send_hwm(max_payload: int) -> int:
    """How many messages wait for one subscriber."""
    return min(SEND_HWM, max(64, SEND_BYTES // max_payload))
