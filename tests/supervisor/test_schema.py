"""JSON Schema of the files: complete, in step with the values, and true of the examples."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

import pytest

from capsuled.supervisor import configuration, faults, manifest
from capsuled.supervisor.schema import schemas

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Schema = Mapping[str, object]

SCHEMAS = cast(Mapping[str, Schema], json.loads(json.dumps(schemas())))

TABLES: list[tuple[str, str, object]] = [
    ("Capsule.toml", "Limits", manifest.Limits()),
    ("Capsule.toml", "Supervision", manifest.Supervision()),
    ("Capsule.toml", "Package", manifest.Package("a", "1.0.0")),
    ("Capsule.toml", "Component", manifest.Component("a")),
    ("Capsule.toml", "Capabilities", manifest.Capabilities()),
    ("Capsule.toml", "Interceptor", manifest.Interceptor("a", "a")),
    ("capsuled.toml", "OperatorLimits", configuration.LIMITS),
    ("capsuled.toml", "Log", configuration.Log()),
    ("capsuled.toml", "Isolation", configuration.Isolation()),
]


def definitions(file: str) -> Mapping[str, Schema]:
    return cast(Mapping[str, Schema], SCHEMAS[file]["$defs"])


def properties(schema: Schema) -> Mapping[str, Schema]:
    return cast(Mapping[str, Schema], schema["properties"])


TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}

KNOWN = {
    *(
        "$ref",
        "$schema",
        "$defs",
        "title",
        "description",
        "default",
        "examples",
        "type",
        "anyOf",
        "const",
        "enum",
    ),
    *("properties", "required", "additionalProperties", "patternProperties", "items"),
    *("pattern", "minLength", "maxLength", "minimum", "maximum", "multipleOf"),
}
"""The words that `complaints` knows: a schema with another one is not judged by it."""


def complaints(value: object, schema: Schema, root: Schema) -> Iterator[str]:
    """What a validator of JSON Schema 2020-12 would say; for the words that our schemas have."""
    assert schema.keys() <= KNOWN
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        yield from complaints(value, cast(Mapping[str, Schema], root["$defs"])[name], root)
    if "anyOf" in schema:
        ways = [list(complaints(value, each, root)) for each in cast(list[Schema], schema["anyOf"])]
        if all(ways):
            yield f"{value!r} is none of {ways}"
    if "type" in schema:
        right = isinstance(value, TYPES[str(schema["type"])])
        if not right or (isinstance(value, bool) and schema["type"] != "boolean"):
            yield f"{value!r} is no {schema['type']}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{value!r} is not {schema['const']}"
    if "enum" in schema and value not in cast(list[object], schema["enum"]):
        yield f"{value!r} is none of {schema['enum']}"
    if isinstance(value, str):
        if "pattern" in schema and not re.search(str(schema["pattern"]), value):
            yield f"{value!r} does not match {schema['pattern']}"
        if (
            not cast(int, schema.get("minLength", 0))
            <= len(value)
            <= cast(float, schema.get("maxLength", 1e9))
        ):
            yield f"{value!r} has {len(value)} characters"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        least, most = cast(float, schema.get("minimum", value)), cast(float, schema.get("maximum", value))
        if not least <= value <= most or value % cast(int, schema.get("multipleOf", value or 1)):
            yield f"{value!r} is out of bounds"
    elif isinstance(value, list):
        for each in cast(list[object], value):
            yield from complaints(each, cast(Schema, schema.get("items", {})), root)
    elif isinstance(value, dict):
        yield from of_table(cast(dict[str, object], value), schema, root)


def of_table(table: dict[str, object], schema: Schema, root: Schema) -> Iterator[str]:
    named = cast(Mapping[str, Schema], schema.get("properties", {}))
    patterns = cast(Mapping[str, Schema], schema.get("patternProperties", {}))
    yield from (
        f"{name} is missing" for name in cast(list[str], schema.get("required", [])) if name not in table
    )
    for name, value in table.items():
        fitting = [each for pattern, each in patterns.items() if re.search(pattern, name)]
        if name in named:
            fitting.append(named[name])
        if not fitting and schema.get("additionalProperties") is False:
            yield f"{name} is not known"
        for each in fitting:
            yield from complaints(value, each, root)


def test_files() -> None:
    """Both files have a schema, in the dialect that says so."""
    assert SCHEMAS.keys() == {"Capsule.toml", "capsuled.toml"}
    assert {each["$schema"] for each in SCHEMAS.values()} == {"https://json-schema.org/draft/2020-12/schema"}


@pytest.mark.parametrize("file", SCHEMAS)
def test_every_key_has_a_description(file: str) -> None:
    """An editor has something to say about each key of each table."""
    for table in (SCHEMAS[file], *definitions(file).values()):
        for name, each in properties(table).items():
            assert each.get("description"), name


@pytest.mark.parametrize("file", SCHEMAS)
def test_no_table_takes_unknown_keys(file: str) -> None:
    """Unknown keys are errors to an editor as well, wherever keys are not free."""
    for table in (SCHEMAS[file], *definitions(file).values()):
        assert table["additionalProperties"] is False


@pytest.mark.parametrize(("file", "name", "value"), TABLES, ids=[name for _, name, _ in TABLES])
def test_keys_and_defaults_are_the_values(file: str, name: str, value: object) -> None:
    """The schema's keys are those of the values, and each default is read as the value's own."""
    found = properties(definitions(file)[name])
    assert list(found) == [each.name for each in fields(cast(manifest.Limits, value))]
    kinds = faults.quantities(type(value))
    for key, each in found.items():
        if "default" in each:
            default = each["default"]
            assert not list(complaints(default, each, {}))
            shown = kinds[key].read(default) if key in kinds else default
            own: object = getattr(value, key)
            assert shown == (list(cast(tuple[object, ...], own)) if isinstance(own, tuple) else own), key


def test_every_number_has_a_default() -> None:
    """No limit and no duration is left without its default."""
    for file, name, value in TABLES:
        for key in faults.quantities(type(value)):
            assert "default" in properties(definitions(file)[name])[key], key


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/Capsule.toml")), ids=lambda path: path.parent.name)
def test_examples(path: Path) -> None:
    """Every example is valid by the schema."""
    root = SCHEMAS["Capsule.toml"]
    assert list(complaints(tomllib.loads(path.read_text()), root, root)) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[package]\nname = 'A'\nversion = '1.0.0'\n[component]\nfile = 'a'",
        "[package]\nname = 'a'\nversion = '1.0.0'\nzap = 1\n[component]\nfile = 'a'",
        "[package]\nname = 'a'\nversion = '1.0.0'\n[component]\nfile = 'a'\n[limits]\nmemory = '1MB'",
        "[package]\nname = 'a'\nversion = '1.0.0'\n[component]\nfile = 'a'\n[limits]\nmemory = 65537",
        "[package]\nname = 'a'\nversion = '1.0.0'\n[component]\nfile = 'a'\n[imports.a]\nb = 5",
        "[package]\nname = 'a'\nversion = '1.0.0'\n[component]\nfile = 'a'\n[imports.A]\nb = '1'",
    ],
)
def test_what_is_no_manifest(text: str) -> None:
    """The schema finds what it can find: the judge above is not content with everything."""
    root = SCHEMAS["Capsule.toml"]
    assert list(complaints(tomllib.loads(text), root, root))
