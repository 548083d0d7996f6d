"""JSON as it travels: one document for an answer, one line for each event of a stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Union

Json = Union[None, bool, int, float, str, Sequence["Json"], Mapping[str, "Json"]]  # noqa: UP007  (it names itself)
JsonObject = Mapping[str, Json]

JSON = "application/json"
JSON_LINES = "application/x-ndjson"
CBOR = "application/cbor"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def line(value: JsonObject) -> bytes:
    """`value` as one line of JSON with its newline.

    It is pure ASCII: what a guest logs is printed by curl on the operator's terminal, and an escape
    sequence, a C1 control or half a surrogate must not get there as such.

    Raises ValueError for NaN and the infinities, which JSON does not have.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
