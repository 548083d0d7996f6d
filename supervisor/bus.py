"""The backbone's process, from the supervisor's side: started, told who is there, asked, restarted.

What the supervisor knows here outlives the backbone: the table of members with their grants and subscriptions. A
backbone that dies is started again with the next epoch and told all of it before it greets anybody.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import trio

from capsuled.proto import spine
from capsuled.supervisor import diagnostic, spawn
from capsuled.supervisor.backbone import protocol
from capsuled.supervisor.backbone.members import Admission
from capsuled.supervisor.backbone.protocol import Json, Settings
from capsuled.supervisor.control.streams import Broadcast, Follower
from capsuled.supervisor.spawn import SpawnError

LOG = logging.getLogger("capsuled.backbone")

Figures = Mapping[str, Any]
"""The backbone's side of a member's ledger: `backbone.figures`, as it comes over the channel."""


class BusFigures(NamedTuple):
    """What the backbone says of everything at one moment."""

    epoch: int
    members: Mapping[int, Figures]
    """By index."""
    retained: Mapping[str, Mapping[str, int]]
    """By the capsule that published it: `retained`, `retained_bytes`, `retained_evicted`. Absent: nothing ever was."""
    spine: Mapping[str, Any]
    """`published` by the operator's programs, `refused` of it by reason, `prefixes` and `taps` that listen."""


ANSWER_SECONDS = 5.0
"""How long the backbone may take for an answer. It never blocks, so that one which needs longer is stuck."""

FAREWELL_SECONDS = 1.0
"""How long it may take to stop when it is told to: it does so within a turn. Nothing of it is needed any more."""

PATIENCE_SECONDS = 2.0
"""Between two looks at whether it still answers. One that was stopped, or hangs, is killed and started again."""

RESTART_SECONDS = (0.0, 0.1, 0.5, 1.0, 5.0)
"""Pause before the first, second … restart in a row: at once, since every capsule waits for it, then ever longer."""

STABLE_SECONDS = 30.0
"""A backbone that lived so long has not failed in a row."""

READ_BYTES = 256 * 1024


class BusDown(Exception):
    """The backbone does not answer; it is being restarted."""


class Bus:
    """See the module's docstring. What is not `async` answers at once."""

    def __init__(self, total_queue_bytes: int, largest_payload: int, spine: str = "") -> None:
        """`spine` is the folder of the spine's sockets; empty: there is none."""
        self._spine = spine
        self._total_queue_bytes = total_queue_bytes
        self.largest_payload = largest_payload
        self._members: dict[int, Admission] = {}
        self._outgoing = bytearray()
        self._more = trio.Event()
        self._answers: dict[tuple[str, int], trio.Event] = {}
        self._answered: dict[tuple[str, int], Json] = {}
        self._requests = 0
        self._up = False
        self.epoch = 0
        self.pid: int | None = None
        self.restarts = 0
        self.on_fault: Callable[[int, str], None] = lambda _index, _message: None
        """Told of what a member has done that no honest worker does."""
        self._taps: dict[int, tuple[str, Broadcast]] = {}
        self.unpublished = 0
        """Events of the supervisor's that found no backbone."""

    @property
    def up(self) -> bool:
        """Whether the backbone of this epoch has answered."""
        return self._up

    # ── what is asked of it ──────────────────────────────────────────────────────────────────────

    def attach(self, admission: Admission) -> None:
        """Take a capsule in; its worker listens already."""
        self._members[admission.index] = admission
        if self.pid is not None:
            self._send(protocol.attach(admission))

    async def detach(self, index: int) -> Figures | None:
        """Let a capsule go. Returns its last figures, None when the backbone has died and with it what it knew."""
        self._members.pop(index, None)
        if self.pid is None:
            return None
        self._send({"op": "detach", "index": index})
        try:
            figures: Figures = (await self._answer("detached", index))["figures"]
        except BusDown:
            return None
        return figures

    def succeed(self, new: int, old: int) -> None:
        """From here on `old` gets nothing more of what it is subscribed to, and `new`, which stood by, gets its own."""
        for index, standby in ((old, True), (new, False)):
            if index in self._members:
                self._members[index] = replace(self._members[index], standby=standby)
        if self.pid is not None:
            self._send({"op": "succeed", "new": new, "old": old})

    async def figures(self) -> BusFigures:
        """What the ledger says at the backbone. Raises `BusDown`."""
        answer = await self._answer("figures", self._ask({"op": "figures"}))
        members = {figures["index"]: figures for figures in answer["members"]}
        return BusFigures(answer["epoch"], members, answer["retained"], answer["spine"])

    # ── the operator's and the supervisor's own messages ─────────────────────────────────────────

    def tell(self, topic: str, payload: bytes) -> None:
        """Publish an event of the supervisor's; counted, and no more, where there is no backbone."""
        if self.pid is None:
            self.unpublished += 1
        else:
            self._send({"op": "publish", "source": spine.SUPERVISOR, "topic": topic, "payload": payload})

    async def publish(self, topic: str, payload: bytes) -> int:
        """Publish on the operator's behalf. Returns the global sequence number. Raises `BusDown`."""
        request = self._ask({"op": "publish", "source": spine.OPERATOR, "topic": topic, "payload": payload})
        return int((await self._answer("published", request))["seq"])

    async def trace(self, seq: int) -> Json:
        """``{"hops": [...], "cut": bool}``: the chain of causes that a message belongs to. Raises `BusDown`."""
        return await self._answer("traced", self._ask({"op": "trace", "seq": seq}))

    @contextmanager
    def tap(self, pattern: str) -> Generator[Follower, None, None]:
        """Messages that match, from now on, as lines. They may be lost, and it is said where; nobody waits."""
        self._requests += 1
        tap = self._requests
        broadcast = Broadcast()
        self._taps[tap] = (pattern, broadcast)
        if self.pid is not None:
            self._send({"op": "tap", "tap": tap, "pattern": pattern})
        try:
            with broadcast.follow() as follower:
                yield follower
        finally:
            del self._taps[tap]
            if self.pid is not None:
                self._send({"op": "untap", "tap": tap})

    def close(self) -> None:
        """End what is tapped."""
        for _, broadcast in self._taps.values():
            broadcast.close()

    # ── its life ─────────────────────────────────────────────────────────────────────────────────

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep a backbone running until cancelled; then it is told to stop, and killed if it does not."""
        has_answered = False

        def answered() -> None:
            nonlocal has_answered
            if not has_answered:  # Trio must be told once, and that may be by a later backbone than the first
                has_answered = True
                task_status.started()

        failures = 0
        while True:
            begun = trio.current_time()
            try:
                await self._live(answered)
            except (OSError, SpawnError) as exc:
                LOG.error("cannot start the backbone: %s", exc)
            if trio.current_time() - begun >= STABLE_SECONDS:
                failures = 0
            pause = RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)]
            failures += 1
            LOG.error("the backbone (epoch %d) has ended: it is started again in %g s", self.epoch, pause)
            self.restarts += 1
            await trio.sleep(pause)

    async def _live(self, answered: Callable[[], None]) -> None:
        with ExitStack() as stack:
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.enter_context(mine)
            life, hold = os.pipe2(os.O_CLOEXEC)
            # The write end is held for as long as this backbone is ours, and by nobody else: when it is closed, which
            # the kernel does at our death whatever its cause, the backbone is killed.
            stack.callback(os.close, hold)
            try:
                process = spawn.spawn(spawn.BACKBONE, stdin=theirs.fileno(), stdout=life, stderr=2)
            finally:
                theirs.close()
                os.close(life)
                mine.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(mine))
            async with stream:
                self.epoch += 1
                self.pid = process.pid
                with self._connected():
                    await self._serve(process, stream, answered)

    @contextmanager
    def _connected(self) -> Generator[None, None, None]:
        self._outgoing.clear()
        self._send(
            protocol.configure(
                Settings(self.epoch, self._total_queue_bytes, self.largest_payload, self._spine)
            )
        )
        for admission in self._members.values():
            self._send(protocol.attach(admission))
        for tap, (pattern, _) in self._taps.items():
            self._send({"op": "tap", "tap": tap, "pattern": pattern})
        self._send({"op": "begin"})
        try:
            yield
        finally:
            self.pid = None
            self._up = False
            for waiting in self._answers.values():
                waiting.set()  # without an answer: BusDown

    async def _serve(
        self, process: spawn.Process, stream: trio.SocketStream, answered: Callable[[], None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(self._write, stream)
                nursery.start_soon(self._read, process, stream)
                nursery.start_soon(self._watch, process, answered)
                await process.wait()
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await self._end(process, stream)
                raise
            nursery.cancel_scope.cancel()

    async def _end(self, process: spawn.Process, stream: trio.SocketStream) -> None:
        with trio.move_on_after(FAREWELL_SECONDS):
            try:
                await stream.send_all(protocol.pack({"op": "stop"}))
            except (trio.BrokenResourceError, trio.BusyResourceError):
                process.kill()
            await process.wait()
            return
        process.kill()
        await process.wait()

    async def _watch(self, process: spawn.Process, answered: Callable[[], None]) -> None:
        """Ask now and then whether it answers; the first answer says that it has started."""
        while True:
            try:
                self._send({"op": "ping"})
                await self._answer("pong", self.epoch)
            except BusDown:
                LOG.error("the backbone does not answer for %g s: it is killed", ANSWER_SECONDS)
                process.kill()
                return
            if not self._up:
                self._up = True
                answered()
            await trio.sleep(PATIENCE_SECONDS)

    async def _write(self, stream: trio.SocketStream) -> None:
        while True:
            if not self._outgoing:
                self._more = trio.Event()
                await self._more.wait()
            data = bytes(self._outgoing)
            self._outgoing.clear()
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                return  # it is gone, and `process.wait` says so

    async def _read(self, process: spawn.Process, stream: trio.SocketStream) -> None:
        unpacker = protocol.Unpacker()
        while True:
            try:
                data = await stream.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                return
            if not data:
                return
            try:
                for message in unpacker.feed(data):
                    self._take(message)
            except (protocol.ProtocolError, LookupError, TypeError, ValueError) as exc:
                LOG.error("the backbone says what is no message (%r): it is killed", exc)
                process.kill()
                return

    def _take(self, message: Json) -> None:
        match message["op"]:
            case "subscriptions":
                member = self._members.get(message["index"])
                if member is not None:
                    table = tuple((h, p, o) for h, p, o in message["table"])
                    self._members[member.index] = replace(member, subscriptions=table)
            case "detached":
                self._answered_by(("detached", message["index"]), message)
            case "figures":
                self._answered_by(("figures", message["request"]), message)
            case "pong":
                self._answered_by(("pong", message["epoch"]), message)
            case "published" | "traced" as op:
                self._answered_by((op, message["request"]), message)
            case "tapped":
                if message["tap"] in self._taps:
                    _, broadcast = self._taps[message["tap"]]
                    if message["lost"]:
                        broadcast.publish({"lost": message["lost"]})
                    broadcast.publish(diagnostic.message(message))
            case "fault":
                self.on_fault(message["index"], message["message"])
            case other:
                raise protocol.ProtocolError(f"there is no op {other!r} from the backbone")

    def _send(self, message: Json) -> None:
        self._outgoing += protocol.pack(message)
        self._more.set()

    def _ask(self, message: Json) -> int:
        """Send what will be answered; returns by which number. Raises `BusDown`."""
        if self.pid is None:
            raise BusDown("the backbone is being restarted")
        self._requests += 1
        self._send({**message, "request": self._requests})
        return self._requests

    def _answered_by(self, key: tuple[str, int], message: Json) -> None:
        if key in self._answers:
            self._answered[key] = message
            self._answers[key].set()

    async def _answer(self, op: str, number: int) -> Json:
        key = (op, number)
        self._answers[key] = event = trio.Event()
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                await event.wait()
            answer = self._answered.pop(key, None)
        finally:
            del self._answers[key]
        if answer is None:
            raise BusDown("the backbone does not answer")
        return answer
