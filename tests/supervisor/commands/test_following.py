"""Commands that go on: logs, events, wait, by real processes against the real server."""

from __future__ import annotations

import json
import os
import signal

import pytest
from trio.testing import wait_all_tasks_blocked

from capsuled.proto.control import Exit
from capsuled.supervisor.control.operations import Verb
from capsuled.supervisor.control.streams import Broadcast

from ..control.serving import Daemon, event, log_line, run, serving
from .running import running


def test_logs_follow() -> None:
    """`logs -f` prints what was logged, then each line as it comes, and ends with the supervisor."""

    async def main() -> None:
        async with serving() as served, running(served, "logs", "echo", "-f", "-n", "1") as follow:
            assert (await follow.line()).endswith(" line 2")
            for n in range(3):
                served.daemon.log.publish(log_line(f"new {n}"))
                assert (await follow.line()).endswith(f" new {n}")
            served.daemon.log.close()
            assert await follow.end() == (Exit.DONE, "", "")

    run(main)


def test_events_follow() -> None:
    """`events -f` prints what happens from now on."""

    async def main() -> None:
        async with serving() as served, running(served, "events", "-f", "--json") as follow:
            await served.daemon.followed.wait()
            served.daemon.happenings.publish(event("echo", "stopping"))
            assert json.loads(await follow.line()) == event("echo", "stopping")
            served.daemon.happenings.close()
            assert await follow.end() == (Exit.DONE, "", "")

    run(main)


def test_a_follower_is_told_what_it_lost() -> None:
    """Lines that came too fast are counted where they are missing."""

    async def main() -> None:
        daemon = Daemon(Broadcast(lines=1))
        async with serving(daemon) as served, running(served, "events", "-f") as follow:
            await daemon.followed.wait()
            await wait_all_tasks_blocked()  # One line goes to the follower that waits, one into its queue.
            for n in range(5):
                daemon.happenings.publish(event(f"c{n}", "ready"))
            assert " c0 state" in await follow.line()
            assert " c1 state" in await follow.line()
            assert await follow.line() == "… 3 lost here: they came faster than they were read"

    run(main)


def test_a_supervisor_that_vanishes_is_an_error() -> None:
    """A stream that breaks off is exit code 1, so that it is not taken for a proper end."""

    async def main() -> None:
        async with serving() as served, running(served, "logs", "echo", "-f", "-n0") as follow:
            await served.daemon.followed.wait()
            served.daemon.stopping.set()
            done = await follow.end()
            assert done.code == Exit.FAILED
            assert done.err == "capsulectl: cannot follow any longer: the supervisor closed the connection\n"

    run(main)


def test_an_interrupt_ends_the_following() -> None:
    """Ctrl-C ends it without a word, as shells expect, and the supervisor forgets the follower."""

    async def main() -> None:
        async with serving() as served, running(served, "logs", "echo", "-f") as follow:
            for n in range(3):
                assert (await follow.line()).endswith(f" line {n}")
            follow.process.send_signal(signal.SIGINT)
            assert await follow.end() == (128 + signal.SIGINT, "", "")
            await served.daemon.left.wait()

    run(main)


def test_a_reader_that_has_enough_is_no_noise() -> None:
    """When what it is piped into ends, so does it: exit code 1 and nothing on stderr."""

    async def main() -> None:
        async with serving() as served:
            async with running(served, "logs", "echo", "-f") as follow:
                for n in range(3):
                    assert (await follow.line()).endswith(f" line {n}")
                await follow.close_output()
                served.daemon.log.publish(log_line("one more"))
                assert await follow.end() == (Exit.FAILED, "", "")
            read, write = os.pipe()
            os.close(read)
            try:
                async with running(served, "logs", "echo", stdout=write) as logs:
                    assert await logs.end() == (Exit.FAILED, "", "")
            finally:
                os.close(write)

    run(main)


@pytest.mark.parametrize("wanted", ["ready", "down"])
def test_wait_ends_when_it_is_so(wanted: str) -> None:
    """`wait` ends with the event after which the capsule is as asked, and changes nothing itself."""

    async def main() -> None:
        async with serving() as served, running(served, "wait", "slow", "--for", wanted) as waiting:
            daemon = served.daemon
            await daemon.followed.wait()
            daemon.happenings.publish(event("other", "ready"))
            daemon.happenings.publish(event("slow", "starting"))
            state = "ready" if wanted == "ready" else "stopped"
            daemon.capsules_by_name["slow"].update(state=state, ready=wanted == "ready")
            daemon.happenings.publish(event("slow", state))
            assert await waiting.end() == (Exit.DONE, f"slow: {state}\n", "")
            assert daemon.acted == []

    run(main)


def test_wait_misses_nothing_that_was_lost() -> None:
    """When events are lost it looks for itself: what it waits for may be among them."""

    async def main() -> None:
        daemon = Daemon(Broadcast(lines=1))
        async with serving(daemon) as served, running(served, "wait", "slow", "--for", "ready") as waiting:
            await daemon.followed.wait()
            # The look that follows comes first; then only the loss tells that there is something to see.
            await daemon.looked_at("slow")
            daemon.capsules_by_name["slow"].update(state="ready", ready=True)
            for n in range(3):
                daemon.happenings.publish(event(f"c{n}", "ready"))
            assert await waiting.end() == (Exit.DONE, "slow: ready\n", "")

    run(main)


@pytest.mark.parametrize("how", ["failed", "gone", "closed"])
def test_wait_ends_when_it_cannot_be_so_any_more(how: str) -> None:
    """A capsule that fails, or a supervisor that goes, is exit code 1 and a sentence."""

    async def main() -> None:
        async with serving() as served, running(served, "wait", "slow", "--for", "ready") as waiting:
            daemon = served.daemon
            await daemon.followed.wait()
            await daemon.looked_at("slow")
            if how == "failed":
                daemon.capsules_by_name["slow"]["state"] = "failed"
                daemon.happenings.publish(event("slow", "failed"))
            elif how == "gone":
                daemon.stopping.set()
            else:
                daemon.happenings.close()
            done = await waiting.end()
        assert (done.code, done.out) == (Exit.FAILED, "")
        assert done.err.startswith(
            {
                "failed": "capsulectl: cannot wait for slow: it has failed: `capsulectl why slow` tells why",
                "gone": "capsulectl: cannot follow any longer: the supervisor closed the connection",
                "closed": "capsulectl: cannot wait for slow: the supervisor shuts down",
            }[how]
        )

    run(main)


def test_an_interrupt_ends_the_waiting_only() -> None:
    """Ctrl-C while a start is waited for ends the waiting; the change goes on."""

    async def main() -> None:
        async with serving() as served, running(served, "start", "slow", "--wait", "ready") as waiting:
            await served.daemon.waiting.wait()
            waiting.process.send_signal(signal.SIGINT)
            assert (await waiting.end()).code == 128 + signal.SIGINT
            await served.daemon.abandoned.wait()
            assert served.daemon.acted == [("slow", Verb.START, "ready", None)]

    run(main)
