"""The init system is told once, in its own words, and never waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from capsuled.supervisor import notify
from capsuled.supervisor.notify import NOBODY, Notifier, Told, UnusableDescriptor, heed


class Listener:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        found: list[str] = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(65536).decode())
        return found

    def fill(self) -> None:
        """Until it takes nothing more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    other.sendto(b"FILL=1", self.address)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "n")
    yield made
    made.socket.close()


@pytest.fixture
def notifier(listener: Listener) -> Iterator[Notifier]:
    with notify.opened(Told(listener.address, None, ())) as made:
        yield made


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time that passes when all tasks wait."""
    return trio.testing.MockClock(autojump_threshold=0)


# ── what the environment says ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("where", "address"),
    [("/run/systemd/notify", "/run/systemd/notify"), ("@a/b", b"\0a/b"), ("", None)],
)
def test_the_address(where: str, address: str | bytes | None) -> None:
    """A path, or with @ in front the name of an abstract socket."""
    assert heed({"NOTIFY_SOCKET": where}, 1) == Told(address, None, ())


@pytest.mark.parametrize("where", ["@", "relative", "vsock:2:1234", "/" + "x" * 107, "@" + "x" * 107])
def test_an_address_of_no_use(where: str) -> None:
    """Is told, and nothing is sent anywhere."""
    address, _, complaints = heed({"NOTIFY_SOCKET": where}, 1)
    assert address is None
    assert len(complaints) == 1


def test_the_longest_address() -> None:
    assert heed({"NOTIFY_SOCKET": "/" + "x" * 106}, 1).address == "/" + "x" * 106


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "", 30.0),
        ("30000000", "7", 30.0),
        ("1", "7", 1e-6),
        ("30000000", "8", None),
        ("30000000", "07", None),
        ("", "7", None),
        (str(2**64 - 2), "", (2**64 - 2) / 1e6),
    ],
)
def test_the_watchdog(usec: str, pid: str, seconds: float | None) -> None:
    """sd_watchdog_enabled(3): it is ours where no process is named, or this one."""
    assert heed({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}, 7) == Told(None, seconds, ())


@pytest.mark.parametrize("usec", ["0", "-1", "1.5", "x", " 1", "١", str(2**64 - 1)])
def test_a_watchdog_of_no_use(usec: str) -> None:
    """Is told; nobody is pinged."""
    _, watchdog, complaints = heed({"WATCHDOG_USEC": usec}, 7)
    assert watchdog is None
    assert len(complaints) == 1


def test_nobody_inherits_it() -> None:
    """It is taken out of the environment, and the rest is left."""
    environment = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    heed(environment, 7)
    assert environment == {"HOME": "/"}


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


def test_ready_is_told_once(notifier: Notifier, listener: Listener) -> None:
    notifier.ready()
    notifier.ready()
    assert listener.heard() == ["READY=1"]


def test_stopping_is_told_once_with_its_time(notifier: Notifier, listener: Listener) -> None:
    """The first call counts; ready is not told after it."""
    notifier.ready()
    notifier.stopping(7.5)
    notifier.stopping(1.0)
    notifier.ready()
    assert listener.heard() == ["READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=7500000"]


def test_who_was_never_ready_does_not_stop(notifier: Notifier, listener: Listener) -> None:
    notifier.stopping(1.0)
    notifier.ready()
    notifier.stopping(1.0)
    assert listener.heard() == ["READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000"]


def test_a_reload(notifier: Notifier, listener: Listener) -> None:
    """RELOADING, then READY, also after an error; one inside another tells nothing."""
    notifier.ready()
    with suppress(KeyError), notifier.reloading(), notifier.reloading():
        assert [each.split("\n")[0] for each in listener.heard()] == ["READY=1", "RELOADING=1"]
        raise KeyError
    assert listener.heard() == ["READY=1"]


def test_a_reload_tells_its_time(notifier: Notifier, listener: Listener) -> None:
    """CLOCK_MONOTONIC in microseconds, between those before and after."""
    notifier.ready()
    listener.heard()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with notifier.reloading():
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        (told,) = listener.heard()
    first, second = told.split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= after


@pytest.mark.parametrize("state", ["starting", "stopping"])
def test_a_reload_at_another_time(notifier: Notifier, listener: Listener, state: str) -> None:
    """Tells nothing before we are ready, or when we end; and no READY when the end has come in its middle."""
    if state == "stopping":
        notifier.ready()
        notifier.stopping(1.0)
    listener.heard()
    with notifier.reloading():
        pass
    assert listener.heard() == []


def test_an_end_in_the_middle_of_a_reload(notifier: Notifier, listener: Listener) -> None:
    notifier.ready()
    with notifier.reloading():
        listener.heard()
        notifier.stopping(1.0)
    assert [each.split("\n")[0] for each in listener.heard()] == ["STOPPING=1"]


def test_a_status_is_one_line() -> None:
    """Whatever is in it, it can be no message of its own; and it is cut."""
    assert notify.line("a\nREADY=1\r\0\x1b[31m\u2028b") == "a?READY=1???[31m?b"
    assert len(notify.line("x" * 201)) == 200


def test_statuses_are_told_once_a_second(clock: trio.testing.MockClock, listener: Listener) -> None:
    """A hundred changes within a second are one line, and the last one is told."""

    async def main() -> None:
        count = 0
        with notify.opened(Told(listener.address, None, ())) as notifier:
            async with trio.open_nursery() as nursery:
                await nursery.start(notifier.run, lambda: f"{count} changes")
                for _ in range(100):
                    count += 1
                    notifier.changed()
                    await trio.sleep(0.025)
                await trio.sleep(2.0)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    told = listener.heard()
    assert len(told) in (4, 5)
    assert told[-1] == "STATUS=100 changes"


def test_pings_come_from_the_loop(clock: trio.testing.MockClock, listener: Listener) -> None:
    """Twice as often as it must be at least; none comes when the loop does not turn."""

    async def main() -> None:
        with notify.opened(Told(listener.address, 10.0, ())) as notifier:
            async with trio.open_nursery() as nursery:
                await nursery.start(notifier.run, str)
                await trio.sleep(40.0)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    told = listener.heard()
    assert set(told) == {"WATCHDOG=1"}
    assert len(told) in (10, 11)


def test_without_a_watchdog_nobody_is_pinged(clock: trio.testing.MockClock, listener: Listener) -> None:
    async def main() -> None:
        with notify.opened(Told(listener.address, None, ())) as notifier, trio.move_on_after(1000):
            await notifier.run(str)

    trio.run(main, clock=clock)
    assert listener.heard() == []


# ── who does not listen ──────────────────────────────────────────────────────────────────────────


def test_a_full_socket_holds_nobody_up_and_loses_nothing(
    clock: trio.testing.MockClock, listener: Listener
) -> None:
    """Nothing waits; when there is room, what matters comes in its order, of the rest the newest."""
    states = iter("abc")

    async def main() -> None:
        listener.fill()
        with notify.opened(Told(listener.address, 1.0, ())) as notifier:
            async with trio.open_nursery() as nursery:
                await nursery.start(notifier.run, lambda: next(states))
                for _ in range(3):
                    notifier.changed()
                    await trio.sleep(notify.STATUS_SECONDS + 0.1)
                notifier.ready()
                notifier.stopping(1.0)
                await trio.sleep(0.01)
                assert set(listener.heard()) == {"FILL=1"}
                await trio.sleep(2 * notify.RETRY_SECONDS)
                told = listener.heard()
                nursery.cancel_scope.cancel()
        told = [each for each in told if each != "WATCHDOG=1"]
        assert told == ["STATUS=c", "READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000"]

    trio.run(main, clock=clock)


def test_what_waits_has_a_bound(notifier: Notifier, listener: Listener) -> None:
    """A hundred reloads that nobody hears are not kept; the last words are."""
    notifier.ready()
    listener.fill()
    for _ in range(100):
        with notifier.reloading():
            pass
    listener.heard()
    notifier.stopping(1.0)  # which sends as much as the socket takes at once
    told = listener.heard()
    notifier.close()
    told += listener.heard()
    assert len(told) == notify.MAX_WAITING
    assert told[-2:] == ["READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000"]


def test_a_socket_that_has_gone_is_no_error(
    notifier: Notifier, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged where it matters; and one that comes back is spoken to."""
    Path(listener.address).unlink()
    notifier.ready()
    assert "cannot tell the init system" in caplog.text
    notifier.changed()
    again = Listener(Path(listener.address))
    notifier.stopping(1.0)
    assert again.heard() == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000"]
    again.socket.close()


def test_nobody_listens(clock: trio.testing.MockClock) -> None:
    """Where there is no init system that wants to hear, `run` ends at once and all else does nothing."""

    async def main() -> None:
        with notify.opened(NOBODY) as notifier:
            await notifier.run(str)
            notifier.changed()
            notifier.ready()
            with notifier.reloading():
                pass
            notifier.stopping(1.0)

    trio.run(main, clock=clock)


# ── readiness on a descriptor ────────────────────────────────────────────────────────────────────


def test_a_newline_and_the_end() -> None:
    """As s6 wants it; it is ours alone before, and closed after."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    assert notify.check_ready_fd(writer) == writer
    assert not os.get_inheritable(writer)
    with notify.opened(NOBODY, writer) as notifier:
        notifier.ready()
        assert os.read(reader, 10) == b"\n"
        assert os.read(reader, 10) == b""
        notifier.ready()
    os.close(reader)


def test_who_is_never_ready_only_ends() -> None:
    reader, writer = os.pipe()
    with notify.opened(NOBODY, writer):
        pass
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_a_pipe_that_is_full_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does one whose reader has gone."""
    reader, writer = os.pipe()
    other = os.dup(writer)
    os.set_blocking(other, False)
    with suppress(BlockingIOError):
        while True:
            os.write(other, b"x" * 4096)
    os.set_blocking(other, True)
    with notify.opened(NOBODY, writer) as notifier:
        notifier.ready()
    assert "takes nothing" in caplog.text
    os.close(reader)
    with notify.opened(NOBODY, other) as notifier:
        notifier.ready()
    assert "cannot tell readiness" in caplog.text


@pytest.mark.parametrize("fd", [-1, 0, 1, 2, 777, 2**40])
def test_a_descriptor_of_no_use(fd: int) -> None:
    with pytest.raises(UnusableDescriptor, match=str(fd)):
        notify.check_ready_fd(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_a_descriptor_that_cannot_be_written(flags: int) -> None:
    fd = os.open("/dev/null", flags)
    with pytest.raises(UnusableDescriptor, match="not for writing"):
        notify.check_ready_fd(fd)
    os.close(fd)


@pytest.mark.parametrize(("given", "words"), [("x", "invalid"), ("2", "standard"), ("77", "not open")])
def test_the_option(given: str, words: str) -> None:
    """A wrong --ready-fd is a wrong command line: status 2, and a sentence with the next step."""
    command = [sys.executable, "-m", "capsuled.supervisor.commands.capsuled", "run", "--ready-fd", given]
    made = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert made.returncode == 2
    assert words in made.stderr.splitlines()[-1]
    assert "Traceback" not in made.stderr
