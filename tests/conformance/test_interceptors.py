"""Interceptors: subscriptions that exist before the guest's first instruction."""

from __future__ import annotations

from collections.abc import Iterator

import cbor2
import pytest

from capsuled.proto.ledger import MAX_INTERCEPTORS
from capsuled.proto.refusals import Errno

from ..support.guests import Program, buffer, text
from .stage import Stage, stage, tell

SOME = """
[[interceptor]]
event = "early.late"
action = "late"
priority = 200
[[interceptor]]
event = "early.*"
action = "on_early"
priority = -1
[[interceptor]]
event = "early.default"
action = "default"
"""

SLOW_TO_COMPILE = "\n".join(
    f"(func (param i64) (result i64) {'local.get 0 i64.const 3 i64.mul local.set 0 ' * 40} local.get 0)"
    for _ in range(300)
)
"""What takes an engine a while, in which others publish."""


def some(count: int) -> str:
    return "\n".join(f'[[interceptor]]\nevent = "many.{i}"\naction = "n{i}"' for i in range(count))


class Cast:
    """The guests of this module, and their calls."""

    def __init__(self, stage: Stage) -> None:
        # One that publishes every millisecond, as long as it may.
        herald = Program()
        pause = herald.call("ipc_subscribe", text("pause"))
        herald.raw("(loop $on")
        herald.call("ipc_publish", text("early.word"), text(b"\x00"), quiet=True)
        waited = herald.call("ipc_recv", pause, 1, buffer(1000), quiet=True)
        herald.call("ready", quiet=True)
        herald.raw(f"(br_if $on (i64.gt_s (local.get $r{waited.number}) (i64.const 0))))")
        stage.add("herald", herald, publish=["early.*"], subscribe=["pause"], supervision="")
        program = Program()
        self.first = program.call("clock_ms")
        self.listed = program.call("ipc_interceptors", buffer(1000))
        self.small = tell(program, "ipc_interceptors", buffer(10))
        self.needed = program.call("needed")
        self.early = program.call("ipc_recv", 1, 60_000, buffer(29_000))
        self.others = [program.call("ipc_poll", handle, buffer(1000)) for handle in (2, 3)]
        self.protected = [program.call("ipc_unsubscribe", handle) for handle in (1, 2, 3)]
        self.not_granted = program.call("ipc_subscribe", text("early.word"))
        self.watch = stage.add("watch", program.wasm(more=SLOW_TO_COMPILE), more=SOME)
        command = Program(entry="_start")
        self.none = command.call("ipc_interceptors", buffer(100))
        self.still = command.call("ipc_poll", 1, buffer(1000))
        self.command = stage.add("command", command, more='[[interceptor]]\nevent = "x"\naction = "x"')
        full = Program()
        self.full_list = full.call("ipc_interceptors", buffer(10_000))
        self.full = stage.add("full", full, more=some(MAX_INTERCEPTORS))
        stage.add("over", Program(), more=some(MAX_INTERCEPTORS + 1))
        self.log = stage.daemon.log


@pytest.fixture(scope="module")
def guests(engine: str) -> Iterator[Cast]:
    with stage(engine) as made:
        made_cast = Cast(made)
        made.start()
        made.daemon.wait("herald", lambda capsule: capsule["ready"])
        made_cast.watch.begin_anew()
        yield made_cast


def test_they_are_listed_by_priority_with_their_handles(guests: Cast) -> None:
    """A list of `{handle_id, action, topic}`, the lowest priority first; handles begin at 1."""
    assert guests.watch.called(guests.listed).data == cbor2.dumps(
        [
            {"handle_id": 1, "action": "on_early", "topic": "early.*"},
            {"handle_id": 2, "action": "default", "topic": "early.default"},
            {"handle_id": 3, "action": "late", "topic": "early.late"},
        ]
    )


def test_a_list_that_does_not_fit_is_nobufs(guests: Cast) -> None:
    """`needed` tells its size."""
    size = guests.watch.value(guests.listed)
    assert guests.watch.told(guests.small) == (
        -Errno.NOBUFS,
        f"the buffer has 10 bytes: {size} are needed",
    )
    assert guests.watch.value(guests.needed) == size


def test_what_is_published_before_the_first_instruction_is_queued(guests: Cast) -> None:
    """The first message in an interceptor's queue is older than the guest's first instruction."""
    oldest = guests.watch.envelope(guests.early)["messages"][0]
    assert oldest["topic"] == "early.word"
    assert oldest["time"] < guests.watch.value(guests.first)


def test_they_need_no_grant_and_each_hears_its_own(guests: Cast) -> None:
    """The manifest's word is enough for them, and gives the guest no grant to subscribe."""
    assert [guests.watch.payloads(each) for each in guests.others] == [[], []]
    assert guests.watch.value(guests.not_granted) == -Errno.NOTCAPABLE


def test_they_cannot_be_unsubscribed(guests: Cast) -> None:
    """Each of them is the runtime's."""
    assert [guests.watch.value(each) for each in guests.protected] == [-Errno.PERM] * 3


def test_a_capsule_without_a_run_loop_is_told_none(guests: Cast) -> None:
    """What exports `_start` gets an empty list, though the manifest's subscriptions are there."""
    assert guests.command.called(guests.none).data == b"\x80"
    assert guests.command.payloads(guests.still) == []


def test_64_are_the_most(guests: Cast) -> None:
    """So many are subscribed; with one more the capsule is not taken, and its fault says why."""
    assert guests.full.item(guests.full_list) == [
        {"handle_id": i + 1, "action": f"n{i}", "topic": f"many.{i}"} for i in range(MAX_INTERCEPTORS)
    ]
    assert "65 interceptors: write 64 at most" in guests.log()
