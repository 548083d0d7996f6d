"""The spine and the taps of the real supervisor, with ordinary programs of ZeroMQ and through real guests."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import cbor2
import zmq

from capsuled.supervisor.commands.client import Answer, Ask

from ..support.daemon import DEADLINE, Daemon
from ..support.guests import Program, buffer, text
from . import lives

Socket = zmq.Socket[bytes]


class Heard:
    """What a SUB of the operator's hears: topics without their NUL, stamps and payloads."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock

    def next(self) -> tuple[str, dict[str, Any], Any]:
        topic, stamps, payload = self._sock.recv_multipart()
        assert topic.endswith(b"\0")
        return topic[:-1].decode(), cbor2.loads(stamps), cbor2.loads(payload)

    def until(self, topic: str) -> list[str]:
        """The topics up to this one."""
        found = [self.next()[0]]
        while found[-1] != topic:
            found.append(self.next()[0])
        return found


@contextmanager
def listening(daemon: Daemon, *prefixes: bytes) -> Generator[Heard, None, None]:
    """A SUB that the running backbone knows: it has heard what the operator published since."""
    context: zmq.Context[Socket] = zmq.Context()
    sock = context.socket(zmq.SUB)
    try:
        sock.linger = 0
        sock.rcvtimeo = 1000
        sock.setsockopt(zmq.RECONNECT_IVL, 10)
        sock.connect(f"ipc://{daemon.runtime}/spine/sub")
        for prefix in (*prefixes, b"hello\0"):
            sock.setsockopt(zmq.SUBSCRIBE, prefix)
        made = Heard(sock)
        greet(daemon, sock)
        sock.rcvtimeo = int(DEADLINE * 1000)
        yield made
    finally:
        sock.close(0)
        context.term()


def greet(daemon: Daemon, sock: Socket) -> None:
    """Publish until it is heard. A subscriber of ZeroMQ's is heard of when it is."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        number = publish(daemon, "hello", b"1")
        while sock.poll(100):
            topic, stamps, _ = sock.recv_multipart()
            if topic == b"hello\0" and cbor2.loads(stamps)["seq"] == number:
                return
    raise AssertionError("the spine is not heard")


def publish(daemon: Daemon, topic: str, body: bytes) -> int:
    answer = daemon.client.ask(Ask("POST", "/v1/bus/publish", {"topic": topic}, body=body))
    assert answer.status == 200, answer.value
    seq = answer.value["seq"]
    assert isinstance(seq, int)
    return seq


def test_a_capsules_life_and_its_limits(daemon: Daemon) -> None:
    """Each state is an event under its name, and an end that a limit has caused one under the limit's."""
    waits = '[supervision]\nready_timeout = "100ms"\nrestart = "never"\n'
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.capsule("mute", lives.sleeper(says_ready=False), subscribe=lives.QUIET, extra=waits)
    daemon.start(wait_for=["sleeper"])
    daemon.wait_state("mute", "stopped")
    with listening(daemon, b"kernel.lifecycle.sleeper.") as heard:
        daemon.act("sleeper", "restart", wait="ready")
        topics = heard.until("kernel.lifecycle.sleeper.ready")
        assert topics == [
            f"kernel.lifecycle.sleeper.{state}" for state in ("stopping", "stopped", "starting", "ready")
        ]
    with listening(daemon, b"kernel.limits.") as heard:
        daemon.act("mute", "start")
        topic, stamps, payload = heard.next()
        assert topic == "kernel.limits.mute.ready_timeout"
        assert (stamps["source"], stamps["principal"], stamps["instance"]) == (
            "capsuled",
            "capsuled",
            bytes(16),
        )
        assert (payload["capsule"], payload["reason"]) == ("mute", "not-ready")


def test_a_capsule_hears_events_that_are_granted(daemon: Daemon) -> None:
    """With a grant whose first segment is `kernel`, and as messages like any other; `*` does not reach them."""
    program = Program()
    handle = program.call("ipc_subscribe", text("kernel.lifecycle.*"), quiet=True)
    program.call("ready", quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(4096))
    all_of = Program()
    other = all_of.call("ipc_subscribe", text("*"), quiet=True)
    all_of.call("ready", quiet=True)
    all_of.call("ipc_recv", other, 60_000, buffer(4096))
    daemon.capsule("watcher", program.wasm(), subscribe=["kernel.lifecycle.*"])
    daemon.capsule("other", all_of.wasm(), subscribe=["*"])
    daemon.start(wait_for=["watcher", "other"])
    (message, *_) = cbor2.loads(daemon.results("watcher", 2)[0].data)["messages"]
    assert message["topic"].startswith("kernel.lifecycle.")
    assert message["source"] == "capsuled"
    publish(daemon, "end", b"1")
    (message,) = cbor2.loads(daemon.results("other", 2)[0].data)["messages"]
    assert message["topic"] == "end"


def test_the_operator_publishes_to_capsules(daemon: Daemon) -> None:
    """From the command line and from a PUB on the spine; both come from `operator`."""
    program = Program()
    handle = program.call("ipc_subscribe", text("orders.*"), quiet=True)
    program.call("ready", quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(4096))
    program.call("ipc_recv", handle, 60_000, buffer(4096))
    daemon.capsule("worker", program.wasm(), subscribe=["orders.*"])
    daemon.start(wait_for=["worker"])
    assert daemon.ctl("bus", "publish", "orders.one", '{"n": 1}').returncode == 0
    (message,) = cbor2.loads(daemon.results("worker", 2)[0].data)["messages"]
    assert (message["topic"], message["payload"], message["source"]) == ("orders.one", {"n": 1}, "operator")
    context: zmq.Context[Socket] = zmq.Context()
    pub = context.socket(zmq.PUB)
    try:
        pub.linger = 0
        pub.connect(f"ipc://{daemon.runtime}/spine/pub")
        with listening(daemon, b"probe\0") as heard:
            deadline = time.monotonic() + DEADLINE
            while not heard._sock.poll(50):  # pyright: ignore[reportPrivateUsage]
                assert time.monotonic() < deadline
                pub.send_multipart([b"probe", cbor2.dumps(0)])
            pub.send_multipart([b"kernel.lifecycle.worker.ready", cbor2.dumps(0)])
            pub.send_multipart([b"orders.two\0", cbor2.dumps([2])])
        (message,) = cbor2.loads(daemon.results("worker", 3)[1].data)["messages"]
        assert (message["topic"], message["payload"], message["principal"]) == ("orders.two", [2], "operator")
        shown = daemon.get("/v1/bus")["spine"]
        assert shown["published"] >= 2, "the probe, and what the worker has got"
        assert sum(shown["refused"].values()) == 1, "what is the supervisor's own"
        assert (shown["taps"], shown["unpublished"]) == (0, 0)
        assert "spine published" in daemon.ctl("bus", "stats").stdout
    finally:
        pub.close(0)
        context.term()


def test_it_outlives_the_backbone(daemon: Daemon) -> None:
    """A SUB and a tap go on with the next backbone, without being started again."""
    daemon.start()
    with (
        listening(daemon, b"after\0") as heard,
        daemon.client.follow(Ask("GET", "/v1/bus/tap", {"pattern": "after"})) as tap,
    ):
        assert not isinstance(tap, Answer)
        before = daemon.backbone
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE
        while not (found := daemon.get("/v1/status")["backbone"])["up"] or found["pid"] == before:
            assert time.monotonic() < deadline
        greet(daemon, heard._sock)  # pyright: ignore[reportPrivateUsage]
        publish(daemon, "after", b"[7]")
        assert heard.next()[::2] == ("after", [7])
        line = tap.line(DEADLINE)
        assert line is not None
        assert (line["topic"], line["payload"], line["source"]) == ("after", [7], "operator")


def test_a_tap_that_is_not_read(daemon: Daemon) -> None:
    """It loses, and is told how much when it reads on; the supervisor and the backbone answer meanwhile."""
    daemon.start()
    command = [
        sys.executable,
        "-m",
        "capsuled.supervisor.commands.capsulectl",
        "--socket",
        str(daemon.socket),
    ]
    with (
        subprocess.Popen([*command, "bus", "tap", "flood", "--json"], stdout=subprocess.PIPE) as stalled,
        daemon.client.follow(Ask("GET", "/v1/bus/tap", {"pattern": "flood"})) as reads,
    ):
        assert not isinstance(reads, Answer)
        assert stalled.stdout is not None
        try:
            first = publish(daemon, "flood", b"0")
            while not select.select([stalled.stdout], [], [], 0.1)[0]:
                first = publish(daemon, "flood", b"0")
            assert json.loads(stalled.stdout.readline())["seq"] <= first
            body = b'"' + b"x" * 60_000 + b'"'
            numbers = list[int]()
            for _ in range(60):
                numbers.append(publish(daemon, "flood", body))
                seen = 0
                while seen != numbers[-1]:  # the one that reads gets each of them
                    line = reads.line(DEADLINE)
                    assert line is not None
                    number = line.get("seq")
                    assert isinstance(number, int), line
                    seen = number
            assert daemon.get("/v1/health")["healthy"] is True
            told = lost = 0
            while told + lost < len(numbers):
                found = json.loads(stalled.stdout.readline())
                lost += found.get("lost", 0)
                told += found.get("seq", 0) >= numbers[0]
            assert lost > 0
        finally:
            stalled.kill()
            stalled.stdout.close()


def test_a_tap_ends_with_the_supervisor(daemon: Daemon) -> None:
    """Properly: its command exits 0."""
    daemon.start()
    command = [
        sys.executable,
        "-m",
        "capsuled.supervisor.commands.capsulectl",
        "--socket",
        str(daemon.socket),
    ]
    with subprocess.Popen([*command, "bus", "tap", "a.*.c"], stdout=subprocess.PIPE, text=True) as tap:
        assert tap.stdout is not None
        try:
            deadline = time.monotonic() + DEADLINE
            os.set_blocking(tap.stdout.fileno(), False)
            seen = ""
            while not seen:
                assert time.monotonic() < deadline
                publish(daemon, "a.b.c", b'{"n": 1}')
                seen = tap.stdout.readline()
            assert seen.endswith('operator a.b.c {"n": 1}\n')
            assert daemon.stop() == 0
            assert tap.wait(DEADLINE) == 0
        finally:
            tap.kill()
            tap.stdout.close()
