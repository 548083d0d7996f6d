"""Ranges: whatever a guest names as pointer and length, it gets an answer, and its worker goes on.

A host function cannot be entered again while it runs: none calls the guest back, and a guest has one thread.
So there is no test of that.
"""

from __future__ import annotations

from typing import NamedTuple

import cbor2
import pytest

from capsuled.proto import envelopes
from capsuled.proto.refusals import Errno

from ..support.guests import Argument, Program, buffer, text
from .stage import Stage, tell

PAGES = 8
END = PAGES * 64 * 1024
MOST = 0xFFFF_FFFF

ITEM = text(b"\x00")


class Range(NamedTuple):
    """A call with a range that leaves the memory, and what it answers."""

    function: str
    arguments: tuple[Argument, ...]
    errno: Errno = Errno.FAULT


OUTSIDE = {
    "publish: topic": Range("ipc_publish", (END - 2, 3, ITEM)),
    "publish: topic of 4 GiB": Range("ipc_publish", (0, MOST, ITEM), Errno.NAMETOOLONG),
    "publish: payload": Range("ipc_publish", (text("a"), END - 2, 3)),
    "publish: payload of 4 GiB": Range("ipc_publish", (text("a"), 0, MOST), Errno.MSGSIZE),
    "caused: payload": Range("ipc_publish_caused", (text("a"), MOST, 1, 5)),
    "subscribe": Range("ipc_subscribe", (END, 1)),
    "subscribe at the last address": Range("ipc_subscribe", (MOST, 256)),
    "poll": Range("ipc_poll", (1, END - 99, 100)),
    "poll: 4 GiB": Range("ipc_poll", (1, 0, MOST)),
    "recv": Range("ipc_recv", (1, 0, END - 99, 100)),
    "recv: 4 GiB from the last address": Range("ipc_recv", (1, 0, MOST, MOST)),
    "interceptors": Range("ipc_interceptors", (END, 1)),
    "interceptors: 4 GiB": Range("ipc_interceptors", (0, MOST)),
    "config: key": Range("config_get", (END - 1, 2, buffer(100))),
    "config: key of 4 GiB": Range("config_get", (0, MOST, buffer(100))),
    "config: buffer": Range("config_get", (text("key"), END - 1, 100)),
    "error_message": Range("error_message", (END - 1, 2)),
    "error_message: 4 GiB": Range("error_message", (0, MOST)),
    "log": Range("log", (2, END - 1, 2)),
    "log: 4 GiB": Range("log", (2, 0, MOST), Errno.MSGSIZE),
    "random": Range("random", (END - 1, 2)),
    "random: 4 GiB": Range("random", (0, MOST)),
    "nothing behind the end": Range("log", (2, END + 1, 0)),
    "nothing at the last address": Range("random", (MOST, 0)),
}

INSIDE = {
    "log: to the last byte": Range("log", (2, END - 1, 1)),
    "log: nothing at the end": Range("log", (2, END, 0)),
    "random: the last byte": Range("random", (END - 1, 1)),
    "random: nothing at the end": Range("random", (END, 0)),
    "ready": Range("ready", ()),
}


class Cast:
    """The guests of this module, and their calls."""

    def __init__(self, stage: Stage) -> None:
        program = Program(pages=PAGES)
        program.call("ipc_subscribe", text("a"))
        self.outside = {name: tell(program, each.function, *each.arguments) for name, each in OUTSIDE.items()}
        self.untouched = program.show(END - 16, 16)
        self.inside = {name: program.call(each.function, *each.arguments) for name, each in INSIDE.items()}
        self.edge = program.call("ipc_poll", 1, END - 28, 28)
        self.at_edge = program.show(END - 28, 28)
        self.alive = program.call("cancelled")
        self.edges = stage.add(
            "edges", program, publish=["a"], subscribe=["a"], more='[config]\nkey = "value"'
        )
        self._overlaps(stage)
        self._grows(stage)

    def _overlaps(self, stage: Stage) -> None:
        """`ab` is a topic, and the CBOR of the text `b`. A key is overwritten by its own value."""
        program = Program()
        program.raw("(i32.store (i32.const 4096) (i32.const 0x6261))")
        handle = program.call("ipc_subscribe", 4096, 2)
        self.same_bytes = program.call("ipc_publish", 4096, 2, 4096, 2)
        self.received = program.call("ipc_recv", handle, 20_000, buffer(1000, 4096))
        program.raw("(i32.store (i32.const 4096) (i32.const 0x6261))")
        self.overwritten = program.call("config_get", 4096, 2, buffer(100, 4096))
        program.call("ipc_publish", text("x"), ITEM)
        self.in_place = program.call("error_message", buffer(100, 4090))
        self.overlaps = stage.add(
            "overlaps", program, publish=["ab"], subscribe=["ab"], more='[config]\nab = "value"'
        )

    def _grows(self, stage: Stage) -> None:
        program = Program(pages=PAGES)
        handle = program.call("ipc_subscribe", text("g"))
        program.call("ipc_publish", text("g"), text(cbor2.dumps("grown")))
        self.before = program.call("ipc_recv", handle, 20_000, END, 1000)
        self.grown_from = program.load("(i64.extend_i32_s (memory.grow (i32.const 1)))")
        self.after = program.call("ipc_recv", handle, 20_000, END, 1000)
        self.envelope = program.show(END, 200)
        self.beyond = program.call("random", END + 65_536, 1)
        self.too_much = program.load("(i64.extend_i32_s (memory.grow (i32.const 100)))")
        self.still = program.call("random", END + 65_535, 1)
        self.grows = stage.add("grows", program, publish=["g"], subscribe=["g"], limits='memory = "1MiB"')


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_range_that_leaves_the_memory_is_a_refusal(guests: Cast, name: str) -> None:
    """Also by one byte, from the last address, and of nothing; where a length alone breaks a rule, by that."""
    case = OUTSIDE[name]
    result, sentence = guests.edges.told(guests.outside[name])
    assert result == -case.errno
    if case.errno is Errno.FAULT:
        assert f"leave the memory, which has {END}" in sentence


@pytest.mark.parametrize("name", INSIDE)
def test_a_range_that_ends_with_the_memory_is_allowed(guests: Cast, name: str) -> None:
    """To its last byte, and of nothing at its end."""
    assert guests.edges.value(guests.inside[name]) == 0


def test_a_refused_range_is_not_written_to(guests: Cast) -> None:
    """Not even the part of it that is there; and the worker lives to fill the last bytes with an envelope."""
    assert guests.edges.called(guests.untouched).data == bytes(16)
    assert guests.edges.value(guests.edge) == 28
    assert guests.edges.called(guests.at_edge).data == envelopes.envelope([], 0, 0)
    assert guests.edges.value(guests.alive) == 0
    assert guests.edges.ended()["reason"] == "ok"


def test_ranges_may_overlap(guests: Cast) -> None:
    """What is read has been read before anything is written: the guest gets what the same calls give it apart."""
    assert guests.overlaps.value(guests.same_bytes) == 0
    assert guests.overlaps.payloads(guests.received) == ["b"]
    assert guests.overlaps.item(guests.overwritten) == "value"
    assert guests.overlaps.called(guests.in_place).data.startswith(b"publish to 'x' is not granted")


def test_memory_that_has_grown_is_there(guests: Cast) -> None:
    """A buffer behind the end faults and costs no message; after memory.grow it is filled, within the limit."""
    assert guests.grows.value(guests.before) == -Errno.FAULT
    assert guests.grows.value(guests.grown_from) == PAGES
    size = guests.grows.value(guests.after)
    envelope = cbor2.loads(guests.grows.called(guests.envelope).data[:size])
    assert [message["payload"] for message in envelope["messages"]] == ["grown"]
    assert guests.grows.value(guests.beyond) == -Errno.FAULT
    assert guests.grows.value(guests.too_much) == -1
    assert guests.grows.value(guests.still) == 0
