"""The configuration: where things are by default, what the file changes, and what this version refuses."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from capsuled.proto.control import LOG_LEVELS, Level
from capsuled.supervisor.commands import client
from capsuled.supervisor.configuration import (
    LEVELS,
    LIMITS,
    MAX_SOCKET,
    Configuration,
    ConfigurationInvalid,
    Control,
    Isolation,
    Log,
    default_file,
    defaults,
    parse,
)
from capsuled.supervisor.control import listening
from capsuled.supervisor.manifest import Limits
from capsuled.supervisor.quantities import GIB, KIB, MIB

USER = 1000

BASE = defaults({}, 0)

FILE = Path("/etc/capsuled/capsuled.toml")


def told(text: str, file: Path = FILE) -> dict[str, str]:
    """Key to sentence of what is wrong with `text`."""
    with pytest.raises(ConfigurationInvalid) as caught:
        parse(text, file, BASE)
    assert {each.file for each in caught.value.faults} == {str(file)}
    return {each.key: each.sentence for each in caught.value.faults}


def test_root() -> None:
    """Root has the system's folders, whatever the environment says."""
    found = defaults({"XDG_RUNTIME_DIR": "/run/user/0", "XDG_STATE_HOME": "/x", "HOME": "/y"}, 0)
    assert found == Configuration(
        capsules=(Path("/etc/capsuled/capsules"),),
        runtime_dir=Path("/run/capsuled"),
        state_dir=Path("/var/lib/capsuled"),
        secrets_dir=Path("/etc/capsuled/secrets"),
        control=Control(Path("/run/capsuled/control.sock")),
    )
    assert default_file({}, 0) == FILE


@pytest.mark.parametrize(
    ("env", "runtime", "state", "capsules"),
    [
        ({}, "/tmp/capsuled-1000", "/tmp/capsuled-1000/state", "/etc/capsuled/capsules"),
        ({"HOME": "h"}, "/tmp/capsuled-1000", "/tmp/capsuled-1000/state", "/etc/capsuled/capsules"),
        (
            {"HOME": "/h"},
            "/tmp/capsuled-1000",
            "/h/.local/state/capsuled",
            "/h/.config/capsuled/capsules",
        ),
        (
            {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c"},
            *("/r/capsuled", "/s/capsuled", "/c/capsuled/capsules"),
        ),
        (
            {"HOME": "/h", "XDG_RUNTIME_DIR": "r", "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "c"},
            *("/tmp/capsuled-1000", "/h/.local/state/capsuled", "/h/.config/capsuled/capsules"),
        ),
    ],
)
def test_users(env: dict[str, str], runtime: str, state: str, capsules: str) -> None:
    """A user has the XDG folders; a variable that holds no absolute path is ignored, as XDG says."""
    found = defaults(env, USER)
    assert (found.runtime_dir, found.state_dir) == (Path(runtime), Path(state))
    assert found.capsules == (Path(capsules),)
    assert default_file(env, USER) == Path(capsules).with_name("capsuled.toml")


@pytest.mark.parametrize("uid", [0, USER])
@pytest.mark.parametrize("env", [{}, {"XDG_RUNTIME_DIR": "/r"}, {"XDG_RUNTIME_DIR": "r"}], ids=str)
def test_client_and_supervisor_agree(env: dict[str, str], uid: int) -> None:
    """Where the supervisor puts its socket by default, capsulectl looks for it."""
    assert str(defaults(env, uid).control.path) == client.socket_path(env, uid)


def test_nothing_said() -> None:
    """An empty file changes nothing."""
    assert parse("", FILE, BASE) == BASE
    assert not BASE.allow_unhashed
    assert BASE.isolation == Isolation("best")
    assert (BASE.limits.total_capsules, BASE.limits.total_queue_bytes) == (1000, 256 * MIB)
    assert BASE.log == Log("info", 1000, 256 * KIB, 10 * MIB, 5, "auto", "text")


def test_everything() -> None:
    """Each key becomes its value; relative paths begin at the file's folder."""
    text = """
capsules = ["capsules", "/srv/capsules"]
runtime_dir = "run"
state_dir = "/var/lib/other"
secrets_dir = "secrets"
allow_unhashed = true
[control]
path = "/run/c.sock"
[control.groups]
ops = "operate"
monitoring = "read"
[isolation]
required = "best"
[limits]
memory = "128MiB"
total_capsules = 10
total_queue_bytes = "64MiB"
[log]
level = "debug"
ring_lines = 10
ring_bytes = "4KiB"
file_bytes = "1MiB"
file_count = 0
journal = "/run/systemd/journal.mine/socket"
format = "json"
"""
    assert parse(text, Path("/etc/c/capsuled.toml"), BASE) == Configuration(
        capsules=(Path("/etc/c/capsules"), Path("/srv/capsules")),
        runtime_dir=Path("/etc/c/run"),
        state_dir=Path("/var/lib/other"),
        secrets_dir=Path("/etc/c/secrets"),
        control=Control(Path("/run/c.sock"), {"ops": Level.OPERATE, "monitoring": Level.READ}),
        allow_unhashed=True,
        limits=replace(LIMITS, memory=128 * MIB, total_capsules=10, total_queue_bytes=64 * MIB),
        log=Log("debug", 10, 4 * KIB, MIB, 0, "/run/systemd/journal.mine/socket", "json"),
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "/run/capsuled/control.sock"),
        ("runtime_dir = '/r'", "/r/control.sock"),
        ("runtime_dir = 'r'", "/etc/capsuled/r/control.sock"),
        ("runtime_dir = '/r'\n[control]\npath = 'c'", "/etc/capsuled/c"),
    ],
)
def test_socket(text: str, path: str) -> None:
    """The control socket is in the runtime folder, unless the file names another path."""
    assert parse(text, FILE, BASE).control.path == Path(path)


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        ("zap = 1", "zap", "not known here: write one of capsules, runtime_dir"),
        ("runtime_dirs = '/r'", "runtime_dirs", "did you mean runtime_dir?"),
        ("capsules = '/c'", "capsules", "'/c' is no list: write it in brackets, ['/c']"),
        ("capsules = [5]", "capsules[0]", "5 is no text"),
        ("capsules = ['~/c']", "capsules[0]", "'~/c' is no path: write an absolute one"),
        ("runtime_dir = '$HOME/r'", "runtime_dir", "'$HOME/r' is no path"),
        ("state_dir = ''", "state_dir", "'' is no path"),
        ('state_dir = "a\\u0000"', "state_dir", "is no path"),
        ("allow_unhashed = 'yes'", "allow_unhashed", "'yes' is neither true nor false"),
        ("control = 5", "control", "5 is no table: write [control]"),
        ("[control]\nmode = 0o660", "control.mode", "not known here: write one of path, groups"),
        ("[control.groups]\nops = 'admin'", "control.groups.ops", "write 'read' or 'operate'"),
        ("[control.groups]\n'a b' = 'read'", "control.groups.'a b'", "write the name of a group"),
        ("[isolation]\nrequired = 'most'", "isolation.required", "'most' is no requirement: write"),
        ("[isolation]\nrequired = 5", "isolation.required", "5 is no requirement: write"),
        (
            "[isolation]\nrequired = ['seccomp', 'sandbox']",
            "isolation.required",
            "'sandbox' is no layer: there are",
        ),
        ("[isolation]\nrequired = [5]", "isolation.required", "5 is no layer: there are"),
        ("[isolation]\nusers = 1000", "isolation.users", "1000 is no range of users: write the first"),
        ("[isolation]\nusers = '1000'", "isolation.users", "'1000' is no range of users: write the first"),
        ("[isolation]\nusers = '1000-'", "isolation.users", "'1000-' is no range of users: write the first"),
        ("[isolation]\nusers = '999-2000'", "isolation.users", "the first is 1000 at least"),
        ("[isolation]\nusers = '2000-1999'", "isolation.users", "the last not below it"),
        ("[isolation]\nusers = '2000-2147483648'", "isolation.users", "2147483647 at most"),
        ("[isolation]\nusers = '65534-65534'", "isolation.users", "contains 65534, which is nobody's"),
        ("[isolation]\nusers = '65535-70000'", "isolation.users", "contains 65535, which is nobody's"),
        ("[limits]\ntotal_capsules = 10001", "limits.total_capsules", "10001 is more than 10000"),
        ("[limits]\ntotal_queue_bytes = 1", "limits.total_queue_bytes", "1 is less than 1MiB"),
        ("[limits]\nmemory = '2GiB'", "limits.process_memory", "2GiB is less than memory and 64MiB"),
        ("[limits]\ncpu = 65", "limits.cpu", "65 is more than 64"),
        ("[log]\nlevel = 'loud'", "log.level", "write 'trace', 'debug', 'info', 'warn' or 'error'"),
        ("[log]\nring_lines = 0", "log.ring_lines", "0 is less than 1"),
        ("[log]\nring_bytes = 1023", "log.ring_bytes", "1023 is less than 1KiB"),
        ("[log]\nfile_bytes = '2GiB'", "log.file_bytes", "'2GiB' is more than 1GiB"),
        ("[log]\nfile_count = 101", "log.file_count", "101 is more than 100"),
        ("[log]\nformat = 'xml'", "log.format", "write 'text' or 'json'"),
        ("[log]\njournal = 'yes'", "log.journal", "'yes' is no journal: write \"auto\", true, false"),
        ("[log]\njournal = 1", "log.journal", "1 is no journal"),
        (f"[log]\njournal = '/{'x' * 107}'", "log.journal", "has 108 bytes, a socket's path has 107 at most"),
        ("a = \n", "line 1, column 5", "not TOML here"),
    ],
)
def test_one_fault(text: str, key: str, sentence: str) -> None:
    """What breaks a rule, or what this version does not carry out, is told by its key."""
    ((found_key, found),) = told(text).items()
    assert (found_key, sentence in found) == (key, True), found


def test_all_faults_at_once() -> None:
    """Structure, values and rules about two keys are told together."""
    text = "zap = 1\nstate_dir = ''\n[limits]\nmemory = '2GiB'\ncpu = 0\n[log]\nlevel = 'x'\n[control]"
    assert told(f"{text}\npath = '/{'a' * 200}'").keys() == {
        *("zap", "state_dir", "limits.process_memory", "limits.cpu", "log.level", "control.path")
    }


@pytest.mark.parametrize("text", ["[control]\npath = '/{}'", "[control]\npath = '{}'", "runtime_dir = '/{}'"])
def test_longest_socket(text: str) -> None:
    """A socket's path of `MAX_SOCKET` bytes is read, one more is told; in whichever way it comes about."""
    room = MAX_SOCKET - len(str(parse(text.format("a"), FILE, BASE).control.path)) + 1
    assert len(str(parse(text.format("a" * room), FILE, BASE).control.path)) == MAX_SOCKET
    assert f"{MAX_SOCKET + 1} bytes" in told(text.format("a" * (room + 1)))["control.path"]


def test_the_socket_s_bound_is_the_server_s() -> None:
    """What is accepted here can be bound there."""
    assert MAX_SOCKET == listening.MAX_PATH


def test_ceilings_leave_the_defaults_alone() -> None:
    """By default no ceiling is below a manifest's default, and the guest's memory fits in the process."""
    for name, value in asdict(Limits()).items():
        assert getattr(LIMITS, name) >= value, name
    assert LIMITS.process_memory == 2 * GIB


def test_words_are_the_operator_s() -> None:
    """Levels of groups and of the log are those of the operator's vocabulary; admin is no group's."""
    assert {each.name.lower(): each for each in Level if each is not Level.ADMIN} == LEVELS
    for level in LOG_LEVELS:
        assert parse(f"[log]\nlevel = '{level}'", FILE, BASE).log.level == level


@pytest.mark.parametrize(
    ("text", "required", "numbers"),
    [
        ("", "best", range(0x7000_0000, 0x7001_0000)),
        ("[isolation]\nrequired = 'strict'", "strict", range(0x7000_0000, 0x7001_0000)),
        ("[isolation]\nrequired = ['uid', 'seccomp']", ("uid", "seccomp"), range(0x7000_0000, 0x7001_0000)),
        ("[isolation]\nrequired = []", (), range(0x7000_0000, 0x7001_0000)),
        ("[isolation]\nusers = '1000-1000'", "best", range(1000, 1001)),
        ("[isolation]\nusers = '65536-2147483647'", "best", range(65536, 2**31)),
    ],
)
def test_isolation(text: str, required: str | tuple[str, ...], numbers: range) -> None:
    """What must be there is a word or layers by name; users are a range within its bounds, the last included."""
    isolation = parse(text, FILE, BASE).isolation
    assert (isolation.required, isolation.numbers()) == (required, numbers)
