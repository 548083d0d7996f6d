"""`bus trace` through real guests: what an operator's message has caused, from capsule to capsule."""

from __future__ import annotations

import json

import pytest

from capsuled.proto.control import Exit

from ..support.daemon import Daemon, Json
from . import chain


@pytest.fixture
def chained(daemon: Daemon) -> Daemon:
    """`first` hears `go` of the operator; `second` and `third` hear it, and `fourth` the second one."""
    for name, topic, source, to in (
        ("first", "go", "operator", "step.one"),
        ("second", "step.one", "first", "step.two"),
        ("third", "step.one", "first", "step.three"),
        ("fourth", "step.two", "second", "step.four"),
    ):
        daemon.capsule(name, chain.link(topic, source, "operator", to), publish=[to], subscribe=[topic])
    daemon.start(wait_for=["first", "second", "third", "fourth"])
    return daemon


def test_a_chain_through_capsules(chained: Daemon) -> None:
    """In order from its first cause, with the fan-out, on the operator's behalf; found from any of its messages."""
    done = chained.ctl("bus", "publish", "go", "1")
    assert done.returncode == Exit.DONE, done.stderr
    number = int(done.stdout.rsplit(maxsplit=1)[-1])
    for name in ("first", "second", "third", "fourth"):
        assert chained.results(name, 4)[4].result == 0
    hops = await_hops(chained, number, 5)
    assert [hop["topic"] for hop in hops[:2]] == ["go", "step.one"]
    assert {hop["topic"] for hop in hops[2:]} == {"step.two", "step.three", "step.four"}
    assert {hop["principal"] for hop in hops} == {"operator"}
    by_topic = {hop["topic"]: hop for hop in hops}
    assert by_topic["go"]["cause"] is None
    for topic, cause, source in (
        ("step.one", "go", "first"),
        ("step.two", "step.one", "second"),
        ("step.three", "step.one", "third"),
        ("step.four", "step.two", "fourth"),
    ):
        assert by_topic[topic]["cause"] == by_topic[cause]["seq"]
        assert by_topic[topic]["source"] == source
    assert [hop["seq"] for hop in hops] == sorted(hop["seq"] for hop in hops)
    from_the_end = json.loads(chained.ctl("bus", "trace", str(hops[-1]["seq"]), "--json").stdout)
    assert from_the_end["hops"] == hops
    assert from_the_end["cut"] is False
    assert chained.get("/v1/bus")["balanced"] is True


def await_hops(daemon: Daemon, number: int, count: int) -> list[Json]:
    """The chain once it has so many messages: what a guest has published goes within a millisecond or two."""
    while True:
        found: list[Json] = daemon.get("/v1/bus/trace", {"id": str(number)})["hops"]
        if len(found) == count:
            return found
        assert len(found) < count, found


def test_a_message_without_a_cause_is_not_remembered(daemon: Daemon) -> None:
    """What was caused by nothing and has caused nothing, and what never was, exit 1."""
    daemon.start()
    done = daemon.ctl("bus", "publish", "lonely", "1")
    number = done.stdout.rsplit(maxsplit=1)[-1].strip()
    for each in (number, "12345"):
        found = daemon.ctl("bus", "trace", each)
        assert (found.returncode, found.stdout) == (Exit.FAILED, "")
        assert f"nothing is remembered of {each}" in found.stderr
