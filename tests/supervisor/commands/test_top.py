"""`capsulectl top`, on a terminal and without one, by real processes against the real server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable

import pytest
import trio

from capsuled.proto.control import Exit
from capsuled.supervisor.control.operations import Failed
from capsuled.supervisor.control.shapes import Json, JsonObject

from ..control.serving import Daemon, Served, run, serving
from .running import EVIL, SHOWN, ctl
from .terminal import CURSOR_HIDDEN, CURSOR_SHOWN, ENTERED, LEFT, Terminal, terminal


class Busy(Daemon):
    """Its counts grow with each look: `echo` sends, `idle` gets."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.has_backbone = True
        del self.capsules_by_name["broken"], self.capsules_by_name["slow"]
        for number, name in enumerate(self.capsules_by_name):
            self.capsules_by_name[name]["usage"] = {
                "cpu_seconds": 1.0,
                "memory": (number + 1) * 1024 * 1024,
                "process_memory": 50 * 1024 * 1024,
                "sampled_at": "2026-01-31T12:00:00.000Z",
            }

    async def bus(self) -> JsonObject:
        await trio.lowlevel.checkpoint()
        if not self.has_backbone:
            raise Failed("cannot read the ledger: the backbone is down", {})
        self.looks += 1
        return {
            "epoch": 7,
            "capsules": [{"name": "echo", "published": 1000 * self.looks}],
            "subscriptions": [{"capsule": "idle", "delivered": 1000 * self.looks, "queued": 3}],
        }


Story = Callable[[Terminal, Served], Awaitable[None]]


def told(story: Story, *arguments: str, daemon: Daemon | None = None) -> str:
    """What the terminal was sent in the story. However it ends, the terminal is as it was."""
    sent: list[str] = []

    async def main() -> None:
        async with serving(daemon or Busy()) as served, terminal(served, "top", *arguments) as shown:
            before = shown.settings()
            await story(shown, served)
            assert shown.settings() == before
            sent.append(shown.sent)

    run(main)
    assert sent[0].count(ENTERED) == sent[0].count(LEFT) >= 1
    assert sent[0].rindex(CURSOR_SHOWN) > sent[0].rindex(CURSOR_HIDDEN)
    return sent[0]


def test_live() -> None:
    """It shows capsules and keys at once, rates at the second look, and `q` ends it well."""

    async def story(shown: Terminal, _served: Served) -> None:
        first = await shown.until("q quit")
        assert "2 capsules (1 ready, 1 stopped), by cpu" in first
        assert "1.0 MiB" in first
        assert "sent/s" in first
        later = await shown.until("q quit")
        echo = next(line for line in later.splitlines() if line.startswith("echo"))
        assert float(echo.split()[-3]) > 0
        shown.press("q")
        assert await shown.end() == (Exit.DONE, "")

    told(story, "--interval", "100ms")


def test_order() -> None:
    """A column's key sorts by it, `r` reverses, and any other key does nothing."""

    async def story(shown: Terminal, _served: Served) -> None:
        await shown.until("q quit")
        for key, title, first in (
            ("m", "by memory", "idle"),
            ("r", "by memory, reversed", "echo"),
            ("n", "by name", "echo"),
            ("r", "by name, reversed", "idle"),
            ("u", "by queued", "idle"),
            ("s", "by state", "echo"),
            ("x", "by state", "echo"),
            ("\x1b[A", "by state", "echo"),
        ):
            shown.press(key)
            page = await shown.until("q quit")
            assert f"), {title}\r\n" in page.replace(" \r", "\r") or f"), {title} " in page
            assert page.index(first) < page.index({"echo": "idle", "idle": "echo"}[first])
        shown.press("q")
        assert await shown.end() == (Exit.DONE, "")

    told(story, "--interval", "1h")


def test_another_size() -> None:
    """A new size of the terminal is heeded at once; what does not fit is counted."""

    async def story(shown: Terminal, _served: Served) -> None:
        assert "do not fit" not in await shown.until("q quit")
        shown.resize(4, 100)
        page = await shown.until("q quit")
        assert "; 1 more do not fit" in page
        for rows, columns in ((1, 1), (2, 10)):
            shown.resize(rows, columns)
        shown.resize(24, 100)
        assert "by cpu" in await shown.until("q quit")
        shown.press("q")
        assert await shown.end() == (Exit.DONE, "")

    told(story, "--interval", "1h")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(number: signal.Signals) -> None:
    """A signal that ends it does so with its own status, and the terminal is restored."""

    async def story(shown: Terminal, _served: Served) -> None:
        await shown.until("q quit")
        shown.process.send_signal(number)
        assert await shown.end() == (128 + number, "")

    told(story, "--interval", "1h")


def test_control_c() -> None:
    """Ctrl-C on the terminal is INT."""

    async def story(shown: Terminal, _served: Served) -> None:
        await shown.until("q quit")
        shown.press("\x03")
        assert await shown.end() == (128 + signal.SIGINT, "")

    told(story, "--interval", "1h")


def test_control_z() -> None:
    """While it is stopped the terminal is the shell's; it comes back where it was."""

    async def story(shown: Terminal, _served: Served) -> None:
        before = shown.settings()
        await shown.until("q quit")
        assert shown.settings() != before
        shown.process.send_signal(signal.SIGTSTP)
        with trio.fail_after(10):
            while not _is_stopped(shown.process.pid):
                await trio.lowlevel.checkpoint()
        await shown.until_sent(LEFT)
        assert shown.settings() == before
        shown.process.send_signal(signal.SIGCONT)
        await shown.until("q quit")
        shown.press("q")
        assert await shown.end() == (Exit.DONE, "")

    assert told(story, "--interval", "1h").count(ENTERED) == 2


def _is_stopped(pid: int) -> bool:
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    return found is not None


def test_the_supervisor_goes_away() -> None:
    """When nobody answers any more it ends with 7, and the reason stands below on the restored terminal."""

    async def story(shown: Terminal, served: Served) -> None:
        await shown.until("q quit")
        served.daemon.shutdown()
        code, err = await shown.end()
        assert code == Exit.NO_SUPERVISOR
        assert err.startswith("capsulectl: cannot reach a supervisor at ")

    told(story, "--interval", "50ms")


def test_without_a_backbone() -> None:
    """While there is no ledger the rest is shown."""
    daemon = Busy()
    daemon.has_backbone = False

    async def story(shown: Terminal, _served: Served) -> None:
        assert "1.0 MiB" in await shown.until("q quit")
        shown.press("q")
        assert (await shown.end())[0] == Exit.DONE

    told(story, daemon=daemon)


def test_names_are_no_commands() -> None:
    """What a name has in it is an escape on the live screen too."""
    daemon = Busy()
    daemon.capsules_by_name = {EVIL: {"name": EVIL, "state": "ready"}}

    async def story(shown: Terminal, _served: Served) -> None:
        assert SHOWN in await shown.until("q quit")
        shown.press("q")
        assert (await shown.end())[0] == Exit.DONE

    sent = told(story, daemon=daemon)
    assert "\x1b]" not in sent
    assert "\x9b" not in sent


def test_a_terminal_that_can_only_print() -> None:
    """On a dumb terminal it is one table."""

    async def main() -> None:
        async with (
            serving(Busy()) as served,
            terminal(served, "top", "--interval", "10ms", term="dumb") as shown,
        ):
            assert "queued" in await shown.until("idle")
            assert await shown.end() == (Exit.DONE, "")
            assert ENTERED not in shown.sent

    run(main)


def test_once_on_a_terminal() -> None:
    """--once prints one table and leaves the screen alone."""

    async def main() -> None:
        async with (
            serving(Busy()) as served,
            terminal(served, "top", "--once", "--interval", "10ms") as shown,
        ):
            await shown.until("idle")
            assert await shown.end() == (Exit.DONE, "")
            assert ENTERED not in shown.sent

    run(main)


def test_plain() -> None:
    """Without a terminal it is one plain table, in the order that was asked for, with what passed between two looks."""

    async def main() -> None:
        async with serving(Busy()) as served:
            done = await ctl(served, "top", "--interval", "10ms", "--sort", "memory")
            assert (done.code, done.err) == (Exit.DONE, "")
            heading, first, second = done.out.splitlines()
            assert heading.split() == [
                "NAME",
                "STATE",
                "CPU",
                "MEMORY",
                "PROCESS",
                "SENT/S",
                "GOT/S",
                "QUEUED",
            ]
            assert first.split()[:5] == ["idle", "stopped", "-", "2.0", "MiB"]
            assert second.split()[0] == "echo"
            assert float(second.split()[-3]) > 0
            reverse = await ctl(served, "top", "--interval=10ms", "--sort=memory", "--reverse", "--once")
            assert reverse.out.splitlines()[1].startswith("echo")

    run(main)


def test_json() -> None:
    """With --json the same rows are one document, with plain numbers."""

    async def main() -> None:
        async with serving(Busy()) as served:
            done = await ctl(served, "top", "--json", "--interval", "10ms", "--sort", "name")
        rows: list[dict[str, Json]] = json.loads(done.out)["capsules"]
        assert [row["name"] for row in rows] == ["echo", "idle"]
        assert rows[0]["memory"] == 1024 * 1024
        assert isinstance(rows[0]["sent"], float)

    run(main)


@pytest.mark.parametrize(
    "arguments", [["--sort", "mood"], ["--interval", "0"], ["--interval", "soon"], ["x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    """What it does not know exits 2."""

    async def main() -> None:
        done = await ctl(None, "top", *arguments)
        assert (done.code, done.out) == (Exit.USAGE, "")

    run(main)


def test_no_supervisor() -> None:
    """Where nobody is, it exits 7 before it touches the terminal."""

    async def main() -> None:
        assert (await ctl(None, "top", "--socket", "/nowhere")).code == Exit.NO_SUPERVISOR

    run(main)
