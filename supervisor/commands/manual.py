"""The manual pages (groff_man(7)), made from the parsers and from the files' schemas; scripts/generate writes them.

What people read has one source: a command's help, a key's description. What stands beside it here is only what neither
a parser nor a schema can say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from capsuled.supervisor.commands import capsulectl, capsuled, commandline
from capsuled.supervisor.commands.commandline import Argument, Command
from capsuled.supervisor.manifest import CONFIGURATION, FILE
from capsuled.supervisor.quantities import format_duration, format_size
from capsuled.supervisor.schema import schemas

Schema = Mapping[str, object]

PAGES = {
    "capsuled.8": "run untrusted WebAssembly capsules, each in a sealed process of its own",
    "capsulectl.1": "ask the capsuled supervisor",
    f"{FILE}.5": "the manifest of a capsule",
    f"{CONFIGURATION}.5": "the configuration of capsuled",
}
"""And what each is about, as apropos(1) shows it."""

SIZE, DURATION = "KiB|MiB|GiB", "ms|s|m|h"
"""By which a quantity's pattern is known."""


def pages() -> dict[str, str]:
    """The text of each page, by the name of its file."""
    found = schemas()
    bodies = {
        "capsuled.8": _daemon(),
        "capsulectl.1": _client(),
        f"{FILE}.5": _file(
            cast(Schema, found[FILE]),
            "A capsule is a folder with its module and this file, which says what it is, what it may, what it gets "
            f"and how it is kept alive. It is UTF-8, TOML 1.0; an unknown key is an error. {_QUANTITIES}",
        ),
        f"{CONFIGURATION}.5": _file(
            cast(Schema, found[CONFIGURATION]),
            "The operator's file, of which all is optional. It is looked for in /etc/capsuled/capsuled.toml when the "
            "supervisor runs as root, else in $XDG_CONFIG_HOME/capsuled/capsuled.toml. It is UTF-8, TOML 1.0; an "
            f"unknown key is an error. {_QUANTITIES} Paths that are not absolute begin at the file's own folder.",
        ),
    }
    return {name: "\n".join(_page(name, body)) + "\n" for name, body in bodies.items()}


_QUANTITIES = 'Sizes are numbers of bytes or texts such as "64MiB", durations seconds or texts such as "2m".'


def _page(name: str, body: Iterator[str]) -> Iterator[str]:
    title, _, section = name.rpartition(".")
    yield '.\\" Made by scripts/generate; do not edit.'
    yield f'.TH "{text(title)}" "{section}" "" "capsuled" ""'
    yield from ('.\\" Names and options are to be copied.', ".nh", ".ad l")
    yield ".SH NAME"
    yield f"{text(title)} \\- {text(PAGES[name])}"
    yield from body
    yield ".SH SEE ALSO"
    others = [other.rpartition(".") for other in PAGES if other != name]
    yield from (
        f'.BR "{text(other)}" ({number}){"," if n < len(others) - 1 else ""}'
        for n, (other, _, number) in enumerate(others)
    )


# Programs.


def _daemon() -> Iterator[str]:
    top = commandline.read(capsuled.parser())
    yield from _program(top)
    yield ".SH SIGNALS"
    yield from _item(
        ".B TERM, INT", "All capsules are stopped, then it ends; the second one ends it at once."
    )
    yield from _item(".B HUP", "Manifests are read again, as by capsulectl reload.")
    yield ".SH EXIT STATUS"
    yield from _item(".B 0", "Done.")
    yield from _item(".B 1", "It could not start, or check and doctor have findings.")
    yield from _item(".B 2", "Wrong usage.")
    yield ".SH FILES"
    yield from _item(".I /etc/capsuled/capsuled.toml", "The configuration, when it runs as root.")
    yield from _item(".I /etc/capsuled/capsules", "Folders of capsules.")
    yield from _item(".I /run/capsuled/control.sock", "The control socket.")


def _client() -> Iterator[str]:
    top = commandline.read(capsulectl.parser())
    yield from _program(top)
    yield ".SH EXIT STATUS"
    for code, told in capsulectl.EXITS.items():
        yield from _item(f".B {code.value}", f"{told.capitalize()}.")
    yield text("With several names it is the highest of theirs.")
    yield ".SH ENVIRONMENT"
    yield from _item(".B CAPSULED_SOCKET", "The control socket, where --socket does not name one.")
    yield from _item(".B XDG_RUNTIME_DIR", "Where a supervisor that does not run as root has its socket.")
    yield ".SH FILES"
    yield from _item(".I /run/capsuled/control.sock", "The control socket of a supervisor that runs as root.")


def _program(top: Command) -> Iterator[str]:
    common = {option.flags for option in top.options}
    yield ".SH SYNOPSIS"
    yield f".B {text(top.path[0])}"
    yield f"{' '.join(map(_option_usage, top.options))} \\fICOMMAND\\fR ..."
    yield ".SH OPTIONS"
    for option in top.options:
        yield from _option(option)
    yield ".SH COMMANDS"
    for command in top.all():
        # A command with others below it does nothing by itself.
        if command.commands:
            continue
        yield from _item(_usage(command, common), _sentence(command.summary))
        own = [option for option in command.options if option.flags not in common]
        told = [argument for argument in command.arguments if argument.help]
        if own or told:
            yield ".RS"
            for argument in told:
                yield from _item(f"\\fI{text(argument.metavar)}\\fR", _sentence(argument.help))
            for option in own:
                yield from _option(option)
            yield ".RE"


def _usage(command: Command, common: set[tuple[str, ...]]) -> str:
    parts = [f"\\fB{text(' '.join(command.path[1:]))}\\fR"]
    parts += [_option_usage(option) for option in command.options if option.flags not in common]
    for argument in command.arguments:
        shown = f"\\fI{text(argument.metavar)}\\fR{'...' if argument.repeated else ''}"
        parts.append(f"[{shown}]" if argument.optional else shown)
    return " ".join(parts)


def _option_usage(option: Argument) -> str:
    shown = f"\\fB{text(option.flags[-1])}\\fR"
    if option.metavar:
        shown += f" \\fI{text(option.metavar)}\\fR"
    return f"[{shown}]" if option.optional else shown


def _option(option: Argument) -> Iterator[str]:
    value = f" \\fI{text(option.metavar)}\\fR" if option.metavar else ""
    yield from _item(
        ", ".join(f"\\fB{text(flag)}\\fR" for flag in option.flags) + value, _sentence(option.help)
    )


# Files.


def _file(schema: Schema, about: str) -> Iterator[str]:
    definitions = cast(Mapping[str, Schema], schema["$defs"])
    properties = cast(Mapping[str, Schema], schema["properties"])
    yield ".SH DESCRIPTION"
    yield text(about)
    tables = {name: _table(each, definitions) for name, each in properties.items()}
    single = [name for name, table in tables.items() if table is None]
    if single:
        yield ".SH KEYS AT THE TOP"
        for name in single:
            yield from _key(name, properties[name], required=False)
    for name, table in tables.items():
        if table is None:
            continue
        repeated = properties[name].get("type") == "array"
        yield f'.SH "{text(f"[[{name}]]" if repeated else f"[{name}]")}"'
        needed = name in cast(Sequence[str], schema.get("required", ()))
        yield text(f"{properties[name]['description']}{' Required.' if needed else ''}")
        required = cast(Sequence[str], table.get("required", ()))
        for key, value in cast(Mapping[str, Schema], table.get("properties", {})).items():
            yield from _key(key, value, required=key in required)


def _table(schema: Schema, definitions: Mapping[str, Schema]) -> Schema | None:
    """The table that a key at the top is, or one of which there are several; None when it is a value."""
    reference = cast(Schema, schema.get("items", schema)).get("$ref")
    if isinstance(reference, str):
        return definitions[reference.rpartition("/")[2]]
    return schema if schema.get("type") == "object" else None


def _key(name: str, schema: Schema, *, required: bool) -> Iterator[str]:
    facts = [_kind(schema)]
    if required:
        facts.append("required")
    elif "default" in schema:
        facts.append(f"default {_toml(schema['default'])}")
    told = f"{schema['description']} ({'; '.join(filter(None, facts))})"
    yield from _item(f"\\fB{text(name)}\\fR", text(told))


def _kind(schema: Schema) -> str:
    if choices := cast(Sequence[object], schema.get("enum", ())):
        return " | ".join(map(_toml, choices))
    if alternatives := cast(Sequence[Schema], schema.get("anyOf", ())):
        pattern = str(alternatives[0].get("pattern", ""))
        if SIZE in pattern:
            return f"size, {_range(alternatives[-1], _size)}"
        if DURATION in pattern:
            return f"duration, {_range(alternatives[-1], format_duration)}"
        return " | ".join(map(_kind, alternatives))
    if "const" in schema:
        return _toml(schema["const"])
    match schema.get("type"):
        case "array":
            return f"list of {_kind(cast(Schema, schema['items']))}"
        case "integer" | "number":
            return f"number, {_range(schema, str)}"
        case "boolean":
            return "true | false"
        case "object":
            return "table"
        case _:
            return "text"


def _size(value: float) -> str:
    return format_size(int(value))


def _range(schema: Schema, show: Callable[[float], str]) -> str:
    least, most = cast(float, schema["minimum"]), cast(float, schema["maximum"])
    return f"{show(least)} to {show(most)}" if least != most else show(least)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


# roff.


def _item(head: str, told: str) -> Iterator[str]:
    yield ".TP"
    yield head
    yield told


def _sentence(help_text: str) -> str:
    """A help text as a sentence: argparse's are none."""
    return text(f"{help_text[:1].upper()}{help_text[1:]}." if help_text else "")


def text(said: str) -> str:
    """Text that is nothing else to roff (groff_char(7)): no escape, no request, ASCII signs that can be copied."""
    escaped = said.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    escaped = escaped.replace("^", "\\(ha").replace("~", "\\(ti").replace('"', "\\(dq")
    return re.sub(r"^\.", r"\\&.", escaped)
