"""The real server on a real Unix socket, in front of a daemon that is none."""

from __future__ import annotations

import json
import os
import select
import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple, cast

import h11
import trio
from trio.testing import MockClock

from capsuled.supervisor.control import peers
from capsuled.supervisor.control.access import Access, Peer
from capsuled.supervisor.control.counts import Counts
from capsuled.supervisor.control.limits import Limits
from capsuled.supervisor.control.listening import control_socket
from capsuled.supervisor.control.operations import (
    AclVerb,
    ActResult,
    Conflict,
    Failed,
    HealthLevel,
    NoSuchCapsule,
    Refused,
    Verb,
    Wait,
    WaitTimedOut,
)
from capsuled.supervisor.control.server import serve
from capsuled.supervisor.control.shapes import Json, JsonObject
from capsuled.supervisor.control.streams import Broadcast, Follower

DEADLINE = 20.0
"""Seconds for one test: far more than any needs, so that one which waits in vain ends."""


def run(main: Callable[[], Awaitable[None]], clock: MockClock | None = None) -> None:
    """Run `main` under Trio, with `DEADLINE` unless `clock` is one that stands still."""

    async def bounded() -> None:
        with trio.fail_after(DEADLINE if clock is None else inf):
            await main()

    trio.run(bounded, clock=clock)


class Daemon:
    """`Operations` with capsules that only change their state when a test says so.

    `echo` is ready, `idle` is stopped, `broken` has failed, and a wait for `slow` ends with `release`.
    """

    def __init__(self, events: Broadcast | None = None) -> None:
        self.capsules_by_name: dict[str, dict[str, Json]] = {
            name: capsule(name, state)
            for name, state in (
                ("echo", "ready"),
                ("idle", "stopped"),
                ("broken", "failed"),
                ("slow", "starting"),
            )
        }
        self.acted: list[tuple[str, Verb, Wait | None, float | None]] = []
        self.asked: list[tuple[object, ...]] = []
        """What reached `logs`, `acl`, `events` and `health`, with its arguments."""
        self.defect: Exception | None = None
        """Raised by `status`."""
        self.waiting = trio.Event()
        self.release = trio.Event()
        self.abandoned = trio.Event()
        self.followed = trio.Event()
        self.left = trio.Event()
        self.following = 0
        self.stopping = trio.Event()
        self._looks: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.is_healthy = True
        self.is_balanced = True
        self.log_lines: list[JsonObject] = [log_line(f"line {n}") for n in range(3)]
        self.past_events: list[JsonObject] = [event("echo", "ready")]
        self.plan: dict[str, Json] = {
            "added": ["new"],
            "removed": ["idle"],
            "changed": [{"name": "echo", "why": ["the module is another", "limits.memory is 32MiB now"]}],
            "unchanged": ["slow"],
            "kept": [],
            "faults": [],
        }
        self.exposition = "# TYPE up gauge\nup 1\n# EOF\n"
        self.no_reload: Refused | None = None
        self.log = Broadcast()
        self.happenings = events or Broadcast()

    def status(self) -> JsonObject:
        if self.defect is not None:
            raise self.defect
        return {
            "pid": os.getpid(),
            "version": "1.2.3",
            "uptime": 1.5,
            "states": {"ready": 1, "stopped": 1},
            "isolation": {"seccomp": True},
            "engines": ["wasmer"],
        }

    def capsules(self) -> Sequence[JsonObject]:
        return list(self.capsules_by_name.values())

    def capsule(self, name: str) -> JsonObject:
        self._looks[name].set()
        try:
            return self.capsules_by_name[name]
        except KeyError:
            raise NoSuchCapsule(name) from None

    async def looked_at(self, name: str) -> None:
        """Return when somebody has asked for the capsule."""
        await self._looks[name].wait()

    async def act(self, name: str, verb: Verb, *, wait: Wait | None, timeout: float | None) -> ActResult:
        self.acted.append((name, verb, wait, timeout))
        found = self.capsule(name)
        if name == "broken" and verb is Verb.START:
            raise Conflict("cannot start broken: it has failed: use reset-failed first", {"state": "failed"})
        if name == "broken" and wait:
            raise Failed("cannot wait for broken: it has failed again", {"state": "failed"})
        if name == "slow" and wait:
            await self._outcome(timeout)
        return ActResult(f"c{len(self.acted)}", found, wait is not None)

    async def _outcome(self, timeout: float | None) -> None:
        self.waiting.set()
        try:
            with trio.fail_after(inf if timeout is None else timeout):
                await self.release.wait()
        except trio.TooSlowError:
            raise WaitTimedOut(f"cannot wait longer than {timeout} s", {"timeout": timeout}) from None
        except trio.Cancelled:
            self.abandoned.set()
            raise

    async def reload(self, *, dry_run: bool) -> JsonObject:
        self.asked.append(("reload", dry_run))
        await trio.lowlevel.checkpoint()
        if self.no_reload is not None:
            raise self.no_reload
        return {"dry_run": dry_run, **self.plan}

    async def settle(self, names: Sequence[str], timeout: float | None) -> None:
        self.asked.append(("settle", names, timeout))
        if "slow" in names:
            await self._outcome(timeout)

    async def publish(self, topic: str, payload: bytes) -> int:
        self.asked.append(("publish", topic, payload))
        return 7

    @contextmanager
    def tap(self, pattern: str) -> Generator[Follower, None, None]:
        self.asked.append(("tap", pattern))
        with self.happenings.follow() as follower:
            self.followed.set()
            yield follower

    async def trace(self, seq: int) -> JsonObject:
        self.asked.append(("trace", seq))
        return {"id": seq, "hops": [], "cut": False}

    async def recall_logs(self, name: str) -> None:
        await trio.lowlevel.checkpoint()

    def logs(self, name: str, lines: int, since: datetime | None) -> Sequence[JsonObject]:
        self.asked.append(("logs", name, lines, since))
        self.capsule(name)
        return self.log_lines[-lines:] if lines else []

    def follow_logs(self, name: str) -> AbstractContextManager[Follower]:
        self.capsule(name)
        return self._follow(self.log)

    def why(self, name: str) -> JsonObject:
        return {
            "name": name,
            "state": self.capsule(name)["state"],
            "exits": [
                {"time": "2026-01-31T12:00:00.000Z", "instance": 2, "reason": "trap", "trap": "unreachable"},
                {"time": "2026-01-31T11:00:00.000Z", "instance": 1, "reason": "ok"},
            ],
            "next": "it stays as it is",
        }

    async def bus(self) -> JsonObject:
        await trio.lowlevel.checkpoint()
        return {
            "balanced": self.is_balanced,
            "epoch": 7,
            "capsules": [{"name": "echo", "published": 5, "refused": {"quota": 2}}],
            "subscriptions": [{"capsule": "echo", "handle": 1, "pattern": "a.*", "matched": 3}],
        }

    def acl(self, capsule: str, verb: AclVerb, topic: str) -> JsonObject:
        self.asked.append(("acl", capsule, verb, topic))
        self.capsule(capsule)
        allowed = topic.startswith("room.")
        grant = "room.*" if allowed else None
        return {"capsule": capsule, "verb": verb, "topic": topic, "allowed": allowed, "grant": grant}

    async def metrics(self) -> str:
        await trio.lowlevel.checkpoint()
        return self.exposition

    def health(self, level: HealthLevel) -> tuple[bool, JsonObject]:
        self.asked.append(("health", level))
        return self.is_healthy, {"healthy": self.is_healthy, "level": level}

    def events(self, since: datetime | None) -> Sequence[JsonObject]:
        self.asked.append(("events", since))
        return self.past_events

    def follow_events(self) -> AbstractContextManager[Follower]:
        return self._follow(self.happenings)

    @contextmanager
    def _follow(self, source: Broadcast) -> Generator[Follower, None, None]:
        with source.follow() as follower:
            self.following += 1
            self.followed.set()
            try:
                yield follower
            finally:
                self.following -= 1
                self.left.set()

    def shutdown(self) -> None:
        self.stopping.set()


def capsule(name: str, state: str) -> dict[str, Json]:
    return {
        "name": name,
        "desired": "down" if state == "stopped" else "up",
        "state": state,
        "ready": state == "ready",
        "since": "2026-01-31T12:00:00.000Z",
        "pid": 4711 if state in ("ready", "starting") else None,
        "attempt": 0,
        "last_exit": {"reason": "trap", "trap": "unreachable"} if state == "failed" else None,
    }


def log_line(message: str) -> JsonObject:
    return {
        "time": "2026-01-31T12:00:00.000Z",
        "capsule": "echo",
        "instance": 1,
        "stream": "guest",
        "level": "info",
        "message": message,
    }


def event(name: str, state: str) -> JsonObject:
    return {
        "time": "2026-01-31T12:00:00.000Z",
        "event": "state",
        "capsule": name,
        "instance": 1,
        "state": state,
        "reason": None,
    }


class Served(NamedTuple):
    """A server that is running."""

    path: Path
    daemon: Daemon


ADMIN = Access(os.getuid())
DEFAULTS = Limits()


@asynccontextmanager
async def serving(
    daemon: Daemon | None = None,
    access: Access = ADMIN,
    *,
    limits: Limits = DEFAULTS,
    credentials: Callable[[trio.socket.SocketType], Peer] = peers.credentials,
    groups: Callable[[Peer], frozenset[int]] = peers.groups,
    counts: Counts | None = None,
) -> AsyncGenerator[Served, None]:
    """A server until the end of the block. `shutdown` ends it earlier, as it ends the daemon's."""
    daemon = daemon or Daemon()
    with tempfile.TemporaryDirectory(prefix="control-") as folder:
        path = Path(folder, "run", "control.sock")
        with control_socket(path) as listener:
            server = partial(
                serve,
                listener,
                daemon,
                access,
                limits=limits,
                credentials=credentials,
                groups=groups,
                counts=counts,
            )

            async def until_shutdown(*, task_status: trio.TaskStatus[None]) -> None:
                async with trio.open_nursery() as nursery:
                    await nursery.start(server)
                    task_status.started()
                    await daemon.stopping.wait()
                    nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                await nursery.start(until_shutdown)
                yield Served(path, daemon)
                nursery.cancel_scope.cancel()


class Reply(NamedTuple):
    """One answer. `headers` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def value(self) -> dict[str, Json]:
        return cast("dict[str, Json]", json.loads(self.body))

    @property
    def error(self) -> dict[str, Json]:
        """What every error has: a code, a sentence and facts."""
        error = cast("dict[str, Json]", self.value["error"])
        assert set(error) == {"code", "message", "detail"}
        return error

    @property
    def code(self) -> str:
        return cast(str, self.error["code"])

    @property
    def message(self) -> str:
        return cast(str, self.error["message"])

    @property
    def lines(self) -> list[dict[str, Json]]:
        return [cast("dict[str, Json]", json.loads(line)) for line in self.body.splitlines()]


class Talk:
    """A client that sends whatever bytes it is given, and reads answers as h11 understands them."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._rest = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def reply(self, method: str = "GET") -> Reply:
        """The next answer, whole."""
        http = h11.Connection(h11.CLIENT)
        if method == "HEAD":
            # Only so that h11 expects no body.
            http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        if self._rest:
            http.receive_data(self._rest)
        head: h11.Response | None = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self.stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                self._rest = http.trailing_data[0]
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Reply(head.status_code, headers, body)
            else:
                assert isinstance(event, h11.InformationalResponse), f"no answer but {event}"

    async def at_end(self) -> bool:
        """Whether the server closes, with nothing more said."""
        try:
            return not self._rest and await self.stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            # Closed with something of ours unread.
            return True

    async def left(self) -> None:
        """Wait until the server has closed, without reading what it said before."""
        with select.epoll() as hung_up:
            hung_up.register(self.stream.socket.fileno(), 0)
            await trio.lowlevel.wait_readable(hung_up.fileno())

    def is_silent(self) -> bool:
        """Whether the server has said nothing and not closed; for when all tasks are blocked."""
        return not self._rest and not select.select([self.stream.socket.fileno()], [], [], 0)[0]


@asynccontextmanager
async def talking(served: Served) -> AsyncGenerator[Talk, None]:
    async with await trio.open_unix_socket(os.fspath(served.path)) as stream:
        yield Talk(stream)


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def ask(served: Served, method: str, target: str) -> Reply:
    """One request on a connection of its own."""
    async with talking(served) as talk:
        await talk.send(request(method, target))
        return await talk.reply(method)
