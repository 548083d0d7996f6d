"""An upgrade without a gap: the new instance gets ready first, and then what the old one was subscribed to."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import threading
from typing import Any

import cbor2
import pytest

from capsuled.supervisor.commands.client import Ask

from ..e2e import lives
from ..support.daemon import Daemon
from ..support.guests import Program, buffer, text
from . import changing
from .changing import ask_until, reload, rewrite, states

TOPIC = ["work.item"]

QUESTION = text(cbor2.dumps({"n": 20}))
AT = 1024
"""Where a responder has its request."""


def worker(version: int) -> bytes:
    """Subscribes, is ready, and logs the envelope of each message; until it is cancelled."""
    program = Program()
    handle = program.call("ipc_subscribe", text("work.item"), quiet=True)
    program.call("ready", quiet=True)
    body = program.part()
    got = body.call("ipc_recv", handle, 60_000, buffer(600))
    body.raw(f"(if (i64.lt_s (local.get $r{got.number}) (i64.const 0)) (then return))")  # it is cancelled
    program.loop(1_000_000, body)
    program.call("log", 2, text(f"version {version}"), quiet=True)
    return program.wasm()


def replace_module(daemon: Daemon, name: str, wasm: bytes) -> None:
    folder = daemon.capsules / name
    old = hashlib.sha256((folder / f"{name}.wasm").read_bytes()).hexdigest()
    (folder / f"{name}.wasm").write_bytes(wasm)
    rewrite(daemon, name, old, hashlib.sha256(wasm).hexdigest())


def received(daemon: Daemon, name: str) -> list[tuple[str, int]]:
    """The instance and the payload of each message that a worker has logged, in order."""
    return [(line["instance"], number) for line in daemon.lines(name) for number in numbers(line)]


def numbers(line: dict[str, Any]) -> list[int]:
    """The payloads of the messages that a line holds: what waits together is received together."""
    if not line["message"].startswith('{"call"'):
        return []
    said = json.loads(line["message"])
    if said["result"] <= 0 or not said["hex"]:
        return []
    messages: list[dict[str, Any]] = cbor2.loads(bytes.fromhex(said["hex"]))["messages"]
    return [int(each["payload"]) for each in messages]


def test_no_message_is_lost_and_none_comes_twice(daemon: Daemon) -> None:
    """A stream of messages over an upgrade: each is received once, in order, by the old instance and then the new."""
    daemon.capsule("worker", worker(1), subscribe=TOPIC)
    daemon.start(wait_for=["worker"])
    before = daemon.of("worker")["instance"]
    done = threading.Event()
    sent = itertools.count()
    last = -1

    def publish() -> None:
        nonlocal last
        while not done.is_set():
            number = next(sent)
            answer = daemon.client.ask(publish_ask(number))
            assert answer.status == 200, answer.value
            last = number

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        daemon.wait_line("worker", lambda line: line["message"].startswith('{"call"'))
        rewrite(daemon, "worker", 'version = "1.0.0"', 'version = "2.0.0"')
        reload(daemon)
        after = daemon.of("worker")["instance"]
        daemon.wait_line(
            "worker", lambda line: line["instance"] == after and line["message"].startswith('{"call"')
        )
    finally:
        done.set()
        publisher.join()
    ask_until(daemon, "worker", lambda each: not each["beside"])
    daemon.wait_line("worker", lambda line: last in numbers(line))
    found = received(daemon, "worker")
    assert [number for _, number in found] == list(range(last + 1))
    assert [instance for instance, _ in itertools.groupby(found, key=lambda each: each[0])] == [before, after]
    assert daemon.get("/v1/bus")["balanced"]
    assert states(daemon, "worker") == ["starting", "ready", "upgrading", "upgraded", "exited"]
    why = daemon.get("/v1/capsules/worker/why")["exits"]
    assert [(each["reason"], each["instance"], each["then"]) for each in why] == [
        ("cancelled", before, "another instance serves")
    ]


def publish_ask(number: int) -> Ask:
    return Ask("POST", "/v1/bus/publish", {"topic": TOPIC[0]}, body=str(number).encode())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lives.traps(), "trap"),
        (lives.sleeper(says_ready=False), "not-ready"),
        (b"nonsense", "load-error"),
    ],
)
def test_one_that_does_not_get_ready_changes_nothing(daemon: Daemon, module: bytes, reason: str) -> None:
    """The old instance goes on; the answer, `why` and an event say what became of the new one."""
    extra = '[supervision]\nready_timeout = "1s"\n'
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET, extra=extra)
    daemon.start(wait_for=["sleeper"])
    before = daemon.of("sleeper")
    if reason == "trap":
        module = trapping_at_once()
    replace_module(daemon, "sleeper", module)
    said = daemon.ctl("reload", "--wait", "--timeout", "20s")
    assert said.returncode == 1, said
    assert reason in said.stderr + said.stdout
    after = daemon.of("sleeper")
    assert (after["instance"], after["state"], after["version"]) == (
        before["instance"],
        "ready",
        before["version"],
    )
    assert after["beside"] == []
    assert after["attempt"] == 1
    newest = daemon.get("/v1/capsules/sleeper/why")["exits"][0]
    assert (newest["reason"], newest["then"]) == (reason, "the instance before it goes on")
    assert states(daemon, "sleeper")[-1] == "upgrade-failed"
    # The next reload tries again, and with a module that works it takes over.
    replace_module(daemon, "sleeper", lives.sleeper() + b"\0\5\4name")
    reload(daemon)
    assert daemon.of("sleeper")["instance"] != before["instance"]


def trapping_at_once() -> bytes:
    program = Program()
    program.raw("unreachable")
    return program.wasm()


def asking() -> bytes:
    """For its one message it asks somebody, and logs the answer; then it waits for more."""
    program = Program()
    work = program.call("ipc_subscribe", text(TOPIC[0]), quiet=True)
    program.call("ready", quiet=True)
    program.call("ipc_recv", work, 60_000, buffer(600), quiet=True)
    asked = program.call("ipc_request", text("ask.it"), QUESTION, 30_000, quiet=True)
    program.call("log", 2, text("asked"), quiet=True)
    program.call("ipc_recv", asked, 30_000, buffer(600))
    program.call("ipc_recv", work, 60_000, buffer(600), quiet=True)
    return program.wasm()


def answering() -> bytes:
    """Answers one request, when it is told to go."""
    program = Program()
    asks = program.call("ipc_subscribe", text("ask.it"), quiet=True)
    go = program.call("ipc_subscribe", text("ask.go"), quiet=True)
    program.call("ready", quiet=True)
    program.call("ipc_recv", asks, 60_000, buffer(4096, at=AT), quiet=True)
    number = program.number_of_request(AT, "ask.it", QUESTION.data, "worker")
    program.call("ipc_recv", go, 60_000, buffer(600), quiet=True)
    program.call("ipc_reply", number, text(cbor2.dumps(21)), quiet=True)
    program.call("ipc_recv", go, 60_000, buffer(600), quiet=True)
    return program.wasm()


def test_who_waits_for_an_answer_is_let_finish(daemon: Daemon) -> None:
    """Who asks somebody for the sake of a message has not done with it: the old one gets its answer, and then ends."""
    daemon.capsule("worker", asking(), publish=["ask.it"], subscribe=TOPIC)
    daemon.capsule("other", answering(), subscribe=["ask.it", "ask.go"])
    daemon.start(wait_for=["worker", "other"])
    before = daemon.of("worker")["instance"]
    assert daemon.client.ask(publish_ask(1)).status == 200
    daemon.wait_line("worker", lambda line: line["message"] == "asked")
    rewrite(daemon, "worker", 'version = "1.0.0"', 'version = "2.0.0"')
    reload(daemon)
    for _ in range(20):  # longer than it would take to see nothing that waits for it
        assert daemon.of("worker")["beside"]
        daemon.act("other", "start", wait="ready")
    go = Ask("POST", "/v1/bus/publish", {"topic": "ask.go"}, body=b"1")
    assert daemon.client.ask(go).status == 200
    line = daemon.wait_line("worker", lambda line: line["message"].startswith('{"call"'))
    assert line["instance"] == before
    assert numbers(line) == [21]
    ask_until(daemon, "worker", lambda each: not each["beside"])


def test_one_that_cannot_even_be_begun(daemon: Daemon) -> None:
    """As with a secret that is not there: the reload says so, and the old instance goes on."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    before = daemon.of("sleeper")["instance"]
    rewrite(daemon, "sleeper", "[capabilities]", '[config]\nk = { secret = "nope" }\n[capabilities]')
    said = daemon.ctl("reload", "--wait", "--timeout", "20s")
    assert said.returncode == 1, said
    assert "spawn-failed" in said.stderr + said.stdout
    assert daemon.of("sleeper")["instance"] == before


def test_there_are_two_at_a_time(daemon: Daemon) -> None:
    """However often it is changed: one that is being succeeded ends when its successor is."""
    daemon.capsule("spinner", lives.spinner())
    daemon.start(wait_for=["spinner"])
    for version in range(1, 5):
        rewrite(daemon, "spinner", f'version = "{version}.0.0"', f'version = "{version + 1}.0.0"')
        reload(daemon)
        ask_until(daemon, "spinner", lambda each: len(each["beside"]) <= 1)


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_an_operator_who_wants_it_down_meanwhile(daemon: Daemon, verb: str) -> None:
    """Both instances end, and nothing is left; the next start is as the new manifest has it."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    replace_module(daemon, "sleeper", lives.sleeper(says_ready=False))
    rewrite(daemon, "sleeper", 'version = "1.0.0"', 'version = "2.0.0"')
    reload(daemon, "dry_run=")
    assert daemon.ctl("reload").returncode == 0
    found = ask_until(daemon, "sleeper", lambda each: bool(each["beside"]) and each["beside"][0]["pid"])
    pids = {found["pid"], found["beside"][0]["pid"]}
    assert daemon.act("sleeper", verb, wait="down").status == 200
    alive = {each.pid for each in daemon.children()}
    assert not pids & alive
    assert daemon.of("sleeper")["version"] == "2.0.0"
    assert daemon.of("sleeper")["state"] == "stopped"


def test_an_old_one_that_ends_meanwhile(daemon: Daemon) -> None:
    """The new manifest is what is started next."""
    daemon.capsule(
        "sleeper", lives.sleeper(), subscribe=lives.QUIET, extra='[supervision]\nbackoff_initial = "10ms"\n'
    )
    daemon.start(wait_for=["sleeper"])
    replace_module(daemon, "sleeper", lives.sleeper(says_ready=False))
    rewrite(daemon, "sleeper", 'version = "1.0.0"', 'version = "2.0.0"')
    assert daemon.ctl("reload").returncode == 0
    found = ask_until(daemon, "sleeper", lambda each: bool(each["beside"]) and each["beside"][0]["pid"])
    signal_it(found["pid"])
    daemon.wait("sleeper", lambda each: each["version"] == "2.0.0" and each["state"] == "starting")
    ask_until(daemon, "sleeper", lambda each: not each["beside"])


def signal_it(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_change_back_before_it_is_ready(daemon: Daemon) -> None:
    """The successor is given up, and the one that serves is left alone."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    before = daemon.of("sleeper")["instance"]
    replace_module(daemon, "sleeper", lives.sleeper(says_ready=False))
    assert daemon.ctl("reload").returncode == 0
    ask_until(daemon, "sleeper", lambda each: bool(each["beside"]))
    replace_module(daemon, "sleeper", lives.sleeper())
    assert daemon.ctl("reload").returncode == 0
    found = ask_until(daemon, "sleeper", lambda each: not each["beside"])
    assert (found["instance"], found["state"]) == (before, "ready")


def test_a_guest_that_does_not_read_is_not_waited_for(daemon: Daemon) -> None:
    """What it has not read within its stop timeout is counted as left, and it is killed at the end of another."""
    daemon.capsule("spinner", lives.spinner(), extra='[supervision]\nstop_timeout = "300ms"\n')
    daemon.start(wait_for=["spinner"])
    before = daemon.of("spinner")
    rewrite(daemon, "spinner", 'version = "1.0.0"', 'version = "2.0.0"')
    reload(daemon)
    ask_until(daemon, "spinner", lambda each: not each["beside"])
    assert before["pid"] not in {each.pid for each in daemon.children()}
    assert daemon.get("/v1/bus")["balanced"]
    changing.remove(daemon, "spinner")
    assert reload(daemon)["removed"] == ["spinner"]


def test_the_backbone_ends_meanwhile(daemon: Daemon) -> None:
    """Who serves and who stands by is known to the next one too: messages reach one of the two."""
    daemon.capsule("worker", worker(1), subscribe=TOPIC)
    daemon.start(wait_for=["worker"])
    rewrite(daemon, "worker", 'version = "1.0.0"', 'version = "2.0.0"')
    reload(daemon)
    signal_it(daemon.backbone)
    ask_until(daemon, "worker", lambda each: not each["beside"])
    assert daemon.backbone
    assert daemon.client.ask(publish_ask(7)).status == 200
    daemon.wait_line("worker", lambda line: 7 in numbers(line))
    assert [number for _, number in received(daemon, "worker")] == [7]
