"""The backbone's loop: one epoll over the edges and the supervisor's socket.

A turn reads what is there (bounded for each edge, so that nobody is first for long), lets the router decide,
and flushes each outbox once. The descriptors of ZeroMQ are edge-triggered: an edge stays on the `ready` list
until a receive came up empty *and* EVENTS agrees, and after a send EVENTS is asked again, since the send may
have eaten the news of something to read.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from typing import NoReturn

from capsuled.proto.records import RecordError
from capsuled.supervisor.backbone import edges, protocol
from capsuled.supervisor.backbone.edges import Edge, PeerMismatch
from capsuled.supervisor.backbone.protocol import Json, Settings
from capsuled.supervisor.backbone.router import Router

FRAMES_PER_TURN = 32
"""Frames read from one edge before the next one has its turn."""

COMMAND_BYTES = 256 * 1024
"""Read at once from the supervisor."""


class SupervisorGone(Exception):
    """The supervisor's end of the socket is closed: there is nobody left to carry messages for."""


class Loop:
    """The backbone's state in one process."""

    def __init__(self, supervisor: socket.socket) -> None:
        supervisor.setblocking(False)
        self._supervisor = supervisor
        self._unpacker = protocol.Unpacker()
        self._outgoing = bytearray()
        self._epoll = select.epoll()
        self._epoll.register(supervisor.fileno(), select.EPOLLIN)
        self._context = edges.context()
        self._router = Router(epoch=0, on_subscriptions=self._tell_subscriptions)
        self._settings = Settings(epoch=0, total_queue_bytes=0, largest_payload=1)
        self._begun = False
        self._stopping = False
        self._edges: dict[int, Edge] = {}
        self._by_fd: dict[int, Edge] = {}
        self._ready: dict[Edge, None] = {}
        self._blocked: dict[Edge, None] = {}
        self._paused: list[tuple[float, int]] = []
        """Heap of when to read which member again."""

    def run(self) -> None:
        """Until the supervisor says stop. Raises `SupervisorGone` when it is gone instead."""
        while not self._stopping:
            for fd, _ in self._epoll.poll(self._timeout()):
                if fd == self._supervisor.fileno():
                    self._command()
                elif fd in self._by_fd:
                    self._ready[self._by_fd[fd]] = None
            now = time.monotonic()
            self._resume(now)
            now_ms = time.time_ns() // 1_000_000
            for edge in list(self._ready):
                self._read(edge, now, now_ms)
            self._flush()
            self._write()
        for edge in self._edges.values():
            edge.close()
        self._write()

    def _timeout(self) -> float | None:
        if self._ready:
            return 0.0
        if self._paused:
            return max(0.0, self._paused[0][0] - time.monotonic())
        return None

    # ── the edges ────────────────────────────────────────────────────────────────────────────────

    def _read(self, edge: Edge, now: float, now_ms: int) -> None:
        member = edge.member
        if edge.paused or self._router.deaf(member):
            edge.deaf = not edge.paused
            del self._ready[edge]
            return
        for _ in range(FRAMES_PER_TURN):
            try:
                frame = edge.receive()
                if frame is None:
                    self._settle(edge)
                    return
                self._router.take(member, frame, now, now_ms)
            except RecordError as exc:
                member.refused["malformed"] += 1
                self._fault(edge, f"malformed frame: {exc}")
            except PeerMismatch as exc:
                self._fault(edge, str(exc))
                self._drop(edge)
                return
            if member.said_bye:
                member.said_bye = False
                self._tell({"op": "bye", "index": member.admission.index})
            wait = max(member.bucket.wait(), member.control_bucket.wait())
            if wait > 0.0:
                edge.paused = True
                heapq.heappush(self._paused, (now + wait, member.admission.index))
                del self._ready[edge]
                return

    def _settle(self, edge: Edge) -> None:
        """A receive came up empty: believe it only when EVENTS agrees."""
        readable, writable = edge.events()
        if not readable:
            self._ready.pop(edge, None)
        if edge.blocked and writable:
            self._send(edge)

    def _resume(self, now: float) -> None:
        while self._paused and self._paused[0][0] <= now:
            _, index = heapq.heappop(self._paused)
            edge = self._edges.get(index)
            if edge is not None:
                edge.paused = False
                self._ready[edge] = None

    def _flush(self) -> None:
        outboxes, self._router.flush = self._router.flush, []
        for outbox in outboxes:
            outbox.dirty = False
            edge = self._edges.get(outbox.member)
            if edge is not None and self._begun and not edge.blocked:
                self._send(edge)
        if self._blocked:
            waiting = [edge.member.outbox for edge in self._blocked]
            self._router.bound_total(waiting, self._settings.total_queue_bytes)

    def _send(self, edge: Edge) -> None:
        outbox = edge.member.outbox
        while frame := edge.pending or outbox.take_frame():
            if not edge.send(frame):
                edge.pending = frame
                edge.blocked = True
                self._blocked[edge] = None
                # Between the failed send and here room may have appeared, and its news been eaten.
                if not edge.events()[1]:
                    return
            else:
                edge.pending = b""
        edge.blocked = False
        self._blocked.pop(edge, None)
        if edge.deaf or edge.events()[0]:
            edge.deaf = False
            self._ready[edge] = None

    def _drop(self, edge: Edge) -> None:
        """Close an edge; its member stays until the supervisor detaches it."""
        self._epoll.unregister(edge.fd)
        del self._by_fd[edge.fd]
        del self._edges[edge.member.admission.index]
        self._ready.pop(edge, None)
        self._blocked.pop(edge, None)
        edge.close()

    # ── the supervisor ───────────────────────────────────────────────────────────────────────────

    def _command(self) -> None:
        try:
            data = self._supervisor.recv(COMMAND_BYTES)
        except BlockingIOError:
            return
        except ConnectionError as exc:
            raise SupervisorGone from exc
        if not data:
            raise SupervisorGone
        for message in self._unpacker.feed(data):
            self._obey(message)

    def _obey(self, message: Json) -> None:
        match message["op"]:
            case "configure":
                self._settings = protocol.settings_of(message)
                self._router.epoch = self._settings.epoch
                self._router.seq = self._settings.epoch << 40
            case "attach":
                self._attach(message)
            case "begin":
                self._begun = True
                for edge in self._edges.values():
                    self._connect(edge)
            case "detach":
                self._detach(message["index"])
            case "figures":
                self._figures(message["request"])
            case "ping":
                self._tell({"op": "pong", "epoch": self._router.epoch})
            case "stop":
                self._stopping = True
            case other:
                raise protocol.ProtocolError(f"there is no op {other!r} for the backbone")

    def _attach(self, message: Json) -> None:
        member = self._router.attach(protocol.admission_of(message), time.monotonic())
        edge = Edge(self._context, member, self._settings.largest_payload)
        self._edges[member.admission.index] = edge
        self._by_fd[edge.fd] = edge
        self._epoll.register(edge.fd, select.EPOLLIN)
        if self._begun:
            self._connect(edge)

    def _connect(self, edge: Edge) -> None:
        self._router.greet(edge.member)
        edge.connect()
        self._ready[edge] = None

    def _detach(self, index: int) -> None:
        edge = self._edges.get(index)
        if edge is not None:
            self._drop(edge)
        if index in self._router.members:
            figures = self._router.detach(index)
            self._tell({"op": "detached", "index": index, "epoch": self._router.epoch, "figures": figures})

    def _figures(self, request: int) -> None:
        self._router.settle()
        self._tell(
            {
                "op": "figures",
                "request": request,
                "epoch": self._router.epoch,
                "members": [self._router.figures(member) for member in self._router.members.values()],
            }
        )

    def _tell_subscriptions(self, index: int, table: list[tuple[int, str, bool]]) -> None:
        self._tell({"op": "subscriptions", "index": index, "table": table})
        self._write()  # before the worker is answered: see Router.on_subscriptions

    def _fault(self, edge: Edge, message: str) -> None:
        self._tell({"op": "fault", "index": edge.member.admission.index, "message": message})

    def _tell(self, message: Json) -> None:
        self._outgoing += protocol.pack(message)
        if len(self._outgoing) > protocol.MAX_MESSAGE:
            raise SupervisorGone  # it has not read for 64 MiB: it is as good as gone

    def _write(self) -> None:
        while self._outgoing:
            try:
                sent = self._supervisor.send(self._outgoing)
            except BlockingIOError:
                self._epoll.modify(self._supervisor.fileno(), select.EPOLLIN | select.EPOLLOUT)
                return
            except ConnectionError as exc:
                raise SupervisorGone from exc
            del self._outgoing[:sent]
        self._epoll.modify(self._supervisor.fileno(), select.EPOLLIN)


def serve(supervisor: socket.socket) -> NoReturn:
    """Run the loop to its end and leave without ZeroMQ's own farewell, which was once seen to hang."""
    import os  # here, since nothing else in this module touches the process

    status = 0
    try:
        Loop(supervisor).run()
    except SupervisorGone:
        status = 1
    os._exit(status)
