"""What schemathesis has to be told: which capsules exist, which requests make sense, and what else to look at.

Only requests that the document allows are made more useful, and stay allowed; what is meant to be refused stays as it
is. What the document cannot say is that `timeout` stands beside `wait` and has bounds, and `dry_run` without it: with
these rules kept, the supervisor may refuse none of them as malformed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cbor2
import jsonschema_rs
import schemathesis
from hypothesis import strategies as st

from capsuled.supervisor.control import durations, openapi, shapes

NAMES = ("ping", "pong", "calculator", "crasher")

FOR = {"reset-failed": ("crasher",), "stop": NAMES[:3], "kill": NAMES[:3]}
"""Who is asked for what: one that has failed stays wanted up, so that there is something to reset."""

LONGEST_WAIT = 2.0
"""Seconds: what takes longer is answered with 504, and that happens often enough."""

_ITEMS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)

schemathesis.openapi.media_type(shapes.CBOR, _ITEMS.map(cbor2.dumps))


@schemathesis.hook
def before_call(_context: Any, case: Any, _arguments: dict[str, Any]) -> None:
    """What the document allows is made to reach what stands behind the parameters."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    verb = case.operation.path.rpartition("/")[2]
    for given, key in ((case.path_parameters, "name"), (case.query, "capsule")):
        if given and key in given:
            given[key] = named(given[key], FOR.get(verb, NAMES))
    if case.query:
        case.query = sensible(case.query, verb)


def named(text: str, names: Sequence[str]) -> str:
    """Most names are those of capsules."""
    return text if len(text) % 4 == 0 else names[sum(map(ord, text)) % len(names)]


def sensible(query: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """`query` with the rules between its parameters kept."""
    found = dict(query)
    timeout = found.pop("timeout", None)
    if found.get("dry_run") in ("", "1", "true", "yes"):
        found.pop("wait", None)
    elif timeout is not None:
        found.setdefault("wait", "down" if verb in ("stop", "kill") else "ready")
        found["timeout"] = short(timeout)
    return found


def short(timeout: str) -> str:
    """The duration where it is one that can be waited for, else another."""
    try:
        return timeout if durations.parse(timeout) <= LONGEST_WAIT else f"{LONGEST_WAIT:g}s"
    except ValueError:
        return f"{LONGEST_WAIT:g}s"


@schemathesis.check
def told_in_full(_context: Any, response: Any, case: Any) -> None:
    """An answer has no member that the document does not tell; each line of a list of lines is as it says; and a
    refusal has its shape, also where the path has no such method."""
    operation = case.operation.schema.raw_schema["paths"][case.operation.path].get(case.method.lower(), {})
    answer = operation.get("responses", {}).get(str(response.status_code), {})
    media = response.headers["content-type"][0]
    if media == shapes.OPENMETRICS:
        return
    told = answer.get("content", {}).get(media)
    if media == shapes.JSON_LINES:
        lines = response.content.splitlines()
        schema = told[openapi.LINE]
    elif media == shapes.JSON:
        lines = [response.content]
        schema = {"$ref": "#/components/schemas/Error"} if told is None else told["schema"]
    else:
        raise AssertionError(f"{media} is no media type of the control socket")
    for line in lines:
        for error in validator(json.dumps(schema)).iter_errors(json.loads(line)):
            raise AssertionError(f"{error.message} in {line[:2000]!r}, at {list(error.instance_path)}")


@cache
def validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    components = openapi.document()["components"]
    return jsonschema_rs.Draft202012Validator(
        sealed({**json.loads(schema), "components": components}), validate_formats=True
    )


def sealed(schema: Any) -> Any:
    """The schema without its openness: objects have no other members than those it names."""
    if isinstance(schema, list):
        return [sealed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: sealed(each) for key, each in schema.items()}
    if "properties" in found and "type" in found:
        found.setdefault("additionalProperties", False)
    return found
