"""The operator's file, `capsuled.toml`: where things are, who may ask, and what capsules may have at most.

A key that this version does not carry out is refused, and not passed over: nobody must believe that it holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

from pydantic import ConfigDict, StrictBool

from capsuled.proto import payloads
from capsuled.proto.control import Level
from capsuled.supervisor import faults, modes
from capsuled.supervisor.faults import STRICT, Checked, Fault, FileInvalid, Finding, Grammar, about
from capsuled.supervisor.manifest import CONFIGURATION, Limits, limits_faults
from capsuled.supervisor.quantities import GIB, HOUR, KIB, MIB, Count, Duration, Size, shown

ROOT = 0

MAX_SOCKET = 107
"""Bytes of a socket's path, as in control.listening: here it is found before the supervisor starts."""

GROUP = Grammar("[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", "the name of a group, as in /etc/group")

LEVELS: Mapping[str, Level] = {"read": Level.READ, "operate": Level.OPERATE}
"""What a group may have. Admin is for root and the supervisor's user, who could attach a debugger as well."""

LogLevel = Literal["trace", "debug", "info", "warn", "error"]


@dataclass(frozen=True)
class OperatorLimits(Limits):
    """Ceilings of one capsule, under the names that a manifest's limits have, and bounds of all together."""

    total_capsules: Annotated[int, Checked(Count(1, 10_000), "Capsules; those beyond are not taken.")] = 1000
    total_queue_bytes: Annotated[
        int, Checked(Size(MIB, 64 * GIB), "Bytes that wait in the backbone for all capsules together.")
    ] = 256 * MIB


LIMITS = OperatorLimits(
    memory=GIB,
    process_memory=2 * GIB,
    open_files=256,
    max_payload=payloads.MAX_BYTES,
    queue_messages=16 * 1024,
    queue_bytes=64 * MIB,
    log_bytes_per_second=MIB,
)
"""Ceilings by default. What is not named has a manifest's default for its ceiling."""


AUTO = "auto"


class _Journal:
    """`auto`, true, false, or the path of a journal's socket."""

    def read(self, value: object) -> str | bool:
        """The word, the switch, or the path. Raises ValueError with a sentence."""
        if isinstance(value, bool):
            return value
        if value == AUTO:
            return AUTO
        if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
            raise ValueError(
                f'{shown(value)} is no journal: write "auto", true, false, or the absolute path of its socket'
            )
        if (size := len(os.fsencode(value))) > MAX_SOCKET:
            raise ValueError(f"{shown(value)} has {size} bytes, a socket's path has {MAX_SOCKET} at most")
        return value

    def schema(self) -> dict[str, object]:
        return {"anyOf": [{"type": "boolean"}, {"const": AUTO}, {"type": "string", "pattern": "^/"}]}


@dataclass(frozen=True)
class Log:
    """What is logged, and how much is kept of each capsule's lines. Bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    level: Annotated[LogLevel, about("The least that the supervisor itself logs.")] = "info"
    ring_lines: Annotated[int, Checked(Count(1, 1_000_000), "Lines of a capsule kept in memory.")] = 1000
    ring_bytes: Annotated[int, Checked(Size(KIB, GIB), "Bytes of a capsule's lines kept in memory.")] = (
        256 * KIB
    )
    file_bytes: Annotated[int, Checked(Size(64 * KIB, GIB), "A capsule's log file is rotated at it.")] = (
        10 * MIB
    )
    file_count: Annotated[int, Checked(Count(0, 100), "Rotated files kept of each capsule.")] = 5
    journal: Annotated[
        str | bool,
        Checked(_Journal(), "Whether capsules' lines go to journald too: auto, true, false, or a socket."),
    ] = AUTO
    format: Annotated[
        Literal["text", "json"], about("Of the supervisor's own log: key=value for people, or JSON.")
    ] = "text"


@dataclass(frozen=True)
class Control:
    """The control socket: its path, and the level of each group by name. Root and the own user are admin."""

    path: Path
    groups: Mapping[str, Level] = field(default_factory=dict[str, Level])


class _Required:
    """`best`, `strict`, or a list of layers."""

    _RULE = 'write "best", "strict", or a list of layers such as ["namespaces", "landlock"]'

    def read(self, value: object) -> str | tuple[str, ...]:
        """The word, or the layers. Raises ValueError with a sentence."""
        if value in (modes.BEST, modes.STRICT):
            return str(value)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{shown(value)} is no requirement: {self._RULE}")
        layers = cast(Sequence[object], value)
        for layer in layers:
            if layer not in modes.LAYERS:
                raise ValueError(f"{shown(layer)} is no layer: there are {', '.join(modes.LAYERS)}")
        return tuple(map(str, layers))

    def schema(self) -> dict[str, object]:
        layers = {"type": "array", "items": {"enum": list(modes.LAYERS)}}
        return {"anyOf": [{"enum": [modes.BEST, modes.STRICT]}, layers]}


LOWEST_USER, HIGHEST_USER = 1000, 0x7FFF_FFFF
"""Below are the system's own; numbers above are negative to some programs."""

NOBODY = (65_534, 65_535)
"""The kernel's overflow user, and the number that was -1 when they had 16 bits."""

USERS = "1879048192-1879113727"
"""0x70000000 and 65535 more: above what containers, directory services and systemd take for themselves."""


class _Users:
    """A range of numbers, as text."""

    def read(self, value: object) -> str:
        """The text. Raises ValueError with a sentence."""
        match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", value) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f'{shown(value)} is no range of users: write the first and the last, "{USERS}"')
        first, last = int(match[1]), int(match[2])
        if not LOWEST_USER <= first <= last <= HIGHEST_USER:
            raise ValueError(
                f"{shown(value)} is no range of users: the first is {LOWEST_USER} at least, the last not below it "
                f"and {HIGHEST_USER} at most"
            )
        for number in NOBODY:
            if first <= number <= last:
                raise ValueError(
                    f"{shown(value)} contains {number}, which is nobody's: choose a range without it"
                )
        return f"{first}-{last}"

    def schema(self) -> dict[str, object]:
        return {"type": "string", "pattern": "^[0-9]{1,10}-[0-9]{1,10}$"}


@dataclass(frozen=True)
class Isolation:
    """What of the isolation must be there, and the users that capsules may become where they can."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    required: Annotated[
        str | tuple[str, ...], Checked(_Required(), "What must be there: best, strict, or layers by name.")
    ] = modes.BEST
    users: Annotated[
        str, Checked(_Users(), "Numbers of users, one for each capsule that runs: first-last.")
    ] = USERS

    def numbers(self) -> range:
        first, last = self.users.split("-")
        return range(int(first), int(last) + 1)


@dataclass(frozen=True)
class Configuration:
    """A valid configuration; all paths are absolute where the file's own is."""

    capsules: tuple[Path, ...]
    """Folders that hold a folder for each capsule."""
    runtime_dir: Path
    state_dir: Path
    secrets_dir: Path
    """With a folder for each capsule, and in it a file for each secret."""
    control: Control
    allow_unhashed: bool = False
    watch: float = 0.0
    """Seconds between two looks at whether manifests or modules have changed; 0.0: it is not looked."""
    isolation: Isolation = Isolation()
    limits: OperatorLimits = LIMITS
    log: Log = Log()


class ConfigurationInvalid(FileInvalid):
    """A configuration with faults."""


def defaults(env: Mapping[str, str], uid: int) -> Configuration:
    """What holds where the file says nothing: the system's folders for root, else those of the user."""
    if uid == ROOT:
        runtime, state, etc = Path("/run/capsuled"), Path("/var/lib/capsuled"), Path("/etc/capsuled")
    else:
        runtime = _user_folder(env, "XDG_RUNTIME_DIR", None) or Path(f"/tmp/capsuled-{uid}")
        state = _user_folder(env, "XDG_STATE_HOME", ".local/state") or runtime / "state"
        etc = _user_folder(env, "XDG_CONFIG_HOME", ".config") or Path("/etc/capsuled")
    return Configuration(
        (etc / "capsules",), runtime, state, etc / "secrets", Control(runtime / "control.sock")
    )


def default_file(env: Mapping[str, str], uid: int) -> Path:
    """Where the configuration is looked for when nobody names it: beside the folder of the capsules."""
    return defaults(env, uid).capsules[0].with_name(CONFIGURATION)


def parse(text: str, file: Path, base: Configuration) -> Configuration:
    """The configuration in `text` over `base`. Relative paths in it begin at the folder of `file`.

    Raises `ConfigurationInvalid` with all of its faults.
    """
    try:
        table = faults.read_toml(text, str(file))
    except FileInvalid as exc:
        raise ConfigurationInvalid(exc.faults) from exc
    found = [Fault(str(file), faults.dotted(path), sentence) for path, sentence in _more(table, file, base)]
    try:
        read = faults.structure(Tables, table, str(file))
    except FileInvalid as exc:
        raise ConfigurationInvalid([*exc.faults, *found]) from exc
    if found:
        raise ConfigurationInvalid(found)
    said = {name: getattr(read.limits, name) for name in cast(dict[str, object], table.get("limits", {}))}
    runtime = base.runtime_dir if read.runtime_dir is None else file.parent / read.runtime_dir
    return Configuration(
        capsules=base.capsules
        if read.capsules is None
        else tuple(file.parent / each for each in read.capsules),
        runtime_dir=runtime,
        state_dir=base.state_dir if read.state_dir is None else file.parent / read.state_dir,
        secrets_dir=base.secrets_dir if read.secrets_dir is None else file.parent / read.secrets_dir,
        control=Control(_socket(table, file, base), {k: LEVELS[v] for k, v in read.control.groups.items()}),
        allow_unhashed=read.allow_unhashed,
        watch=read.watch,
        isolation=read.isolation,
        limits=replace(base.limits, **said),
        log=read.log,
    )


class _Location:
    """A path. `~` and variables are a shell's, and mean nothing here."""

    def read(self, value: object) -> str:
        """The path as it is written. Raises ValueError with a sentence."""
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is no text: write it in double quotes")
        if not value or "\0" in value or value[0] in "~$":
            raise ValueError(
                f"{shown(value)} is no path: write an absolute one, or one that begins at this file's folder"
            )
        return value

    def schema(self) -> dict[str, object]:
        return {"type": "string", "pattern": "^[^~$]"}


@dataclass(frozen=True)
class ControlTable:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    path: Annotated[
        str | None, Checked(_Location(), "The socket; control.sock in runtime_dir by default.")
    ] = None
    groups: Annotated[
        dict[Annotated[str, Checked(GROUP)], Literal["read", "operate"]],
        about("Names of groups whose members may ask, and what they may."),
    ] = field(default_factory=dict[str, Literal["read", "operate"]])


@dataclass(frozen=True)
class Tables:
    """The keys and tables as they stand in the file."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    capsules: Annotated[
        tuple[Annotated[str, Checked(_Location())], ...] | None,
        about("Folders that hold a folder for each capsule."),
    ] = None
    runtime_dir: Annotated[str | None, Checked(_Location(), "For sockets; gone after a restart.")] = None
    state_dir: Annotated[str | None, Checked(_Location(), "For what is kept: logs, compiled modules.")] = None
    secrets_dir: Annotated[
        str | None, Checked(_Location(), "A folder for each capsule, with a file for each of its secrets.")
    ] = None
    allow_unhashed: Annotated[
        StrictBool, about("The developer's mode: manifests need no hash of their module.")
    ] = False
    watch: Annotated[
        float,
        Checked(
            Duration(0.1, HOUR, off="it is not looked"),
            "How often the folders are looked at; what has changed is reloaded; 0 is never.",
        ),
    ] = 0.0
    control: Annotated[ControlTable, about("The control socket.")] = ControlTable()
    isolation: Annotated[Isolation, about("What of the isolation must be there.")] = Isolation()
    limits: Annotated[OperatorLimits, about("Ceilings of each capsule, and of all together.")] = LIMITS
    log: Annotated[Log, about("What is logged, and how much is kept.")] = Log()


def _user_folder(env: Mapping[str, str], variable: str, below_home: str | None) -> Path | None:
    # The XDG specification: a path that is not absolute is to be ignored.
    if env.get(variable, "").startswith("/"):
        return Path(env[variable], "capsuled")
    home = env.get("HOME", "")
    return Path(home, below_home, "capsuled") if below_home and home.startswith("/") else None


def _more(table: Mapping[str, object], file: Path, base: Configuration) -> Iterator[Finding]:
    """What the structure does not say: rules about several keys, and what this version lacks."""
    yield from limits_faults(faults.readable(base.limits, table.get("limits")))
    size = len(os.fsencode(path := _socket(table, file, base)))
    if size > MAX_SOCKET:
        yield (
            ("control", "path"),
            f"{shown(str(path))} has {size} bytes, a socket's path has {MAX_SOCKET} at most: "
            "write a shorter one, or a shorter runtime_dir",
        )


def _socket(table: Mapping[str, object], file: Path, base: Configuration) -> Path:
    """The control socket's path; of what cannot be read the default."""
    control = table.get("control")
    said = cast(dict[str, object], control).get("path") if isinstance(control, dict) else None
    if isinstance(said, str):
        return file.parent / said
    runtime = table.get("runtime_dir")
    return file.parent / runtime / "control.sock" if isinstance(runtime, str) else base.control.path
