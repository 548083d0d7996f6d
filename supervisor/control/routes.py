"""The table of routes: method, path, level, parameters, and what each does.

A route's level and parameters stand in the table, so that the rule which a reader sees is the one that is
enforced. Paths are matched segment by segment; `{name}` is any one segment that is not empty.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from capsuled.proto import payloads, topics
from capsuled.proto.control import Level
from capsuled.supervisor.control import messages, parameters, reloading, schemas, shapes
from capsuled.supervisor.control.errors import (
    BadParameter,
    Internal,
    Malformed,
    MethodNotAllowed,
    NoSuchRoute,
    NotPermitted,
)
from capsuled.supervisor.control.messages import Answer, Request, Streamed
from capsuled.supervisor.control.operations import AclVerb, HealthLevel, Operations, Refused, Verb, Wait
from capsuled.supervisor.control.parameters import Parameters
from capsuled.supervisor.control.shapes import JsonObject

LOG = logging.getLogger("capsuled.control")

DEFAULT_LOG_LINES = 100
"""What fits on a screen or two."""

MAX_LOG_LINES = 10_000
"""Most log lines of one answer; it is built in memory."""

WAITS: Mapping[str, Wait] = {"ready": "ready", "down": "down"}
RELOAD_WAITS: Mapping[str, Wait] = {"ready": "ready"}
HEALTH_LEVELS: Mapping[str, HealthLevel] = {"alive": "alive", "ready": "ready"}
ACL_VERBS: Mapping[str, AclVerb] = {"publish": "publish", "subscribe": "subscribe"}


class Call(NamedTuple):
    """One request, routed and checked. `held` closes what an answer holds open, when the answer has ended."""

    operations: Operations
    names: Mapping[str, str]
    given: Parameters
    held: ExitStack
    request: Request


Handler = Callable[[Call], Answer | Streamed | Awaitable[Answer | Streamed]]
"""Only a handler that can block returns an awaitable."""


def _status(call: Call) -> Answer:
    return _document(call.operations.status())


def _capsules(call: Call) -> Answer:
    return _document({"capsules": call.operations.capsules()})


def _capsule(call: Call) -> Answer:
    return _document(call.operations.capsule(call.names["name"]))


async def _act(verb: Verb, call: Call) -> Answer:
    wait, timeout = _waiting(call, WAITS)
    result = await call.operations.act(call.names["name"], verb, wait=wait, timeout=timeout)
    return _document(
        {"change": result.change, "capsule": result.capsule},
        HTTPStatus.OK if result.done else HTTPStatus.ACCEPTED,
    )


def _waiting(call: Call, choices: Mapping[str, Wait]) -> tuple[Wait | None, float | None]:
    """What to wait for, and how many seconds at most."""
    wait = parameters.choice(call.given, "wait", choices)
    timeout = parameters.seconds(call.given, "timeout")
    if timeout is not None and wait is None:
        together = " or ".join(f"wait={choice}" for choice in choices)
        raise BadParameter("timeout", call.given["timeout"], f"give it together with {together}")
    return wait, timeout


async def _reload(call: Call) -> Answer:
    dry_run = parameters.flag(call.given, "dry_run")
    wait, timeout = _waiting(call, RELOAD_WAITS)
    if dry_run and wait is not None:
        raise BadParameter("wait", wait, "a dry run sets nothing going: leave it out, or dry_run")
    plan = await call.operations.reload(dry_run=dry_run)
    moved = reloading.moved(plan)
    if wait is not None:
        await call.operations.settle(moved, timeout)
    going = bool(moved) and not dry_run and wait is None
    return _document(plan, HTTPStatus.ACCEPTED if going else HTTPStatus.OK)


async def _logs(call: Call) -> Answer | Streamed:
    name = call.names["name"]
    lines = parameters.count(call.given, "lines", DEFAULT_LOG_LINES, MAX_LOG_LINES)
    since = parameters.time(call.given, "since")
    follow = parameters.flag(call.given, "follow")
    await call.operations.recall_logs(name)
    if not follow:
        return _lines(call.operations.logs(name, lines, since))
    # Follow first, read second, no checkpoint in between: nothing is missing and nothing comes twice.
    follower = call.held.enter_context(call.operations.follow_logs(name))
    return Streamed(_encoded(call.operations.logs(name, lines, since)), follower)


def _why(call: Call) -> Answer:
    return _document(call.operations.why(call.names["name"]))


async def _bus(call: Call) -> Answer:
    return _document(await call.operations.bus())


async def _publish(call: Call) -> Answer:
    topic = _topic(call, topics.split)
    if topic.split(topics.SEPARATOR)[0] == topics.RESERVED:
        raise BadParameter("topic", topic, f"'{topics.RESERVED}' is the supervisor's own")
    seq = await call.operations.publish(topic, _payload(call.request))
    return _document({"topic": topic, "seq": seq})


def _payload(request: Request) -> bytes:
    """The body as one CBOR item: it is one already, or JSON (which curl sends as a form, if not told otherwise)."""
    try:
        if request.media == shapes.CBOR:
            payloads.check(request.body)
            return request.body
        return payloads.encode(json.loads(request.body, parse_constant=_no_constant))
    except (payloads.NotCbor, ValueError, RecursionError) as exc:
        kind = "CBOR" if request.media == shapes.CBOR else "JSON"
        raise Malformed(f"cannot publish the body: it is no {kind} of the accepted form: {exc}") from exc


def _no_constant(name: str) -> object:
    """NaN and the infinities, which Python's reader takes and JSON does not have."""
    raise ValueError(f"{name} is no JSON")


def _tap(call: Call) -> Streamed:
    pattern = _topic(call, topics.split, "pattern")
    return Streamed(b"", call.held.enter_context(call.operations.tap(pattern)))


async def _trace(call: Call) -> Answer:
    text = parameters.required(call.given, "id", "write the seq of a message")
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= schemas.MAX_SEQ):
        raise BadParameter("id", text, "write the seq of a message, a number of 64 bits at most")
    return _document(await call.operations.trace(int(text)))


def _topic(call: Call, split: Callable[[str], object], name: str = "topic") -> str:
    text = parameters.required(call.given, name, "write a topic, segments between dots")
    try:
        split(text)
    except topics.TopicError as exc:
        raise BadParameter(name, text, str(exc)) from exc
    return text


def _acl(call: Call) -> Answer:
    capsule = parameters.required(call.given, "capsule", "write the name of a capsule")
    verb = parameters.choice(call.given, "verb", ACL_VERBS)
    if verb is None:
        raise BadParameter("verb", None, f"write {' or '.join(ACL_VERBS)}")
    topic = _topic(call, topics.split_subscribable if verb == "subscribe" else topics.split)
    return _document(call.operations.acl(capsule, verb, topic))


async def _metrics(call: Call) -> Answer:
    return Answer(HTTPStatus.OK, (await call.operations.metrics()).encode(), shapes.OPENMETRICS)


def _health(call: Call) -> Answer:
    # Alive by default: an init system that takes "not ready yet" for "dead" would kill what only needs time.
    level = parameters.choice(call.given, "level", HEALTH_LEVELS) or "alive"
    healthy, report = call.operations.health(level)
    return _document(report, HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE)


def _events(call: Call) -> Answer | Streamed:
    since = parameters.time(call.given, "since")
    if not parameters.flag(call.given, "follow"):
        return _lines(call.operations.events(since))
    follower = call.held.enter_context(call.operations.follow_events())
    # Without `since` a follower asks what happens from now on.
    return Streamed(b"" if since is None else _encoded(call.operations.events(since)), follower)


def _openapi(_call: Call) -> Answer:
    # Here, for it is made of the table below; and only who wants it pays for it.
    from capsuled.supervisor.control import openapi

    return _document(openapi.document())


def _shutdown(call: Call) -> Answer:
    call.operations.shutdown()
    return _document({"shutting_down": True}, HTTPStatus.ACCEPTED)


class Route(NamedTuple):
    method: str
    path: str
    level: Level
    parameters: tuple[str, ...]
    handler: Handler


_WAITING = ("wait", "timeout")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/status", Level.READ, (), _status),
    Route("GET", "/v1/capsules", Level.READ, (), _capsules),
    Route("GET", "/v1/capsules/{name}", Level.READ, (), _capsule),
    Route("POST", "/v1/capsules/{name}/start", Level.OPERATE, _WAITING, partial(_act, Verb.START)),
    Route("POST", "/v1/capsules/{name}/stop", Level.OPERATE, _WAITING, partial(_act, Verb.STOP)),
    Route("POST", "/v1/capsules/{name}/restart", Level.OPERATE, _WAITING, partial(_act, Verb.RESTART)),
    Route("POST", "/v1/capsules/{name}/kill", Level.OPERATE, _WAITING, partial(_act, Verb.KILL)),
    Route("POST", "/v1/capsules/{name}/reset-failed", Level.OPERATE, _WAITING, partial(_act, Verb.RESET)),
    Route("GET", "/v1/capsules/{name}/logs", Level.READ, ("follow", "lines", "since"), _logs),
    Route("GET", "/v1/capsules/{name}/why", Level.READ, (), _why),
    Route("POST", "/v1/reload", Level.OPERATE, ("dry_run", *_WAITING), _reload),
    Route("GET", "/v1/bus", Level.READ, (), _bus),
    Route("POST", "/v1/bus/publish", Level.ADMIN, ("topic",), _publish),
    Route("GET", "/v1/bus/tap", Level.ADMIN, ("pattern",), _tap),
    Route("GET", "/v1/bus/trace", Level.READ, ("id",), _trace),
    Route("GET", "/v1/acl", Level.READ, ("capsule", "verb", "topic"), _acl),
    Route("GET", "/v1/events", Level.READ, ("follow", "since"), _events),
    Route("GET", "/v1/metrics", Level.READ, (), _metrics),
    Route("GET", "/v1/health", Level.READ, ("level",), _health),
    Route("GET", "/v1/openapi.json", Level.READ, (), _openapi),
    Route("POST", "/v1/shutdown", Level.ADMIN, (), _shutdown),
)


async def respond(
    operations: Operations, level: Level, request: Request, held: ExitStack
) -> Answer | Streamed:
    """The answer to `request` of a peer with `level`. Raises nothing: a refusal or a defect is an answer."""
    try:
        path, _, query = request.target.partition("?")
        route, names = find(request.method, path)
        if level < route.level:
            raise NotPermitted(
                f"cannot {request.method} {path}: it needs level {route.level.name.lower()}, you have "
                f"{level.name.lower()}: ask as root, or as a member of a group with that level",
                {"needs": route.level.name.lower(), "has": level.name.lower()},
            )
        call = Call(operations, names, parameters.parse(query, route.parameters), held, request)
        outcome = route.handler(call)
        return outcome if isinstance(outcome, (Answer, Streamed)) else await outcome
    except Refused as refused:
        return messages.refusal(refused)
    except Exception as exc:
        # Any defect behind a route ends here: it costs its peer an answer, and not everybody the supervisor.
        LOG.exception("cannot answer %s %s", request.method, request.target)
        return messages.refusal(
            Internal(
                f"cannot answer: {type(exc).__name__} in the supervisor: please report what its log says"
            )
        )


def find(method: str, path: str) -> tuple[Route, Mapping[str, str]]:
    """The route of `path` and `method`, and the names in the path.

    Raises `Malformed`, `NoSuchRoute` or `MethodNotAllowed`.
    """
    if not path.startswith("/"):
        raise Malformed(f"cannot take '{path[:100]}' for a path: write one such as /v1/status")
    matching = [(route, names) for route in ROUTES if (names := _match(route.path, path)) is not None]
    if not matching:
        raise NoSuchRoute(f"cannot find {path[:100]}: the routes are listed in docs/control.md")
    for route, names in matching:
        if route.method == method:
            return route, names
    raise MethodNotAllowed(method, path, tuple(route.method for route, _ in matching))


def _match(template: str, path: str) -> Mapping[str, str] | None:
    wanted, given = template.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    names: dict[str, str] = {}
    for want, have in zip(wanted, given, strict=True):
        if want.startswith("{"):
            # Decoded after splitting: an encoded slash is part of a name, and no name has one.
            names[want[1:-1]] = unquote(have)
        elif want != have:
            return None
    return names if all(names.values()) else None


def _document(value: JsonObject, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(status, shapes.line(value))


def _lines(values: Sequence[JsonObject]) -> Answer:
    return Answer(HTTPStatus.OK, _encoded(values), shapes.JSON_LINES)


def _encoded(values: Sequence[JsonObject]) -> bytes:
    return b"".join(map(shapes.line, values))
