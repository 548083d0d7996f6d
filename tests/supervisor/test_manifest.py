"""The manifest: what it says becomes values, and all that is wrong with it is told at once."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import items, payloads
from capsuled.proto.grants import Grants
from capsuled.proto.ledger import MAX_INTERCEPTORS
from capsuled.supervisor import faults
from capsuled.supervisor.faults import MAX_REASON, MAX_VERSION
from capsuled.supervisor.manifest import (
    HEADROOM,
    MAX_GRANTS,
    Component,
    Export,
    Interceptor,
    Limits,
    Manifest,
    ManifestInvalid,
    Package,
    Requirement,
    Supervision,
    parse,
)
from capsuled.supervisor.quantities import GIB, KIB, MIB
from capsuled.supervisor.secrets import Secret

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

HASH = "sha256:" + 64 * "0"

HEAD = f"""
[package]
name = "echo"
version = "1.0.0"
[component]
file = "echo.wasm"
hash = "{HASH}"
"""
"""The least that a manifest has."""

WIDE = Limits(
    memory=4 * GIB,
    process_memory=64 * GIB,
    cpu=64.0,
    open_files=4096,
    max_payload=payloads.MAX_BYTES,
    publish_bytes_per_second=GIB,
    publish_messages_per_second=10_000_000,
    queue_messages=1_000_000,
    queue_bytes=GIB,
    log_bytes_per_second=GIB,
)
"""Ceilings that nothing reaches."""


def read(text: str, ceilings: Limits = WIDE) -> Manifest:
    return parse(HEAD + text, "Capsule.toml", ceilings)


def told(text: str, ceilings: Limits = WIDE, allow_unhashed: bool = False) -> dict[str, str]:
    """Key to sentence of what is wrong with the whole manifest `text`."""
    with pytest.raises(ManifestInvalid) as caught:
        parse(text, "Capsule.toml", ceilings, allow_unhashed)
    assert {each.file for each in caught.value.faults} == {"Capsule.toml"}
    keys = [each.key for each in caught.value.faults]
    assert len(keys) == len(set(keys))
    return {each.key: each.sentence for each in caught.value.faults}


def alone(text: str, ceilings: Limits = WIDE) -> tuple[str, str]:
    """Key and sentence of the one thing that is wrong with `text` behind the head."""
    ((key, sentence),) = told(HEAD + text, ceilings).items()
    return key, sentence


def test_least() -> None:
    """A manifest that says the least has the defaults of the contract, and its name for a principal."""
    assert read("") == Manifest(
        Package("echo", "1.0.0", principal="echo"), Component("echo.wasm", HASH, "auto")
    )
    assert asdict(Limits()) == {
        "memory": 64 * MIB,
        "process_memory": 512 * MIB,
        "cpu": 1.0,
        "cpu_time": 0,
        "open_files": 64,
        "processes": 1,
        "max_payload": MIB,
        "publish_bytes_per_second": 10 * MIB,
        "publish_messages_per_second": 100_000,
        "queue_messages": 1024,
        "queue_bytes": 10 * MIB,
        "log_bytes_per_second": 256 * KIB,
    }
    assert asdict(Supervision()) == {
        "restart": "on-failure",
        "backoff_initial": 0.5,
        "backoff_max": 30.0,
        "backoff_factor": 2.0,
        "stable_after": 30.0,
        "start_limit": 5,
        "start_limit_interval": 60.0,
        "ready": "guest",
        "ready_timeout": 10.0,
        "stop_timeout": 5.0,
        "watchdog": 0.0,
    }


def test_everything() -> None:
    """Each table becomes its value."""
    found = parse(
        f"""
[package]
name = "echo"
version = "1.0.0-rc.1+build"
description = "answers"
authors = ["A", "B"]
license = "Apache-2.0"
repository = "r"
homepage = "h"
principal = "user@example.org"
[component]
file = "build/echo.wasm"
hash = "{HASH}"
engine = "wasmtime"
[capabilities]
ipc_publish = ["echo.reply.*"]
ipc_subscribe = ["echo.request.*", "a.*.b"]
[[interceptor]]
event = "audit.*"
action = "second"
[[interceptor]]
event = "audit.*"
action = "third"
priority = 100
[[interceptor]]
event = "kernel.capsule.*"
action = "first"
priority = -1
[limits]
memory = "1MiB"
process_memory = 104857600
cpu = 2
cpu_time = "2m"
[supervision]
restart = "always"
backoff_initial = "200ms"
backoff_max = "200ms"
start_limit = 0
ready = "started"
watchdog = 3
[imports.acme]
session = "^1.0"
store = {{ version = ">=1.0,<3", optional = true }}
[imports.other]
x = "*"
[exports.acme]
echo = "1.0.0"
[config]
greeting = "hello"
nested = {{ a = [1, 2.5, true, "x"] }}
""",
        "Capsule.toml",
        WIDE,
    )
    assert found.package == Package(
        *("echo", "1.0.0-rc.1+build", "answers", ("A", "B"), "Apache-2.0", "r", "h", "user@example.org")
    )
    assert found.component == Component("build/echo.wasm", HASH, "wasmtime")
    assert found.grants == Grants(("echo.reply.*",), ("echo.request.*", "a.*.b"))
    assert found.interceptors == (
        Interceptor("kernel.capsule.*", "first", -1),
        Interceptor("audit.*", "second", 100),
        Interceptor("audit.*", "third", 100),
    )
    assert found.limits == Limits(memory=MIB, process_memory=100 * MIB, cpu=2.0, cpu_time=120)
    assert found.supervision == Supervision(
        restart="always", backoff_initial=0.2, backoff_max=0.2, start_limit=0, ready="started", watchdog=3.0
    )
    assert found.imports == (
        Requirement("acme.session", "^1.0"),
        Requirement("acme.store", ">=1.0,<3", optional=True),
        Requirement("other.x", "*"),
    )
    assert found.exports == (Export("acme.echo", "1.0.0"),)
    assert found.config == {"greeting": "hello", "nested": {"a": [1, 2.5, True, "x"]}}


def test_values_are_frozen_and_can_be_replaced() -> None:
    """Nobody changes a manifest that another one holds; a changed copy is made with `replace`."""
    limits = Limits()
    with pytest.raises(FrozenInstanceError):
        limits.memory = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert replace(Supervision(), stop_timeout=0.25).stop_timeout == 0.25
    assert replace(Package("a", "1.0.0"), principal="b").principal == "b"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/Capsule.toml")), ids=lambda path: path.parent.name)
def test_examples(path: Path) -> None:
    """Every example is valid below the default limits, and is named like its folder."""
    assert parse(path.read_text(), str(path), Limits()).package.name == path.parent.name


def test_all_faults_at_once() -> None:
    """Structure, values, rules about two keys and ceilings are told together, each by its key."""
    found = told(
        """
zap = 1
[package]
nam = "x"
version = "1"
authors = ["a", 5]
[component]
file = "../x.wasm"
engine = "v8"
[capabilities]
ipc_publish = ["a..b", 5]
[[interceptor]]
event = "a.*.b"
action = ""
[[interceptor]]
[limits]
memory = "600MiB"
cpu = true
[supervision]
backoff_initial = "1m"
[imports.Acme]
session = "banana"
[imports.acme]
s2 = { version = "^1", optional = "x", zz = 1 }
s3 = 4
[exports]
x = 1
[config]
b = [1, { "c d" = 1979-05-27 }]
""",
        Limits(),
    )
    assert found.keys() == {
        *("zap", "package.name", "package.nam", "package.version", "package.authors[1]"),
        *("component.file", "component.engine", "component.hash"),
        *("capabilities.ipc_publish[0]", "capabilities.ipc_publish[1]"),
        *("interceptor[0].event", "interceptor[0].action", "interceptor[1].event", "interceptor[1].action"),
        *("limits.memory", "limits.process_memory", "limits.cpu", "supervision.backoff_max"),
        *("imports.Acme", "imports.Acme.session.version", "imports.acme.s2.optional", "imports.acme.s2.zz"),
        *("imports.acme.s3", "exports.x", "config.b[1].'c d'"),
    }
    assert found["package.name"] == 'missing: write name = "echo"'
    assert found["interceptor[1].event"] == 'missing: write event = "audit.*"'
    assert found["package.nam"] == "not known here: did you mean name?"
    assert found["imports.acme.s2.zz"] == "not known here: write one of version, optional"


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        ('engine = "v8"', "component.engine", "'v8' is not known here: write 'auto', 'wasmer' or 'wasmtime'"),
        ("engine = 5", "component.engine", "5 is not known here: write 'auto', 'wasmer' or 'wasmtime'"),
        (
            "[capabilities]\nipc_publish = 'a'",
            "capabilities.ipc_publish",
            "'a' is no list: write it in brackets, ['a']",
        ),
        ("[capabilities]\nipc_publish = ['']", "capabilities.ipc_publish[0]", "'' has an empty segment"),
        (
            "[capabilities]\nipc_subscribe = ['a.']",
            "capabilities.ipc_subscribe[0]",
            "'a.' has an empty segment",
        ),
        (
            "[capabilities]\nipc_subscribe = ['a.b.c.d.e.f.g.h.i']",
            "capabilities.ipc_subscribe[0]",
            "9 segments",
        ),
        (f"[capabilities]\nipc_publish = ['{'a' * 257}']", "capabilities.ipc_publish[0]", "257 bytes"),
        (
            "[interceptor]\nevent = 'a'\naction = 'b'",
            "interceptor",
            "a table is no list: write [[interceptor]]",
        ),
        (
            "[[interceptor]]\nevent = '*.b'\naction = 'b'",
            "interceptor[0].event",
            "wildcard before its last segment",
        ),
        (
            f"[[interceptor]]\nevent = 'b'\naction = '{'b' * 129}'",
            "interceptor[0].action",
            "1 to 128 printable",
        ),
        ("[[interceptor]]\nevent = 'b'\naction = 'a b'", "interceptor[0].action", "without spaces"),
        (
            "[[interceptor]]\nevent = 'b'\naction = 'b'\npriority = 1000001",
            "interceptor[0].priority",
            "1000001 is more than 1000000",
        ),
        ("[limits]\nmemory = 65537", "limits.memory", '65537 is no multiple of 64KiB: write "128KiB"'),
        ("[limits]\nmemory = 0", "limits.memory", "0 is less than 64KiB"),
        ("[limits]\nprocess_memory = '64MiB'", "limits.process_memory", "'64MiB' is less than 65600KiB"),
        ("[limits]\ncpu = 0", "limits.cpu", "0 is less than 0.01"),
        ("[limits]\ncpu_time = '1500ms'", "limits.cpu_time", "no whole number of seconds"),
        ("[limits]\nopen_files = 15", "limits.open_files", "15 is less than 16"),
        ("[limits]\nprocesses = 2", "limits.processes", "2 is more than 1: write 1"),
        ("[limits]\nmax_payload = 5242881", "limits.max_payload", "5242881 is more than 5MiB"),
        ("[limits]\nmax_payload = 0", "limits.max_payload", "0 is less than 1"),
        ("[limits]\npublish_bytes_per_second = 0", "limits.publish_bytes_per_second", "0 is less than 1"),
        (
            "[limits]\npublish_messages_per_second = 0",
            "limits.publish_messages_per_second",
            "0 is less than 1",
        ),
        ("[limits]\nqueue_messages = 0", "limits.queue_messages", "0 is less than 1"),
        ("[limits]\nqueue_bytes = 1073741825", "limits.queue_bytes", "1073741825 is more than 1GiB"),
        ("[limits]\nlog_bytes_per_second = '1MB'", "limits.log_bytes_per_second", 'write "1MiB"'),
        ("[limits]\nmemry = 1", "limits.memry", "did you mean memory?"),
        ("limits = 5", "component.limits", "not known here: write one of file, hash, engine"),
        ("[supervision]\nrestart = 'no'", "supervision.restart", "write 'always', 'on-failure' or 'never'"),
        (
            "[supervision]\nready = true",
            "supervision.ready",
            "true is not known here: write 'guest' or 'started'",
        ),
        ("[supervision]\nbackoff_initial = '9ms'", "supervision.backoff_initial", "'9ms' is less than 10ms"),
        ("[supervision]\nbackoff_max = '25h'", "supervision.backoff_max", "'25h' is more than 24h"),
        ("[supervision]\nbackoff_factor = 0.5", "supervision.backoff_factor", "0.5 is less than 1"),
        ("[supervision]\nstable_after = 0", "supervision.stable_after", "0 is less than 10ms"),
        ("[supervision]\nstart_limit = -1", "supervision.start_limit", "-1 is less than 0"),
        (
            "[supervision]\nstart_limit_interval = 0",
            "supervision.start_limit_interval",
            "0 is less than 10ms",
        ),
        ("[supervision]\nready_timeout = '61m'", "supervision.ready_timeout", "'61m' is more than 1h"),
        ("[supervision]\nstop_timeout = 0", "supervision.stop_timeout", "0 is less than 10ms"),
        (
            "[supervision]\nstop_timeout = 0.5",
            "supervision.stop_timeout",
            '0.5 is no duration: write "500ms"',
        ),
        ("[supervision]\nwatchdog = '99ms'", "supervision.watchdog", "or 0 for no watchdog"),
        ("[imports.acme]\na = 5", "imports.acme.a", '5 is no requirement: write "^1.0" or {'),
        (
            "[imports.acme]\na = { optional = true }",
            "imports.acme.a.version",
            'missing: write version = "^1.0"',
        ),
        ("[imports.acme]\na = '^1.0 || 2'", "imports.acme.a.version", "is no range of versions"),
        (
            "[imports.acme]\na = { version = '1', optional = 1 }",
            "imports.acme.a.optional",
            "neither true nor false",
        ),
        ("[imports.acme]\na_b = '1'", "imports.acme.a_b", "'a_b' does not fit"),
        ("[exports.acme]\necho = '1.0'", "exports.acme.echo", "'1.0' is no version"),
        ("[exports.acme]\necho = 1", "exports.acme.echo", "1 is no text"),
        ("[exports]\nacme = '1.0.0'", "exports.acme", "'1.0.0' is no table: write [exports.acme]"),
        ("[config]\nwhen = 1979-05-27", "config.when", 'write it as text, "1979-05-27"'),
        ("[config]\nwhen = [07:32:00]", "config.when[0]", 'write it as text, "07:32:00"'),
        ("[config]\nwhen = 1979-05-27T07:32:00Z", "config.when", "is a date or time"),
        ("[config]\nn = 9223372036854775808", "config.n", "has more than 64 bits"),
        ("[config]\nn = -9223372036854775809", "config.n", "has more than 64 bits"),
        (f"[config]\na = {'[' * 65}1{']' * 65}", "config.a" + "[0]" * 64, "deeper than 64 levels"),
    ],
)
def test_one_fault(text: str, key: str, sentence: str) -> None:
    """A value that breaks a rule is told by its key, with the value, the rule and what to write."""
    found_key, found = alone(text)
    assert (found_key, sentence in found) == (key, True), found


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a" * 64, "a\\n", "a/b"],
    ids=lambda name: name[:8] or "empty",
)
def test_no_names(name: str) -> None:
    """A name has 1 to 63 of a-z, 0-9 and '-', and no '-' at either end."""
    found = told(HEAD.replace('"echo"', f'"{name}"'))
    assert re.search("does not fit: write 1 to 63 of a-z", found["package.name"])


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a--b", "a" * 63])
def test_names(name: str) -> None:
    """The edges of the grammar are names."""
    assert parse(HEAD.replace('"echo"', f'"{name}"'), "f", WIDE).package.name == name


@pytest.mark.parametrize(
    "version", ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", f"1.0.0-{'a' * (MAX_VERSION - 5)}"]
)
def test_no_versions(version: str) -> None:
    """A version is what semver.org says, of `MAX_VERSION` characters at most."""
    assert "is no version" in told(HEAD.replace("1.0.0", version))["package.version"]


def test_longest_version() -> None:
    """A version of `MAX_VERSION` characters is read, and so is such a range; one more is not."""
    version = f"1.0.0-{'a' * (MAX_VERSION - 6)}"
    assert parse(HEAD.replace("1.0.0", version), "f", WIDE).package.version == version
    accepted = f">={version[: MAX_VERSION - 2]}"
    assert read(f"[imports.a]\nb = '{accepted}'").imports[0].version == accepted
    assert alone(f"[imports.a]\nb = '{accepted}a'")[0] == "imports.a.b.version"


@pytest.mark.parametrize(
    ("accepted", "version", "wanted"),
    [
        ("^1.0", "1.9.3", True),
        ("^1.0", "2.0.0", False),
        ("~1.2", "1.2.9", True),
        ("~1.2", "1.3.0", False),
        (">=1.0,<3", "2.9.9", True),
        (">=1.0,<3", "3.0.0", False),
        ("*", "0.0.1", True),
        ("==1.2.3", "1.2.4", False),
    ],
)
def test_requirements(accepted: str, version: str, wanted: bool) -> None:
    """A requirement accepts the versions of its range, and no other."""
    assert Requirement("a.b", accepted).accepts(version) is wanted


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("/etc/x.wasm", "is absolute"),
        ("../x.wasm", "leaves the folder with '..'"),
        ("a/../x.wasm", "leaves the folder with '..'"),
        ("a/..", "leaves the folder with '..'"),
        ("a\\u0000b", "has a NUL character"),
        ("", "names no file"),
        (".", "names no file"),
        ("a/", "names no file"),
    ],
)
def test_no_files(file: str, sentence: str) -> None:
    """The module's file is below the manifest's folder."""
    assert sentence in told(HEAD.replace("echo.wasm", file))["component.file"]


def test_file_may_have_dots_in_its_name() -> None:
    """Only a part that is exactly '..' leaves a folder."""
    assert parse(HEAD.replace("echo.wasm", "..a/b..wasm"), "f", WIDE).component.file == "..a/b..wasm"


@pytest.mark.parametrize(
    "digest", ["", HASH[7:], "sha512:" + 64 * "0", HASH[:-1], HASH + "0", HASH[:-1] + "A", HASH[:-1] + "g"]
)
def test_no_hashes(digest: str) -> None:
    """A hash is 'sha256:' and 64 lower-case hexadecimal digits."""
    assert "64 lower-case digits" in told(HEAD.replace(HASH, digest))["component.hash"]


def test_hash_is_required_where_it_is() -> None:
    """Without a hash a manifest is invalid, but in the developer's mode; a bad one is invalid there too."""
    unhashed = HEAD.replace(f'hash = "{HASH}"', "")
    assert "missing: write hash" in told(unhashed)["component.hash"]
    assert parse(unhashed, "f", WIDE, allow_unhashed=True).component.hash is None
    assert "component.hash" in told(HEAD.replace(HASH, "x"), allow_unhashed=True)


@pytest.mark.parametrize("principal", ["", "a b", "-a", "a" * 129, "ä"])
def test_no_principals(principal: str) -> None:
    """A principal is 1 to 128 characters of its grammar."""
    found = told(HEAD.replace("[component]", f'principal = "{principal}"\n[component]'))
    assert "1 to 128" in found["package.principal"]


def test_tables_are_required() -> None:
    """Without its two tables a manifest says nothing, and is told which to write."""
    assert told("") == {
        "package": "missing: write [package], and its keys in the lines below",
        "component": "missing: write [component], and its keys in the lines below",
    }


def test_tables_that_are_none() -> None:
    """What should be a table and is none is told, and the other rules do not stumble over it."""
    names = ("package", "component", "capabilities", "limits", "supervision", "imports", "exports", "config")
    found = told("interceptor = 5\n" + "\n".join(f"{name} = [5]" for name in names))
    assert found.pop("interceptor").startswith("5 is no list")
    assert {
        key: f"a list is no table: write [{key}], and its keys in the lines below" for key in names
    } == found


def test_most_interceptors() -> None:
    """As many interceptors as a capsule may have are read, one more is told."""
    one = "[[interceptor]]\nevent = 'a'\naction = 'b'\n"
    assert len(read(one * MAX_INTERCEPTORS).interceptors) == MAX_INTERCEPTORS
    assert alone(one * (MAX_INTERCEPTORS + 1)) == ("interceptor", "65 interceptors: write 64 at most")


@pytest.mark.parametrize("key", ["ipc_publish", "ipc_subscribe"])
def test_most_grants(key: str) -> None:
    """As many patterns as may be are read, one more is told."""
    text = "[capabilities]\n{} = {}".format
    read(text(key, ["a"] * MAX_GRANTS))
    assert alone(text(key, ["a"] * (MAX_GRANTS + 1))) == (
        f"capabilities.{key}",
        "257 patterns: write 256 at most",
    )


def test_process_memory_has_headroom() -> None:
    """The process gets the guest's memory and the worker's own; one byte less is told, with what suffices."""
    at_least = 128 * MIB + HEADROOM
    assert read(f"[limits]\nmemory = '128MiB'\nprocess_memory = {at_least}").limits.memory == 128 * MIB
    assert alone(f"[limits]\nmemory = '128MiB'\nprocess_memory = {at_least - 1}") == (
        "limits.process_memory",
        f'{at_least - 1} is less than memory and 64MiB for the worker itself: write "192MiB" or more, '
        "or lower memory",
    )


def test_backoff_grows() -> None:
    """The longest pause is no shorter than the first."""
    assert alone("[supervision]\nbackoff_initial = '31s'") == (
        "supervision.backoff_max",
        '30s is less than backoff_initial: write "31s" or more, or lower backoff_initial',
    )
    assert read("[supervision]\nbackoff_initial = '30s'").supervision.backoff_initial == 30.0


CEILINGS = Limits(
    memory=32 * MIB,
    process_memory=128 * MIB,
    cpu=0.5,
    cpu_time=60,
    open_files=32,
    max_payload=KIB,
    publish_bytes_per_second=KIB,
    publish_messages_per_second=10,
    queue_messages=8,
    queue_bytes=KIB,
    log_bytes_per_second=KIB,
)
"""Each below the default, except that there is one process only."""


@pytest.mark.parametrize(
    ("name", "at", "above", "shown"),
    [
        ("memory", "'32MiB'", "'33MiB'", "33MiB"),
        ("process_memory", "'128MiB'", "'129MiB'", "129MiB"),
        ("cpu", "0.5", "0.6", "0.6"),
        ("cpu_time", "60", "'61s'", "61s"),
        ("cpu_time", "'59s'", "0", "0s"),
        ("open_files", "32", "33", "33"),
        ("max_payload", "1024", "1025", "1025"),
        ("publish_bytes_per_second", "1024", "1025", "1025"),
        ("publish_messages_per_second", "10", "11", "11"),
        ("queue_messages", "8", "9", "9"),
        ("queue_bytes", "1024", "1025", "1025"),
        ("log_bytes_per_second", "1024", "1025", "1025"),
    ],
)
def test_ceilings(name: str, at: str, above: str, shown: str) -> None:
    """A limit at the operator's ceiling is read, one above it is told with it; no limit is above any."""
    read(f"[limits]\n{name} = {at}", CEILINGS)
    key, sentence = alone(f"[limits]\n{name} = {above}", CEILINGS)
    kind = faults.quantities(Limits)[name]
    ceiling = kind.show(cast(float, getattr(CEILINGS, name)))
    assert key == f"limits.{name}"
    assert sentence == (
        f"{shown} is above the operator's ceiling, {ceiling}: "
        f"write that or less, or raise {name} in [limits] of capsuled.toml"
    )


def test_defaults_come_down_to_the_ceilings() -> None:
    """A manifest that says nothing of its limits is valid below any ceilings, and gets no more."""
    assert read("", CEILINGS).limits == CEILINGS
    assert read("", WIDE).limits == Limits()
    assert read("[limits]\nqueue_messages = 4", CEILINGS).limits == replace(CEILINGS, queue_messages=4)


def test_each_limit_has_a_ceiling() -> None:
    """No limit was forgotten above: each has bounds, and so a ceiling."""
    assert faults.quantities(Limits).keys() == {each.name for each in fields(Limits)}


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        ("a = 1\nb = \n", "line 2, column 5", "not TOML here: invalid value: correct this line"),
        ("a = 1\na = 2\n", "line 2, column 6", "not TOML here: cannot overwrite a value: correct this line"),
        ("a = {b = 1", "at the end", "not TOML here: unclosed inline table: correct this line"),
        ("a = " + "[" * 1000, "", "lists or tables too deep to be read: write it flatter"),
        ("a = " + "9" * 5000, "", "a number of too many digits to be read: write it as text"),
    ],
)
def test_no_toml(text: str, key: str, sentence: str) -> None:
    """What is not TOML is one fault, with its line."""
    assert told(text) == {key: sentence}


def test_a_fault_is_one_printable_line() -> None:
    """Whatever stands in a file and in its name, a fault is a line that no terminal obeys."""
    with pytest.raises(ManifestInvalid) as caught:
        parse(HEAD + '[capabilities]\nipc_publish = ["\\u001b[2J\\n..a"]\n', "a\n\udcff", WIDE)
    (line,) = str(caught.value).splitlines()
    assert line.isprintable()
    assert line.startswith(r"a\n\udcff: capabilities.ipc_publish[0]: '\x1b[2J\n..a' has an empty segment")


def test_what_the_parser_says_is_cut() -> None:
    """The parser repeats keys; a long one does not become a long sentence."""
    ((_, sentence),) = told(f"[{'a' * 1000}]\n[{'a' * 1000}]\n").items()
    assert len(sentence) < MAX_REASON + 50


TOML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b"]), TOML.filter(lambda each: each is not None), max_size=2))
def test_config_has_items(config: dict[str, object]) -> None:
    """Whatever is not told to have no CBOR item has one, of the form that guests accept."""
    if not list(faults.without_cbor(("config",), config)):
        for value in config.values():
            items.check(payloads.encode(value))


def test_deepest_config() -> None:
    """The deepest value that is read has an item that guests accept."""
    deepest = f"{'[' * items.MAX_DEPTH}1{']' * items.MAX_DEPTH}"
    items.check(payloads.encode(read(f"[config]\na = {deepest}").config["a"]))


@given(st.dictionaries(st.sampled_from([*asdict(Limits()), "x"]), TOML, max_size=4))
def test_any_values_are_read_or_told(values: dict[str, object]) -> None:
    """Each limit is either read or told by its key, whatever stands there: no other error comes out."""
    keys: set[str] = set()
    try:
        faults.structure(Limits, values, "f")
    except faults.FileInvalid as exc:
        keys = {each.key for each in exc.faults}
    assert keys == {name for name in values if name not in faults.readable(Limits(), values)}


EVERYTHING = (
    (EXAMPLES / "calculator/Capsule.toml").read_text()
    + """
[limits]
memory = "8MiB"
[supervision]
watchdog = "5s"
[config]
a = { secret = "b" }
[[interceptor]]
event = "a.b"
action = "x"
"""
)

PIECES = st.sampled_from(
    [
        *(
            "[limits]",
            "[[export]]",
            "[",
            "]",
            "{",
            "}",
            "=",
            ".",
            "\n",
            '"',
            "'",
            '"""',
            "\\u0000",
            "#",
            "*",
            "-",
            "nan",
        ),
        *(
            "memory",
            "1e400",
            "9" * 30,
            "kernel.*",
            "1979-05-27",
            "true",
            "\x1b[2J",
            "ü",
            "../x",
            "0x7f",
            "[" * 99,
        ),
    ]
) | st.text(max_size=5)


@given(st.lists(st.tuples(st.integers(0, len(EVERYTHING)), st.integers(0, 40), PIECES), max_size=6))
def test_any_text_is_a_manifest_or_is_told_what_is_wrong(edits: list[tuple[int, int, str]]) -> None:
    """Invariant: however a manifest is damaged, it is read, or its faults are told, each in one printable line."""
    text = EVERYTHING
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    lines: list[str] = []
    try:
        parse(text, "Capsule.toml", WIDE)
    except ManifestInvalid as exc:
        lines = str(exc).split("\n")
    assert all(line.isprintable() and line.startswith("Capsule.toml: ") for line in lines)


def test_a_secret_is_a_name() -> None:
    """`{ secret = "…" }` alone is the name of a secret; a table with more in it is a value like any."""
    found = read('[config]\ntoken = { secret = "api-token" }\nother = { secret = "x", more = 1 }\n').config
    assert found == {"token": Secret("api-token"), "other": {"secret": "x", "more": 1}}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "A", "a" * 64])
def test_a_secrets_name_leads_nowhere_else(name: str) -> None:
    """It is one plain file name, so that it cannot leave the capsule's own folder."""
    key, _ = alone(f'[config]\ntoken = {{ secret = "{name}" }}\n')
    assert key == "config.token.secret"


@pytest.mark.parametrize(
    ("lists", "key"),
    [
        ('ipc_retain = ["a"]', "capabilities.ipc_retain[0]"),
        ('ipc_publish = ["a.*"]\nipc_retain = ["a.b", "*"]', "capabilities.ipc_retain[1]"),
        ('ipc_publish = ["a.*"]\nipc_retain = ["a..b"]', "capabilities.ipc_retain[0]"),
    ],
)
def test_only_what_may_be_published_is_retained(lists: str, key: str) -> None:
    """A pattern that no publish grant covers alone is a mistake, told with its place."""
    assert alone(f"[capabilities]\n{lists}\n")[0] == key
