"""The manifest of a capsule, `Capsule.toml`: what it is, what it may, what it gets, and how it is kept alive.

The dataclasses are the file's grammar and the program's values in one. A manifest comes with its capsule and
is trusted no more than its author: it asks, and the operator's ceilings bound what it gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import inf
from typing import Annotated, ClassVar, Literal, cast

from pydantic import BeforeValidator, ConfigDict, StrictBool, StrictStr

from capsuled.proto import payloads, topics
from capsuled.proto.grants import Grants
from capsuled.proto.ledger import MAX_INTERCEPTORS
from capsuled.supervisor import faults
from capsuled.supervisor.faults import (
    STRICT,
    Checked,
    Event,
    Fault,
    FileInvalid,
    Finding,
    Grammar,
    ModuleFile,
    Pattern,
    Range,
    Version,
    about,
    in_range,
)
from capsuled.supervisor.quantities import (
    DAY,
    GIB,
    HOUR,
    KIB,
    MIB,
    Count,
    Duration,
    Number,
    Size,
    WholeSeconds,
    format_duration,
    format_size,
    shown,
)
from capsuled.supervisor.secrets import Secret

FILE = "Capsule.toml"
CONFIGURATION = "capsuled.toml"

PAGE = 64 * KIB
"""The unit of a guest's memory (WebAssembly Core Specification 2.0, 4.2.8)."""

HEADROOM = 64 * MIB
"""What a worker needs beside its guest's memory: interpreter, engine, compiled code and queues."""

MAX_GRANTS = 256
"""Most patterns of one kind: a publish on a new topic is compared with each of them."""

# From 10 ms, so that no typing error makes a loop without a pause.
TO_AN_HOUR, TO_A_DAY = Duration(0.01, HOUR), Duration(0.01, DAY)

NAME = Grammar("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "1 to 63 of a-z, 0-9 and '-', no '-' at either end")
PRINCIPAL = Grammar(
    "[A-Za-z0-9][A-Za-z0-9._@+:/-]{0,127}",
    "1 to 128 of A-Z, a-z, 0-9 and '._@+:/-', the first a letter or digit",
)
ACTION = Grammar("[!-~]{1,128}", "1 to 128 printable ASCII characters without spaces")
SECRET = Grammar("[a-z0-9][a-z0-9._-]{0,62}", "1 to 63 of a-z, 0-9 and '._-', the first a letter or digit")
HASH = Grammar("sha256:[0-9a-f]{64}", "'sha256:' and the 64 lower-case digits that sha256sum prints")


@dataclass(frozen=True)
class Package:
    """What the capsule is."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Annotated[str, Checked(NAME, "Its name, unique in a supervisor.", "echo")]
    version: Annotated[str, Checked(Version(), "Its version, as semver.org has it.", "1.0.0")]
    description: Annotated[StrictStr, about("One sentence for people.")] = ""
    authors: Annotated[tuple[StrictStr, ...], about("Who wrote it.")] = ()
    license: Annotated[StrictStr, about("Its licence, best as an SPDX expression.")] = ""
    repository: Annotated[StrictStr, about("Where its sources are.")] = ""
    homepage: Annotated[StrictStr, about("Where people read about it.")] = ""
    principal: Annotated[str, Checked(PRINCIPAL, "On whose behalf it speaks; its name by default.")] = ""

    def __post_init__(self) -> None:
        # Through object: the class is frozen.
        object.__setattr__(self, "principal", self.principal or self.name)


@dataclass(frozen=True)
class Component:
    """The module. `hash` is None only where the supervisor runs with `allow_unhashed`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    file: Annotated[str, Checked(ModuleFile(), "Its file, relative to this one, in its folder.", "echo.wasm")]
    hash: Annotated[
        str | None, Checked(HASH, "'sha256:' and the file's SHA-256; required without allow_unhashed.")
    ] = None
    engine: Annotated[
        Literal["auto", "wasmer", "wasmtime"], about("The engine that runs it; auto takes the default.")
    ] = "auto"


@dataclass(frozen=True)
class Capabilities:
    """What the capsule may say and hear. An empty list denies all."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    ipc_publish: Annotated[
        tuple[Annotated[str, Checked(Pattern())], ...], about("What it may publish to: patterns of topics.")
    ] = ()
    ipc_subscribe: Annotated[
        tuple[Annotated[str, Checked(Pattern())], ...],
        about("What it may subscribe to: patterns; one must cover it alone."),
    ] = ()
    ipc_retain: Annotated[
        tuple[Annotated[str, Checked(Pattern())], ...],
        about("Topics whose last message is kept for later subscribers; within ipc_publish."),
    ] = ()


@dataclass(frozen=True)
class Interceptor:
    """A subscription that exists before the guest's first instruction, on this file's authority."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    event: Annotated[str, Checked(Event(), "A topic, or a pattern that ends in '.*'.", "audit.*")]
    action: Annotated[str, Checked(ACTION, "By which the guest knows it.", "on_audit")]
    priority: Annotated[int, Checked(Count(-1_000_000, 1_000_000), "Lower comes first.")] = 100


@dataclass(frozen=True)
class Limits:
    """What the capsule gets. Bytes, seconds, cores."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    memory: Annotated[int, Checked(Size(PAGE, 4 * GIB, PAGE), "The guest's linear memory.")] = 64 * MIB
    process_memory: Annotated[
        int, Checked(Size(PAGE + HEADROOM, 64 * GIB), "The whole worker: at least memory and 64MiB.")
    ] = 512 * MIB
    cpu: Annotated[float, Checked(Number(0.01, 64.0), "Cores, where the system can hold it.")] = 1.0
    cpu_time: Annotated[
        int, Checked(WholeSeconds(1, 365 * DAY, off="no limit"), "CPU time of one life; 0 is no limit.")
    ] = 0
    open_files: Annotated[int, Checked(Count(16, 4096), "Open descriptors.")] = 64
    # One value: a sealed worker cannot fork, whatever is written here.
    processes: Annotated[int, Checked(Count(1, 1), "Processes; there is nothing to fork.")] = 1
    max_payload: Annotated[
        int, Checked(Size(1, payloads.MAX_BYTES), "The largest payload that it may publish.")
    ] = MIB
    publish_bytes_per_second: Annotated[
        int, Checked(Size(1, GIB), "Payload bytes per second, and their burst.")
    ] = 10 * MIB
    publish_messages_per_second: Annotated[
        int, Checked(Count(1, 10_000_000), "Messages per second, and their burst.")
    ] = 100_000
    queue_messages: Annotated[
        int, Checked(Count(1, 1_000_000), "Messages that wait for it in one queue.")
    ] = 1024
    queue_bytes: Annotated[int, Checked(Size(1, GIB), "Bytes that wait for it in one queue.")] = 10 * MIB
    log_bytes_per_second: Annotated[int, Checked(Size(1, GIB), "Bytes of log lines per second.")] = 256 * KIB


@dataclass(frozen=True)
class Supervision:
    """How the capsule is started, kept alive and stopped. Durations in seconds."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    restart: Annotated[
        Literal["always", "on-failure", "never"], about("When it is started again after its end.")
    ] = "on-failure"
    backoff_initial: Annotated[float, Checked(TO_AN_HOUR, "The first pause before a new start.")] = 0.5
    backoff_max: Annotated[float, Checked(TO_A_DAY, "The longest pause; at least backoff_initial.")] = 30.0
    backoff_factor: Annotated[
        float, Checked(Number(1.0, 100.0), "By which each pause is longer than the last.")
    ] = 2.0
    stable_after: Annotated[float, Checked(TO_A_DAY, "Ready this long, and the backoff starts anew.")] = 30.0
    start_limit: Annotated[
        int, Checked(Count(0, 10_000), "So many failures, and it is failed; 0: never.")
    ] = 5
    start_limit_interval: Annotated[float, Checked(TO_A_DAY, "Within which they are counted.")] = 60.0
    ready: Annotated[
        Literal["guest", "started"], about("When it is ready: the guest says so, or at once.")
    ] = "guest"
    ready_timeout: Annotated[float, Checked(TO_AN_HOUR, "It is ready after this long, or is killed.")] = 10.0
    stop_timeout: Annotated[float, Checked(TO_AN_HOUR, "From the cancel to the kill.")] = 5.0
    watchdog: Annotated[
        float,
        Checked(
            Duration(0.1, DAY, off="no watchdog"),
            "It is killed after this long a computation without a host call; 0 is off.",
        ),
    ] = 0.0


@dataclass(frozen=True)
class Requirement:
    """An interface that the capsule starts after: `acme.session`, and the range of versions it accepts."""

    interface: str
    version: str
    optional: bool = False

    def accepts(self, version: str) -> bool:
        """Whether an export of this version will do."""
        return in_range(version, self.version)


@dataclass(frozen=True)
class Export:
    """An interface that the capsule provides, `acme.echo`, once it is ready."""

    interface: str
    version: str


@dataclass(frozen=True)
class Manifest:
    """A valid manifest. Interceptors are in the order of their priorities, the rest as in the file."""

    package: Package
    component: Component
    capabilities: Capabilities = Capabilities()
    interceptors: tuple[Interceptor, ...] = ()
    limits: Limits = Limits()
    supervision: Supervision = Supervision()
    imports: tuple[Requirement, ...] = ()
    exports: tuple[Export, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    """Text, whole numbers of 64 bits, floats, booleans, lists and tables of them: all have a CBOR item. And
    `Secret`, whose value is read at each start."""

    @property
    def grants(self) -> Grants:
        granted = self.capabilities
        return Grants(granted.ipc_publish, granted.ipc_subscribe, granted.ipc_retain)


class ManifestInvalid(FileInvalid):
    """A manifest with faults."""


def parse(text: str, file: str, ceilings: Limits, allow_unhashed: bool = False) -> Manifest:
    """The manifest in `text`. Raises `ManifestInvalid` with all of its faults; `file` is its name in them.

    A limit that is not written is its default, or the operator's ceiling where that is lower.
    """
    try:
        table = faults.read_toml(text, file)
    except FileInvalid as exc:
        raise ManifestInvalid(exc.faults) from exc
    found = [
        Fault(file, faults.dotted(path), sentence)
        for path, sentence in _more(table, ceilings, allow_unhashed)
    ]
    try:
        read = faults.structure(Tables, table, file)
    except FileInvalid as exc:
        raise ManifestInvalid([*exc.faults, *found]) from exc
    if found:
        raise ManifestInvalid(found)
    said = {name: getattr(read.limits, name) for name in cast(dict[str, object], table.get("limits", {}))}
    return _manifest(read, replace(_lowered(ceilings), **said))


@dataclass(frozen=True)
class Needed:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    version: Annotated[str, Checked(Range(), "Versions that will do.", "^1.0")]
    optional: Annotated[StrictBool, about("Whether it starts without it.")] = False


def _spelled_out(value: object) -> object:
    if not isinstance(value, (str, dict)):
        raise ValueError(
            f'{shown(value)} is no requirement: write "^1.0" or {{ version = "^1.0", optional = true }}'
        )
    return {"version": value} if isinstance(value, str) else cast(object, value)


_Namespace = Annotated[str, Checked(NAME)]
_Required = Annotated[Needed, BeforeValidator(_spelled_out, json_schema_input_type=StrictStr | Needed)]
_Provided = Annotated[str, Checked(Version())]


@dataclass(frozen=True)
class Tables:
    """The tables as they stand in the file."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    package: Annotated[Package, about("Which capsule it is, and who made it.")]
    component: Annotated[Component, about("What it runs.")]
    capabilities: Annotated[Capabilities, about("What it may say and hear.")] = Capabilities()
    interceptor: Annotated[
        tuple[Interceptor, ...],
        about(f"Subscribed before its first instruction; {MAX_INTERCEPTORS} at most."),
    ] = ()
    limits: Annotated[Limits, about("What it gets, below the operator's ceilings.")] = Limits()
    supervision: Annotated[Supervision, about("How it is kept alive.")] = Supervision()
    imports: Annotated[
        dict[_Namespace, dict[_Namespace, _Required]],
        about("By namespace: interfaces that it starts after, and their versions."),
    ] = field(default_factory=dict[str, dict[str, Needed]])
    exports: Annotated[
        dict[_Namespace, dict[_Namespace, _Provided]],
        about("By namespace: interfaces that it provides, and their versions."),
    ] = field(default_factory=dict[str, dict[str, str]])
    config: Annotated[dict[str, object], about("What the guest reads with config_get.")] = field(
        default_factory=dict[str, object]
    )


def _manifest(read: Tables, limits: Limits) -> Manifest:
    return Manifest(
        package=read.package,
        component=read.component,
        capabilities=read.capabilities,
        interceptors=tuple(sorted(read.interceptor, key=lambda each: each.priority)),
        limits=limits,
        supervision=read.supervision,
        imports=tuple(
            Requirement(f"{namespace}.{name}", each.version, each.optional)
            for namespace, group in read.imports.items()
            for name, each in group.items()
        ),
        exports=tuple(
            Export(f"{namespace}.{name}", version)
            for namespace, group in read.exports.items()
            for name, version in group.items()
        ),
        config={key: _secret(value) for key, value in read.config.items()},
    )


def _more(table: Mapping[str, object], ceilings: Limits, allow_unhashed: bool) -> Iterator[Finding]:
    """What the structure does not say: rules about several keys, counts, and the operator's will."""
    component = table.get("component")
    if isinstance(component, dict) and "hash" not in component and not allow_unhashed:
        yield ("component", "hash"), 'missing: write hash = "sha256:…" with the digits that sha256sum prints'
    capabilities = table.get("capabilities")
    for key in ("ipc_publish", "ipc_subscribe", "ipc_retain"):
        granted = cast(dict[str, object], capabilities).get(key) if isinstance(capabilities, dict) else None
        yield from _count(("capabilities", key), granted, MAX_GRANTS, "patterns")
    yield from _retained(table.get("capabilities"))
    yield from _count(("interceptor",), table.get("interceptor"), MAX_INTERCEPTORS, "interceptors")
    yield from limits_faults(faults.readable(_lowered(ceilings), table.get("limits")))
    yield from _over_ceilings(table.get("limits"), ceilings)
    yield from _backoff(faults.readable(Supervision(), table.get("supervision")))
    yield from faults.without_cbor(("config",), table.get("config"))
    yield from _secret_names(table.get("config"))


def _retained(capabilities: object) -> Iterator[Finding]:
    """What is to be retained has to be published first: a pattern that no grant covers is a mistake."""
    if not isinstance(capabilities, dict):
        return
    lists = cast(dict[str, object], capabilities)
    grants = [segments for _, _, segments in _readable(lists.get("ipc_publish"))]
    for i, text, segments in _readable(lists.get("ipc_retain")):
        if not any(topics.covers(grant, segments) for grant in grants):
            yield (
                ("capabilities", "ipc_retain", i),
                f"{shown(text)} is covered by no pattern of ipc_publish: write one there that covers it",
            )


def _readable(patterns: object) -> Iterator[tuple[int, str, topics.Segments]]:
    """The well-formed ones with their place in the list; the others are faults of their own."""
    for i, text in enumerate(cast(list[object], patterns) if isinstance(patterns, list) else ()):
        with suppress(topics.TopicError):
            if isinstance(text, str):
                yield i, text, topics.split(text)


def _secret(value: object) -> object:
    """`{ secret = "name" }` as what it means; a table with other keys is a value like any."""
    name = _secret_name(value)
    return value if name is None else Secret(name)


def _secret_name(value: object) -> str | None:
    if not isinstance(value, dict) or list(cast(dict[str, object], value)) != ["secret"]:
        return None
    name = cast(dict[str, object], value)["secret"]
    return name if isinstance(name, str) else None


def _secret_names(config: object) -> Iterator[Finding]:
    for key, value in cast(dict[str, object], config).items() if isinstance(config, dict) else ():
        name = _secret_name(value)
        if name is not None:
            try:
                SECRET.read(name)
            except ValueError as exc:
                yield ("config", key, "secret"), str(exc)


def limits_faults(limits: Mapping[str, float]) -> Iterator[Finding]:
    """What is wrong between limits that can be read; `faults.readable` has them."""
    least = limits.get("memory", 0) + HEADROOM
    if limits.get("process_memory", least) < least:
        found, least_text = format_size(int(limits["process_memory"])), format_size(int(least))
        yield (
            ("limits", "process_memory"),
            f"{found} is less than memory and {format_size(HEADROOM)} for the worker itself: "
            f'write "{least_text}" or more, or lower memory',
        )


def _over_ceilings(table: object, ceilings: Limits) -> Iterator[Finding]:
    asked = faults.readable(ceilings, table)
    for name, kind in faults.quantities(Limits).items():
        ceiling = cast(float, getattr(ceilings, name))
        if name in asked and _height(name, asked[name]) > _height(name, ceiling):
            yield (
                ("limits", name),
                f"{kind.show(asked[name])} is above the operator's ceiling, {kind.show(ceiling)}: "
                f"write that or less, or raise {name} in [limits] of {CONFIGURATION}",
            )


def _lowered(ceilings: Limits) -> Limits:
    """The defaults, each brought down to its ceiling."""
    low = {n: min(v, getattr(ceilings, n), key=partial(_height, n)) for n, v in asdict(Limits()).items()}
    return Limits(**low)


def _height(name: str, value: float) -> float:
    return inf if name == "cpu_time" and value == 0 else value


def _backoff(supervision: Mapping[str, float]) -> Iterator[Finding]:
    least = supervision.get("backoff_initial", 0.0)
    if supervision.get("backoff_max", least) < least:
        longest, least_text = format_duration(supervision["backoff_max"]), format_duration(least)
        yield (
            ("supervision", "backoff_max"),
            f'{longest} is less than backoff_initial: write "{least_text}" or more, or lower backoff_initial',
        )


def _count(path: faults.Path, value: object, most: int, what: str) -> Iterator[Finding]:
    found = len(cast(list[object], value)) if isinstance(value, list) else 0
    if found > most:
        yield path, f"{found} {what}: write {most} at most"
