"""Metrics of the real supervisor: the same numbers as its other answers."""

from __future__ import annotations

import os
import signal

import cbor2
import psutil

from capsuled.supervisor import metrics
from capsuled.supervisor.commands.client import Ask

from ..support.daemon import DEADLINE, Daemon, Watched
from ..support.guests import Program, buffer, text
from ..support.openmetrics import Scraped


def scrape(daemon: Daemon) -> Scraped:
    answer = daemon.client.ask(Ask("GET", "/v1/metrics"))
    assert answer.status == 200
    return Scraped(answer.text)


def talker() -> bytes:
    """Publishes to itself, reads it, is refused once, and then waits until it is stopped."""
    program = Program()
    handle = program.call("ipc_subscribe", text("a.b"))
    program.call("ready")
    for number in range(3):
        program.call("ipc_publish", text("a.b"), text(cbor2.dumps(number)))
        program.call("ipc_recv", handle, 5000, buffer(4096))
    program.call("ipc_publish", text("z"), text(cbor2.dumps(0)))
    program.call("ipc_recv", handle, 600_000, buffer(4096))
    return program.wasm()


def test_they_tell_what_the_ledger_tells(daemon: Daemon) -> None:
    """While nothing moves, each number of `/v1/bus` and `/v1/capsules` stands in the metrics too."""
    daemon.capsule("talker", talker(), publish=["a.*"], subscribe=["a.b"])
    daemon.capsule("crasher", Program().wasm(), extra='[supervision]\nrestart = "never"')
    daemon.start(wait_for=["talker"])
    daemon.results("talker", 8)
    daemon.ended("crasher")
    bus, values = daemon.get("/v1/bus"), scrape(daemon)
    (entry,) = (each for each in bus["capsules"] if each["name"] == "talker")
    assert entry["published"] == 3
    for key, kind, name, _ in metrics.LEDGER:
        suffix = "_total" if kind == "counter" else ""
        assert values.value(f"capsuled_capsule_{name}{suffix}", capsule="talker") == entry[key], key
    assert entry["refused"]
    for code, count in entry["refused"].items():
        assert values.value("capsuled_capsule_refused_total", capsule="talker", code=code) == count
    (line,) = (each for each in bus["subscriptions"] if each["capsule"] == "talker")
    for key, kind, _ in metrics.SUBSCRIPTIONS:
        suffix = "_total" if kind == "counter" else ""
        assert values.value(f"capsuled_capsule_{key}{suffix}", capsule="talker") == line[key], key
    assert values.value("capsuled_ledger_balanced") == 1

    ended = daemon.of("crasher")["last_exit"]["reason"]
    assert values.value("capsuled_capsule_exits_total", capsule="crasher", reason=ended) == 1
    assert values.value("capsuled_capsule_ready", capsule="talker") == 1
    assert values.value("capsuled_capsule_ready", capsule="crasher") == 0
    assert values.value("capsuled_capsules", state="ready") == 1
    assert values.value("capsuled_process_pid", process="supervisor") == daemon.pid
    assert (values.value("capsuled_process_memory_bytes", process="backbone") or 0) > 1 << 20
    assert (values.value("capsuled_capsule_process_memory_bytes", capsule="talker") or 0) > 1 << 20
    assert values.value("capsuled_control_connections") == 1


def test_a_backbone_s_restart_is_counted(daemon: Daemon) -> None:
    """It is killed and comes again: one restart, in the metrics as in the status."""
    daemon.start()
    before = daemon.backbone
    assert scrape(daemon).value("capsuled_backbone_restarts_total") == 0
    gone = Watched([psutil.Process(before)])
    os.kill(before, signal.SIGKILL)
    assert gone.left(DEADLINE) == []
    after = daemon.backbone
    while after == before:  # its end is not noticed yet
        after = daemon.backbone
    values = scrape(daemon)
    assert values.value("capsuled_backbone_restarts_total") == 1
    assert values.value("capsuled_process_pid", process="backbone") == after != before
