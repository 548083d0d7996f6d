"""Who gets past accept, and how many."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import AsyncExitStack
from shutil import which

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from capsuled.proto.control import Level
from capsuled.supervisor.control.access import Access, Peer
from capsuled.supervisor.control.counts import Counts
from capsuled.supervisor.control.limits import LOOKUPS, MAX_BODY, MAX_CONNECTIONS, REFUSED, Limits

from .serving import DEFAULTS, ask, request, run, serving, talking

STATUS = request("GET", "/v1/status")
STRANGER = Peer(4712, 4711, 4713)
GROUPS = Access(1, {10: Level.READ})


def no_groups(_: Peer) -> frozenset[int]:
    return frozenset()


@pytest.mark.parametrize("access", [Access(1), GROUPS])
def test_a_stranger_is_told_and_closed(access: Access) -> None:
    """A peer without a level gets 401 and a sentence before it has asked anything, and then the end."""

    async def main() -> None:
        async with (
            serving(access=access, credentials=lambda _: STRANGER, groups=no_groups) as served,
            talking(served) as talk,
        ):
            reply = await talk.reply()
            assert (reply.status, reply.code) == (401, "not-permitted")
            assert reply.message == (
                "cannot let you in (uid 4711, gid 4713, pid 4712): ask as root, as the supervisor's user, or "
                "as a member of a group that its configuration names"
            )
            assert reply.error["detail"] == {"uid": 4711, "gid": 4713}
            assert reply.headers["connection"] == "close"
            assert "www-authenticate" in reply.headers
            await talk.send(STATUS)
            assert await talk.at_end()

    run(main)


@pytest.mark.parametrize(
    ("uid", "status"), [(0, 202), (1, 202), (2, 401)], ids=["root", "own user", "another user"]
)
def test_users(uid: int, status: int) -> None:
    """Root and the supervisor's user may do all."""

    async def main() -> None:
        async with serving(access=Access(1), credentials=lambda _: Peer(1, uid, 0)) as served:
            assert (await ask(served, "POST", "/v1/shutdown")).status == status

    run(main)


def test_the_kernel_says_who_a_peer_is() -> None:
    """Without anything injected this process is the supervisor's own user, and admin."""

    async def main() -> None:
        async with serving() as served:
            assert (await ask(served, "POST", "/v1/shutdown")).status == 202

    run(main)


def test_a_member_of_a_group_gets_in() -> None:
    """A peer that only a group lets in is asked for its groups once, and then has the group's level."""
    asked: list[Peer] = []

    def groups(peer: Peer) -> frozenset[int]:
        asked.append(peer)
        return frozenset((peer.gid, 10))

    async def main() -> None:
        async with (
            serving(access=GROUPS, credentials=lambda _: STRANGER, groups=groups) as served,
            talking(served) as talk,
        ):
            await talk.send(STATUS + STATUS + request("POST", "/v1/shutdown"))
            assert [(await talk.reply()).status for _ in range(3)] == [200, 200, 403]
        assert asked == [STRANGER]

    run(main)


def test_look_ups_that_hang_are_refused_in_time_and_hold_nobody_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the user database hangs its peers are refused; nobody else waits, nor lacks a thread."""
    clock = MockClock()
    hang = threading.Event()

    def groups(_: Peer) -> frozenset[int]:
        hang.wait(20)
        return frozenset((10,))

    who = STRANGER

    async def main() -> None:
        nonlocal who
        try:
            async with (
                serving(access=GROUPS, credentials=lambda _: who, groups=groups) as served,
                AsyncExitStack() as stack,
            ):
                talks = [await stack.enter_async_context(talking(served)) for _ in range(LOOKUPS + 1)]
                await wait_all_tasks_blocked()
                assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
                who = Peer(1, 0, 0)
                assert (await ask(served, "GET", "/v1/status")).status == 200
                clock.jump(DEFAULTS.groups + 0.1)
                assert [(await talk.reply()).status for talk in talks] == [401] * (LOOKUPS + 1)
        finally:
            hang.set()

    run(main, clock)
    assert caplog.messages == [f"cannot learn the groups of {STRANGER} in 5 s: refused"] * (LOOKUPS + 1)


@pytest.mark.parametrize("limits", [Limits(connections=2), DEFAULTS])
def test_connections_are_bounded(limits: Limits) -> None:
    """As many as the bound are served at once; one more is told so; a place given back is free again; and counted."""
    counts = Counts()

    async def main() -> None:
        async with serving(limits=limits, counts=counts) as served:
            async with AsyncExitStack() as stack:
                talks = [await stack.enter_async_context(talking(served)) for _ in range(limits.connections)]
                for talk in talks:
                    await talk.send(STATUS)
                    assert (await talk.reply()).status == 200
                assert counts == Counts(open=limits.connections)
                async with talking(served) as one_more:
                    reply = await one_more.reply()
                    assert (reply.status, reply.code) == (503, "too-many-connections")
                    assert reply.error["detail"] == {"limit": limits.connections}
                    await one_more.send(STATUS)
                    assert await one_more.at_end()
                await talks[0].stream.aclose()
                await wait_all_tasks_blocked()
                assert (await ask(served, "GET", "/v1/status")).status == 200
            await wait_all_tasks_blocked()
            assert (await ask(served, "GET", "/v1/status")).status == 200
            await wait_all_tasks_blocked()
            assert counts == Counts(open=0, refused=1)

    assert MAX_CONNECTIONS == 64
    run(main)


def test_a_stranger_takes_no_place() -> None:
    """A peer that is refused leaves all places to the others, also while it stays connected."""
    who = STRANGER

    async def main() -> None:
        nonlocal who
        async with (
            serving(access=Access(1), credentials=lambda _: who, limits=Limits(connections=1)) as served,
            talking(served) as one,
            talking(served) as two,
        ):
            assert [(await talk.reply()).status for talk in (one, two)] == [401, 401]
            who = Peer(1, 0, 0)
            assert (await ask(served, "GET", "/v1/status")).status == 200

    run(main)


def test_who_is_refused_gets_a_moment_to_notice() -> None:
    """A refused peer is closed when it sends or the moment is over; when too many are, at once."""
    clock = MockClock()

    async def main() -> None:
        async with (
            serving(access=Access(1), credentials=lambda _: STRANGER) as served,
            AsyncExitStack() as stack,
        ):
            talks = [await stack.enter_async_context(talking(served)) for _ in range(REFUSED)]
            for talk in talks:
                assert (await talk.reply()).status == 401
            async with talking(served) as one_more:
                assert (await one_more.reply()).status == 401
                assert await one_more.at_end()
            await talks[0].send(STATUS)
            assert await talks[0].at_end()
            await wait_all_tasks_blocked()
            assert all(talk.is_silent() for talk in talks[1:])
            clock.jump(DEFAULTS.refused + 0.1)
            for talk in talks[1:]:
                assert await talk.at_end()

    run(main, clock)


def test_a_defect_in_one_connection_is_not_everybodys(caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong while a peer is let in ends its connection, and is logged."""
    failing = True

    def credentials(_: trio.socket.SocketType) -> Peer:
        if failing:
            raise OSError("no credentials")
        return Peer(1, 0, 0)

    async def main() -> None:
        nonlocal failing
        async with serving(credentials=credentials) as served:
            async with talking(served) as talk:
                assert await talk.at_end()
            failing = False
            assert (await ask(served, "GET", "/v1/status")).status == 200

    with caplog.at_level(logging.ERROR, "capsuled.control"):
        run(main)
    assert caplog.messages == ["cannot serve a connection of the control socket any longer"]


def test_the_end_of_the_server_ends_its_connections() -> None:
    """When it is cancelled every peer is hung up on, whatever it was waiting for."""

    async def main() -> None:
        async with serving() as served, talking(served) as idle, talking(served) as waiting:
            await waiting.send(request("POST", "/v1/capsules/slow/start?wait=ready"))
            await served.daemon.waiting.wait()
            served.daemon.stopping.set()
            assert await idle.at_end()
            assert await waiting.at_end()
            with pytest.raises(OSError, match=r"Connection refused|No such file"):
                await ask(served, "GET", "/v1/status")

    run(main)


@pytest.mark.skipif(which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["http://x/v1/health"], b'{"healthy":true,"level":"alive"}\n200'),
        (["-X", "POST", "http://x/v1/capsules/echo/stop?wait=down"], b"200"),
        (["--data-binary", "@-", "http://x/v1/capsules/echo/stop"], b"413"),
        (["-I", "http://x/v1/health"], b"405"),
        (["http://x/v1/nothing"], b"404"),
    ],
)
def test_curl(arguments: list[str], end: bytes) -> None:
    """curl, as an init script would use it, gets its answers."""

    async def main() -> None:
        async with serving() as served:
            done = await trio.run_process(
                ["curl", "-sS", "--unix-socket", os.fspath(served.path), "-w", "%{http_code}", *arguments],
                stdin=bytes(2 * MAX_BODY),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert done.stdout.endswith(end), done

    run(main)
