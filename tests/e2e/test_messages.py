"""Messages from guest to guest: real processes, real wasmer, real ZeroMQ."""

from __future__ import annotations

import cbor2

from ..support.daemon import Daemon
from ..support.guests import Program, buffer, text


def test_a_capsule_receives_what_it_publishes_itself(daemon: Daemon) -> None:
    """A publish after the acknowledged subscription arrives, stamped with who sent it."""
    program = Program()
    handle = program.call("ipc_subscribe", text("a.b"))
    program.call("ready")
    program.call("ipc_publish", text("a.b"), text(cbor2.dumps({"n": 1})))
    program.call("ipc_recv", handle, 5000, buffer(4096))
    daemon.capsule("echo", program.wasm(), publish=["a.*"], subscribe=["a.b"])
    daemon.start()
    results = daemon.results("echo", 3)
    assert [called.result for called in results[:3]] == [1, 0, 0]
    envelope = cbor2.loads(results[3].data)
    assert envelope["dropped"] == envelope["lagged"] == 0
    (message,) = envelope["messages"]
    assert message["topic"] == "a.b"
    assert message["payload"] == {"n": 1}
    assert message["source"] == message["principal"] == "echo"
