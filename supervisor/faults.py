"""What is wrong in a file that people write: all of it at once, each with its key and what to write.

`pydantic` checks the structure, here and nowhere else. Its errors stop at this door: what people read are
sentences of ours, which begin with the value and end with the next step.
"""

from __future__ import annotations

import datetime
import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints

import semantic_version
from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from capsuled.proto import items, topics
from capsuled.supervisor.quantities import Quantity, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1024 * 1024
"""Largest file that is read. A manifest of a thousand grants has 50 KiB."""

STRICT = ConfigDict(extra="forbid")
"""For `__pydantic_config__` of what is read from a file: an unknown key is an error."""

MAX_REASON = 200
"""Characters of what the parser says; it may repeat keys of the file."""

MAX_VERSION = 64
"""Characters of a version or a range; its parts are numbers of any length otherwise."""

INTEGERS = range(-(2**63), 2**63)
"""What TOML promises to carry. CBOR needs a tag for what is far beyond, and no tag is accepted."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

Path = tuple["str | int", ...]
"""Where something stands in a file: keys, and indices in lists from 0."""

Finding = tuple[Path, str]
"""Where in a file, and the sentence."""

T = TypeVar("T")

# Of each class once: making them takes 30 ms, and a supervisor reads a thousand manifests at its start.
_ADAPTERS: dict[object, TypeAdapter[object]] = {}
_FIELDS: dict[object, dict[str, object]] = {}


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong. `key` is dotted, `limits.memory` or `interceptor[2].event`.

    It is empty when the file as a whole is wrong, and `line 3` when the file is not TOML there.
    """

    file: str
    key: str
    sentence: str

    def __str__(self) -> str:
        """One line. File names and values come from authors: what a terminal could obey is escaped."""
        line = ": ".join(part for part in (self.file, self.key, self.sentence) if part)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class FileInvalid(ValueError):
    """A file with faults; at least one. The message has a line for each."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


class Kind(Protocol):
    """What a key's value may be."""

    def read(self, value: object) -> object:
        """The value as the program uses it. Raises ValueError, whose message is a sentence of ours."""
        ...

    def schema(self) -> dict[str, object]:
        """What JSON Schema can say of it."""
        ...


@dataclass(frozen=True)
class Checked:
    """Puts a `Kind` into an annotation, with a description for people and an example for who left it out.

    `Annotated[int, Checked(Count(1, 64), "How many.")]`
    """

    kind: Kind
    description: str = ""
    example: str = ""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.kind.read)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        found = self.kind.schema()
        if self.description:
            found["description"] = self.description
        if self.example:
            found["examples"] = [self.example]
        return found


def about(description: str) -> FieldInfo:
    """Puts a description for people into an annotation that has no `Checked`."""
    return cast(FieldInfo, Field(description=description))


@dataclass(frozen=True)
class Grammar:
    """Text that matches a regular expression as a whole. `rule` says in words what it asks for."""

    pattern: str
    rule: str

    def read(self, value: object) -> str:
        """The text. Raises ValueError with a sentence."""
        if not re.fullmatch(self.pattern, _text(value)):
            raise ValueError(f"{shown(value)} does not fit: write {self.rule}")
        return _text(value)

    def schema(self) -> dict[str, object]:
        return {"type": "string", "pattern": f"^{self.pattern}$"}


class Pattern:
    """A pattern that a grant may have."""

    def read(self, value: object) -> str:
        """The text. Raises ValueError with a sentence: `topics` has them."""
        topics.split(_text(value))
        return _text(value)

    def schema(self) -> dict[str, object]:
        return {"type": "string", "minLength": 1, "maxLength": topics.MAX_BYTES}


class Event(Pattern):
    """A pattern that can be subscribed to."""

    def read(self, value: object) -> str:
        topics.split_subscribable(_text(value))
        return _text(value)


class ModuleFile:
    """A path below the manifest's folder. That no symlink leads out of it is checked where files are read."""

    def read(self, value: object) -> str:
        """The path as it is written. Raises ValueError with a sentence."""
        path = PurePosixPath(text := _text(value))
        hint = "write the path of a file in this manifest's folder"
        if "\0" in text:
            raise ValueError(f"{shown(text)} has a NUL character: {hint}")
        if path.is_absolute():
            raise ValueError(f"{shown(text)} is absolute: {hint}, seen from there")
        if ".." in path.parts:
            raise ValueError(f"{shown(text)} leaves the folder with '..': {hint}, or move the file into it")
        if not path.name or text.endswith("/"):
            raise ValueError(f"{shown(text)} names no file: {hint}")
        return text

    def schema(self) -> dict[str, object]:
        return {"type": "string", "minLength": 1}


# The one door to semantic_version, which has no types: its functions are Any, and nothing of it is handed on.
_SEMVER = cast(Any, semantic_version)


class Version:
    """A version of semver.org, 2.0.0."""

    def read(self, value: object) -> str:
        """The text. Raises ValueError with a sentence."""
        text = _text(value)
        if len(text) > MAX_VERSION or not _SEMVER.validate(text):
            raise ValueError(f'{shown(text)} is no version: write three numbers, as in "1.0.0"')
        return text

    def schema(self) -> dict[str, object]:
        return {"type": "string", "maxLength": MAX_VERSION, "pattern": r"^[0-9]+\.[0-9]+\.[0-9]+"}


class Range:
    """Versions that an import accepts."""

    def read(self, value: object) -> str:
        """The text. Raises ValueError with a sentence."""
        text = _text(value)
        try:
            _SEMVER.SimpleSpec(text[: MAX_VERSION + 1])
            fits = len(text) <= MAX_VERSION
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f'{shown(text)} is no range of versions: write "^1.0", "~1.2", "==1.2.3" or ">=1.0,<3"'
            )
        return text

    def schema(self) -> dict[str, object]:
        return {"type": "string", "minLength": 1, "maxLength": MAX_VERSION}


def in_range(version: str, accepted: str) -> bool:
    """Whether `version` is in the range `accepted`; both as a manifest has them."""
    return bool(_SEMVER.SimpleSpec(accepted).match(_SEMVER.Version(version)))


def newest(versions: Iterable[str]) -> str:
    """The one that comes last in semver's order; there is one at least."""
    parsed: list[Any] = [_SEMVER.Version(each) for each in versions]
    return str(max(parsed))


def read_toml(text: str, file: str) -> dict[str, object]:
    """The tables of a TOML text. Raises `FileInvalid` with one fault, for the parser stops at the first."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        # The position stands in the message: tomllib has it nowhere else before Python 3.14.
        reason, _, at = str(exc).rstrip(")").rpartition(" (at ")
        key = at if at.startswith("line ") else "at the end"
        sentence = f"not TOML here: {reason[:1].lower()}{reason[1:MAX_REASON]}: correct this line"
        raise FileInvalid([Fault(file, key, sentence)]) from exc
    except RecursionError as exc:
        raise FileInvalid([Fault(file, "", "lists or tables too deep to be read: write it flatter")]) from exc
    except ValueError as exc:
        # Of int(): Python reads numbers of 4300 digits at most.
        raise FileInvalid(
            [Fault(file, "", "a number of too many digits to be read: write it as text")]
        ) from exc


def structure(model: type[T], table: Mapping[str, object], file: str) -> T:
    """`table` as the dataclass `model`. Raises `FileInvalid` with every fault of its structure and values."""
    try:
        return cast(T, _adapter(model).validate_python(table))
    except ValidationError as exc:
        faults = [_fault(model, error, file) for error in exc.errors(include_url=False)]
        raise FileInvalid(faults) from exc


def quantities(model: type[object]) -> Mapping[str, Quantity]:
    """The bounds of each field of a dataclass that is a number."""
    return {
        name: found.kind
        for name, hint in _fields(model).items()
        for found in get_args(hint)
        if isinstance(found, Checked) and isinstance(found.kind, Quantity)
    }


def readable(defaults: object, table: object) -> dict[str, float]:
    """What `table` says, or else a dataclass's `defaults`, for each of its numbers.

    A value that cannot be read is left out. So a rule about two keys is checked wherever both can be read,
    whatever else is wrong in the file.
    """
    said = cast(dict[str, object], table) if isinstance(table, dict) else {}
    values: dict[str, float] = {}
    for name, kind in quantities(type(defaults)).items():
        with suppress(ValueError):
            values[name] = kind.read(said[name]) if name in said else cast(float, getattr(defaults, name))
    return values


def without_cbor(path: Path, value: object, depth: int = 0) -> Iterator[Finding]:
    """What has no CBOR item that a guest may read, in a table whose values are one item each."""
    if isinstance(value, (dict, list)):
        if depth > items.MAX_DEPTH:
            yield path, f"lists and tables deeper than {items.MAX_DEPTH} levels: write it flatter"
            return
        table, array = cast(dict[str, object], value), cast(list[object], value)
        members = table.items() if isinstance(value, dict) else enumerate(array)
        for key, member in members:
            yield from without_cbor((*path, key), member, depth + 1)
    elif isinstance(value, int) and value not in INTEGERS:
        yield path, f"{shown(value)} has more than 64 bits: write it as text, in double quotes"
    elif isinstance(value, (datetime.date, datetime.time)):
        yield path, f'{value} is a date or time, and CBOR has none without a tag: write it as text, "{value}"'


def dotted(path: Path) -> str:
    """``limits.memory``, ``interceptor[2].event``; keys that TOML has to quote are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if _BARE_KEY.fullmatch(part) else shown(part))
    return text


def unknown(key: str, known: Sequence[str]) -> str:
    """The sentence about a key, or a name of something, that is none of `known`."""
    close = difflib.get_close_matches(key, known, 1)
    return f"not known here: {f'did you mean {close[0]}?' if close else 'write one of ' + ', '.join(known)}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is no text: write it in double quotes")
    return value


def _fault(model: type[object], error: ErrorDetails, file: str) -> Fault:
    # A key that is wrong itself is marked so by pydantic, behind the key.
    path = tuple(part for part in error["loc"] if part != "[key]")
    return Fault(file, dotted(path), _sentence(model, error, path))


def _sentence(model: type[object], error: ErrorDetails, path: Path) -> str:
    value = shown(error["input"])
    kind = error["type"]
    if kind == "value_error":
        return str(error.get("ctx", {})["error"])
    if kind == "missing":
        return f"missing: write {_example(model, path)}"
    if kind == "unexpected_keyword_argument":
        return unknown(str(path[-1]), tuple(_fields(_type_at(model, path[:-1]))))
    if kind == "string_type":
        return f"{value} is no text: write it in double quotes"
    if kind == "bool_type":
        return f"{value} is neither true nor false: write one of them, without quotes"
    if kind == "tuple_type":
        tables = isinstance(error["input"], dict)
        return (
            f"{value} is no list: write {f'[[{dotted(path)}]]' if tables else f'it in brackets, [{value}]'}"
        )
    if kind in ("dataclass_type", "dict_type"):
        return f"{value} is no table: write [{dotted(path)}], and its keys in the lines below"
    if kind == "literal_error":
        return f"{value} is not known here: write {error.get('ctx', {})['expected']}"
    return f"{value} does not fit: {error['msg']}"


def _example(model: type[object], path: Path) -> str:
    parent = _fields(_type_at(model, path[:-1]))
    key = str(path[-1])
    for found in get_args(parent[key])[1:]:
        if isinstance(found, Checked):
            return f'{key} = "{found.example}"'
    return f"[{dotted(path)}], and its keys in the lines below"


def _type_at(model: object, path: Path) -> object:
    """The type that stands at `path`, as the dataclasses say it."""
    for part in path:
        model = _bare(model)
        if is_dataclass(model):
            model = _fields(model)[str(part)]
        else:
            # The items of tuple[X, ...], or the values of dict[str, X].
            model = get_args(model)[0 if get_origin(model) is tuple else 1]
    return _bare(model)


def _bare(model: object) -> object:
    return cast(object, get_args(model)[0]) if get_origin(model) is Annotated else model


def _adapter(model: type[object]) -> TypeAdapter[object]:
    if model not in _ADAPTERS:
        _ADAPTERS[model] = TypeAdapter(model)
    return _ADAPTERS[model]


def _fields(model: object) -> dict[str, object]:
    """Each field of a dataclass with its annotation; of what is none, nothing."""
    if not is_dataclass(model):
        return {}
    if model not in _FIELDS:
        hints = cast(dict[str, object], get_type_hints(model, include_extras=True))
        _FIELDS[model] = {each.name: hints[each.name] for each in fields(model)}
    return _FIELDS[model]
