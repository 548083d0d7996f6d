"""Processes: what they inherit, how their ends are told, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
import trio

from capsuled.supervisor import spawn
from capsuled.supervisor.spawn import Process, SpawnError

from .control.serving import run


def python(
    code: str,
    *,
    stdout: int = 2,
    keep: Collection[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Process:
    with open(os.devnull, "rb") as null:
        return spawn.spawn(
            (sys.executable, "-I", "-S", "-c", code),
            stdin=null.fileno(),
            stdout=stdout,
            stderr=2,
            keep=keep,
            environment=environment,
        )


async def until(process: Process, what: int) -> None:
    """Wait until it has ended or been stopped, without reaping it."""
    await trio.to_thread.run_sync(os.waitid, os.P_PID, process.pid, what | os.WNOWAIT)


async def said(code: str, *, environment: Mapping[str, str] | None = None) -> str:
    """What a process of this code prints."""
    reader, writer = os.pipe()
    process = python(code, stdout=writer, environment=environment)
    os.close(writer)
    async with trio.lowlevel.FdStream(reader) as pipe:
        found = b""
        while data := await pipe.receive_some(4096):
            found += data
    assert (await process.wait()).status == 0
    return found.decode()


def test_nothing_is_inherited_but_what_is_given() -> None:
    """Three descriptors, no environment, the root folder, a session and a group of its own."""

    async def main() -> None:
        inheritable = os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(inheritable, True)
        code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:4])"
        assert (await said(code)).startswith("[0, 1, 2, 3]")  # 3 is the listing's own
        os.close(inheritable)
        found = await said("import os; print(len(set(os.environ) - {'LC_CTYPE'}), os.environ.get('A'))")
        assert found.split() == ["0", "None"]
        found = await said("import os; print(os.environ['A'])", environment={"A": "b"})
        assert found.split() == ["b"]
        found = await said("import os; print(os.getcwd(), os.getsid(0) == os.getpgid(0) == os.getpid())")
        assert found.split() == ["/", "True"]

    run(main)


@pytest.mark.parametrize(
    ("code", "status", "number"),
    [
        ("pass", 0, None),
        ("raise SystemExit(3)", 3, None),
        ("raise SystemExit(255)", 255, None),
        ("import os; os.kill(os.getpid(), 9)", None, 9),
        ("import os; os.kill(os.getpid(), 24)", None, 24),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 2)", None, signal.SIGRTMIN + 2),
    ],
)
def test_how_it_ended(code: str, status: int | None, number: int | None) -> None:
    """By status or by signal, never both, and with what it used."""

    async def main() -> None:
        ended = await python(code).wait()
        assert (ended.status, ended.signal) == (status, number)
        assert ended.usage.ru_utime + ended.usage.ru_stime > 0.0

    run(main)


def test_once_it_is_reaped_nobody_is_signalled() -> None:
    """Its number may be somebody else's by then: a signal and a kill afterwards are nothing, and no error."""

    async def main() -> None:
        process = python("pass")
        before = process.gone
        await process.wait()
        gone.extend((before, process.gone))
        assert str(process.pid) not in os.listdir("/proc")
        process.signal(signal.SIGKILL)
        process.kill()

    gone: list[bool] = []
    run(main)
    assert gone == [False, True]


def test_a_zombie_may_be_signalled() -> None:
    """Between its end and its reaping a signal does nothing."""

    async def main() -> None:
        process = python("pass")
        await until(process, os.WEXITED)
        process.signal(signal.SIGTERM)
        process.kill()
        assert (await process.wait()).status == 0

    run(main)


@pytest.mark.parametrize("how", ["kill", "end"])
def test_its_group_goes_with_it(how: str) -> None:
    """A process that it has started, and that has not left its group, is killed with it, and when it ends too."""

    async def main() -> None:
        reader, writer = os.pipe()
        # The child holds the pipe for ever; its parent ends, or waits to be killed.
        code = "import os, time\nif os.fork() == 0: time.sleep(1000)\nos.write(1, b'x')\n" + (
            "time.sleep(1000)" if how == "kill" else ""
        )
        process = python(code, stdout=writer)
        os.close(writer)
        async with trio.lowlevel.FdStream(reader) as pipe:
            assert await pipe.receive_some(1) == b"x"
            if how == "kill":
                process.kill()
            await process.wait()
            assert await pipe.receive_some(1) == b""  # nobody holds it any more

    run(main)


def test_a_stopped_process_is_killed() -> None:
    """SIGKILL asks nobody."""

    async def main() -> None:
        process = python("import time; time.sleep(1000)")
        process.signal(signal.SIGSTOP)
        await until(process, os.WSTOPPED)
        process.kill()
        assert (await process.wait()).signal == signal.SIGKILL

    run(main)


def test_a_wait_that_is_cancelled_may_be_begun_again() -> None:
    """The end is told to the second wait."""

    async def main() -> None:
        process = python("import time; time.sleep(1000)")
        with trio.move_on_after(0.0):
            await process.wait()
        process.kill()
        assert (await process.wait()).signal == signal.SIGKILL

    run(main)


def test_what_cannot_be_started() -> None:
    """A program that is not there is an error with its name, and no descriptor stays open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SpawnError, match=r"^cannot start /none/such argument: .*No such file"):
        spawn.spawn(("/none/such", "argument"), stdin=0, stdout=1, stderr=2)
    assert os.listdir("/proc/self/fd") == before


def test_a_child_that_cannot_be_watched_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for its pidfd it is killed and reaped: nobody else would."""

    def refuse(pid: int, flags: int = 0) -> int:
        pids.append(pid)
        raise OSError(24, "Too many open files")

    pids: list[int] = []
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(SpawnError, match="Too many open files"):
        python("import time; time.sleep(1000)")
    assert not Path(f"/proc/{pids[0]}").exists()
