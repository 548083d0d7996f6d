"""Commands that are one question and its answer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

from capsuled.proto.control import Exit, State
from capsuled.supervisor.commands import ends, render
from capsuled.supervisor.commands.client import Answer, Ask, CannotAsk, Client, capsule_path
from capsuled.supervisor.control import reloading
from capsuled.supervisor.control.shapes import CBOR, JSON, Json, JsonObject

EXITS: Mapping[str, Exit] = {
    "no-such-capsule": Exit.NO_SUCH_CAPSULE,
    "not-permitted": Exit.NOT_PERMITTED,
    "timed-out": Exit.TIMED_OUT,
}
"""Codes of the control socket's errors that have an exit code of their own; all others are `Exit.FAILED`."""

RUNNING = (State.STARTING, State.READY, State.STOPPING)
"""States in which a capsule has a process; in any other `status NAME` exits with `Exit.NOT_RUNNING`."""

SELDOM = ("waits_for", "beside")
"""What a capsule waits for when it starts, and its other instances while it is being upgraded."""

TRACE = ("time", "seq", "cause", "source", "principal", "topic")

RELOAD_SECONDS = 120.0
"""For the supervisor to read all manifests and modules again, from whatever disk they are on."""


class Refusal(NamedTuple):
    """An error that the supervisor answered: the command's exit code, and a sentence that a terminal may have."""

    code: Exit
    message: str


LIST = ("name", "state", "desired", "pid", "since", "attempt", "last exit")


def status(client: Client, given: argparse.Namespace) -> Exit:
    if given.name is None:
        return _facts(client, given, Ask("GET", "/v1/status"))
    answer = client.ask(Ask("GET", capsule_path(given.name)))
    if failed := complain(answer, given):
        return failed
    if given.json:
        show(answer.value, given)
    else:
        # What is seldom there has a line only when it is.
        render.facts({key: value for key, value in answer.value.items() if value or key not in SELDOM})
    return Exit.DONE if answer.value.get("state") in RUNNING else Exit.NOT_RUNNING


def list_capsules(client: Client, given: argparse.Namespace) -> Exit:
    answer = client.ask(Ask("GET", "/v1/capsules"))
    if failed := complain(answer, given):
        return failed
    if given.json:
        show(answer.value, given)
    else:
        render.table(LIST, [_row(capsule) for capsule in members(answer.value, "capsules")])
    return Exit.DONE


def act(client: Client, given: argparse.Namespace) -> Exit:
    """One verb for several capsules, all at once. The exit code is the highest of theirs."""
    if given.timeout is not None and given.wait is None:
        raise CannotAsk("cannot use --timeout alone: say what to wait for with --wait ready|down", Exit.USAGE)
    query: dict[str, str] = {}
    if given.wait is not None:
        query["wait"] = given.wait
    if given.timeout is not None:
        query["timeout"] = f"{given.timeout:.9f}"
    waits = given.timeout if given.wait is not None else 0.0
    asks = [Ask("POST", capsule_path(name, given.verb), query, waits) for name in given.names]
    worst = Exit.DONE
    for name, answer in zip(given.names, client.ask_all(asks), strict=True):
        worst = max(worst, _acted(name, answer, given))
    return worst


def _acted(name: str, answer: Answer | CannotAsk, given: argparse.Namespace) -> Exit:
    if isinstance(answer, CannotAsk):
        print(f"capsulectl: {name}: {answer}", file=sys.stderr)
        return answer.code
    if failed := complain(answer, given):
        return failed
    if given.json:
        show(answer.value, given)
    else:
        capsule = answer.value.get("capsule")
        state = render.text(capsule.get("state")) if isinstance(capsule, Mapping) else "unknown"
        # "Accepted" and not "done": without --wait the work goes on.
        done = (
            "done"
            if answer.status == HTTPStatus.OK
            else f"accepted as {render.text(answer.value.get('change'))}"
        )
        print(f"{name}: {given.verb} {done}, {state}")
    return Exit.DONE


def reload(client: Client, given: argparse.Namespace) -> Exit:
    """The plan, a line for each capsule that it moves and each fault; `Exit.FAILED` when there is a fault."""
    if given.timeout is not None and not given.wait:
        raise CannotAsk("cannot use --timeout alone: give it together with --wait", Exit.USAGE)
    if given.dry_run and given.wait:
        raise CannotAsk("cannot wait for a dry run: it sets nothing going", Exit.USAGE)
    query = {"dry_run": ""} if given.dry_run else {}
    if given.wait:
        query["wait"] = "ready"
    if given.timeout is not None:
        query["timeout"] = f"{given.timeout:.9f}"
    waits = given.timeout if given.wait else RELOAD_SECONDS
    answer = client.ask(Ask("POST", "/v1/reload", query, waits))
    if failed := complain(answer, given):
        return failed
    if given.json:
        show(answer.value, given)
    else:
        print("\n".join(render.plan(answer.value)))
    return Exit.FAILED if reloading.members(answer.value, "faults") else Exit.DONE


def why(client: Client, given: argparse.Namespace) -> Exit:
    answer = client.ask(Ask("GET", capsule_path(given.name, "why")))
    if failed := complain(answer, given):
        return failed
    if given.json:
        show(answer.value, given)
        return Exit.DONE
    render.facts({key: value for key, value in answer.value.items() if key != "exits"})
    for number, ended in enumerate(members(answer.value, "exits")):
        print(f"\nlast exit{f' but {number}' if number else ''}")
        print("\n".join(ends.lines(ended)))
    return Exit.DONE


def bus_stats(client: Client, given: argparse.Namespace) -> Exit:
    answer = client.ask(Ask("GET", "/v1/bus"))
    if failed := complain(answer, given):
        return failed
    balanced = answer.value.get("balanced") is True
    if given.json:
        show(answer.value, given)
    else:
        for key in ("capsules", "subscriptions"):
            _ledger(members(answer.value, key))
        spine = answer.value.get("spine")
        if isinstance(spine, dict):
            render.facts({f"spine {key}": value for key, value in spine.items()})
            print()
        print("balanced" if balanced else "NOT balanced: messages are unaccounted for, please report this")
    return Exit.FAILED if given.check and not balanced else Exit.DONE


def bus_publish(client: Client, given: argparse.Namespace) -> Exit:
    """The payload is JSON, or with --cbor bytes; from the command line or from standard input."""
    if given.cbor and given.payload not in (None, "-"):
        raise CannotAsk(
            "cannot take CBOR from the command line: give --cbor the item on standard input", Exit.USAGE
        )
    text = sys.stdin.buffer.read() if given.payload in (None, "-") else given.payload.encode()
    media = CBOR if given.cbor else JSON
    answer = client.ask(Ask("POST", "/v1/bus/publish", {"topic": given.topic}, body=text, media=media))
    if failed := complain(answer, given):
        return failed
    if given.json:
        show(answer.value, given)
    else:
        print(f"published on {given.topic} as {render.text(answer.value.get('seq'))}")
    return Exit.DONE


def bus_trace(client: Client, given: argparse.Namespace) -> Exit:
    answer = client.ask(Ask("GET", "/v1/bus/trace", {"id": given.id}))
    if failed := complain(answer, given):
        return failed
    hops = members(answer.value, "hops")
    if given.json:
        show(answer.value, given)
    elif hops:
        render.table(TRACE, [[hop.get(key) for key in TRACE] for hop in hops])
        if answer.value.get("cut"):
            print("and more: the chain is longer than what one answer holds")
    else:
        print(
            f"capsulectl: nothing is remembered of {given.id}: only messages with a cause are",
            file=sys.stderr,
        )
    return Exit.DONE if hops else Exit.FAILED


def acl_explain(client: Client, given: argparse.Namespace) -> Exit:
    query = {"capsule": given.name, "verb": given.acl_verb, "topic": given.topic}
    answer = client.ask(Ask("GET", "/v1/acl", query))
    if failed := complain(answer, given):
        return failed
    allowed = answer.value.get("allowed") is True
    if given.json:
        show(answer.value, given)
    elif allowed:
        print(f"allowed: grant '{render.text(answer.value.get('grant'))}' says so")
    else:
        print(f"denied: no grant of {given.name} lets it {given.acl_verb} '{render.text(given.topic)}'")
    return Exit.DONE if allowed else Exit.FAILED


def metrics(client: Client, given: argparse.Namespace) -> Exit:
    """The exposition as it came, with --json too: it is what the socket answered."""
    answer = client.ask(Ask("GET", "/v1/metrics"))
    if failed := complain(answer, given):
        return failed
    for line in answer.text.splitlines():
        print(render.text(line))
    return Exit.DONE


def health(client: Client, given: argparse.Namespace) -> Exit:
    answer = client.ask(Ask("GET", "/v1/health", {"level": given.level}))
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE and "error" not in answer.value:
        show(answer.value, given)
        return Exit.FAILED
    if failed := complain(answer, given):
        return failed
    show(answer.value, given)
    return Exit.DONE


def shutdown(client: Client, given: argparse.Namespace) -> Exit:
    return _facts(client, given, Ask("POST", "/v1/shutdown"))


def schema(_client: Client, _given: argparse.Namespace) -> Exit:
    """The one command that asks nobody, and that needs pydantic."""
    from capsuled.supervisor.schema import schemas

    print(json.dumps(schemas(), indent=2))
    return Exit.DONE


# What they share.


def complain(answer: Answer, given: argparse.Namespace) -> Exit:
    """The exit code of an error, after telling it; `Exit.DONE` when the answer is none."""
    refused = refusal(answer)
    if refused is None:
        return Exit.DONE
    if given.json:
        show(answer.value, given)
    print(f"capsulectl: {refused.message}", file=sys.stderr)
    return refused.code


def refusal(answer: Answer) -> Refusal | None:
    """What an error says; None when the answer is none."""
    if answer.status < HTTPStatus.BAD_REQUEST:
        return None
    error = answer.value.get("error")
    code, message = None, f"the supervisor answered {answer.status}"
    if isinstance(error, Mapping):
        code, message = error.get("code"), render.text(error.get("message"))
    return Refusal(EXITS.get(code, Exit.FAILED) if isinstance(code, str) else Exit.FAILED, message)


def show(value: JsonObject, given: argparse.Namespace) -> None:
    if given.json:
        print(json.dumps(value))
    else:
        render.facts(value)


def members(value: JsonObject, key: str) -> Sequence[JsonObject]:
    """The objects in the list `key`; what is none is passed over, for a newer supervisor may say more."""
    found = value.get(key)
    if not isinstance(found, Sequence) or isinstance(found, str):
        return ()
    return [member for member in found if isinstance(member, Mapping)]


def _facts(client: Client, given: argparse.Namespace, ask: Ask) -> Exit:
    answer = client.ask(ask)
    if failed := complain(answer, given):
        return failed
    show(answer.value, given)
    return Exit.DONE


def _row(capsule: JsonObject) -> Sequence[Json]:
    ended = capsule.get("last_exit")
    reason = ended.get("reason") if isinstance(ended, Mapping) else None
    return [*(capsule.get(key) for key in LIST[:-1]), reason]


def _ledger(entries: Sequence[JsonObject]) -> None:
    # The columns are those that the supervisor sends, in its order: it may count more one day.
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    if columns:
        render.table(
            [render.text(column) for column in columns],
            [[entry.get(key) for key in columns] for entry in entries],
        )
        print()
