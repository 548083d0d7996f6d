"""poll and recv: envelopes byte by byte, what fits, and what was lost on which side, as guests see them."""

from __future__ import annotations

import cbor2

from capsuled.proto import envelopes
from capsuled.proto.refusals import Errno

from ..support.guests import Program, Result, blob, buffer, text
from .stage import Actor, Stage, tell

MIB = 1024 * 1024

EMPTY = b"\xa3\x68messages\x80\x67dropped\x00\x66lagged\x00"

MESSAGE_KEYS = ["topic", "payload", "source", "instance", "principal", "seq", "time"]

ACCEPTED = 256
"""Address of the count of publishes that were accepted."""

FLOOD = 6_000
"""Messages of 2 KiB: more than ZeroMQ and the kernel hold between two processes."""


def publish(program: Program, topic: str, item: object) -> None:
    program.call("ipc_publish", text(topic), text(cbor2.dumps(item)), quiet=True)


def await_marker(program: Program, topic: str, handle: Result) -> None:
    """All that was published before it has been read from the edge when this has returned."""
    publish(program, topic, 0)
    program.call("ipc_recv", handle, 60_000, buffer(1000), quiet=True)


class Cast:
    """The guests of this module, and their calls."""

    def __init__(self, stage: Stage) -> None:
        self._waits(stage)
        self._fits(stage)
        self._drains(stage)
        self._drops(stage)
        self._lags(stage)

    def _waits(self, stage: Stage) -> None:
        program = Program()
        handle = program.call("ipc_subscribe", text("waits.a.*"))
        marker = program.call("ipc_subscribe", text("waits.marker"))
        self.empty = program.call("ipc_poll", handle, buffer(1000))
        self.exact = program.call("ipc_poll", handle, buffer(len(EMPTY)))
        self.tiny = tell(program, "ipc_poll", handle, buffer(len(EMPTY) - 1))
        self.tiny_needs = program.call("needed")
        self.at_once = program.call("ipc_recv", handle, 0, buffer(1000))
        self.before = program.call("monotonic_ns")
        self.late = program.call("ipc_recv", handle, 50, buffer(1000))
        self.after = program.call("monotonic_ns")
        publish(program, "waits.a.b", {"n": [1, 2.5, None, "é", b"\x00"]})
        self.longest = program.call("ipc_recv", handle, 0xFFFF_FFFF, buffer(1000))
        for number in range(100):
            publish(program, "waits.a.b", number)
        await_marker(program, "waits.marker", marker)
        self.ordered = program.call("ipc_poll", handle, buffer(30_000))
        self.waits = stage.add(
            "waits", program, publish=["waits.a.*", "waits.marker"], subscribe=["waits.a.*", "waits.marker"]
        )

    def _fits(self, stage: Stage) -> None:
        program = Program()
        handle = program.call("ipc_subscribe", text("fits.a"))
        marker = program.call("ipc_subscribe", text("fits.marker"))
        for number in range(4):
            publish(program, "fits.a", number)
        await_marker(program, "fits.marker", marker)
        self.none_fits = tell(program, "ipc_poll", handle, buffer(60))
        self.one_needs = program.call("needed")
        one = program.load(f"local.get $r{self.one_needs.number}")
        less = program.load(f"local.get $r{self.one_needs.number} i64.const 1 i64.sub")
        # Two messages less one byte: the second adds its own bytes and none to the heads.
        message = program.load(f"local.get $r{self.one_needs.number} i64.const {len(EMPTY)} i64.sub")
        nearly_two = program.load(
            f"local.get $r{one.number} local.get $r{message.number} i64.add i64.const 1 i64.sub"
        )
        room = 8192
        self.less = program.call("ipc_recv", handle, 20_000, room, less)
        program.call("ipc_poll", handle, room, one, quiet=True)
        self.exactly_one = program.show(room, 300)
        program.call("ipc_poll", handle, room, nearly_two, quiet=True)
        self.nearly_two = program.show(room, 300)
        self.rest = program.call("ipc_poll", handle, buffer(1000))
        self.drained = program.call("ipc_poll", handle, buffer(1000))
        self.fits = stage.add(
            "fits", program, publish=["fits.a", "fits.marker"], subscribe=["fits.a", "fits.marker"]
        )

    def _drains(self, stage: Stage) -> None:
        program = Program()
        handle = program.call("ipc_subscribe", text("drains.a"))
        marker = program.call("ipc_subscribe", text("drains.marker"))
        self.sent: list[Result] = []
        for _ in range(11):
            self.sent.append(program.call("ipc_publish", text("drains.a"), blob(MIB)))
            program.call("ipc_publish", text("drains.marker"), text(b"\x00"), quiet=True)
            program.call("ipc_recv", marker, 60_000, buffer(1000), quiet=True)
        self.drain = [program.call("ipc_poll", handle, buffer(size * MIB)) for size in (16, 2, 2)]
        self.drains = stage.add(
            "drains",
            program,
            publish=["drains.a", "drains.marker"],
            subscribe=["drains.a", "drains.marker"],
            limits='max_payload = "1MiB"\npublish_bytes_per_second = "1GiB"\nqueue_bytes = "64MiB"',
        )

    def _drops(self, stage: Stage) -> None:
        """Its queue has four places; each message is read from the edge before the next is published."""
        program = Program()
        handle = program.call("ipc_subscribe", text("drops.a"))
        marker = program.call("ipc_subscribe", text("drops.marker"))
        for number in range(10):
            publish(program, "drops.a", number)
            await_marker(program, "drops.marker", marker)
        self.dropped = [program.call("ipc_poll", handle, buffer(1000)) for _ in range(2)]
        for number in range(5):
            publish(program, "drops.a", number)
            await_marker(program, "drops.marker", marker)
        self.too_small = program.call("ipc_poll", handle, buffer(60))
        self.dropped_again = program.call("ipc_poll", handle, buffer(1000))
        self.drops = stage.add(
            "drops",
            program,
            publish=["drops.a", "drops.marker"],
            subscribe=["drops.a", "drops.marker"],
            limits="queue_messages = 4",
        )

    def _lags(self, stage: Stage) -> None:
        """It floods itself and does not look at what comes back until it has done so."""
        program = Program()
        handle = program.call("ipc_subscribe", text("lags.a"))
        marker = program.call("ipc_subscribe", text("lags.marker"))
        body = program.part()
        sent = body.call("ipc_publish", text("lags.a"), blob(2048), quiet=True)
        body.raw(
            f"(i64.store (i32.const {ACCEPTED}) (i64.add (i64.load (i32.const {ACCEPTED})) "
            f"(i64.extend_i32_u (i64.eqz (local.get $r{sent.number})))))"
        )
        program.loop(FLOOD, body)
        # Its own flood may have filled the way out: the marker is published as soon as there is room.
        program.raw("(loop $room")
        program.call("ipc_recv", marker, 20, buffer(1000), quiet=True)
        marked = program.call("ipc_publish", text("lags.marker"), text(b"\x00"), quiet=True)
        program.raw(f"(br_if $room (i64.ne (local.get $r{marked.number}) (i64.const 0))))")
        program.call("ipc_recv", marker, 60_000, buffer(1000), quiet=True)
        self.accepted = program.load(f"(i64.load (i32.const {ACCEPTED}))")
        self.lagged = [program.call("ipc_poll", handle, buffer(29_000)) for _ in range(2)]
        self.lags = stage.add(
            "lags",
            program,
            publish=["lags.a", "lags.marker"],
            subscribe=["lags.a", "lags.marker"],
            limits='queue_messages = 8\npublish_bytes_per_second = "1GiB"\n'
            "publish_messages_per_second = 10000000",
        )


def data(actor: Actor, result: Result) -> bytes:
    return actor.called(result).data


def test_an_empty_queue_answers_an_empty_envelope(guests: Cast) -> None:
    """poll never waits; the envelope has its three keys in their order and no message."""
    assert data(guests.waits, guests.empty) == EMPTY
    assert data(guests.waits, guests.exact) == EMPTY


def test_not_even_an_empty_envelope_fits(guests: Cast) -> None:
    """One byte less than an empty envelope is nobufs, and `needed` tells how much would do."""
    result, sentence = guests.waits.told(guests.tiny)
    assert result == -Errno.NOBUFS
    assert sentence == f"the buffer has {len(EMPTY) - 1} bytes: an empty envelope needs {len(EMPTY)}"
    assert guests.waits.value(guests.tiny_needs) == len(EMPTY)


def test_a_timeout_answers_an_empty_envelope(guests: Cast) -> None:
    """0 ms is allowed and answers at once, 50 ms answer after 50 ms: an envelope without messages, no error."""
    assert data(guests.waits, guests.at_once) == EMPTY
    assert data(guests.waits, guests.late) == EMPTY
    waited = guests.waits.value(guests.after) - guests.waits.value(guests.before)
    assert waited >= 50_000_000


def test_a_timeout_above_the_longest_is_no_error(guests: Cast) -> None:
    """The longest timeout that fits a u32 is clamped: the receive answers with the message that is there."""
    assert guests.waits.payloads(guests.longest) == [{"n": [1, 2.5, None, "é", b"\x00"]}]


def test_an_envelope_is_what_a_small_reader_can_walk(guests: Cast) -> None:
    """Keys come in one order, lengths are definite and as short as can be: encoding it anew changes nothing."""
    found = data(guests.waits, guests.longest)
    envelope = cbor2.loads(found)
    assert list(envelope) == ["messages", "dropped", "lagged"]
    (message,) = envelope["messages"]
    assert list(message) == MESSAGE_KEYS
    assert len(message["instance"]) == 16
    assert cbor2.dumps(envelope) == found


def test_messages_come_in_the_order_of_their_publishing(guests: Cast) -> None:
    """A hundred messages that have arrived come in one envelope, in their order."""
    assert guests.waits.payloads(guests.ordered) == list(range(100))


def test_a_first_message_that_does_not_fit_is_nobufs_and_stays(guests: Cast) -> None:
    """The size that it needs is told, nothing is consumed, and exactly that many bytes are enough for it alone."""
    result, sentence = guests.fits.told(guests.none_fits)
    needed = guests.fits.value(guests.one_needs)
    assert result == -Errno.NOBUFS
    assert sentence == f"the buffer has 60 bytes: the first message needs {needed}"
    assert guests.fits.value(guests.less) == -Errno.NOBUFS
    found = data(guests.fits, guests.exactly_one)[:needed]
    assert [message["payload"] for message in cbor2.loads(found)["messages"]] == [0]


def test_only_whole_messages_are_handed_over(guests: Cast) -> None:
    """Where two would need one byte more there is one; what did not fit is there for the next call, in order."""
    needed = guests.fits.value(guests.one_needs)
    found = data(guests.fits, guests.nearly_two)[:needed]
    assert [message["payload"] for message in cbor2.loads(found)["messages"]] == [1]
    assert guests.fits.payloads(guests.rest) == [2, 3]
    assert data(guests.fits, guests.drained) == EMPTY


def test_one_drain_has_10_mib_of_payload_at_most(guests: Cast) -> None:
    """Of eleven MiB ten come at once, though the buffer has room for all; the last comes with the next call."""
    assert [guests.drains.value(each) for each in guests.sent] == [0] * 11
    counts = [_messages(data(guests.drains, each)) for each in guests.drain]
    assert counts == [10, 1, 0]
    first, second, third = (guests.drains.value(each) for each in guests.drain)
    assert envelopes.MAX_DRAIN_BYTES < first < envelopes.MAX_DRAIN_BYTES + MIB
    assert MIB < second < MIB + 1000
    assert third == len(EMPTY)


def test_what_its_own_queue_loses_is_dropped_and_told_once(guests: Cast) -> None:
    """The oldest are lost and counted; the count is told with the next envelope, and is 0 in the one after it."""
    first, second = (guests.drops.envelope(each) for each in guests.dropped)
    assert [message["payload"] for message in first["messages"]] == [6, 7, 8, 9]
    assert (first["dropped"], first["lagged"]) == (6, 0)
    assert (second["messages"], second["dropped"], second["lagged"]) == ([], 0, 0)


def test_a_refused_poll_does_not_reset_the_counts(guests: Cast) -> None:
    """nobufs has told nothing, so the envelope that fits tells it all."""
    assert guests.drops.value(guests.too_small) == -Errno.NOBUFS
    again = guests.drops.envelope(guests.dropped_again)
    assert [message["payload"] for message in again["messages"]] == [1, 2, 3, 4]
    assert (again["dropped"], again["lagged"]) == (1, 0)


def test_what_the_backbone_loses_is_lagged_and_counted_exactly(guests: Cast) -> None:
    """Of all that were accepted each is delivered, dropped or lagged; the next envelope has nothing to tell."""
    first, second = (guests.lags.envelope(each) for each in guests.lagged)
    assert first["lagged"] > 0
    delivered = len(first["messages"])
    assert 0 < delivered <= 8
    assert delivered + first["dropped"] + first["lagged"] == guests.lags.value(guests.accepted)
    assert (second["messages"], second["dropped"], second["lagged"]) == ([], 0, 0)


def _messages(envelope: bytes) -> int:
    """How many messages an envelope has, by its first bytes."""
    assert envelope.startswith(EMPTY[:10])
    assert envelope[10] < 0x80 + 24
    return envelope[10] - 0x80
