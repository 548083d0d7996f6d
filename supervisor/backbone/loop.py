"""The backbone's loop: one epoll over the edges and the supervisor's socket.

A turn reads what is there (bounded for each edge, so that nobody is first for long), lets the router decide,
and flushes each outbox once. The descriptors of ZeroMQ are edge-triggered: an edge stays on the `ready` list
until a receive came up empty *and* EVENTS agrees. After a send EVENTS is asked again, since the send may have
eaten the news of something to read. An edge that is not read for now is asked all the same: its news may be that
there is room to send, and news that nobody takes would wake the loop for ever.
"""

from __future__ import annotations

import heapq
import math
import os
import select
import socket
import time
import traceback
from typing import NoReturn

from capsuled.proto import topics
from capsuled.proto.records import RecordError, max_frame
from capsuled.supervisor.backbone import edges, protocol
from capsuled.supervisor.backbone.channel import Channel, SupervisorGone
from capsuled.supervisor.backbone.display import Display
from capsuled.supervisor.backbone.edges import Edge, PeerMismatch
from capsuled.supervisor.backbone.protocol import Json, Settings
from capsuled.supervisor.backbone.router import Router
from capsuled.supervisor.backbone.spine import Spine

FRAMES_PER_TURN = 32
"""Frames read from one edge before the next one has its turn."""

RECORDS_PER_TURN = 512
"""The same for records: 32 frames as honest workers fill them."""

LONGEST_WAIT = 3600.0
"""Seconds in one poll: epoll takes milliseconds in 31 bits, and a pause after a large payload may be longer."""


class Loop:
    """The backbone's state in one process."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._channel = Channel(supervisor)
        self._epoll = select.epoll()
        self._epoll.register(self._channel.fd, select.EPOLLIN)
        self._interest = select.EPOLLIN
        self._context = edges.context()
        # Of no use before `configure`, which the supervisor sends before anything else.
        self._settings = Settings(epoch=0, total_queue_bytes=0, largest_payload=1)
        self._router = self._new_router()
        self._begun = False
        self._stopping = False
        self._edges: dict[int, Edge] = {}
        """By member index; closed ones stay until their member is detached."""
        self._by_fd: dict[int, Edge] = {}
        self._ready: dict[Edge, None] = {}
        """To be read in this turn."""
        self._waiting: dict[Edge, None] = {}
        """Edges whose outbox could not be emptied."""
        self._untold: list[Edge] = []
        self._paused: list[tuple[float, int]] = []
        """Heap of when to read which member again."""
        self._display = Display(self._channel, self._router, None)

    def run(self) -> None:
        """Until the supervisor says stop. Raises `SupervisorGone` when it is gone instead."""
        while not (self._stopping and self._channel.written):
            self._hear(self._epoll.poll(self._timeout()))
            now = time.monotonic()
            self._resume(now)
            now_ms = time.time_ns() // 1_000_000
            for edge in list(self._ready):
                self._read(edge, now, now_ms)
            self._display.take(now_ms)
            self._flush()
            self._display.show(now)
            self._write()
        for edge in self._by_fd.values():
            edge.close()
        self._display.close()

    def _timeout(self) -> float:
        if self._ready or self._display.news or self._router.flush:
            return 0.0
        due = min(self._display.due, self._paused[0][0] if self._paused else math.inf)
        return min(max(0.0, due - time.monotonic()), LONGEST_WAIT)

    def _hear(self, events: list[tuple[int, int]]) -> None:
        # Edges first: a command may detach a member, whose last frames came before it.
        commands = False
        for fd, _ in events:
            if fd == self._channel.fd:
                commands = True
            elif fd in self._by_fd:
                self._ready[self._by_fd[fd]] = None
            else:
                self._display.news = True
        if commands:
            for message in self._channel.receive():
                self._obey(message)

    # ── the edges ────────────────────────────────────────────────────────────────────────────────

    def _read(self, edge: Edge, now: float, now_ms: int) -> None:
        member = edge.member
        taken = 0
        for _ in range(FRAMES_PER_TURN):
            edge.deaf = member.outbox.deaf()
            if edge.resting:
                self._settle(edge)
                return
            known = edge.verified
            try:
                frame = edge.receive()
            except PeerMismatch as exc:
                self._cut(edge, str(exc))
                return
            if frame is None:
                self._settle(edge)
                return
            if not known:
                self._router.mark(member.outbox)
            try:
                taken += self._router.take(member, frame, now, now_ms)
            except RecordError as exc:
                self._malformed(edge, exc)
            wait = max(member.bucket.wait(), member.control_bucket.wait())
            if wait > 0.0:
                edge.resume_at = now + wait
                heapq.heappush(self._paused, (edge.resume_at, member.admission.index))
            if taken >= RECORDS_PER_TURN:
                return

    def _settle(self, edge: Edge) -> None:
        """There is nothing to read, or nothing may be read: leave it until there is news."""
        self._ready.pop(edge, None)
        self._look(edge)
        if edge in self._waiting:
            self._send(edge)

    def _look(self, edge: Edge) -> None:
        """Take the news of an edge, for both directions."""
        events = edge.look()
        if events.broken:
            limit = max_frame(edge.member.admission.max_payload)
            self._cut(edge, f"broke the protocol: a frame of more than {limit} bytes, or none of ZeroMQ's")
        elif events.readable and not edge.resting:
            self._ready[edge] = None

    def _resume(self, now: float) -> None:
        while self._paused and self._paused[0][0] <= now:
            _, index = heapq.heappop(self._paused)
            edge = self._edges.get(index)
            # Another member may have the index by now, and pause for reasons of its own.
            if edge is not None and not edge.closed and edge.resume_at <= now:
                edge.resume_at = 0.0
                self._ready[edge] = None

    def _malformed(self, edge: Edge, error: RecordError) -> None:
        edge.member.refused["malformed"] += 1
        if not edge.faulted:
            edge.faulted = True
            self._fault(edge, f"malformed frame: {error}")

    def _flush(self) -> None:
        outboxes = self._router.due()
        for outbox in outboxes:
            outbox.dirty = False
            edge = self._edges.get(outbox.member)
            if edge is not None:
                self._send(edge)
        if self._waiting:
            waiting = [edge.member.outbox for edge in self._waiting]
            self._router.bound_total(waiting, self._settings.total_queue_bytes)

    def _send(self, edge: Edge) -> None:
        """Empty the member's outbox into ZeroMQ, as far as that takes it."""
        self._waiting[edge] = None
        outbox = edge.member.outbox
        while not edge.mute:
            frame = edge.pending or outbox.take_frame()
            if not frame:
                del self._waiting[edge]
                self._look(edge)
                break
            # What ZeroMQ does not take is sent first when it does. Room may have come since: hence the look.
            edge.pending = b""
            if not edge.send(frame):
                edge.pending = frame
                self._look(edge)
        if edge.deaf and not edge.member.outbox.deaf():
            edge.deaf = False
            self._ready[edge] = None

    def _cut(self, edge: Edge, why: str) -> None:
        """Close an edge; its member stays until the supervisor detaches it, and its outbox is bounded as ever."""
        self._fault(edge, why)
        self._close(edge)
        self._waiting[edge] = None

    def _close(self, edge: Edge) -> None:
        if edge.closed:
            return
        self._epoll.unregister(edge.fd)
        del self._by_fd[edge.fd]
        self._ready.pop(edge, None)
        edge.close()

    # ── the supervisor ───────────────────────────────────────────────────────────────────────────

    def _obey(self, message: Json) -> None:
        match message["op"]:
            case "configure":
                self._configure(protocol.settings_of(message))
            case "attach":
                self._attach(message)
            case "begin":
                self._begun = True
                for edge in self._edges.values():
                    self._connect(edge)
            case "detach":
                self._detach(message["index"])
            case "succeed":
                self._router.succeed(message["new"], message["old"])
            case "figures":
                self._figures(message["request"])
            case "ping":
                self._channel.tell({"op": "pong", "epoch": self._settings.epoch})
            case "publish":
                self._publish(message)
            case "tap":
                self._display.tap(message["tap"], topics.split(message["pattern"]), time.monotonic())
            case "untap":
                self._display.untap(message["tap"])
            case "trace":
                self._trace(message["request"], message["seq"])
            case "stop":
                self._stopping = True
            case other:
                raise protocol.ProtocolError(f"there is no op {other!r} for the backbone")

    def _configure(self, settings: Settings) -> None:
        self._settings = settings
        self._router = self._new_router()
        spine = Spine(self._context, settings.spine, settings.largest_payload) if settings.spine else None
        self._display = Display(self._channel, self._router, spine)
        for fd in spine.fds if spine is not None else ():
            self._epoll.register(fd, select.EPOLLIN)

    def _publish(self, message: Json) -> None:
        """On behalf of the supervisor, or of an operator at the control socket, who is told the number."""
        now_ms = time.time_ns() // 1_000_000
        seq = self._router.inject(message["source"], message["topic"].encode(), message["payload"], now_ms)
        if "request" in message:
            self._channel.tell({"op": "published", "request": message["request"], "seq": seq})

    def _trace(self, request: int, seq: int) -> None:
        hops, cut = self._router.notes.traces.chain(seq)
        self._channel.tell(
            {
                "op": "traced",
                "request": request,
                "cut": cut,
                "hops": [
                    protocol.stamped(
                        hop.topic, self._router.origin(hop.origin), hop.seq, hop.time_ms, hop.cause
                    )
                    for hop in hops
                ],
            }
        )

    def _new_router(self) -> Router:
        return Router(self._settings.epoch, self._tell_subscriptions)

    def _attach(self, message: Json) -> None:
        admission = protocol.admission_of(message)
        if admission.index in self._edges:
            raise protocol.ProtocolError(f"the index {admission.index} is attached already: detach it first")
        member = self._router.attach(admission, time.monotonic())
        edge = Edge(self._context, member, self._settings.largest_payload)
        self._edges[admission.index] = edge
        self._by_fd[edge.fd] = edge
        self._waiting[edge] = None
        self._epoll.register(edge.fd, select.EPOLLIN)
        if self._begun:
            self._connect(edge)

    def _connect(self, edge: Edge) -> None:
        # What is retained for it waits already: it goes when the first frame has said who is there.
        edge.connect(edge.member.outbox.take_greeting(self._router.greet(edge.member)))
        self._look(edge)

    def _detach(self, index: int) -> None:
        edge = self._edges.get(index)
        if edge is None:
            return
        if not edge.closed:
            # What its worker sent before it ended is routed still.
            self._read(edge, time.monotonic(), time.time_ns() // 1_000_000)
        self._close(edge)
        del self._edges[index]
        self._waiting.pop(edge, None)
        figures = self._router.detach(index)
        self._channel.tell(
            {"op": "detached", "index": index, "epoch": self._settings.epoch, "figures": figures}
        )

    def _figures(self, request: int) -> None:
        self._channel.tell(
            {
                "op": "figures",
                "request": request,
                "epoch": self._settings.epoch,
                "members": self._router.all_figures(),
                "retained": self._router.notes.shelves.figures(),
                "spine": self._display.figures(),
            }
        )

    def _tell_subscriptions(self, index: int, table: list[tuple[int, str, bool]]) -> None:
        """The worker is answered only when this has been written: see `Router.on_subscriptions`."""
        self._channel.tell({"op": "subscriptions", "index": index, "table": table})
        self._channel.write()
        edge = self._edges[index]
        if not self._channel.written and not edge.untold:
            edge.untold = True
            self._untold.append(edge)

    def _fault(self, edge: Edge, message: str) -> None:
        self._channel.tell({"op": "fault", "index": edge.member.admission.index, "message": message})

    def _write(self) -> None:
        self._channel.write()
        if self._channel.written:
            for edge in self._untold:
                edge.untold = False
                if not edge.closed:
                    self._ready[edge] = None
                    self._router.mark(edge.member.outbox)
            self._untold = []
        interest = select.EPOLLIN if self._channel.written else select.EPOLLIN | select.EPOLLOUT
        if interest != self._interest:
            self._interest = interest
            self._epoll.modify(self._channel.fd, interest)


def serve(supervisor: socket.socket) -> NoReturn:
    """Run the loop to its end and leave without ZeroMQ's own farewell, which was once seen to hang.

    The exit status is 0 when the supervisor said stop, and 1 when it is gone or the loop has failed.
    """
    status = 1
    try:
        Loop(supervisor).run()
        status = 0
    except SupervisorGone:
        pass  # nobody is left to be told why
    except Exception:  # a defect, the supervisor's or ours: it must not end in the farewell either
        traceback.print_exc()
    os._exit(status)
