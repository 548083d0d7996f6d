"""The OpenAPI document of the control socket, made of the table of routes and the schemas of what travels.

https://spec.openapis.org/oas/v3.1.0. It is served at `/v1/openapi.json` and stands in docs/openapi.json. What it cannot
say stands in words: who a peer is (no scheme of HTTP's, the kernel says it), and rules between two parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus

from capsuled.proto import topics
from capsuled.proto._version import __version__
from capsuled.supervisor.control import schemas, shapes
from capsuled.supervisor.control.durations import RULE
from capsuled.supervisor.control.operations import REACHED_BY
from capsuled.supervisor.control.routes import (
    ACL_VERBS,
    DEFAULT_LOG_LINES,
    HEALTH_LEVELS,
    MAX_LOG_LINES,
    RELOAD_WAITS,
    ROUTES,
    WAITS,
    Route,
)
from capsuled.supervisor.control.schemas import ref
from capsuled.supervisor.control.shapes import Json, JsonObject

LEVELS = "x-capsuled-level"
LINE = "x-capsuled-line"
"""The schema of each line of an answer that is JSON lines: OpenAPI 3.1 has none for that."""


@dataclass(frozen=True)
class Told:
    """What the document says of a route. `answers` are the schemas by status; `line` is that of a list of lines."""

    summary: str
    answers: Mapping[int, str] = field(default_factory=dict[int, str])
    line: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()
    """Of its own, beside those that every route has."""
    media: str = shapes.JSON


OK, ACCEPTED = HTTPStatus.OK.value, HTTPStatus.ACCEPTED.value
NOT_FOUND, CONFLICT = HTTPStatus.NOT_FOUND.value, HTTPStatus.CONFLICT.value
GATEWAY_TIMEOUT = HTTPStatus.GATEWAY_TIMEOUT.value

ALWAYS = (400, 401, 403, 408, 413, 431, 500, 501, 503)
"""Statuses that any request may be answered with."""

_CHANGED = {OK: "Changed", ACCEPTED: "Changed"}
_ACTING = (NOT_FOUND, CONFLICT, GATEWAY_TIMEOUT)

TOLD: Mapping[str, Told] = {
    "GET /v1/status": Told("The supervisor", {OK: "Status"}),
    "GET /v1/capsules": Told("All capsules", {OK: "Capsules"}),
    "GET /v1/capsules/{name}": Told("One capsule", {OK: "Capsule"}, refusals=(NOT_FOUND,)),
    "POST /v1/capsules/{name}/start": Told("Want it up", _CHANGED, refusals=_ACTING),
    "POST /v1/capsules/{name}/stop": Told("Want it down", _CHANGED, refusals=_ACTING),
    "POST /v1/capsules/{name}/restart": Told("Stop it, then start it", _CHANGED, refusals=_ACTING),
    "POST /v1/capsules/{name}/kill": Told(
        "Kill its process now, and want it down", _CHANGED, refusals=_ACTING
    ),
    "POST /v1/capsules/{name}/reset-failed": Told("Forget its failures", _CHANGED, refusals=_ACTING),
    "GET /v1/capsules/{name}/logs": Told("Its log", line=("LogLine",), refusals=(NOT_FOUND,)),
    "GET /v1/capsules/{name}/why": Told(
        "Its last ends, and what happens next", {OK: "Why"}, refusals=(NOT_FOUND,)
    ),
    "POST /v1/reload": Told(
        "Read the manifests again", {OK: "Plan", ACCEPTED: "Plan"}, refusals=(CONFLICT, GATEWAY_TIMEOUT)
    ),
    "GET /v1/bus": Told("The ledger", {OK: "Bus"}, refusals=(CONFLICT,)),
    "POST /v1/bus/publish": Told("Publish as the operator", {OK: "Published"}, refusals=(CONFLICT,)),
    "GET /v1/bus/tap": Told("Messages as they pass, without end", line=("Message", "Lost")),
    "GET /v1/bus/trace": Told("A message's chain of causes", {OK: "Trace"}, refusals=(CONFLICT,)),
    "GET /v1/acl": Told("Whether it may", {OK: "Acl"}, refusals=(NOT_FOUND,)),
    "GET /v1/events": Told("Lifecycle events", line=("Event",)),
    "GET /v1/metrics": Told("Every count, as OpenMetrics", media=shapes.OPENMETRICS),
    "GET /v1/health": Told("200 when all is well", {OK: "Health"}),
    "GET /v1/openapi.json": Told("This document"),
    "POST /v1/shutdown": Told("Stop all capsules, then the supervisor", {ACCEPTED: "ShuttingDown"}),
}

REFUSED: Mapping[int, str] = {
    400: "The request, or a parameter, is not as it should be",
    401: "You have no level",
    403: "Your level is too low",
    404: "There is no such capsule",
    405: "The path has other methods",
    408: "The request was not finished in time",
    409: "It contradicts itself, the present state, or cannot come any more",
    413: "The body is too large",
    431: "The head is too large",
    500: "A defect in the supervisor",
    501: "A transfer coding other than chunked",
    503: "Too many connections, or the supervisor shuts down",
    504: "The time to wait is over; what was begun goes on",
}

_FLAG: JsonObject = schemas.text("Alone, or with a word.", enum=["", "1", "true", "yes", "0", "false", "no"])
_TOPIC_RULE = (
    f"Segments between dots, {topics.MAX_SEGMENTS} at most, {topics.MAX_BYTES} bytes of UTF-8 in all."
)


def _words(choices: Mapping[str, object], description: str = "") -> JsonObject:
    return schemas.text(description, enum=list(choices))


PARAMETERS: Mapping[str, JsonObject] = {
    "name": schemas.text("A capsule's name.", minLength=1),
    "capsule": schemas.text("A capsule's name.", minLength=1),
    "wait": _words(WAITS),
    "timeout": schemas.text(
        f"Only together with `wait`: {RULE}.",
        pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)?$",
        examples=["5s"],
    ),
    "follow": _FLAG,
    "dry_run": _FLAG,
    "lines": schemas.integer(maximum=MAX_LOG_LINES, default=DEFAULT_LOG_LINES),
    "since": schemas.text("None older.", format="date-time"),
    "topic": schemas.text(_TOPIC_RULE, pattern=schemas.TOPIC, maxLength=topics.MAX_BYTES),
    "pattern": schemas.text(_TOPIC_RULE, pattern=schemas.TOPIC, maxLength=topics.MAX_BYTES),
    "id": schemas.integer("The `seq` of any message of the chain.", maximum=schemas.MAX_SEQ),
    "verb": _words(ACL_VERBS),
    "level": schemas.text(enum=list(HEALTH_LEVELS), default="alive"),
}
"""By name; a route that means something else by one has it in `OWN`."""

OWN: Mapping[tuple[str, str], JsonObject] = {
    ("POST /v1/reload", "wait"): _words(RELOAD_WAITS, "Answer when all that moves is as it is wanted."),
    **{
        (f"POST /v1/capsules/{{name}}/{verb.value}", "wait"): _words(
            {wait: wait}, "Answer when it is so: no other can be brought about, and is refused with 409."
        )
        for verb, wait in REACHED_BY.items()
    },
    ("POST /v1/bus/publish", "topic"): schemas.text(
        f"{_TOPIC_RULE} Not under `{topics.RESERVED}`, which is the supervisor's own.",
        pattern=schemas.TOPIC,
        maxLength=topics.MAX_BYTES,
    ),
}

REQUIRED = {"name", "capsule", "verb", "topic", "pattern", "id"}


@cache
def document() -> JsonObject:
    """The whole of it, as JSON."""
    paths: dict[str, dict[str, Json]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "capsuled",
            "version": __version__,
            "description": "The control socket, HTTP/1.1 over a Unix stream socket. The kernel says who a peer is "
            f"(SO_PEERCRED), and that decides its level; `{LEVELS}` is the one that an operation asks for. An answer "
            f"of JSON lines has the schema of its lines in `{LINE}`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {"url": "http://localhost", "description": "curl --unix-socket /run/capsuled/control.sock"}
        ],
        "paths": paths,
        "components": {
            "schemas": schemas.SCHEMAS,
            "responses": {str(status): _refusal(status) for status in REFUSED},
        },
    }


def _operation(route: Route) -> JsonObject:
    key = f"{route.method} {route.path}"
    told = TOLD[key]
    names = (["name"] if "{name}" in route.path else []) + list(route.parameters)
    operation: dict[str, Json] = {
        "operationId": _identifier(route),
        "summary": told.summary,
        LEVELS: route.level.name.lower(),
        "parameters": [_parameter(key, name, route.path) for name in names],
        "responses": _responses(told),
    }
    if key == "POST /v1/bus/publish":
        operation["requestBody"] = {
            "required": True,
            "content": {
                shapes.JSON: {"schema": ref("Payload")},
                shapes.CBOR: {"schema": {"description": "One item of CBOR, RFC 8949."}},
            },
        }
    return operation


def _identifier(route: Route) -> str:
    parts = [part for part in route.path.split("/")[2:] if not part.startswith("{")]
    if route.path == "/v1/capsules/{name}":
        parts = ["capsule"]
    return "_".join(parts).replace("-", "_").replace(".", "_")


def _parameter(key: str, name: str, path: str) -> JsonObject:
    schema = OWN.get((key, name), PARAMETERS[name])
    description = schema.get("description")
    in_path = f"{{{name}}}" in path
    found: dict[str, Json] = {
        "name": name,
        "in": "path" if in_path else "query",
        "required": in_path or name in REQUIRED,
        "schema": {key: value for key, value in schema.items() if key != "description"},
    }
    if description:
        found["description"] = description
    if schema is _FLAG:
        found["allowEmptyValue"] = True
    return found


def _responses(told: Told) -> JsonObject:
    found: dict[str, Json] = {}
    for status, name in told.answers.items():
        found[str(status)] = _answer(status, told.media, ref(name))
    if told.line:
        lines: list[Json] = [ref(name) for name in told.line]
        schema: JsonObject = {"type": "string", "description": "JSON lines."}
        found[str(OK)] = _answer(OK, shapes.JSON_LINES, schema, {LINE: {"anyOf": lines}})
    if not found:
        kind: JsonObject = {"type": "object"} if told.media == shapes.JSON else {"type": "string"}
        found[str(OK)] = _answer(OK, told.media, kind)
    for status in sorted({*ALWAYS, *told.refusals}):
        found[str(status)] = {"$ref": f"#/components/responses/{status}"}
    if told.answers.get(OK) == "Health":
        both: list[Json] = [ref("Health"), ref("Error")]
        found["503"] = _answer(503, shapes.JSON, {"anyOf": both})
    return found


def _answer(
    status: int, media: str, schema: JsonObject, more: Mapping[str, Json] | None = None
) -> JsonObject:
    described = {OK: "Done", ACCEPTED: "Recorded; it goes on"}.get(status, "Not all is well")
    return {"description": described, "content": {media: {"schema": schema, **(more or {})}}}


def _refusal(status: int) -> JsonObject:
    found: dict[str, Json] = {
        "description": REFUSED[status],
        "content": {shapes.JSON: {"schema": ref("Error")}},
    }
    header = {401: "WWW-Authenticate", 405: "Allow"}.get(status)
    if header is not None:
        found["headers"] = {header: {"required": True, "schema": {"type": "string"}}}
    return found
