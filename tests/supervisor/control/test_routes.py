"""The table of routes: what each asks for, and what it answers."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone

import pytest
import trio

from capsuled.proto.control import Level
from capsuled.supervisor.control.access import Access, Peer
from capsuled.supervisor.control.operations import Failed, Refused, ShuttingDown, Verb
from capsuled.supervisor.control.routes import MAX_LOG_LINES, ROUTES
from capsuled.supervisor.control.streams import Broadcast

from .serving import Daemon, Reply, ask, request, run, serving, talking

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

GROUPS = {10: Level.READ, 11: Level.OPERATE}


def answer(method: str, target: str, daemon: Daemon | None = None) -> Reply:
    """What an admin is answered."""
    replies: list[Reply] = []

    async def main() -> None:
        async with serving(daemon) as served:
            replies.append(await ask(served, method, target))

    run(main)
    return replies[0]


def in_group(gid: int) -> Peer:
    return Peer(1, 4711, gid)


LEVELS = {
    "GET /v1/status": Level.READ,
    "GET /v1/capsules": Level.READ,
    "GET /v1/capsules/{name}": Level.READ,
    "POST /v1/capsules/{name}/start": Level.OPERATE,
    "POST /v1/capsules/{name}/stop": Level.OPERATE,
    "POST /v1/capsules/{name}/restart": Level.OPERATE,
    "POST /v1/capsules/{name}/kill": Level.OPERATE,
    "POST /v1/capsules/{name}/reset-failed": Level.OPERATE,
    "GET /v1/capsules/{name}/logs": Level.READ,
    "GET /v1/capsules/{name}/why": Level.READ,
    "POST /v1/reload": Level.OPERATE,
    "GET /v1/bus": Level.READ,
    "POST /v1/bus/publish": Level.ADMIN,
    "GET /v1/bus/tap": Level.ADMIN,
    "GET /v1/bus/trace": Level.READ,
    "GET /v1/acl": Level.READ,
    "GET /v1/events": Level.READ,
    "GET /v1/metrics": Level.READ,
    "GET /v1/health": Level.READ,
    "GET /v1/openapi.json": Level.READ,
    "POST /v1/shutdown": Level.ADMIN,
}
"""As the control contract has them, written a second time on purpose."""


def test_the_table_is_the_contracts() -> None:
    """Each route has the level that the contract says, and there are no others."""
    assert {f"{route.method} {route.path}": route.level for route in ROUTES} == LEVELS


QUERIES = {"GET /v1/acl": "?capsule=echo&verb=publish&topic=room.7", "GET /v1/bus/trace": "?id=7"}


@pytest.mark.parametrize("gid", GROUPS)
@pytest.mark.parametrize("route", LEVELS)
def test_a_level_is_enforced(route: str, gid: int) -> None:
    """A peer of a group gets what its level allows; else 403, both levels by name, and nothing done."""
    method, path = route.split()
    target = path.format(name="echo") + QUERIES.get(route, "")

    async def main() -> None:
        async with serving(
            access=Access(1, GROUPS),
            credentials=lambda _: in_group(gid),
            groups=lambda peer: frozenset((peer.gid,)),
        ) as served:
            reply = await ask(served, method, target)
        needs, has = LEVELS[route], GROUPS[gid]
        if has >= needs:
            assert reply.status in (200, 202)
        else:
            assert (reply.status, reply.code) == (403, "not-permitted")
            assert reply.message == (
                f"cannot {route.format(name='echo')}: it needs level {needs.name.lower()}, you have "
                f"{has.name.lower()}: ask as root, or as a member of a group with that level"
            )
            assert reply.error["detail"] == {"needs": needs.name.lower(), "has": has.name.lower()}
            assert served.daemon.acted == []
            assert not served.daemon.stopping.is_set()

    run(main)


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/v1", "/v1/", "/v2/status", "/v1/status/", "//v1/status", "/v1/statu%73", "/v1/capsules/"),
        *("/v1/capsules//start", "/v1/capsules/echo/", "/v1/capsules/a/b/start", "/v1/reload/all", "/%2e%2e"),
    ],
)
def test_an_unknown_path_is_answered(target: str) -> None:
    """What the table does not have is 404 and no capsule's fault."""
    reply = answer("GET", target)
    assert (reply.status, reply.code) == (404, "no-such-route")
    assert reply.message.startswith(f"cannot find {target}")


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/v1/status", "GET"),
        ("GET", "/v1/capsules/echo/start", "POST"),
        ("DELETE", "/v1/capsules/echo", "GET"),
        ("BREW", "/v1/health", "GET"),
        ("get", "/v1/health", "GET"),
        ("OPTIONS", "/v1/shutdown", "POST"),
    ],
)
def test_an_unknown_method_is_answered(method: str, target: str, allowed: str) -> None:
    """A path with another method is 405, and says which it has."""
    reply = answer(method, target)
    assert (reply.status, reply.code, reply.headers["allow"]) == (405, "method-not-allowed", allowed)
    assert reply.message == f"cannot {method} {target}: the methods there are {allowed}"


@pytest.mark.parametrize(("method", "target"), [("OPTIONS", "*"), ("GET", "http://x/v1"), ("CONNECT", "x:1")])
def test_a_target_is_a_path(method: str, target: str) -> None:
    """The other forms of a target are refused."""
    reply = answer(method, target)
    assert (reply.status, reply.code) == (400, "malformed-request")


@pytest.mark.parametrize("route", [route for route in LEVELS if "{name}" in route])
def test_an_unknown_capsule_is_answered(route: str) -> None:
    """Every route with a name answers 404 with that name."""
    method, path = route.split()
    reply = answer(method, path.format(name="n%C3%B6%2F%1B"))
    assert (reply.status, reply.code) == (404, "no-such-capsule")
    assert reply.error["detail"] == {"name": "nö/\x1b"}
    assert reply.body.isascii()


def test_documents() -> None:
    """What the daemon tells is answered as it is."""
    daemon_targets = ("/v1/status", "/v1/capsules", "/v1/capsules/echo", "/v1/capsules/echo/why", "/v1/bus")

    async def main() -> None:
        async with serving() as served:
            daemon = served.daemon
            replies = [await ask(served, "GET", target) for target in daemon_targets]
            assert [reply.value for reply in replies] == [
                daemon.status(),
                {"capsules": daemon.capsules()},
                daemon.capsule("echo"),
                daemon.why("echo"),
                await daemon.bus(),
            ]
            assert {reply.headers["content-type"] for reply in replies} == {"application/json"}

    run(main)


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize(
    ("query", "wait", "timeout", "status"),
    [
        ("", None, None, 202),
        ("?wait=ready", "ready", None, 200),
        ("?wait=down&timeout=500ms", "down", 0.5, 200),
    ],
)
def test_verbs(verb: Verb, query: str, wait: str | None, timeout: float | None, status: int) -> None:
    """Each verb reaches the daemon with what to wait for: 200 when waited for, else 202, with the change."""
    daemon = Daemon()

    async def main() -> None:
        async with serving(daemon) as served:
            reply = await ask(served, "POST", f"/v1/capsules/echo/{verb.value}{query}")
        assert reply.status == status
        assert reply.value == {"change": "c1", "capsule": daemon.capsule("echo")}
        assert daemon.acted == [("echo", verb, wait, timeout)]

    run(main)


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("broken/start", 409, "conflict"),
        ("broken/restart?wait=ready", 409, "failed"),
        ("slow/start?wait=ready&timeout=1ms", 504, "timed-out"),
    ],
)
def test_what_does_not_succeed(target: str, status: int, code: str) -> None:
    """How the daemon says no decides status and code."""
    reply = answer("POST", f"/v1/capsules/{target}")
    assert (reply.status, reply.code) == (status, code)


@pytest.mark.parametrize(
    ("method", "target", "parameter"),
    [
        ("GET", "/v1/status?x=1", "x"),
        ("POST", "/v1/capsules/echo/start?wait=up", "wait"),
        ("POST", "/v1/capsules/echo/start?wait=", "wait"),
        ("POST", "/v1/capsules/echo/start?timeout=5s", "timeout"),
        ("POST", "/v1/capsules/echo/start?wait=ready&timeout=0", "timeout"),
        ("POST", "/v1/capsules/echo/start?wiat=ready", "wiat"),
        ("POST", "/v1/reload?dry_run=maybe", "dry_run"),
        ("POST", "/v1/reload?wait=down", "wait"),
        ("POST", "/v1/reload?dry_run&wait=ready", "wait"),
        ("POST", "/v1/reload?timeout=5s", "timeout"),
        ("GET", f"/v1/capsules/echo/logs?lines={MAX_LOG_LINES + 1}", "lines"),
        ("GET", "/v1/capsules/echo/logs?lines=-1", "lines"),
        ("GET", "/v1/capsules/echo/logs?follow=maybe", "follow"),
        ("GET", "/v1/capsules/echo/logs?since=now", "since"),
        ("GET", "/v1/events?since=now", "since"),
        ("GET", "/v1/acl", "capsule"),
        ("GET", "/v1/acl?capsule=echo", "verb"),
        ("GET", "/v1/acl?capsule=echo&verb=read", "verb"),
        ("GET", "/v1/acl?capsule=echo&verb=publish", "topic"),
        ("GET", "/v1/acl?capsule=echo&verb=publish&topic=a..b", "topic"),
        ("GET", f"/v1/acl?capsule=echo&verb=publish&topic={'a' * 257}", "topic"),
        ("GET", "/v1/acl?capsule=echo&verb=subscribe&topic=a.*.b", "topic"),
        ("GET", "/v1/health?level=well", "level"),
        ("POST", "/v1/shutdown?now", "now"),
    ],
)
def test_a_bad_parameter_is_named_and_nothing_done(method: str, target: str, parameter: str) -> None:
    """A parameter that is unknown, missing or against its rule is 400 with its name; nothing happens."""
    daemon = Daemon()

    async def main() -> None:
        async with serving(daemon) as served:
            reply = await ask(served, method, target)
        assert (reply.status, reply.code) == (400, "bad-parameter")
        assert isinstance(reply.error["detail"], dict)
        assert reply.error["detail"]["parameter"] == parameter
        assert (daemon.acted, daemon.asked, daemon.stopping.is_set()) == ([], [], False)

    run(main)


SINCE = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/v1/capsules/echo/logs", ("logs", "echo", 100, None)),
        ("/v1/capsules/echo/logs?lines=2", ("logs", "echo", 2, None)),
        ("/v1/capsules/echo/logs?lines=0", ("logs", "echo", 0, None)),
        (f"/v1/capsules/echo/logs?lines={MAX_LOG_LINES}", ("logs", "echo", MAX_LOG_LINES, None)),
        ("/v1/capsules/echo/logs?since=2026-01-31T12:00:00Z", ("logs", "echo", 100, SINCE)),
        ("/v1/events", ("events", None)),
        ("/v1/events?since=2026-01-31T12:00:00Z", ("events", SINCE)),
        ("/v1/acl?capsule=echo&verb=publish&topic=room.7", ("acl", "echo", "publish", "room.7")),
        ("/v1/acl?capsule=echo&verb=subscribe&topic=a.*", ("acl", "echo", "subscribe", "a.*")),
        ("/v1/health", ("health", "alive")),
        ("/v1/health?level=ready", ("health", "ready")),
    ],
)
def test_parameters_reach_the_daemon(target: str, asked: tuple[object, ...]) -> None:
    """What a query says, or its default, is what the daemon is asked."""
    daemon = Daemon()
    assert answer("GET", target, daemon).status == 200
    assert daemon.asked == [asked]


@pytest.mark.parametrize("target", ["/v1/capsules/echo/logs?lines=2", "/v1/events"])
def test_lines(target: str) -> None:
    """Logs and events are JSON lines, oldest first."""
    daemon = Daemon()
    reply = answer("GET", target, daemon)
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.lines == (daemon.past_events if "events" in target else daemon.log_lines[-2:])


@pytest.mark.parametrize(("healthy", "status"), [(True, 200), (False, 503)])
def test_health(healthy: bool, status: int) -> None:
    """The status says whether all is well, the document what is missing."""
    daemon = Daemon()
    daemon.is_healthy = healthy
    reply = answer("GET", "/v1/health?level=ready", daemon)
    assert (reply.status, reply.value) == (status, {"healthy": healthy, "level": "ready"})


@pytest.mark.parametrize(
    ("target", "backlog"),
    [
        ("/v1/capsules/echo/logs?follow&lines=1", 1),
        ("/v1/capsules/echo/logs?follow&lines=0", 0),
        ("/v1/events?follow", 0),
        ("/v1/events?follow&since=2026-01-31T12:00:00Z", 1),
    ],
)
def test_following(target: str, backlog: int) -> None:
    """A follower gets the lines that it asked for, then each that comes, then the end."""
    daemon = Daemon()
    source: Broadcast = daemon.happenings if "events" in target else daemon.log

    async def publish() -> None:
        await daemon.followed.wait()
        for n in range(3):
            source.publish({"n": n})
        source.close()

    async def main() -> None:
        async with serving(daemon) as served, trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            reply = await ask(served, "GET", target)
        assert reply.headers["content-type"] == "application/x-ndjson"
        kept = daemon.past_events if "events" in target else daemon.log_lines
        assert reply.lines == [*kept[len(kept) - backlog :], {"n": 0}, {"n": 1}, {"n": 2}]

    run(main)


def test_shutdown_is_answered_first() -> None:
    """The peer that asks for the shutdown learns that it was taken, though the server ends by it."""
    daemon = Daemon()
    reply = answer("POST", "/v1/shutdown", daemon)
    assert (reply.status, reply.value) == (202, {"shutting_down": True})
    assert daemon.stopping.is_set()


@pytest.mark.parametrize("defect", [ZeroDivisionError("x"), ExceptionGroup("x", [ValueError()]), KeyError()])
def test_a_defect_is_500_and_the_server_goes_on(defect: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A defect behind a route costs its peer an answer: it is logged, and the same connection goes on."""

    async def main() -> None:
        async with serving() as served, talking(served) as talk:
            served.daemon.defect = defect
            await talk.send(request("GET", "/v1/status"))
            reply = await talk.reply()
            assert (reply.status, reply.code) == (500, "internal")
            assert reply.message == (
                f"cannot answer: {type(defect).__name__} in the supervisor: please report what its log says"
            )
            served.daemon.defect = None
            await talk.send(request("GET", "/v1/status"))
            assert (await talk.reply()).status == 200

    with caplog.at_level(logging.ERROR, "capsuled.control"):
        run(main)
    (record,) = caplog.records
    assert record.getMessage() == "cannot answer GET /v1/status"
    assert record.exc_info is not None
    assert record.exc_info[1] is defect


def test_a_value_that_json_does_not_have_is_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    """What the daemon tells wrongly is 500 too."""
    daemon = Daemon()
    daemon.capsules_by_name["echo"]["usage"] = {"cpu_seconds": float("nan")}
    assert answer("GET", "/v1/capsules/echo", daemon).status == 500
    assert len(caplog.records) == 1


def test_a_defect_while_following_leaves_no_follower(caplog: pytest.LogCaptureFixture) -> None:
    """When the backlog cannot be told the follower is closed as well."""
    daemon = Daemon()
    daemon.past_events = [{"bad": float("nan")}]
    assert answer("GET", "/v1/events?follow&since=2026-01-31T12:00:00Z", daemon).code == "internal"
    assert daemon.followed.is_set()
    assert daemon.following == 0
    assert len(caplog.records) == 1


def test_names_are_decoded() -> None:
    """A name with escapes reaches the daemon decoded, and an escaped slash does not divide it."""

    async def main() -> None:
        async with serving() as served:
            served.daemon.capsules_by_name["a b/ü"] = {"name": "a b/ü"}
            reply = await ask(served, "GET", "/v1/capsules/a%20b%2F%C3%BC")
            assert reply.value == {"name": "a b/ü"}

    run(main)


def test_a_waiting_request_holds_nobody_up() -> None:
    """While one peer waits for a capsule, others are answered, about the same capsule too."""

    async def main() -> None:
        async with serving() as served, talking(served) as waiting:
            await waiting.send(request("POST", "/v1/capsules/slow/start?wait=ready"))
            await served.daemon.waiting.wait()
            assert (await ask(served, "POST", "/v1/capsules/slow/stop")).status == 202
            assert (await ask(served, "GET", "/v1/capsules/slow")).status == 200
            served.daemon.release.set()
            assert (await waiting.reply()).status == 200

    run(main)


@pytest.mark.parametrize(
    ("query", "status", "asked"),
    [
        ("", 202, [("reload", False)]),
        ("?dry_run", 200, [("reload", True)]),
        ("?dry_run=no", 202, [("reload", False)]),
        ("?wait=ready", 200, [("reload", False), ("settle", ["echo", "idle", "new"], None)]),
        ("?wait=ready&timeout=500ms", 200, [("reload", False), ("settle", ["echo", "idle", "new"], 0.5)]),
    ],
)
def test_reload(query: str, status: int, asked: list[tuple[object, ...]]) -> None:
    """202 when something was set going, 200 for a dry run or when all that moves was waited for; with the plan."""
    daemon = Daemon()
    reply = answer("POST", f"/v1/reload{query}", daemon)
    assert reply.status == status
    assert reply.value == {"dry_run": query == "?dry_run", **daemon.plan}
    assert daemon.asked == asked


def test_a_reload_that_moves_nothing_is_done() -> None:
    """Nothing was set going: 200, though nobody waited."""
    daemon = Daemon()
    daemon.plan.update(added=[], removed=[], changed=[])
    assert answer("POST", "/v1/reload", daemon).status == 200


def test_a_reload_waits_for_what_moves() -> None:
    """What was waited for and does not come in time is 504; what was begun goes on."""
    daemon = Daemon()
    daemon.plan.update(changed=[{"name": "slow", "why": ["the version is 2.0.0 now"]}])
    reply = answer("POST", "/v1/reload?wait=ready&timeout=1ms", daemon)
    assert (reply.status, reply.code) == (504, "timed-out")


@pytest.mark.parametrize(
    ("refused", "status", "code"),
    [(ShuttingDown("the supervisor ends"), 503, "shutting-down"), (Failed("cannot read"), 409, "failed")],
)
def test_a_reload_that_is_refused(refused: Refused, status: int, code: str) -> None:
    """As every other change."""
    daemon = Daemon()
    daemon.no_reload = refused
    reply = answer("POST", "/v1/reload", daemon)
    assert (reply.status, reply.code) == (status, code)


def test_metrics() -> None:
    """The text for scrapers, with the media type that says which text it is."""
    daemon = Daemon()
    reply = answer("GET", "/v1/metrics", daemon)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert reply.body.decode() == daemon.exposition
