"""Reports: what a worker may tell the supervisor, and what is refused because a worker may send anything."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import reports
from capsuled.proto.reports import MAX_BYTES, MAX_TEXT, Cancel, Ended, Listening, Ready, ReportError, Started


@pytest.mark.parametrize(
    "report",
    [
        Listening(),
        Started("wasmer"),
        Ready(),
        Cancel(0.5),
        Ended("exit", 3),
        Ended("trap", 0, "memory", "m", "b"),
    ],
)
def test_a_report_reads_back(report: reports.Report | Cancel) -> None:
    """What one side encodes is what the other decodes."""
    assert reports.decode(reports.encode(report)) == report


def test_the_longest_texts_fit() -> None:
    """Two texts as long as they may be, of characters with four bytes each, are one packet."""
    longest = Ended("trap", 0, "memory", "\U0001f600" * MAX_TEXT, "\U0001f600" * MAX_TEXT)
    packet = reports.encode(longest)
    assert len(packet) <= MAX_BYTES
    assert reports.decode(packet) == longest


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff",
        cbor2.dumps(7),
        cbor2.dumps({}),
        cbor2.dumps({"kind": "unheard-of"}),
        cbor2.dumps({"kind": "ready", "more": 1}),
        cbor2.dumps({"kind": "ended", "how": "somehow"}),
        cbor2.dumps({"kind": "ended", "how": "exit", "code": "3"}),
        cbor2.dumps({"kind": "ended", "how": "trap", "message": "x" * (MAX_TEXT + 1)}),
        cbor2.dumps({"kind": []}),
        reports.encode(Ready()) + b"\0",
        reports.encode(Ready()) * 2,
        b"\xbf\x64kind\x65ready\xff",
        b"\0" * (MAX_BYTES + 1),
    ],
    ids=range(14),
)
def test_anything_else_is_no_report(packet: bytes) -> None:
    """Another shape, another type, another kind, a longer text, bytes behind it: each is a `ReportError`."""
    with pytest.raises(ReportError):
        reports.decode(packet)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(packet: bytes) -> None:
    """Whatever a worker sends, the supervisor gets a report or a `ReportError`."""
    try:
        reports.decode(packet)
    except ReportError:
        return
