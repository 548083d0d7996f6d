"""The real backbone in a process of its own, as the supervisor sees it: a socket, and a pipe that is its life."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from capsuled.supervisor.backbone import protocol
from capsuled.supervisor.backbone.figures import Figures
from capsuled.supervisor.backbone.protocol import Settings

from ...support.edge_peer import EdgePeer, identity
from .making import Tables, admission

DEADLINE = 20.0
"""Seconds for what takes milliseconds on an idle machine; CI is shared."""

COMMAND = (sys.executable, "-I", "-m", "capsuled.supervisor.backbone")

Json = dict[str, Any]


class Backbone:
    """Started and configured; `begin` has it greet its members. It is gone at the end, whatever has happened."""

    def __init__(self, folder: Path, epoch: int = 1, total_queue_bytes: int = 1 << 30) -> None:
        self.folder = folder
        self.tables: dict[int, Tables] = {}
        """What the backbone has told of each member's subscriptions."""
        self.faults: list[tuple[int, str]] = []
        self.indices: dict[int, EdgePeer] = {}
        self._unpacker = protocol.Unpacker()
        self._heard: deque[Json] = deque()
        self._requests = 0
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE)
        life, self.hold = os.pipe()
        self._errors = folder / f"stderr-{epoch}"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(COMMAND, stdin=theirs.fileno(), stdout=life, stderr=errors)
        theirs.close()
        os.close(life)
        self.tell(protocol.configure(Settings(epoch, total_queue_bytes, 5 << 20)))

    def __enter__(self) -> Backbone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self.indices.values():
            peer.close()
        self.process.kill()
        self.process.wait()
        self.socket.close()
        if self.hold >= 0:
            os.close(self.hold)

    # ── what it is told ──────────────────────────────────────────────────────────────────────────

    def tell(self, message: Json) -> None:
        self.socket.sendall(protocol.pack(message))

    def begin(self) -> None:
        self.tell({"op": "begin"})

    def attach(
        self,
        index: int,
        *,
        receive_hwm: int = 64,
        peer: EdgePeer | None = None,
        who: str = "",
        byte_rate: int = 1 << 30,
        message_rate: int = 1 << 20,
        max_payload: int = 1 << 20,
        queue_messages: int = 1024,
        subscriptions: Tables = (),
    ) -> EdgePeer:
        """A peer that listens, and is attached as a capsule that may do anything below `a`."""
        if peer is None:
            peer = EdgePeer(self.folder / f"{index}.edge", receive_hwm=receive_hwm)
        self.indices[index] = peer
        self.tell(
            protocol.attach(
                admission(
                    index,
                    path=os.fspath(peer.path),
                    peer=who or identity(),
                    byte_rate=byte_rate,
                    message_rate=message_rate,
                    max_payload=max_payload,
                    queue_messages=queue_messages,
                    subscriptions=subscriptions,
                )
            )
        )
        return peer

    def peer(self, index: int, **rest: Any) -> EdgePeer:
        """The same, and greeted."""
        peer = self.attach(index, **rest)
        peer.greet()
        return peer

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    def expect(self, op: str) -> Json:
        """The next message, which must be this one but for faults and tables: those are noted."""
        while True:
            message = self._next()
            if message["op"] == "subscriptions":
                self.tables[message["index"]] = tuple((h, p, o) for h, p, o in message["table"])
            elif message["op"] == "fault":
                self.faults.append((message["index"], message["message"]))
            if message["op"] == op:
                return message
            assert message["op"] in ("subscriptions", "fault"), message

    def pong(self) -> Json:
        """The answer to a ping; what is said before it is passed over."""
        self.tell({"op": "ping"})
        while (message := self._next())["op"] != "pong":
            pass
        return message

    def figures(self) -> dict[int, Figures]:
        """Each member's figures, asked for now."""
        self._requests += 1
        self.tell({"op": "figures", "request": self._requests})
        answer = self.expect("figures")
        assert answer["request"] == self._requests
        return {each["index"]: each for each in cast("list[Figures]", answer["members"])}

    def detach(self, index: int) -> Figures:
        self.tell({"op": "detach", "index": index})
        answer = self.expect("detached")
        assert answer["index"] == index
        return cast("Figures", answer["figures"])

    def ping(self) -> int:
        """Returns its epoch."""
        self.tell({"op": "ping"})
        return cast("int", self.expect("pong")["epoch"])

    def errors(self) -> str:
        """What it has written to standard error."""
        return self._errors.read_text()

    def cpu_seconds(self) -> float:
        """What it has used so far: fields 14 and 15 of proc(5)'s stat, in ticks."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def ends(self) -> int:
        """Its exit status, within the deadline; negative for a signal."""
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.ends() == -signal.SIGKILL

    def _next(self) -> Json:
        while not self._heard:
            data = self.socket.recv(1 << 20)
            assert data, f"the backbone has hung up, exit status {self.process.poll()}"
            self._heard.extend(self._unpacker.feed(data))
        return self._heard.popleft()


def gone(pidfd: int) -> bool:
    """Whether the process ends within the deadline; pidfd_open(2): readable when it has."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(DEADLINE * 1000))
