"""OpenMetrics of what the supervisor counts, read by prometheus_client's own parser."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto.control import Reason, State
from capsuled.supervisor import metrics
from capsuled.supervisor.control.counts import Counts
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.metrics import CapsuleFacts, Facts, Family, Process

from ..support.openmetrics import Scraped

USAGE: JsonObject = {"cpu_seconds": 1.5, "memory": 65536, "process_memory": 4096, "open_files": 12}

ENTRY: JsonObject = {
    "name": "a",
    **{key: number for number, (key, *_) in enumerate(metrics.LEDGER, 1)},
    "retained_bytes": 99,
    "refused": {"eacces": 2, "edquot": 3},
    "refused_by_backbone": {"rate": 1},
}

LINE: JsonObject = {
    "capsule": "a",
    "handle": 1,
    "pattern": "x.*",
    **{key: number for number, (key, *_) in enumerate(metrics.SUBSCRIPTIONS, 1)},
}

BUS: JsonObject = {
    "balanced": True,
    "capsules": [ENTRY],
    "subscriptions": [LINE, {**LINE, "handle": 2}],
    "spine": {"published": 1, "refused": {"kernel": 2}, "prefixes": 3, "taps": 4, "unpublished": 5},
}


def capsule(name: str = "a", **changed: Any) -> CapsuleFacts:
    facts: dict[str, Any] = {
        "name": name,
        "state": State.READY,
        "wanted": True,
        "attempt": 3,
        "usage": USAGE,
        "memory_limit": 1 << 20,
        "process_memory_limit": 1 << 30,
        "exits": {"trap": 2, "ok": 1},
    }
    return CapsuleFacts(**{**facts, **changed})


def facts(*capsules: CapsuleFacts, bus: JsonObject | None = BUS) -> Facts:
    return Facts(
        version="1.2.3",
        mode="A",
        uptime=7.25,
        processes=[Process("supervisor", 10, 0.5, 4096), Process("backbone", 11, None, None)],
        capsules=capsules,
        backbone_up=bus is not None,
        backbone_restarts=4,
        connections=Counts(open=5, refused=6),
        bus=bus,
    )


def scraped(of: Facts) -> Scraped:
    return Scraped(metrics.text(metrics.families(of)))


def test_every_family_says_what_it_is() -> None:
    """Each has a help, a type, and a unit where its name has one; nothing is of an unknown type."""
    found = scraped(facts(capsule())).families
    assert len(found) == len(list(metrics.families(facts(capsule()))))
    for name, family in found.items():
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "info")
        assert family.unit == next((unit for unit in ("seconds", "bytes") if name.endswith(unit)), "")


def test_the_supervisor() -> None:
    """What it is, what its own processes use, and who is connected."""
    found = scraped(facts(capsule(), capsule("b", state=State.FAILED)))
    assert found.value("capsuled_info", version="1.2.3", mode="A") == 1
    assert found.value("capsuled_uptime_seconds") == 7.25
    assert found.by("process", "capsuled_process_pid") == {"supervisor": 10, "backbone": 11}
    assert found.by("process", "capsuled_process_cpu_seconds_total") == {"supervisor": 0.5}
    assert found.by("process", "capsuled_process_memory_bytes") == {"supervisor": 4096}
    states = found.by("state", "capsuled_capsules")
    assert states == {**{state.value: 0 for state in State}, "ready": 1, "failed": 1}
    assert found.value("capsuled_backbone_up") == 1
    assert found.value("capsuled_backbone_restarts_total") == 4
    assert found.value("capsuled_control_connections") == 5
    assert found.value("capsuled_control_connections_refused_total") == 6


@pytest.mark.parametrize("state", State)
def test_a_capsule_s_state(state: State) -> None:
    """Up is to have a process, ready is to be ready."""
    found = scraped(facts(capsule(state=state, wanted=False)))
    up = state in (State.STARTING, State.READY, State.STOPPING)
    assert found.value("capsuled_capsule_up", capsule="a") == up
    assert found.value("capsuled_capsule_ready", capsule="a") == (state is State.READY)
    assert found.value("capsuled_capsule_wanted", capsule="a") == 0


def test_a_capsule() -> None:
    """Attempts, ends by reason, usage and limits."""
    found = scraped(facts(capsule()))
    assert found.value("capsuled_capsule_attempt", capsule="a") == 3
    assert found.by("reason", "capsuled_capsule_exits_total") == {"trap": 2, "ok": 1}
    assert found.value("capsuled_capsule_cpu_seconds_total", capsule="a") == 1.5
    assert found.value("capsuled_capsule_memory_bytes", capsule="a") == 65536
    assert found.value("capsuled_capsule_process_memory_bytes", capsule="a") == 4096
    assert found.value("capsuled_capsule_open_files", capsule="a") == 12
    assert found.value("capsuled_capsule_memory_limit_bytes", capsule="a") == 1 << 20
    assert found.value("capsuled_capsule_process_memory_limit_bytes", capsule="a") == 1 << 30


def test_what_is_not_known_is_left_out() -> None:
    """A value that could not be read is no nothing."""
    found = scraped(facts(capsule(usage={**USAGE, "open_files": None})))
    assert found.value("capsuled_capsule_open_files", capsule="a") is None
    assert found.value("capsuled_capsule_memory_bytes", capsule="a") == 65536


def test_the_ledger() -> None:
    """Each number of `/v1/bus`; subscriptions are summed up by capsule."""
    found = scraped(facts(capsule()))
    for key, kind, name, _ in metrics.LEDGER:
        suffix = "_total" if kind == "counter" else ""
        assert found.value(f"capsuled_capsule_{name}{suffix}", capsule="a") == ENTRY[key]
    for key, kind, _ in metrics.SUBSCRIPTIONS:
        suffix = "_total" if kind == "counter" else ""
        assert found.value(f"capsuled_capsule_{key}{suffix}", capsule="a") == 2 * cast(int, LINE[key])
    assert found.value("capsuled_capsule_retained_bytes", capsule="a") == 99
    assert found.by("code", "capsuled_capsule_refused_total") == {"eacces": 2, "edquot": 3}
    assert found.by("code", "capsuled_capsule_refused_by_backbone_total") == {"rate": 1}
    assert found.value("capsuled_ledger_balanced") == 1
    assert found.value("capsuled_spine_published_total") == 1
    assert found.value("capsuled_spine_refused_total", reason="kernel") == 2
    assert found.value("capsuled_spine_prefixes") == 3
    assert found.value("capsuled_spine_taps") == 4
    assert found.value("capsuled_spine_unpublished_total") == 5


def test_a_sum_with_an_unknown_part_is_not_told() -> None:
    """A counter that seemed to fall would be taken for one that began anew."""
    lines = [LINE, {**LINE, "delivered": None}, {**LINE, "capsule": "b"}]
    found = scraped(facts(capsule(), bus={**BUS, "subscriptions": lines}))
    assert set(found.by("capsule", "capsuled_capsule_delivered_total")) == {"b"}
    assert set(found.by("capsule", "capsuled_capsule_matched_total")) == {"a", "b"}


def test_without_a_backbone() -> None:
    """What it would say is missing, and the rest is told."""
    found = scraped(facts(capsule(), bus=None))
    assert found.value("capsuled_backbone_up") == 0
    assert found.value("capsuled_ledger_balanced") is None
    assert found.value("capsuled_capsule_published_total", capsule="a") is None
    assert found.value("capsuled_capsule_ready", capsule="a") == 1


def test_nothing_that_a_guest_chooses_is_a_label() -> None:
    """Patterns and instances are unbounded: no label has their name."""
    found = scraped(facts(capsule()))
    assert found.labels == {"version", "mode", "process", "state", "capsule", "reason", "code"}


def test_three_hundred_capsules() -> None:
    """All of them are told, each once, and it takes no time that others would notice."""
    names = [f"capsule-{number}" for number in range(300)]
    bus = {
        **BUS,
        "capsules": [{**ENTRY, "name": name} for name in names],
        "subscriptions": [{**LINE, "capsule": name} for name in names for _ in range(4)],
    }
    exits = {reason.value: 1 for reason in Reason}
    began = time.process_time()
    text = metrics.text(metrics.families(facts(*(capsule(name, exits=exits) for name in names), bus=bus)))
    took = time.process_time() - began
    assert took < 0.5, took  # some 60 ms on an idle machine
    found = Scraped(text)
    for name in ("capsuled_capsule_ready", "capsuled_capsule_delivered_total"):
        assert set(found.by("capsule", name)) == set(names)


@given(st.dictionaries(st.sampled_from("abc"), st.text(), min_size=1))
def test_whatever_a_label_holds_is_read_back(labels: dict[str, str]) -> None:
    """Quotes, backslashes and new lines are escaped: what was put in comes out, and nothing else."""
    text = metrics.text([Family("x", "gauge", 'a "b" \\ c', [metrics.Sample(labels, 1)])])
    (sample,) = Scraped(text).families["x"].samples
    assert sample.labels == labels
