"""Token bucket: how much a capsule may publish, in bytes and in messages per second.

A bucket and not a fixed window, which lets twice the rate pass across its edge. One second's worth
is the burst. `now` is an argument, in seconds of a monotonic clock.

The worker asks `admits` and refuses what does not; the backbone calls `charge` for what it has read
and then reads no more from that capsule until `wait` has passed: back-pressure on it alone.
"""

from __future__ import annotations


class Bucket:
    """Tokens in two kinds, bytes and messages, that refill together.

    Taking is allowed while the bucket holds what is asked for *or is full*, so that a payload of more
    than one second's worth passes once and is then paid for by waiting. (Otherwise a message of the
    size that the manifest allows could never be sent under a low rate.)

    Rates are per second and over 0, else ValueError.
    """

    __slots__ = ("_byte_rate", "_bytes", "_last", "_message_rate", "_messages")

    def __init__(self, byte_rate: float, message_rate: float, now: float) -> None:
        if not (byte_rate > 0.0 and message_rate > 0.0):
            raise ValueError(
                f"rates of {byte_rate} bytes and {message_rate} messages per second: both must be over 0"
            )
        self._byte_rate = byte_rate
        self._message_rate = message_rate
        self._bytes = byte_rate
        self._messages = message_rate
        self._last = now

    def admits(self, size: int, now: float) -> bool:
        """Take `size` bytes and one message, or take nothing and say False."""
        self._refill(now)
        if self._messages < 1.0 and self._messages < self._message_rate:
            return False
        if self._bytes < size and self._bytes < self._byte_rate:
            return False
        self._bytes -= size
        self._messages -= 1.0
        return True

    def charge(self, size: int, messages: int, now: float) -> None:
        """Take what has been used already; the bucket may fall below zero. Negative figures give back."""
        self._refill(now)
        self._bytes = min(self._byte_rate, self._bytes - size)
        self._messages = min(self._message_rate, self._messages - messages)

    def wait(self) -> float:
        """Seconds until neither kind is below zero; 0.0 when that is so already."""
        wait = 0.0
        if self._bytes < 0.0:
            wait = -self._bytes / self._byte_rate
        if self._messages < 0.0:
            wait = max(wait, -self._messages / self._message_rate)
        return wait

    def _refill(self, now: float) -> None:
        elapsed = now - self._last
        if elapsed > 0.0:
            self._last = now
            self._bytes = min(self._byte_rate, self._bytes + elapsed * self._byte_rate)
            self._messages = min(self._message_rate, self._messages + elapsed * self._message_rate)
