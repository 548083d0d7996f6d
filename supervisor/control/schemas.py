"""JSON Schema of what travels: parameters, bodies and answers. `openapi` makes the document of them.

A member that stands in `required` is always there. Objects stay open: a newer supervisor may say more.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from capsuled.proto import items, topics
from capsuled.proto.control import LOG_LEVELS, Desired, LogStream, Reason, State
from capsuled.supervisor.control.shapes import Json, JsonObject

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Of a capsule: docs/manifest.md."""

TOPIC = rf"^[^.\x00]+(\.[^.\x00]+){{0,{topics.MAX_SEGMENTS - 1}}}$"

MAX_SEQ = 2**64 - 1
"""Largest sequence number: the backbone's have 64 bits."""


def ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str = "", **more: Json) -> JsonObject:
    return {"type": "string", **({"description": description} if description else {}), **more}


def integer(description: str = "", **more: Json) -> JsonObject:
    told = {"description": description} if description else {}
    return {"type": "integer", "minimum": 0, **told, **more}


def number(description: str = "", **more: Json) -> JsonObject:
    told = {"description": description} if description else {}
    return {"type": "number", "minimum": 0, **told, **more}


def nullable(schema: JsonObject) -> JsonObject:
    return {"anyOf": [schema, {"type": "null"}]}


def array(of: JsonObject, description: str = "") -> JsonObject:
    return {"type": "array", "items": of, **({"description": description} if description else {})}


def table(description: str, members: Mapping[str, JsonObject], *optional: str) -> JsonObject:
    """An object whose `members` are all there but for the `optional` ones."""
    required: list[Json] = [name for name in members if name not in optional]
    return {"type": "object", "description": description, "properties": members, "required": required}


def words(of: type[Enum], description: str = "") -> JsonObject:
    return text(description, enum=[each.value for each in of])


BOOLEAN: JsonObject = {"type": "boolean"}
TIME = text(format="date-time")
ANY: JsonObject = {}
COUNTS: JsonObject = {"type": "object", "additionalProperties": integer()}

LAYER = table(
    "Whether a layer of the isolation holds, and why it is said so.", {"held": BOOLEAN, "why": text()}
)
LAYERS: JsonObject = {"type": "object", "additionalProperties": ref("Layer")}

FAULT = table(
    "Something wrong in a file.",
    {"file": text(), "key": text("Empty: the file itself."), "message": text()},
)

_ENTRY_COUNTS = (
    *("published", "routed", "lost", "received", "malformed"),
    *("requests", "answered", "failed", "waiting", "late"),
    *("queued", "host_calls", "logs_cut", "retained", "retained_bytes", "retained_evicted"),
)

SCHEMAS: Mapping[str, JsonObject] = {
    "Error": table(
        "Every refusal. `code` is for programs and stays as it is.",
        {
            "error": table(
                "What, in a sentence with the next step, and facts.",
                {"code": text(), "message": text(), "detail": {"type": "object"}},
            )
        },
    ),
    "Layer": LAYER,
    "Fault": FAULT,
    "Status": table(
        "The supervisor.",
        {
            "pid": integer(),
            "version": text(),
            "uptime": number("Seconds."),
            "states": {
                "type": "object",
                "additionalProperties": integer(),
                "description": "Capsules by state.",
            },
            "mode": text("Of the isolation: docs/SECURITY.md.", enum=list("ABCDE")),
            "isolation": LAYERS,
            "engines": {
                "type": "object",
                "additionalProperties": table(
                    "An engine.", {"available": BOOLEAN, "version": text(), "why": text()}, "version", "why"
                ),
            },
            "faults": array(ref("Fault"), "Of the manifests that were left out."),
            "backbone": table(
                "The message process.",
                {"pid": nullable(integer()), "up": BOOLEAN, "epoch": integer(), "restarts": integer()},
            ),
        },
    ),
    "Usage": table(
        "What a capsule uses. Null is what may not be seen.",
        {
            "cpu_seconds": nullable(number()),
            "memory": integer("Bytes of the guest's linear memory."),
            "process_memory": nullable(integer("Resident, bytes.")),
            "open_files": nullable(integer()),
            "sampled_at": TIME,
        },
        "sampled_at",
    ),
    "Exit": table(
        "An end with its evidence.",
        {"time": TIME, "instance": text(), "reason": words(Reason), "last_lines": array(text())},
    ),
    "Capsule": table(
        "A capsule. Sizes are bytes, durations seconds.",
        {
            "name": text(pattern=NAME),
            "desired": words(Desired),
            "state": words(State),
            "ready": BOOLEAN,
            "since": TIME,
            "pid": nullable(integer()),
            "instance": nullable(text()),
            "attempt": integer(),
            "next_attempt_at": nullable(TIME),
            "last_exit": nullable(ref("Exit")),
            "usage": ref("Usage"),
            "limits": {"type": "object"},
            "engine": text(),
            "isolation": LAYERS,
            "version": text(),
            "manifest": text(),
        },
    ),
    "Capsules": table("All capsules, by name.", {"capsules": array(ref("Capsule"))}),
    "Changed": table(
        "A change that was recorded, and the capsule now.", {"change": text(), "capsule": ref("Capsule")}
    ),
    "Plan": table(
        "What follows from the manifests as they are now.",
        {
            "dry_run": BOOLEAN,
            "added": array(text()),
            "removed": array(text()),
            "changed": array(table("Who, and why.", {"name": text(), "why": array(text())})),
            "unchanged": array(text()),
            "kept": array(text(), "They go on as they are: their manifest has a fault now."),
            "faults": array(ref("Fault")),
        },
    ),
    "Why": table(
        "The last ends, the newest first, and what happens next.",
        {"name": text(), "state": words(State), "exits": array(ref("Exit")), "next": text()},
    ),
    "LogLine": table(
        "A line of a capsule's log.",
        {
            "time": TIME,
            "capsule": text(),
            "instance": text(),
            "stream": words(LogStream),
            "level": text(enum=list(LOG_LEVELS)),
            "message": text(),
        },
    ),
    "Event": table(
        "A lifecycle event.",
        {
            "time": TIME,
            "event": text(),
            "capsule": text(),
            "instance": nullable(text()),
            "state": words(State),
            "reason": nullable(words(Reason)),
        },
    ),
    "Lost": table("In a stream: so many lines are missing here.", {"lost": integer()}),
    "Message": table(
        "A message as it passed.",
        {"time": TIME, "seq": integer(), "source": text(), "topic": text(), "payload": ANY},
    ),
    "Bus": table(
        "The ledger: docs/control.md says what each count is.",
        {
            "balanced": BOOLEAN,
            "epoch": integer("Of the backbone."),
            "capsules": array(
                table(
                    "A capsule's sums.",
                    {
                        "name": text(),
                        **{key: integer() for key in _ENTRY_COUNTS},
                        "refused": COUNTS,
                        "refused_by_backbone": COUNTS,
                    },
                )
            ),
            "subscriptions": array(
                table(
                    "A subscription; handle 0 sums up those that have ended.",
                    {
                        "capsule": text(),
                        "handle": integer(),
                        "pattern": text(),
                        **{key: integer() for key in ("matched", "lagged", "queued", "left")},
                        **{key: nullable(integer()) for key in ("carried", "delivered", "dropped")},
                    },
                )
            ),
            "faults": array(text(), "What did not add up."),
            "spine": {"type": "object"},
        },
    ),
    "Published": table("The message's number.", {"topic": text(), "seq": integer()}),
    "Trace": table(
        "A chain of causes, the first cause first; no hops: it is not remembered.",
        {
            "id": integer(),
            "hops": array(
                table(
                    "A message of it.",
                    {
                        "time": TIME,
                        "topic": text(),
                        "source": text(),
                        "principal": text(),
                        "seq": integer(),
                        "cause": nullable(integer()),
                    },
                )
            ),
            "cut": BOOLEAN,
        },
    ),
    "Acl": table(
        "Whether it may, and the grant that says so.",
        {
            "capsule": text(),
            "verb": text(enum=["publish", "subscribe"]),
            "topic": text(),
            "allowed": BOOLEAN,
            "grant": nullable(text()),
        },
    ),
    "Health": table(
        "Whether all is well, and what is missing.",
        {"healthy": BOOLEAN, "level": text(enum=["alive", "ready"]), "missing": array(text())},
    ),
    "ShuttingDown": table("It was taken.", {"shutting_down": BOOLEAN}),
    "Payload": {
        "description": f"Any JSON, nested {items.MAX_DEPTH} levels deep at most; integers have 64 bits.",
        "anyOf": [
            {"type": "null"},
            BOOLEAN,
            {"type": "number"},
            {"type": "string"},
            {"type": "array", "items": ref("Payload")},
            {"type": "object", "additionalProperties": ref("Payload")},
        ],
    },
}
