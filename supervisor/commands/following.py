"""Commands that go on: logs, events, wait."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping

from capsuled.proto.control import Exit, State
from capsuled.supervisor.commands import render
from capsuled.supervisor.commands.asking import complain
from capsuled.supervisor.commands.client import Answer, Ask, CannotAsk, Client, Stream, capsule_path
from capsuled.supervisor.control.shapes import JsonObject

DOWN = (State.STOPPED, State.FAILED)
"""States in which a capsule has no process and will get none by itself."""


def logs(client: Client, given: argparse.Namespace) -> Exit:
    query = {"lines": str(given.lines)} if given.lines is not None else {}
    return _print_lines(client, given, capsule_path(given.name, "logs"), query, log_text)


def events(client: Client, given: argparse.Namespace) -> Exit:
    return _print_lines(client, given, "/v1/events", {}, _event_text)


def bus_tap(client: Client, given: argparse.Namespace) -> Exit:
    """Messages as they pass, one line each; it never slows a subscriber, and loses what it cannot keep up with."""
    with client.follow(Ask("GET", "/v1/bus/tap", {"pattern": given.pattern})) as stream:
        if isinstance(stream, Answer):
            return complain(stream, given)
        while (found := stream.line(None)) is not None:
            print(json.dumps(found) if given.json else _lost_text(found) or _message_text(found), flush=True)
    return Exit.DONE


def wait(client: Client, given: argparse.Namespace) -> Exit:
    """Wait until the capsule is as asked, without changing what is wanted of it.

    It follows first and looks second, and looks again at each event: nothing can happen unseen in between.
    """
    deadline = None if given.timeout is None else time.monotonic() + given.timeout
    with client.follow(Ask("GET", "/v1/events", {"follow": ""})) as stream:
        if isinstance(stream, Answer):
            return complain(stream, given)
        while True:
            answer = client.ask(Ask("GET", capsule_path(given.name)))
            if failed := complain(answer, given):
                return failed
            if (settled := _settled(answer.value, given)) is not None:
                return settled
            _await_event(stream, given.name, deadline)


def _settled(capsule: JsonObject, given: argparse.Namespace) -> Exit | None:
    state = capsule.get("state")
    reached = state in DOWN if given.wait_for == "down" else capsule.get("ready") is True
    if not reached and state != State.FAILED:
        return None
    if given.json:
        print(json.dumps(capsule))
    elif reached:
        print(f"{given.name}: {render.text(state)}")
    if reached:
        return Exit.DONE
    raise CannotAsk(
        f"cannot wait for {given.name}: it has failed: `capsulectl why {given.name}` tells why", Exit.FAILED
    )


def _await_event(stream: Stream, name: str, deadline: float | None) -> None:
    """Return when something happened to the capsule, or may have: events that were lost are looked into."""
    while True:
        remaining = None if deadline is None else deadline - time.monotonic()
        try:
            event = stream.line(None if remaining is None else max(remaining, 0.001))
        except TimeoutError as exc:
            raise CannotAsk(f"cannot wait any longer for {name}: the time is over", Exit.TIMED_OUT) from exc
        if event is None:
            raise CannotAsk(f"cannot wait for {name}: the supervisor shuts down", Exit.FAILED)
        if event.get("capsule") == name or "lost" in event:
            return


def _print_lines(
    client: Client,
    given: argparse.Namespace,
    path: str,
    query: Mapping[str, str],
    text: Callable[[JsonObject], str],
) -> Exit:
    def show(line: JsonObject) -> None:
        print(json.dumps(line) if given.json else _lost_text(line) or text(line), flush=given.follow)

    if not given.follow:
        answer = client.ask(Ask("GET", path, query))
        for line in answer.lines:
            show(line)
        return complain(answer, given)
    with client.follow(Ask("GET", path, {**query, "follow": ""})) as stream:
        if isinstance(stream, Answer):
            return complain(stream, given)
        while (found := stream.line(None)) is not None:
            show(found)
    return Exit.DONE


def _lost_text(line: JsonObject) -> str:
    return (
        f"… {render.text(line['lost'])} lost here: they came faster than they were read"
        if "lost" in line
        else ""
    )


def _message_text(message: JsonObject) -> str:
    first = " ".join(render.text(message.get(key)) for key in ("time", "seq", "source", "topic"))
    return f"{first} {render.text(json.dumps(message.get('payload')))}"


def log_text(line: JsonObject) -> str:
    return " ".join(render.text(line.get(key)) for key in ("time", "instance", "stream", "level", "message"))


def _event_text(event: JsonObject) -> str:
    first = ("time", "capsule", "event")
    rest = {key: value for key, value in event.items() if key not in first and value is not None}
    return " ".join(render.text(event.get(key)) for key in first) + (
        f" ({render.text(rest)})" if rest else ""
    )
