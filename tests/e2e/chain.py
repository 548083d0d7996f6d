"""Guests that publish because of what they have received: links of a chain of causes."""

from __future__ import annotations

import cbor2

from capsuled.proto import envelopes

from ..support.guests import Argument, Program, Result, buffer, text

AT = 1024
"""Where a link has what it received."""

ONE = text(cbor2.dumps(1))


def receive(program: Program, handle: Argument, topic: str, source: str, principal: str) -> Result:
    """Receive one message, which must be such a one, and return its number.

    An epoch's numbers need all eight bytes, so that their place is known: behind what the message says before them.
    """
    program.call("ipc_recv", handle, 60_000, buffer(4096, at=AT))
    part = envelopes.source_part(source.encode(), bytes(16), principal.encode())
    model = envelopes.message(topic.encode(), ONE.data, part, 1 << 41, 0, 0)
    where = envelopes.envelope([model], 0, 0).index(b"\x63seq\x1b") + 5
    return program.big_endian(AT + where)


def link(topic: str, source: str, principal: str, to: str) -> bytes:
    """Waits for `topic` from `source`, publishes on `to` because of it, and waits to be stopped."""
    program = Program()
    handle = program.call("ipc_subscribe", text(topic))
    program.call("ready")
    cause = receive(program, handle, topic, source, principal)
    program.call("ipc_publish_caused", text(to), ONE, cause)
    program.call("ipc_recv", handle, 60_000, buffer(4096))
    return program.wasm()
