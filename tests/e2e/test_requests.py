"""Requests and their answers, retained messages: through real guests."""

from __future__ import annotations

import os
import signal

import cbor2
import pytest

from capsuled.proto.records import MAX_REQUESTS
from capsuled.proto.refusals import Errno

from ..support.daemon import Called, Daemon, called
from ..support.guests import Program, buffer, text

QUESTION = text(cbor2.dumps({"n": 20}))
AT = 1024
"""Where a responder has its request."""

ANSWER = text(cbor2.dumps({"n": 21}))


def add_asker(daemon: Daemon, program: Program, package: str = "") -> None:
    daemon.capsule(
        "asker", program.wasm(), publish=["ask.it", "ask.go"], subscribe=["ask.here"], package=package
    )


def add_responder(daemon: Daemon, name: str, program: Program, extra: str = "") -> None:
    """It retains that it is here, so that the asker may start before it or after it."""
    extra = f'ipc_retain = ["ask.here"]\n{extra}'
    daemon.capsule(name, program.wasm(), publish=["ask.here"], subscribe=["ask.it", "ask.go"], extra=extra)


def asker(timeout: int = 20_000, waits: bool = True) -> Program:
    """Asks once on `ask.it` and receives on the handle twice. `waits`: once somebody has said that he is here."""
    program = Program()
    program.call("ready", quiet=True)
    if waits:
        here = program.call("ipc_subscribe", text("ask.here"), quiet=True)
        program.call("ipc_recv", here, 30_000, buffer(4096), quiet=True)
    handle = program.call("ipc_request", text("ask.it"), QUESTION, timeout)
    program.call("ipc_recv", handle, 30_000, buffer(4096))
    program.call("error_message", buffer(300))
    program.call("ipc_recv", handle, 0, buffer(4096))
    return program


def responder(*answers: str, principal: str = "asker") -> Program:
    """Waits for a request of `principal`, and does what is said with it."""
    program = Program()
    handle = program.call("ipc_subscribe", text("ask.it"))
    program.call("ready")
    program.call("ipc_publish", text("ask.here"), text(cbor2.dumps(True)), quiet=True)
    program.call("ipc_recv", handle, 30_000, buffer(4096, at=AT))
    request = program.number_of_request(AT, "ask.it", QUESTION.data, "asker", principal)
    for what in answers:
        if what == "reply":
            program.call("ipc_reply", request, ANSWER)
        elif what == "decline":
            program.call("ipc_decline", request, text("not today"))
        else:
            program.raw(what)
    return program


def again(daemon: Daemon, name: str, last: int) -> list[Called]:
    """Start a capsule once more, now that the others are there, and take what that instance reports."""
    before = {line["instance"] for line in daemon.lines(name)} | {daemon.of(name)["instance"]}
    daemon.act(name, "restart")
    ends = f'{{"call":{last},'
    line = daemon.wait_line(
        name, lambda line: line["instance"] not in before and line["message"].startswith(ends)
    )
    found = [each["message"] for each in daemon.lines(name) if each["instance"] == line["instance"]]
    return list(called(found))


def outcome(daemon: Daemon) -> list[Called]:
    """The asker's four calls: the request, what was received, the sentence, and what is received after that."""
    last = 6
    return daemon.results("asker", last)[-4:]


def test_a_request_is_answered_by_whom_it_was_sent_to(daemon: Daemon) -> None:
    """The answer comes on the request's own handle, names its request as cause, and carries the asker's principal."""
    add_responder(daemon, "responder", responder("reply", principal="somebody"))
    add_asker(daemon, asker(), package='principal = "somebody"')
    daemon.start()
    request, received, _, after = outcome(daemon)
    assert request.result > 0
    (message,) = cbor2.loads(received.data)["messages"]
    assert message["payload"] == {"n": 21}
    assert (message["source"], message["principal"]) == ("responder", "somebody")
    assert message["topic"] == f"reply.{message['cause']}"
    assert after.result == -Errno.BADF, "the handle is gone with its answer"
    (asked,) = cbor2.loads(daemon.results("responder", 3)[2].data)["messages"]
    assert asked["seq"] == message["cause"]
    assert asked["request"] is True


@pytest.mark.parametrize(
    ("answers", "errno", "sentence"),
    [
        (("decline",), Errno.CONNREFUSED, "responder declines the request on 'ask.it': not today"),
        (("unreachable",), Errno.CONNRESET, "its receiver has ended"),
        ((), Errno.CONNRESET, "its receiver has ended"),
    ],
)
def test_a_request_always_ends(daemon: Daemon, answers: tuple[str, ...], errno: Errno, sentence: str) -> None:
    """A refusal, a crash and a return of the responder end the request with an error, long before its timeout."""
    add_responder(daemon, "responder", responder(*answers), '[supervision]\nrestart = "never"\n')
    add_asker(daemon, asker())
    daemon.start()
    _, received, told, _ = outcome(daemon)
    assert received.result == -errno
    assert sentence in told.data.decode()


@pytest.mark.parametrize("how", ["pushed out", "unsubscribed"])
def test_a_request_that_its_responder_never_reads_ends(daemon: Daemon, how: str) -> None:
    """Its queue overflows, or it ends the handle: the asker hears of it at once, though the responder lives on."""
    unread = Program()
    requests = unread.call("ipc_subscribe", text("ask.it"))
    go = unread.call("ipc_subscribe", text("ask.go"))
    unread.call("ready")
    unread.call("ipc_publish", text("ask.here"), text(cbor2.dumps(True)), quiet=True)
    unread.call("ipc_recv", go, 60_000, buffer(4096), quiet=True)
    unread.call("ipc_unsubscribe", requests, quiet=True)
    unread.call("ipc_recv", go, 60_000, buffer(4096), quiet=True)
    add_responder(daemon, "unread", unread, "[limits]\nqueue_messages = 1\n")
    program = Program()
    program.call("ready", quiet=True)
    here = program.call("ipc_subscribe", text("ask.here"), quiet=True)
    program.call("ipc_recv", here, 30_000, buffer(4096), quiet=True)
    handle = program.call("ipc_request", text("ask.it"), QUESTION, 60_000)
    if how == "pushed out":
        program.call("ipc_publish", text("ask.it"), QUESTION)
    else:
        program.call("ipc_publish", text("ask.go"), QUESTION)
    program.call("ipc_recv", handle, 30_000, buffer(4096))
    program.call("error_message", buffer(300))
    add_asker(daemon, program)
    daemon.start()
    received, told = daemon.results("asker", 6)[-2:]
    assert received.result == -Errno.CONNRESET
    assert "its receiver has lost it, or has closed its handle" in told.data.decode()
    assert daemon.of("unread")["state"] == "ready"
    assert daemon.get("/v1/bus")["balanced"] is True


def test_a_request_that_nobody_hears_fails_at_once(daemon: Daemon) -> None:
    """Without a subscriber there is nobody to wait for."""
    add_asker(daemon, asker(waits=False))
    daemon.start()
    _, received, told, _ = daemon.results("asker", 4)[-4:]
    assert received.result == -Errno.CONNREFUSED
    assert "nobody is subscribed to 'ask.it'" in told.data.decode()


def test_a_request_without_an_answer_times_out(daemon: Daemon) -> None:
    """A responder that hears and says nothing costs the asker its own timeout, and no more."""
    silent = responder()
    handle = silent.call("ipc_subscribe", text("ask.it"))
    silent.call("ipc_recv", handle, 60_000, buffer(4096))
    add_responder(daemon, "silent", silent)
    add_asker(daemon, asker(timeout=300))
    daemon.start()
    _, received, told, _ = outcome(daemon)
    assert received.result == -Errno.TIMEDOUT
    assert "'ask.it' was not answered in time" in told.data.decode()


def test_requests_that_timed_out_take_no_places(daemon: Daemon) -> None:
    """One that waits for long is answered, though far more were asked after it than may wait at once."""
    slow = Program()
    handle = slow.call("ipc_subscribe", text("ask.it"))
    go = slow.call("ipc_subscribe", text("ask.go"), quiet=True)
    slow.call("ready")
    slow.call("ipc_publish", text("ask.here"), text(cbor2.dumps(True)), quiet=True)
    slow.call("ipc_recv", handle, 30_000, buffer(4096, at=AT))
    request = slow.number_of_request(AT, "ask.it", QUESTION.data, "asker")
    slow.call("ipc_recv", go, 30_000, buffer(4096), quiet=True)
    slow.call("ipc_reply", request, ANSWER)
    add_responder(daemon, "slow", slow)
    program = Program()
    program.call("ready", quiet=True)
    here = program.call("ipc_subscribe", text("ask.here"), quiet=True)
    program.call("ipc_recv", here, 30_000, buffer(4096), quiet=True)
    first = program.call("ipc_request", text("ask.it"), QUESTION, 60_000, quiet=True)
    for _ in range(MAX_REQUESTS + 1):
        short = program.call("ipc_request", text("ask.it"), QUESTION, 0, quiet=True)
        program.call("ipc_recv", short, 0, buffer(300), quiet=True)
    program.call("ipc_publish", text("ask.go"), QUESTION, quiet=True)
    program.call("ipc_recv", first, 30_000, buffer(4096))
    add_asker(daemon, program)
    daemon.start()
    last = 3 + 1 + 2 * (MAX_REQUESTS + 1) + 1
    (received,) = daemon.results("asker", last)[-1:]
    (message,) = cbor2.loads(received.data)["messages"]
    assert message["payload"] == {"n": 21}


def silent(daemon: Daemon) -> None:
    """A responder that hears, says so on `heard`, and waits; and an asker who would wait for long."""
    program = responder()
    handle = program.call("ipc_subscribe", text("ask.it"))
    program.call("ipc_recv", handle, 60_000, buffer(4096))
    add_responder(daemon, "silent", program)
    add_asker(daemon, asker(timeout=60_000))
    daemon.start()
    daemon.results("silent", 3)


def test_a_restart_of_the_backbone_ends_it(daemon: Daemon) -> None:
    """Nobody knows any more who was asked: connreset, at once."""
    silent(daemon)
    os.kill(daemon.backbone, signal.SIGKILL)
    _, received, told, _ = outcome(daemon)
    assert received.result == -Errno.CONNRESET
    assert "the backbone was restarted" in told.data.decode()
    assert daemon.get("/v1/bus")["balanced"] is True


def test_cancellation_ends_the_waiting(daemon: Daemon) -> None:
    """An asker that is stopped is told so, and not that its time was over."""
    silent(daemon)
    instance = daemon.of("asker")["instance"]
    assert daemon.act("asker", "stop", wait="down").status == 200
    lines = [each["message"] for each in daemon.lines("asker") if each["instance"] == instance]
    assert [each.result for each in called(lines)][1] == -Errno.CANCELED


def test_a_late_subscriber_gets_what_was_retained(daemon: Daemon) -> None:
    """The last message of a retained topic reaches who subscribes after it, marked; others' messages don't."""
    sayer = Program()
    for n in range(3):
        sayer.call("ipc_publish", text("state.now"), text(cbor2.dumps(n)))
    sayer.call("ipc_publish", text("event.once"), text(cbor2.dumps(9)))
    late = Program()
    handle = late.call("ipc_subscribe", text("*"))
    late.call("ready")
    late.call("ipc_recv", handle, 5000, buffer(4096))
    extra = 'ipc_retain = ["state.*"]\n[supervision]\nready = "started"\n'
    daemon.capsule("sayer", sayer.wasm(), publish=["*"], extra=extra)
    daemon.capsule("late", late.wasm(), subscribe=["*"], extra='[supervision]\nready_timeout = "60s"\n')
    daemon.start()
    daemon.wait_state("sayer", "stopped")
    received = again(daemon, "late", 2)[-1]
    (message,) = cbor2.loads(received.data)["messages"]
    assert message["payload"] == 2
    assert message["retained"] is True
    assert message["source"] == "sayer"
    bus = daemon.get("/v1/bus")
    assert bus["balanced"] is True
    kept = {each["name"]: (each["retained"], each["retained_bytes"]) for each in bus["capsules"]}
    assert kept == {"sayer": (1, len(cbor2.dumps(2))), "late": (0, 0)}
