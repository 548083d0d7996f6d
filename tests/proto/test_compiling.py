"""What a compiler is told, and the sentences that it answers with."""

from __future__ import annotations

import cbor2
import pytest

from capsuled.proto import compiling, reports
from capsuled.proto.compiling import CompileOrder, CompileOrderError

ORDER = CompileOrder("auto", "sha256:00", 1 << 20, 1 << 28, 30, b"\0asm")


def test_an_order_is_read_as_it_was_written() -> None:
    """Every field, the module too."""
    assert compiling.decode(compiling.encode(ORDER)) == ORDER


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a compile order"),
        (cbor2.dumps(7), "not a compile order"),
        (cbor2.dumps({}), "not a compile order: 'version'"),
        (cbor2.dumps({"version": 2}), "the compile order has version 2; this compiler reads 1: restart the"),
        (cbor2.dumps({"version": 1, "engine": "auto"}), "not a compile order"),
        (cbor2.dumps({**cbor2.loads(compiling.encode(ORDER)), "more": 1}), "not a compile order"),
    ],
)
def test_what_is_no_order_is_refused(data: bytes, told: str) -> None:
    """Nothing, something else, another version, too little and too much."""
    with pytest.raises(CompileOrderError) as caught:
        compiling.decode(data)
    assert str(caught.value).startswith(told)


def test_statuses_are_told_apart_and_are_the_workers() -> None:
    """Each exit status means one thing, and the same as from a worker."""
    assert (
        reports.STATUS["load-error"],
        reports.STATUS["failed"],
        reports.STATUS["memory"],
    ) == (compiling.REJECTED, compiling.FAILED, compiling.NO_MEMORY)
    assert compiling.SEALING_FAILED == reports.SEALING_FAILED
    assert compiling.DONE == 0


def test_a_sentence_is_cut() -> None:
    """One at its longest stays; one character more is cut, and says so. A report of a worker has room for it."""
    longest = "x" * compiling.MAX_SENTENCE
    assert compiling.cut(longest) == longest
    assert compiling.cut(longest + "x") == longest[:-1] + "…"
    assert compiling.MAX_SENTENCE <= reports.MAX_TEXT
