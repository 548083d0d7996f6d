"""A module that changes between the look at its hash and its loading: what runs has the manifest's hash, always."""

from __future__ import annotations

import os
import threading

from ..support.daemon import Daemon, Json
from ..support.guests import Program, text
from . import lives

LIVES = 12

NEVER_AGAIN = '[supervision]\nrestart = "never"\n'


def honest() -> bytes:
    """Is ready, and waits."""
    return lives.sleeper()


def other() -> bytes:
    """Says so where it runs."""
    program = Program()
    program.call("log", 2, text("the other module runs"))
    program.call("ready")
    return program.wasm()


def says_so(line: Json) -> bool:
    return "the other module runs" in line["message"]


def test_a_module_that_is_replaced_all_the_time(daemon: Daemon) -> None:
    """Each life is the honest module's, or ends before any guest runs, with both hashes in its reason."""
    daemon.capsule("swapped", honest(), subscribe=lives.QUIET, extra=NEVER_AGAIN)
    daemon.capsule("other", other())
    folder = daemon.capsules / "swapped"
    daemon.start(wait_for=["swapped"])
    daemon.wait_line("other", says_so)  # it would be heard
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for module in (other(), honest()):
                (folder / "new").write_bytes(module)
                os.replace(folder / "new", folder / "swapped.wasm")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(LIVES):
            daemon.act("swapped", "stop", wait="down")
            daemon.act("swapped", "start")
            daemon.wait("swapped", lambda each: each["state"] in ("ready", "stopped"))
    finally:
        done.set()
        swapper.join()
    exits = daemon.get("/v1/capsules/swapped/why")["exits"]
    assert {each["reason"] for each in exits} <= {"cancelled", "load-error"}
    for each in exits:
        if each["reason"] == "load-error":
            assert each["message"].count("sha256:") == 2
    assert not list(filter(says_so, daemon.lines("swapped")))


def test_a_module_that_was_replaced_is_named_by_both_hashes(daemon: Daemon) -> None:
    """The one of the manifest and the one that was found; and the right module runs again when it is back."""
    daemon.capsule("swapped", honest(), subscribe=lives.QUIET, extra=NEVER_AGAIN)
    module = daemon.capsules / "swapped" / "swapped.wasm"
    daemon.start(wait_for=["swapped"])
    daemon.act("swapped", "stop", wait="down")
    module.write_bytes(other())
    daemon.act("swapped", "start")
    found = daemon.wait_state("swapped", "stopped")["last_exit"]
    assert found["reason"] == "load-error"
    assert found["message"].count("sha256:") == 2
    module.write_bytes(honest())
    assert daemon.act("swapped", "start", wait="ready").status == 200
