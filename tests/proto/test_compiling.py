"""What a compiler is told, and the sentences that it answers with."""

from __future__ import annotations

import cbor2
import pytest

from capsuled.proto import compiling, reports
from capsuled.proto.compiling import CompileOrder, CompileOrderError
from capsuled.proto.order import Confinement

ORDER = CompileOrder(
    "auto", "sha256:00", 1 << 20, 1 << 28, 30, Confinement(7, "all", landlock=True, seccomp=False), b"\0asm"
)


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


@pytest.mark.parametrize("pid", [1, 4_194_304])
def test_a_clone_is_told_in_a_line(pid: int) -> None:
    """The line of any pid is read back, with what follows it, and not before it is whole."""
    line = compiling.clone_line(pid)
    assert len(line) < compiling.MAX_CLONE_LINE
    assert compiling.split_clone_line(line + b"rest\nof it") == (pid, b"rest\nof it")
    for length in range(len(line)):
        assert compiling.split_clone_line(line[:length]) is None


@pytest.mark.parametrize(
    "output", [b"x", b"\n", b"clone\n", b"clone -1\n", b"clone 1 2\n", b"clone x\n", b"clone " + b"1" * 18]
)
def test_what_tells_of_no_clone_is_refused(output: bytes) -> None:
    """Another word, no number, and a line that does not end where the longest does."""
    with pytest.raises(ValueError, match="tells of no clone"):
        compiling.split_clone_line(output)


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
