"""A command line as data: what argparse knows of it, for completion and for the manual pages. A rule."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple


class Kind(str, Enum):
    """What stands in an argument that has no list of choices."""

    CAPSULE = "capsule"
    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"


KINDS: Mapping[str, Kind] = {
    "name": Kind.CAPSULE,
    "names": Kind.CAPSULE,
    "socket": Kind.FILE,
    "config": Kind.FILE,
    "paths": Kind.FILE,
    "folder": Kind.FOLDER,
    "capsules": Kind.FOLDER,
}
"""By the argument's name in the program, its `dest`."""


class Argument(NamedTuple):
    """An argument by its place, or with `flags` an option. Without a `metavar` the option takes none."""

    flags: tuple[str, ...]
    metavar: str
    choices: tuple[str, ...]
    kind: Kind
    help: str
    optional: bool
    repeated: bool


class Command(NamedTuple):
    """A command and those below it. `path` is how it is called: `("capsulectl", "bus", "stats")`."""

    path: tuple[str, ...]
    summary: str
    options: tuple[Argument, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]

    def all(self) -> Iterator[Command]:
        """This one and all below it, in the order of the help."""
        yield self
        for command in self.commands:
            yield from command.all()


def read(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), summary: str = "") -> Command:
    """The whole command line of a parser."""
    path = path or (parser.prog,)
    options: list[Argument] = []
    arguments: list[Argument] = []
    commands: list[Command] = []
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            commands += _commands(action, path)  # pyright: ignore[reportUnknownArgumentType]
        elif action.option_strings:
            options.append(_argument(action))
        else:
            arguments.append(_argument(action))
    return Command(
        path, summary or parser.description or "", tuple(options), tuple(arguments), tuple(commands)
    )


# argparse shows its arguments to nobody but itself; these names have been the same since it exists.


def _actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    return parser._actions  # pyright: ignore[reportPrivateUsage]


def _commands(
    action: argparse._SubParsersAction[argparse.ArgumentParser],  # pyright: ignore[reportPrivateUsage]
    path: tuple[str, ...],
) -> Iterator[Command]:
    told = {each.dest: each.help or "" for each in action._choices_actions}  # pyright: ignore[reportPrivateUsage]
    for name, parser in action.choices.items():
        yield read(parser, (*path, name), told.get(name, ""))


def _argument(action: argparse.Action) -> Argument:
    choices = tuple(str(each) for each in action.choices or ())
    takes = action.nargs != 0
    if isinstance(action.metavar, str):
        metavar = action.metavar
    elif choices:
        metavar = "|".join(choices)
    else:
        metavar = action.dest.upper()
    return Argument(
        tuple(action.option_strings),
        metavar if takes else "",
        choices,
        KINDS.get(action.dest, Kind.OTHER),
        action.help or "",
        optional=not action.required if action.option_strings else action.nargs in ("?", "*"),
        repeated=action.nargs in ("*", "+") or isinstance(action, _APPEND),
    )


_APPEND = argparse._AppendAction  # pyright: ignore[reportPrivateUsage]
