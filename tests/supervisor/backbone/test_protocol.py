"""What supervisor and backbone tell each other."""

from __future__ import annotations

import socket
import struct

import cbor2
import pytest

from capsuled.proto import records
from capsuled.supervisor.backbone import protocol
from capsuled.supervisor.backbone.channel import Channel, SupervisorGone
from capsuled.supervisor.backbone.protocol import ProtocolError, Settings, Unpacker

from .making import admission


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_messages_survive_being_cut(piece: int) -> None:
    """However the stream is cut into pieces, the same messages come out, in order."""
    sent = [{"op": "x", "n": n, "data": bytes(n)} for n in range(30)]
    stream = b"".join(map(protocol.pack, sent))
    unpacker = Unpacker()
    found = [
        message
        for start in range(0, len(stream), piece)
        for message in unpacker.feed(stream[start : start + piece])
    ]
    assert found == sent


def test_settings_travel() -> None:
    """What `configure` says is what is read."""
    settings = Settings(epoch=3, total_queue_bytes=4, largest_payload=5)
    (message,) = Unpacker().feed(protocol.pack(protocol.configure(settings)))
    assert message["op"] == "configure"
    assert protocol.settings_of(message) == settings


def test_an_admission_travels() -> None:
    """What `attach` says is what is read, grants and subscriptions included."""
    sent = admission(
        7, publish=("a", "b.*"), subscribe=(), subscriptions=((1, "a.*", True), (2, "a.b", False))
    )
    (message,) = Unpacker().feed(protocol.pack(protocol.attach(sent)))
    assert message["op"] == "attach"
    found = protocol.admission_of(message)
    assert found == sent
    assert found.grants.publisher(("b", "c")) == "b.*"


@pytest.mark.parametrize("epoch", [-1, records.MAX_EPOCH + 1])
def test_an_epoch_without_sequence_numbers_is_refused(epoch: int) -> None:
    """An epoch whose sequence numbers would not fit 64 bits cannot be configured; the last that fits can."""
    Settings(records.MAX_EPOCH, 1, 1)
    with pytest.raises(ValueError, match=f"an epoch of {epoch}"):
        Settings(epoch, 1, 1)
    with pytest.raises(ProtocolError, match=f"an epoch of {epoch}"):
        protocol.settings_of(
            {"op": "configure", "epoch": epoch, "total_queue_bytes": 1, "largest_payload": 1}
        )


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (struct.pack(">I", protocol.MAX_MESSAGE + 1), "a message of 67108865 bytes: 67108864 at most"),
        (framed(b"\xff"), "not CBOR"),
        (framed(b"\x82\x01"), "not CBOR"),
        (framed(cbor2.dumps([1])), "without an op"),
        (framed(cbor2.dumps({"no": 1})), "without an op"),
    ],
)
def test_what_is_no_message(data: bytes, sentence: str) -> None:
    """Bytes that are no message are an error that says why."""
    with pytest.raises(ProtocolError, match=sentence):
        list(Unpacker().feed(data))


def test_the_longest_message_may_still_come() -> None:
    """A length of exactly the bound is waited for."""
    assert list(Unpacker().feed(struct.pack(">I", protocol.MAX_MESSAGE))) == []


@pytest.mark.parametrize("change", [{"grants": None}, {"subscriptions": [[1]]}, {"unheard_of": 1}])
def test_an_attach_that_is_none(change: dict[str, object]) -> None:
    """An attach with a field that is missing, unknown or of another shape is an error."""
    with pytest.raises(ProtocolError, match="an attach that cannot be read"):
        protocol.admission_of({**protocol.attach(admission(1)), **change})


def test_a_configure_that_is_none() -> None:
    """A configure without all its fields is an error."""
    with pytest.raises(ProtocolError, match="a configure that cannot be read"):
        protocol.settings_of({"op": "configure", "epoch": 1})


# ── the channel ──────────────────────────────────────────────────────────────────────────────────


def test_the_channel_does_not_block() -> None:
    """A supervisor that does not read holds nothing up; when it reads, it finds all, in order."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        channel = Channel(mine)
        told = 0
        while channel.written:
            channel.tell({"op": "x", "n": told, "data": bytes(10_000)})
            channel.write()
            told += 1
        unpacker, found = Unpacker(), list[int]()
        while len(found) < told:
            found += [message["n"] for message in unpacker.feed(theirs.recv(1 << 20))]
            channel.write()
        assert found == list(range(told))
        assert channel.written


def test_the_channel_is_bounded() -> None:
    """A supervisor that leaves more unread than the longest message is taken for gone."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        channel = Channel(mine)
        piece = {"op": "x", "data": bytes(protocol.MAX_MESSAGE // 2)}
        channel.tell(piece)
        with pytest.raises(SupervisorGone, match="unread"):
            channel.tell(piece)


def test_the_channel_hears() -> None:
    """Nothing to read is nothing; a closed end is an error, for reading and for writing."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        channel = Channel(mine)
        assert list(channel.receive()) == []
        theirs.sendall(protocol.pack({"op": "a"}) + protocol.pack({"op": "b"}))
        assert [message["op"] for message in channel.receive()] == ["a", "b"]
        theirs.close()
        with pytest.raises(SupervisorGone):
            list(channel.receive())
        channel.tell({"op": "x"})
        with pytest.raises(SupervisorGone):
            channel.write()
