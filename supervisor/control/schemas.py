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

_STAMPS = {
    "time": TIME,
    "topic": text(),
    "source": text("A capsule, `operator` or the supervisor."),
    "instance": text("Empty: no capsule's."),
    "principal": text(),
    "seq": integer(),
    "cause": nullable(integer("The message that its sender was handling.")),
}

_BUS_COUNTS = {key: integer() for key in ("published", "received", "host_calls", "routed", "queued", "lost")}

_OF_EVENTS = {
    "status": integer("Exit status."),
    "signal": text("Its name."),
    "killed": {**BOOLEAN, "description": "By the supervisor's SIGKILL."},
    "trap": text(),
    "message": text(),
    "limit": text("The one that was met, by its name in the manifest."),
    "value": number("Of that limit."),
}

EVIDENCE: Mapping[str, JsonObject] = {
    **_OF_EVENTS,
    "backtrace": text(),
    "claim": text("What its worker said and nothing confirms."),
    "cpu_seconds": number(),
    "max_rss": integer("Most memory that was resident at a time, bytes."),
    "oom_kills": integer(),
    "ready_seconds": number("How long it was ready."),
    "attempt": integer("Which one it was, counted from 1."),
    "then": text("What followed."),
    "bus": table(
        "What it had to do with the bus in its life, messages: by its own word, and by the backbone's.",
        {**_BUS_COUNTS, "refused": COUNTS},
        *(*_BUS_COUNTS, "refused"),
    ),
    "last_lines": array(text(), "Of its log."),
}
"""Whatever of it is known, and bears on the end."""

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
        {"time": TIME, "instance": text("Empty: there was no process."), "reason": words(Reason), **EVIDENCE},
        *EVIDENCE,
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
            "limits": {
                "type": "object",
                "additionalProperties": number(),
                "description": "As in the manifest.",
            },
            "engine": text(),
            "isolation": LAYERS,
            "version": text(),
            "manifest": text("The file."),
            "waits_for": nullable(text("Whom it imports from and that is not ready yet.")),
            "beside": array(
                table(
                    "Another instance of it.",
                    {"instance": text(), "pid": nullable(integer()), "version": text()},
                ),
                "A successor that is not ready yet, and those that were succeeded and have not ended.",
            ),
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
            "lost": integer("Lines that are missing here."),
        },
        "lost",
    ),
    "Event": table(
        "A lifecycle event, and of an end its evidence.",
        {
            "time": TIME,
            "event": text("The new state, or exited, upgrading, upgraded, upgrade-failed."),
            "capsule": text(),
            "instance": nullable(text()),
            "state": words(State),
            "reason": nullable(words(Reason)),
            "version": text("Of its package, where it is upgraded."),
            **_OF_EVENTS,
        },
        "version",
        *_OF_EVENTS,
    ),
    "Lost": table("In a stream: so many lines are missing here.", {"lost": integer()}),
    "Message": table(
        "A message as it passed.",
        {**_STAMPS, "payload": ANY},
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
            "spine": table(
                "The operator's programs.",
                {
                    "published": integer(),
                    "refused": COUNTS,
                    **{key: integer() for key in ("prefixes", "taps", "unpublished")},
                },
            ),
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
                    _STAMPS,
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
