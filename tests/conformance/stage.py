"""A stage: one supervisor, and guests that a module of tests puts on it together, since each start costs a process.

A guest is a `Program`; what it has seen is read from its log, call by call.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import cbor2

from ..support import daemon as support
from ..support.daemon import Called, Daemon
from ..support.guests import Argument, Program, Result, buffer, text

CONFIGURATION = """
[limits]
publish_bytes_per_second = "1GiB"
publish_messages_per_second = 10000000
log_bytes_per_second = "64MiB"
[log]
ring_lines = 10000
ring_bytes = "16MiB"
"""
"""Room for guests that flood, and for all that they report."""

SENTENCE_BYTES = 2048

Envelope = dict[str, Any]


class Told(NamedTuple):
    """A call, and the sentence that `error_message` had for it."""

    result: Result
    sentence: Result


class Actor:
    """One guest on the stage."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.name = name
        self._daemon = daemon
        self._called: dict[int, Called] = {}
        self._forgotten: set[str] = set()

    def called(self, result: Result) -> Called:
        """What the guest saw of this call, once it has made it."""
        if result.number not in self._called:
            wanted = f'{{"call":{result.number},'
            self._daemon.wait_line(
                self.name,
                lambda line: line["message"].startswith(wanted) and line["instance"] not in self._forgotten,
            )
            for line in self.lines():
                if line["message"].startswith('{"call":') and line["instance"] not in self._forgotten:
                    found = json.loads(line["message"])
                    self._called[found["call"]] = Called(
                        found["call"], found["result"], bytes.fromhex(found["hex"])
                    )
        return self._called[result.number]

    def begin_anew(self) -> None:
        """Start it once more, after its end; what its earlier instances have seen is forgotten."""
        self.ended()
        self._forgotten = {line["instance"] for line in self.lines()}
        answer = self._daemon.act(self.name, "start")
        assert answer.status == 202, answer.value

    def value(self, result: Result) -> int:
        return self.called(result).result

    def told(self, told: Told) -> tuple[int, str]:
        """The result of a call and the sentence about it."""
        return self.value(told.result), self.called(told.sentence).data.decode()

    def item(self, result: Result) -> object:
        """The CBOR item that the host has written; none where it refused."""
        called = self.called(result)
        assert called.result > 0, called
        return cast(object, cbor2.loads(called.data))

    def envelope(self, result: Result) -> Envelope:
        return cast(Envelope, self.item(result))

    def payloads(self, result: Result) -> list[object]:
        """The payloads of an envelope."""
        return [message["payload"] for message in self.envelope(result)["messages"]]

    def shown(self) -> dict[str, Any]:
        """How the control socket shows it now."""
        return self._daemon.of(self.name)

    def ended(self) -> dict[str, Any]:
        """How it ended, once it has."""
        found = self._daemon.wait(self.name, lambda capsule: capsule["last_exit"] is not None)
        return cast(dict[str, Any], found["last_exit"])

    def lines(self) -> list[dict[str, Any]]:
        return self._daemon.lines(self.name)


class Stage:
    """See the module's docstring."""

    def __init__(self, daemon: Daemon, engine: str) -> None:
        self.daemon = daemon
        self.engine = engine

    def add(
        self,
        name: str,
        guest: Program | bytes,
        *,
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        limits: str = "",
        supervision: str = 'ready = "started"',
        principal: str = "",
        more: str = "",
    ) -> Actor:
        """Put a guest on the stage. `limits`, `supervision` and `more` are TOML; it is never started twice."""
        self.daemon.capsule(
            name,
            guest if isinstance(guest, bytes) else guest.wasm(),
            publish=publish,
            subscribe=subscribe,
            package=f'principal = "{principal}"' if principal else "",
            engine=self.engine,
            extra=f'[limits]\nlog_bytes_per_second = "64MiB"\n{limits}\n'
            f'[supervision]\nrestart = "never"\nready_timeout = "60s"\n{supervision}\n{more}',
        )
        return Actor(self.daemon, name)

    def start(self) -> None:
        self.daemon.start(configuration=CONFIGURATION)


@contextmanager
def stage(engine: str) -> Generator[Stage, None, None]:
    """An empty stage. At the end its ledger must balance, and nothing of it may be left."""
    with support.daemon() as daemon:
        yield Stage(daemon, engine)
        if daemon.process is not None:
            bus = daemon.get("/v1/bus")
            assert bus["balanced"], bus["faults"]
            assert daemon.stop() == 0, daemon.log()
        assert daemon.left() == []


MEET_CALL, MEET_ANSWER = "meet.call", "meet.answer"
MEET = ["meet.*"]
"""What two guests that meet must be granted, both to publish and to subscribe."""

_LIST_HEAD = len(b"\xa3\x68messages")
"""Where in an envelope the head of its list stands."""


def meet_first(program: Program) -> None:
    """Wait until the other guest has come to `meet_second`: whatever it had subscribed to by then is there."""
    room = 60_000  # of the first page
    handle = program.call("ipc_subscribe", text(MEET_ANSWER), quiet=True)
    program.raw("(loop $meet")
    program.call("ipc_publish", text(MEET_CALL), text(b"\x00"), quiet=True)
    program.call("ipc_recv", handle, 20, buffer(2000, room), quiet=True)
    program.raw(f"(br_if $meet (i32.eq (i32.load8_u (i32.const {room + _LIST_HEAD})) (i32.const 0x80))))")


def meet_second(program: Program) -> None:
    """Wait until the other guest has come to `meet_first`."""
    handle = program.call("ipc_subscribe", text(MEET_CALL), quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(2000), quiet=True)
    program.call("ipc_publish", text(MEET_ANSWER), text(b"\x00"), quiet=True)


def tell(program: Program, name: str, *arguments: Argument) -> Told:
    """A call, and then the sentence that it has left."""
    return Told(program.call(name, *arguments), program.call("error_message", buffer(SENTENCE_BYTES)))
