"""HTTP to the control socket, and what goes wrong with it."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capsuled.proto.control import Exit
from capsuled.supervisor.commands import client
from capsuled.supervisor.commands.client import Ask, CannotAsk, Client, capsule_path, socket_path

STATUS = Ask("GET", "/v1/status")


@pytest.mark.parametrize(
    ("env", "uid", "path"),
    [
        ({"CAPSULED_SOCKET": "here"}, 0, "here"),
        ({"CAPSULED_SOCKET": "here", "XDG_RUNTIME_DIR": "/run/user/7"}, 7, "here"),
        ({"CAPSULED_SOCKET": ""}, 0, "/run/capsuled/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/capsuled/control.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/capsuled/control.sock"),
        ({"XDG_RUNTIME_DIR": "relative"}, 7, "/tmp/capsuled-7/control.sock"),
        ({}, 7, "/tmp/capsuled-7/control.sock"),
    ],
)
def test_socket_path(env: dict[str, str], uid: int, path: str) -> None:
    """The environment names the socket, else it is where a supervisor of that user puts it."""
    assert socket_path(env, uid) == path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("echo", "/v1/capsules/echo/why"),
        ("a/b", "/v1/capsules/a%2Fb/why"),
        ("..", "/v1/capsules/../why"),
        ("ü ?#", "/v1/capsules/%C3%BC%20%3F%23/why"),
        ("\r\n", "/v1/capsules/%0D%0A/why"),
    ],
)
def test_capsule_path(name: str, path: str) -> None:
    """A name is one segment whatever is in it."""
    assert capsule_path(name, "why") == path


@pytest.mark.parametrize(
    ("waits", "timeout"),
    [
        (0.0, client.ANSWER_SECONDS),
        (5.0, 5.0 + client.GRACE_SECONDS),
        (None, None),
    ],
)
def test_how_long_an_answer_may_take(waits: float | None, timeout: float | None) -> None:
    """What waits on purpose may take as long, and a little; what doesn't has a bound of its own."""
    assert Ask("GET", "/", waits=waits).timeout == timeout


@contextmanager
def listening(backlog: int = 8) -> Generator[tuple[socket.socket, Path], None, None]:
    """A socket that listens, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="client-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
            listener.listen(backlog)
            listener.settimeout(20)
            yield listener, path


@contextmanager
def answering(raw: bytes, *, first: bool = False) -> Generator[Path, None, None]:
    """A server that says `raw` to one peer, before it is asked or after, and hangs up."""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            if first:
                peer.sendall(raw)
            while not first and not peer.recv(65536).endswith(b"\r\n\r\n"):
                pass
            if not first:
                peer.sendall(raw)

    with listening() as (listener, path):
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            thread.join()


def failure(path: Path, ask: Ask = STATUS) -> CannotAsk:
    with pytest.raises(CannotAsk) as failed:
        Client(os.fspath(path)).ask(ask)
    return failed.value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nno JSON",
        b"HTTP/1.1 200 OK\r\n\r\n[1]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 6\r\n\r\n{}\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n{}\nno JSON\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{",
        b"\xff\xfe\x00",
    ],
)
def test_another_server_is_no_supervisor(raw: bytes) -> None:
    """What does not answer as the control socket does is exit code 1 and a question."""
    with answering(raw) as path:
        failed = failure(path)
    assert failed.code is Exit.FAILED
    assert str(failed).startswith(f"cannot read an answer from {path}: ")
    assert str(failed).endswith("is it a capsuled supervisor?")


def test_a_refusal_at_accept_is_read() -> None:
    """What the supervisor says before it hangs up is read, though the request could not be sent."""
    body = b'{"error":{"code":"not-permitted","message":"cannot","detail":{}}}'
    raw = b"HTTP/1.1 401 \r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(raw, first=True) as path:
        answer = Client(os.fspath(path)).ask(STATUS)
    assert answer.status == 401
    assert "error" in answer.value


def test_a_supervisor_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not come in its time is exit code 6."""
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.02)
    with listening() as (_, path):
        failed = failure(path)
    assert failed.code is Exit.TIMED_OUT
    assert str(failed) == f"cannot wait any longer for the supervisor at {path}"


@pytest.mark.parametrize("waits", [0.0, None])
def test_a_supervisor_that_accepts_nobody_is_given_up(
    monkeypatch: pytest.MonkeyPatch, waits: float | None
) -> None:
    """When its backlog stays full we give up after the limit, also where the answer may take for ever."""
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.02)
    with listening(backlog=0) as (_, path), socket.socket(socket.AF_UNIX) as first:
        first.connect(os.fspath(path))
        failed = failure(path, Ask("GET", "/v1/status", waits=waits))
    assert failed.code is Exit.FAILED
    assert str(failed) == (
        f"cannot get through to the supervisor at {path}: it accepts no connection: is it stopped, or busy?"
    )


def test_a_supervisor_that_is_busy_is_waited_for() -> None:
    """A full backlog is no failure when it empties in time."""
    with listening(backlog=0) as (listener, path), socket.socket(socket.AF_UNIX) as first:
        first.connect(os.fspath(path))
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(Client(os.fspath(path)).ask(STATUS).status))
        asking.start()
        listener.accept()[0].close()
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            asking.join()
    assert found == [200]


@contextmanager
def powerless(path: Path) -> Generator[None, None, None]:
    """Be a user who may not connect to `path`."""
    path.chmod(0)
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_socket_that_one_may_not_open() -> None:
    """Without the file's permission the exit code is 5, and the sentence says as whom to ask."""
    with listening() as (_, path), powerless(path):
        failed = failure(path)
    assert failed.code is Exit.NOT_PERMITTED
    assert str(failed) == (f"cannot open {path}: not permitted: ask as root or as the supervisor's user")
