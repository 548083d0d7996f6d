"""`capsulectl bus publish`, `tap` and `trace`, by real processes against the real server."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence

import pytest
import trio

from capsuled.proto.control import Exit
from capsuled.supervisor.control.shapes import Json, JsonObject

from ..control.serving import Daemon, run, serving
from .running import COMMAND, EVIL, SHOWN, Ran, ctl, environment, running

HOP: dict[str, Json] = {
    "time": "2026-01-31T12:00:00.000Z",
    "topic": "a.b",
    "source": "echo",
    "instance": "00" * 16,
    "principal": "alice",
    "seq": 8,
    "cause": 7,
}


class Tracing(Daemon):
    """It remembers a chain of these hops."""

    def __init__(self, hops: Sequence[JsonObject], cut: bool = False) -> None:
        super().__init__()
        self._hops = hops
        self._cut = cut

    async def trace(self, seq: int) -> JsonObject:
        await trio.lowlevel.checkpoint()
        return {"id": seq, "hops": list(self._hops), "cut": self._cut}


def ran(daemon: Daemon, *arguments: str, stdin: bytes | None = None) -> Ran:
    """What a command did, asked by an admin, with this on its standard input."""
    found: list[Ran] = []

    async def main() -> None:
        async with serving(daemon) as served:
            if stdin is None:
                found.append(await ctl(served, *arguments))
                return
            done = await trio.run_process(
                [*COMMAND, *arguments],
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment(served),
            )
            found.append(Ran(done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()))

    run(main)
    assert "Traceback" not in found[0].err
    return found[0]


# ── publish ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "stdin", "payload"),
    [
        (["a.b", "[1]"], None, b"\x81\x01"),
        (["a.b", "-5"], None, b"\x24"),
        (["a.b"], b"[1]", b"\x81\x01"),
        (["a.b", "-"], b"[1]", b"\x81\x01"),
        (["a.b", "--cbor"], b"\x18\x01", b"\x18\x01"),
        (["--cbor", "a.b", "-"], b"\x18\x01", b"\x18\x01"),
    ],
)
def test_publish(arguments: list[str], stdin: bytes | None, payload: bytes) -> None:
    """JSON from the command line or from standard input, CBOR from standard input; the number is told."""
    daemon = Daemon()
    done = ran(daemon, "bus", "publish", *arguments, stdin=stdin)
    assert done == (Exit.DONE, "published on a.b as 7\n", "")
    assert daemon.asked == [("publish", "a.b", payload)]


def test_publish_as_json() -> None:
    """What the socket answered."""
    assert json.loads(ran(Daemon(), "bus", "publish", "--json", "a.b", "1").out) == {"topic": "a.b", "seq": 7}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["a.b", "{"], Exit.FAILED, "cannot publish the body: it is no JSON"),
        (["kernel.x", "1"], Exit.FAILED, "the supervisor's own"),
        (["a..b", "1"], Exit.FAILED, "empty segment"),
        (["a.b", "1", "--cbor"], Exit.USAGE, "cannot take CBOR from the command line"),
    ],
)
def test_publish_refused(arguments: list[str], code: Exit, sentence: str) -> None:
    """A sentence and an exit code; nothing is published."""
    daemon = Daemon()
    done = ran(daemon, "bus", "publish", *arguments)
    assert (done.code, done.out) == (code, "")
    assert sentence in done.err
    assert daemon.asked == []


# ── trace ────────────────────────────────────────────────────────────────────────────────────────


def test_trace() -> None:
    """One line for each message, its first cause first, under the names of the columns."""
    first = {**HOP, "seq": 7, "cause": None, "source": "operator"}
    done = ran(Tracing([first, HOP]), "bus", "trace", "8")
    assert done.code == Exit.DONE
    head, one, two = done.out.splitlines()
    assert head.split() == ["TIME", "SEQ", "CAUSE", "SOURCE", "PRINCIPAL", "TOPIC"]
    assert one.split()[1:] == ["7", "-", "operator", "alice", "a.b"]
    assert two.split()[1:] == ["8", "7", "echo", "alice", "a.b"]


def test_a_trace_that_was_cut_says_so() -> None:
    """What is shown is not all."""
    assert "and more: the chain is longer" in ran(Tracing([HOP], cut=True), "bus", "trace", "8").out


def test_trace_as_json() -> None:
    """What the socket answered."""
    found = json.loads(ran(Tracing([HOP]), "bus", "trace", "8", "--json").out)
    assert found == {"id": 8, "hops": [HOP], "cut": False}


def test_a_message_that_is_not_remembered() -> None:
    """It exits 1 and says what is remembered."""
    done = ran(Daemon(), "bus", "trace", "99")
    assert (done.code, done.out) == (Exit.FAILED, "")
    assert "nothing is remembered of 99: only messages with a cause are" in done.err


def test_an_id_that_is_no_number() -> None:
    """It exits 1 with the parameter's name."""
    done = ran(Daemon(), "bus", "trace", "xyz")
    assert done.code == Exit.FAILED
    assert "parameter 'id'" in done.err


# ── tap ──────────────────────────────────────────────────────────────────────────────────────────


def test_tap() -> None:
    """A line for each message as it comes, what was lost where it was lost, and the end with the supervisor."""

    async def main() -> None:
        async with serving() as served, running(served, "bus", "tap", "a.*") as tap:
            await served.daemon.followed.wait()
            served.daemon.happenings.publish({**HOP, "payload": {"n": [1, "h'00'"]}})
            assert await tap.line() == '2026-01-31T12:00:00.000Z 8 echo a.b {"n": [1, "h\'00\'"]}'
            served.daemon.happenings.publish({"lost": 3})
            assert "3 lost here" in await tap.line()
            served.daemon.happenings.close()
            assert await tap.end() == (Exit.DONE, "", "")

    run(main)


def test_tap_as_json() -> None:
    """What the socket sends, line by line."""

    async def main() -> None:
        async with serving() as served, running(served, "bus", "tap", "a", "--json") as tap:
            await served.daemon.followed.wait()
            for line in ({**HOP, "payload": None}, {"lost": 1}):
                served.daemon.happenings.publish(line)
                assert json.loads(await tap.line()) == line

    run(main)


def test_a_payload_is_no_command() -> None:
    """What a guest publishes does nothing to the terminal."""

    async def main() -> None:
        async with serving() as served, running(served, "bus", "tap", "a") as tap:
            await served.daemon.followed.wait()
            served.daemon.happenings.publish({**HOP, "topic": EVIL, "payload": EVIL})
            line = await tap.line()
            assert SHOWN in line
            assert "\x1b" not in line

    run(main)


def test_a_pattern_that_is_none() -> None:
    """It exits 1 with the rule."""
    done = ran(Daemon(), "bus", "tap", "a..b")
    assert (done.code, done.out) == (Exit.FAILED, "")
    assert "empty segment" in done.err


def test_an_interrupt_ends_the_tap() -> None:
    """As a shell expects of it, without a trace of Python."""

    async def main() -> None:
        async with serving() as served, running(served, "bus", "tap", "a") as tap:
            await served.daemon.followed.wait()
            tap.process.send_signal(signal.SIGINT)
            assert (await tap.end()).code == 130

    run(main)
