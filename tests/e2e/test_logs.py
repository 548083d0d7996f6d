"""What capsules say: kept, bounded, counted where it is cut, and on the disk."""

from __future__ import annotations

import json

import cbor2

from ..support.daemon import Daemon
from ..support.guests import Program, buffer, text
from . import lives

LINES, SIZE = 1000, 1000


def test_what_is_over_the_rate_is_cut_and_counted(daemon: Daemon) -> None:
    """Of a thousand lines some are kept and the others counted: no line is neither."""
    daemon.capsule(
        "chatterer",
        lives.chatterer(LINES, SIZE),
        subscribe=lives.QUIET,
        extra='[limits]\nlog_bytes_per_second = "64KiB"\n',
    )
    daemon.start(wait_for=["chatterer"], configuration='[log]\nring_lines = 100000\nring_bytes = "64MiB"\n')
    (shown,) = daemon.get("/v1/bus")["capsules"]
    assert shown["logs_cut"] > 0
    daemon.wait_line("chatterer", lambda _: _kept(daemon) + shown["logs_cut"] == LINES)
    assert _kept(daemon) < LINES


def _kept(daemon: Daemon) -> int:
    return sum(line["message"] == "x" * SIZE for line in daemon.lines("chatterer"))


def test_the_ring_keeps_the_newest(daemon: Daemon) -> None:
    """`ring_lines = 10` keeps ten; the eleventh line pushes the first one out."""
    program = Program()
    for number in range(11):
        program.call("log", 2, text(f"line {number}"), quiet=True)
    handle = program.call("ipc_subscribe", text("quiet.never"), quiet=True)
    program.call("ready", quiet=True)
    program.call("ipc_recv", handle, 60_000, buffer(64), quiet=True)
    daemon.capsule("eleven", program.wasm(), subscribe=lives.QUIET)
    daemon.start(wait_for=["eleven"], configuration="[log]\nring_lines = 10\n")
    daemon.wait_line("eleven", lambda line: line["message"] == "line 10")
    assert [line["message"] for line in daemon.lines("eleven")] == [
        f"line {number}" for number in range(1, 11)
    ]


def test_files_hold_all_and_are_rotated(daemon: Daemon) -> None:
    """The files have every line once and in order, none is larger than it may be, and no more of them are kept."""
    program = Program()
    for number in range(60):
        program.call("log", 2, text(f"{number:04d} " + "x" * 1500), quiet=True)
    program.call("ready", quiet=True)
    daemon.capsule("writer", program.wasm(), extra='[supervision]\nrestart = "never"\n')
    daemon.start(configuration='[log]\nfile_bytes = "64KiB"\nfile_count = 1\n')
    daemon.wait_state("writer", "stopped")
    daemon.stop()
    folder = daemon.folder / "st" / "logs"
    assert sorted(path.name for path in folder.iterdir()) == ["writer.log", "writer.log.1"]
    texts = [folder.joinpath(name).read_text() for name in ("writer.log.1", "writer.log")]
    assert all(0 < len(each) <= 64 * 1024 for each in texts)
    lines = [json.loads(line) for each in texts for line in each.splitlines()]
    numbers = [int(line["message"][:4]) for line in lines if line["stream"] == "guest"]
    assert numbers == list(range(numbers[0], 60))
    assert lines[-1]["message"] == "ended: ok"
    assert set(lines[0]) == {"time", "capsule", "instance", "stream", "level", "message"}


def test_standard_output_becomes_lines(daemon: Daemon) -> None:
    """What a guest writes by WASI is a line for each newline, the last one without it too."""
    daemon.capsule("printer", lives.printer(b"one\ntwo", 2), extra='[supervision]\nrestart = "never"\n')
    daemon.start()
    daemon.wait_state("printer", "stopped")
    lines = [line for line in daemon.lines("printer") if line["stream"] == "stdout"]
    assert [line["message"] for line in lines] == ["one", "twoone", "two"]
    assert {line["level"] for line in lines} == {"info"}


def test_a_guest_reads_its_configuration(daemon: Daemon) -> None:
    """`[config]` of the manifest is what `config_get` answers with."""
    program = Program()
    program.call("config_get", text("greeting"), buffer(100))
    program.call("config_get", text("none"), buffer(100))
    daemon.capsule("reader", program.wasm(), extra='[config]\ngreeting = ["hello", 3]\n')
    daemon.start()
    found = daemon.results("reader", 1)
    assert cbor2.loads(found[0].data[: found[0].result]) == ["hello", 3]
    assert found[1].result < 0


def test_interceptors_are_subscribed_before_the_first_instruction(daemon: Daemon) -> None:
    """A guest finds its manifest's interceptors by name, and what is published reaches them."""
    program = Program()
    program.call("ipc_interceptors", buffer(1000))
    program.call("ready")
    program.call("ipc_recv", 1, 20_000, buffer(4000))
    daemon.capsule(
        "auditor", program.wasm(), extra='[[interceptor]]\nevent = "audit.*"\naction = "on_audit"\n'
    )
    speaker = Program()
    speaker.call("ready")
    speaker.call("ipc_publish", text("audit.login"), text(cbor2.dumps("hello")))
    daemon.capsule("speaker", speaker.wasm(), publish=["audit.*"], extra='[supervision]\nrestart = "never"\n')
    daemon.start(wait_for=["auditor"])
    daemon.act("speaker", "start")
    found = daemon.results("auditor", 2)
    (interceptor,) = cbor2.loads(found[0].data[: found[0].result])
    assert (interceptor["action"], interceptor["topic"], interceptor["handle_id"]) == (
        "on_audit",
        "audit.*",
        1,
    )
    (message,) = cbor2.loads(found[2].data)["messages"]
    assert (message["topic"], message["payload"]) == ("audit.login", "hello")
