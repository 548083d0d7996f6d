"""Two capsules between which messages flow, for tests that break something meanwhile."""

from __future__ import annotations

import time

import cbor2

from ..support.daemon import DEADLINE, Daemon, Json
from ..support.guests import Argument, Program, buffer, text

GREETING = '[[interceptor]]\nevent = "beat.*"\naction = "on_beat"\n'


def put(daemon: Daemon) -> None:
    """Write `talker`, with a beat each 5 ms, `listener`, who subscribes to it, and `auditor`, an interceptor."""
    talker = Program()
    handle = talker.call("ipc_subscribe", text("quiet.never"), quiet=True)
    talker.call("ready", quiet=True)
    part = talker.part()
    part.call("ipc_publish", text("beat.now"), text(cbor2.dumps("beat")), quiet=True)
    part.call("ipc_recv", handle, 5, buffer(64), quiet=True)
    part.raw("call $cancelled br_if 1")
    _use(part, "cancelled")
    talker.loop(1_000_000, part)
    daemon.capsule("talker", talker.wasm(), publish=["beat.*"], subscribe=["quiet.never"])
    listener = Program()
    handle = listener.call("ipc_subscribe", text("beat.now"), quiet=True)
    daemon.capsule("listener", _takes(listener, handle), subscribe=["beat.now"])
    auditor = Program()
    daemon.capsule("auditor", _takes(auditor, 1), extra=GREETING)


def await_more(daemon: Daemon, name: str) -> None:
    """Ask the ledger until a capsule has received ten messages more than now."""
    deadline, wanted = time.monotonic() + DEADLINE, received(daemon, name) + 10
    while received(daemon, name) < wanted:
        assert time.monotonic() < deadline, f"no traffic for {name}; log: {daemon.log()}"


def await_balance(daemon: Daemon) -> None:
    """Ask the ledger until it adds up: what is on its way this instant is in no column yet."""
    deadline = time.monotonic() + DEADLINE
    while not (bus := daemon.get("/v1/bus"))["balanced"]:
        assert time.monotonic() < deadline, bus


def received(daemon: Daemon, name: str) -> int:
    """How many messages a capsule has received so far."""
    return int(_of(daemon.get("/v1/bus"), name)["received"])


def _of(bus: Json, name: str) -> Json:
    return next(dict(each) for each in bus["capsules"] if each["name"] == name)


def _takes(program: Program, handle: Argument) -> bytes:
    program.call("ready", quiet=True)
    part = program.part()
    part.call("ipc_recv", handle, 60_000, buffer(60_000), quiet=True)
    part.raw("call $cancelled br_if 1")
    _use(part, "cancelled")
    program.loop(1_000_000, part)
    return program.wasm()


def _use(program: Program, name: str) -> None:
    program._used.add(name)  # pyright: ignore[reportPrivateUsage]
