"""Manifests that are written anew while the supervisor runs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

from capsuled.supervisor.commands.client import Ask

from ..support.daemon import DEADLINE, Daemon


def rewrite(daemon: Daemon, name: str, old: str, new: str) -> None:
    """Replace a capsule's manifest in one moment."""
    path = daemon.capsules / name / "Capsule.toml"
    text = path.read_text()
    assert old in text
    path.with_name("new").write_text(text.replace(old, new))
    os.replace(path.with_name("new"), path)


def remove(daemon: Daemon, name: str) -> None:
    shutil.rmtree(daemon.capsules / name)


def reload(daemon: Daemon, *more: str) -> dict[str, Any]:
    """`POST /v1/reload?wait=ready`, or with other parameters."""
    query = dict(each.split("=") for each in more) or {"wait": "ready", "timeout": "30"}
    answer = daemon.client.ask(Ask("POST", "/v1/reload", query, 30.0))
    assert answer.status in (200, 202), answer.value
    return dict(answer.value)


def ask_until(daemon: Daemon, name: str, reached: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Ask for a capsule until `reached` holds: for what has no event of its own."""
    deadline = time.monotonic() + DEADLINE
    while not reached(found := daemon.of(name)):
        assert time.monotonic() < deadline, found
    return found


def await_gone(daemon: Daemon, name: str) -> None:
    """Ask until there is no such capsule: that has no event of its own."""
    deadline = time.monotonic() + DEADLINE
    while name in {each["name"] for each in daemon.get("/v1/capsules")["capsules"]}:
        assert time.monotonic() < deadline, daemon.log()


def states(daemon: Daemon, name: str) -> list[str]:
    return [each["event"] for each in daemon.events() if each["capsule"] == name]
