"""The OpenAPI document: it says what the table of routes does, and the real supervisor keeps it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from capsuled.supervisor.commands.client import Ask, Stream
from capsuled.supervisor.control import durations, errors, openapi, parameters
from capsuled.supervisor.control.errors import BadParameter
from capsuled.supervisor.control.routes import ROUTES, Route

from ...e2e import lives
from ...support.daemon import DEADLINE, Daemon
from .serving import ask, run, serving

TOP = Path(__file__).resolve().parents[3]

DOCUMENT = cast("dict[str, Any]", openapi.document())


def operations() -> Iterator[tuple[Route, dict[str, Any]]]:
    for route in ROUTES:
        yield route, DOCUMENT["paths"][route.path][route.method.lower()]


def test_every_route_is_told() -> None:
    """Each route has an operation with its level and its parameters, and there are no others."""
    told = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert told == {(route.method, route.path) for route in ROUTES}
    assert set(openapi.TOLD) == {f"{method} {path}" for method, path in told}
    for route, operation in operations():
        names = [each["name"] for each in operation["parameters"] if each["in"] == "query"]
        assert tuple(names) == route.parameters
        assert operation[openapi.LEVELS] == route.level.name.lower()
    identifiers = [operation["operationId"] for _, operation in operations()]
    assert len(set(identifiers)) == len(ROUTES)


def test_every_reference_leads_somewhere() -> None:
    """No schema and no response is missing, and none is there for nobody."""
    used = set(re.findall(r'"\$ref": "#/components/([a-zA-Z0-9/]+)"', json.dumps(DOCUMENT)))
    there = {f"{kind}/{name}" for kind, each in DOCUMENT["components"].items() for name in each}
    assert used <= there
    # Only a method that no operation has is answered with 405.
    assert there - used == {"responses/405"}


def test_every_refusal_is_told() -> None:
    """A status that the socket can refuse with stands in the document."""
    statuses = {str(refusal.status.value) for refusal in errors.REFUSALS.values()}
    assert statuses == set(DOCUMENT["components"]["responses"])


@pytest.mark.parametrize("text", ["500ms", "5s", "2.5m", "1h", "7", "0", "1e3", "5 s", "-1", "5d", "", "."])
def test_the_pattern_of_durations_is_theirs(text: str) -> None:
    """What the pattern does not match is no duration; beyond it only the bounds refuse one."""
    pattern = str(openapi.PARAMETERS["timeout"]["pattern"])
    try:
        durations.parse(text)
        good = True
    except ValueError:
        good = False
    assert bool(re.search(pattern, text)) is (good or text == "0")


def test_flags_are_those_that_are_taken() -> None:
    """Each word of the document is taken for a flag, and no other."""
    words = cast("list[str]", openapi.PARAMETERS["follow"]["enum"])
    for word in words:
        parameters.flag({"follow": word}, "follow")
    for word in ("on", "TRUE", "2"):
        assert word not in words
        with pytest.raises(BadParameter):
            parameters.flag({"follow": word}, "follow")


def test_it_is_served_as_it_stands_in_the_docs() -> None:
    """`/v1/openapi.json` is docs/openapi.json."""

    async def main() -> None:
        async with serving() as served:
            reply = await ask(served, "GET", "/v1/openapi.json")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert reply.value == json.loads((TOP / "docs/openapi.json").read_text())

    run(main)


@pytest.mark.timeout(150)
def test_the_real_supervisor_keeps_it() -> None:
    """schemathesis finds nothing that the document does not say, nor anything it says that is not so."""
    command = [sys.executable, str(TOP / "scripts/schemathesis"), "--examples", "3", "--seed", "1"]
    # Without colours and the width of a terminal: what it says is shown where it fails.
    process = subprocess.Popen(
        [*command, "--seconds", "90"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    with process:
        try:
            said, _ = process.communicate(timeout=140)
        finally:
            process.terminate()  # it ends its supervisor then, which SIGKILL would leave
    assert process.returncode == 0, said
    # All but shutdown and tap, which the script names with their reasons, and where it has the document from.
    tested = re.search(r"Tested: (\d+)", said)
    assert tested is not None, said
    assert int(tested[1]) == len(ROUTES) - 3
    cases = re.search(r"(\d+) generated, (\d+) passed", said)
    assert cases is not None, said
    assert int(cases[1]) == int(cases[2]) > 100


def test_what_the_document_does_not_tell_is_noticed() -> None:
    """The check of scripts/schemathesis refuses a member, and a line, that the document does not have."""
    program = """
import sys; sys.path.insert(0, sys.argv[1])
import schemathesis_hooks as hooks
good = {"error": {"code": "a", "message": "b", "detail": {}}}
bad = {"error": {**good["error"], "more": 1}}
check = hooks.validator('{"$ref": "#/components/schemas/Error"}')
sys.exit(0 if check.is_valid(good) and not check.is_valid(bad) else 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(TOP / "scripts")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def told(name: str) -> set[str]:
    return set(DOCUMENT["components"]["schemas"][name]["properties"])


def test_who_waits_and_who_is_beside(daemon: Daemon) -> None:
    """A capsule that waits for another says for whom, and one that is succeeded who is there beside it; and a tap's
    line, of the real backbone, has the members of the document."""
    daemon.capsule(
        "provider",
        lives.sleeper(says_ready=False),
        subscribe=lives.QUIET,
        extra='[supervision]\nready = "guest"\nready_timeout = "60s"\n[exports.acme]\nsession = "1.0.0"',
    )
    daemon.capsule(
        "importer",
        lives.sleeper(),
        subscribe=lives.QUIET,
        extra='[imports.acme]\nsession = "^1.0"',
    )
    daemon.capsule(
        "other",
        lives.sleeper(says_ready=False),
        subscribe=lives.QUIET,
        extra='[supervision]\nready = "started"\nready_timeout = "60s"',
    )
    daemon.start(wait_for=["other"])
    waiting = daemon.of("importer")
    assert (waiting["state"], waiting["waits_for"]) == ("starting", "provider")

    manifest = daemon.capsules / "other/Capsule.toml"
    changes = {'ready = "started"': 'ready = "guest"', 'version = "1.0.0"': 'version = "1.1.0"'}
    text = manifest.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    manifest.write_text(text)
    answer = daemon.client.ask(Ask("POST", "/v1/reload"))
    assert (answer.status, set(answer.value)) == (202, told("Plan"))
    changed = daemon.of("other")
    assert set(changed) == told("Capsule")
    assert [each["version"] for each in changed["beside"]] == ["1.1.0"]
    beside = DOCUMENT["components"]["schemas"]["Capsule"]["properties"]["beside"]["items"]
    assert set(changed["beside"][0]) == set(beside["properties"])

    with daemon.client.follow(Ask("GET", "/v1/bus/tap", {"pattern": "a.*"}, None)) as tap:
        assert isinstance(tap, Stream)
        published = daemon.client.ask(Ask("POST", "/v1/bus/publish", {"topic": "a.b"}, body=b"1"))
        line = tap.line(DEADLINE)
        assert line is not None
        assert (line["seq"], set(line)) == (published.value["seq"], told("Message"))
