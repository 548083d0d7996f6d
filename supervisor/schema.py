"""JSON Schema 2020-12 of the files that people write, so that editors complete and check them.

What a schema cannot say (rules about two keys, ceilings, the files themselves) is said by `capsuled check`.
"""

from __future__ import annotations

from typing import cast

from pydantic import TypeAdapter

from capsuled.supervisor import configuration, faults, manifest

DIALECT = "https://json-schema.org/draft/2020-12/schema"

DEFAULTS: tuple[object, ...] = (
    *(manifest.Limits(), manifest.Supervision()),
    *(configuration.LIMITS, configuration.Log()),
)
"""Values whose numbers are shown as files have them: a default of 0.5 would not fit its own schema."""

Schema = dict[str, object]


def schemas() -> dict[str, object]:
    """The schema of each file, by the file's name; JSON values."""
    return {
        manifest.FILE: _schema(manifest.Tables, "The manifest of a capsule"),
        manifest.CONFIGURATION: _schema(configuration.Tables, "The configuration of capsuled"),
    }


def _schema(tables: type[object], title: str) -> Schema:
    found = cast(Schema, TypeAdapter(tables).json_schema())
    definitions = cast(dict[str, Schema], found["$defs"])
    for each in (found, *definitions.values()):
        each.pop("description", None)  # the docstring, which is for Python; keys have their own
    for values in DEFAULTS:
        if definition := definitions.get(type(values).__name__):
            _show_defaults(cast(dict[str, Schema], definition["properties"]), values)
    return {"$schema": DIALECT, **cast(Schema, _clean(found)), "title": title}


def _show_defaults(properties: dict[str, Schema], values: object) -> None:
    for name, kind in faults.quantities(type(values)).items():
        value = cast(float, getattr(values, name))
        # Text only where the schema allows it: counts have none.
        properties[name]["default"] = kind.show(value) if "anyOf" in properties[name] else value


def _clean(node: object) -> object:
    """Without what only Python has: titles made of attributes' names, and null, which TOML has not."""
    if isinstance(node, list):
        return [_clean(each) for each in cast(list[object], node)]
    if not isinstance(node, dict):
        return node
    table = cast(Schema, node)
    if "patternProperties" in table:
        table["additionalProperties"] = False
    others = [each for each in cast(list[object], table.get("anyOf", [])) if each != {"type": "null"}]
    if len(others) == 1:
        del table["anyOf"]
        table.update(cast(Schema, others[0]))
    return {key: _clean(value) for key, value in table.items() if not _is_python_s(key, value, table)}


def _is_python_s(key: str, value: object, table: Schema) -> bool:
    if key == "title":
        return isinstance(value, str)
    # A table's default is that of its keys, which say it themselves; an empty text stands for none.
    return key == "default" and (value in (None, "") or "$ref" in table)
