"""A worker's messages without processes: an edge that does as a test says, and the backbone as the test plays it."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable

import cbor2

from capsuled.proto import ledger, records, reports
from capsuled.proto.grants import Grants
from capsuled.proto.ledger import Claims
from capsuled.proto.order import Descriptors, Order, WorkerLimits
from capsuled.proto.records import DownKind, Up, UpKind
from capsuled.proto.reports import Cancel
from capsuled.sandbox.edge import Edge
from capsuled.sandbox.ipc import Ipc
from capsuled.sandbox.page import Page
from capsuled.sandbox.supervisor import Supervisor

from ..support.machines import BARE

EPOCH = 2
FIRST = EPOCH << records.EPOCH_SHIFT
ORIGIN = 5

LIMITS = WorkerLimits(
    memory=1 << 20,
    process_memory=300 << 20,
    cpu_time=0,
    open_files=20,
    max_payload=1 << 20,
    largest_payload=1 << 20,
    publish_bytes_per_second=1 << 30,
    publish_messages_per_second=1_000_000,
    queue_messages=100,
    queue_bytes=1 << 20,
    log_bytes_per_second=1000,
)

ORDER = Order("name", bytes(16), "auto", Descriptors(3, 4, 5, 6, 7), LIMITS, Grants(("*",), ("*",)), BARE)


class ScriptedEdge(Edge):
    """An edge without ZeroMQ: frames to receive stand in `coming`, and `answer` may add some for each record."""

    def __init__(self) -> None:
        self.fd, self._news = os.pipe()
        self.coming: deque[bytes] = deque()
        self.sent: list[Up] = []
        self.room = 1 << 30
        """Frames that it takes."""
        self.room_after_receive = 0
        """Frames that there is room for once a receive has come up empty."""
        self.answer: Callable[[Up], None] = lambda record: None

    def send(self, frame: bytes) -> bool:
        if not self.room:
            return False
        self.room -= 1
        for record in records.split_up(frame):
            self.sent.append(record)
            self.answer(record)
        return True

    def receive(self) -> bytes | None:
        if self.coming:
            return self.coming.popleft()
        self.room, self.room_after_receive = self.room + self.room_after_receive, 0
        return None

    def has_news(self) -> bool:
        return bool(self.coming or self.room)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._news)

    def kinds(self) -> list[tuple[int, int]]:
        """Kind and `a` of what was sent, and none of it any more."""
        found = [(each.kind, each.a) for each in self.sent]
        self.sent.clear()
        return found


class World:
    """An `Ipc`, the backbone as the test plays it, and the supervisor's end of the control descriptor."""

    def __init__(self, control: socket.socket, supervisor: socket.socket, order: Order) -> None:
        self.edge = ScriptedEdge()
        self.edge.answer = self.acknowledge
        self.page = Page(memoryview(bytearray(ledger.BYTES)).cast("Q"))
        self.control = control
        self.ipc = Ipc(order, self.edge, Supervisor(supervisor.fileno()), self.page)
        self.epoch = EPOCH
        self.seq = FIRST

    def acknowledge(self, record: Up) -> None:
        if record.kind == UpKind.SUBSCRIBE:
            self.say(DownKind.SUBSCRIBED, a=record.a, c=self.seq)
        elif record.kind == UpKind.UNSUBSCRIBE:
            self.say(DownKind.UNSUBSCRIBED, a=record.a)

    def say(
        self, kind: DownKind, text: bytes = b"", a: int = 0, b: int = 0, c: int = 0, body: bytes = b""
    ) -> None:
        """A control record of the backbone that has greeted last."""
        self.edge.coming.append(records.control(kind, self.epoch, text, a, b, c, body))

    def greet(self, epoch: int = EPOCH) -> None:
        self.epoch, self.seq = epoch, epoch << records.EPOCH_SHIFT
        self.edge.coming.append(records.down(DownKind.HELLO, b=epoch))
        self.say(DownKind.ORIGIN, b"peer", ORIGIN, body=bytes(16) + b"peer")

    def message(self, topic: str, payload: object, kind: DownKind = DownKind.MESSAGE) -> int:
        """A message, or a request, of the origin that `greet` has introduced. Returns its number."""
        self.seq += 1
        self.edge.coming.append(
            records.down(kind, topic.encode(), ORIGIN, self.seq, 0, 0, cbor2.dumps(payload))
        )
        return self.seq

    def cancel(self) -> None:
        self.control.send(reports.encode(Cancel(5.0)))

    def claims(self) -> Claims:
        found = ledger.read(self.page.slots)
        assert found is not None
        return found
