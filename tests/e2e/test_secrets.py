"""Secrets reach the one guest that they are for, and are seen nowhere on their way."""

from __future__ import annotations

import json
from pathlib import Path

import cbor2

from ..support.daemon import Daemon
from ..support.guests import Program, buffer, text

VALUE = "hunter2-of-echo"


def echo() -> bytes:
    program = Program()
    program.call("config_get", text("token"), buffer(100))
    program.call("ready", quiet=True)
    handle = program.call("ipc_subscribe", text("a"), quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(1000), quiet=True)
    return program.wasm()


def put(daemon: Daemon, capsule: str, mode: int = 0o600) -> None:
    folder = daemon.folder / "secrets" / capsule
    folder.mkdir(parents=True)
    (folder / "token").write_text(VALUE + "\n")
    (folder / "token").chmod(mode)


TOKEN = '[config]\ntoken = { secret = "token" }\n'


def test_a_secret_reaches_its_guest_and_nobody_else(daemon: Daemon) -> None:
    """It is in the guest's memory; it is in no argument, environment, open file, log of the supervisor, or answer."""
    put(daemon, "echo")
    daemon.capsule("echo", echo(), subscribe=["a"], extra=TOKEN)
    daemon.start(configuration='secrets_dir = "secrets"', wait_for=["echo"])
    assert cbor2.loads(daemon.results("echo", 0)[0].data) == VALUE
    seen = VALUE.encode()
    proc = Path(f"/proc/{daemon.of('echo')['pid']}")
    for name in ("cmdline", "environ"):
        assert seen not in (proc / name).read_bytes()
    for fd in (proc / "fd").iterdir():
        assert "order" not in str(fd.readlink()), "the launch order is still open"
    assert VALUE not in daemon.log()
    for path in ("/v1/status", "/v1/capsules", "/v1/capsules/echo/why", "/v1/bus"):
        assert VALUE not in json.dumps(daemon.get(path))


def test_a_secret_of_another_capsule_is_not_to_be_had(daemon: Daemon) -> None:
    """A manifest can only name what is in the folder of its own name: else it does not start, and says why."""
    put(daemon, "echo")
    daemon.capsule("thief", echo(), subscribe=["a"], extra=TOKEN + '[supervision]\nrestart = "never"\n')
    daemon.start(configuration='secrets_dir = "secrets"')
    last = daemon.wait("thief", lambda found: found["last_exit"] is not None)["last_exit"]
    assert last["reason"] == "spawn-failed"
    assert "secrets/thief/token: No such file" in last["message"]


def test_a_secret_that_others_may_read_is_none(daemon: Daemon) -> None:
    """It is not used, and the sentence names the file and its mode, not its content."""
    put(daemon, "echo", mode=0o644)
    daemon.capsule("echo", echo(), subscribe=["a"], extra=TOKEN + '[supervision]\nrestart = "never"\n')
    daemon.start(configuration='secrets_dir = "secrets"')
    last = daemon.wait("echo", lambda found: found["last_exit"] is not None)["last_exit"]
    assert last["reason"] == "spawn-failed"
    assert "mode 0644" in last["message"]
    assert VALUE not in json.dumps(last)
