"""The operator's vocabulary: closed sets, which scripts and dashboards rely on."""

from __future__ import annotations

from enum import Enum

import pytest

from capsuled.proto import control

WORDS: list[tuple[type[Enum], str]] = [
    (control.Desired, "up down"),
    (control.State, "stopped starting ready stopping backoff failed"),
    (
        control.Reason,
        "ok nonzero trap cancelled not-ready watchdog memory cpu-time killed-signal seccomp oom spawn-failed "
        "load-error killed-by-operator supervisor-shutdown supervisor-lost",
    ),
    (control.LogStream, "guest stdout stderr supervisor"),
]


@pytest.mark.parametrize(("closed_set", "words"), WORDS, ids=lambda each: getattr(each, "__name__", ""))
def test_words(closed_set: type[Enum], words: str) -> None:
    """These are the words, in their order, and no others."""
    assert [each.value for each in closed_set] == words.split()


@pytest.mark.parametrize("closed_set", [each for each, _ in WORDS], ids=lambda each: each.__name__)
def test_names_follow_the_words(closed_set: type[Enum]) -> None:
    """A word's name in the code is the word in capitals."""
    assert all(each.name == str(each.value).upper().replace("-", "_") for each in closed_set)


def test_exit_codes() -> None:
    """Scripts branch on these numbers."""
    assert {each.name: each.value for each in control.Exit} == {
        "DONE": 0,
        "FAILED": 1,
        "USAGE": 2,
        "NOT_RUNNING": 3,
        "NO_SUCH_CAPSULE": 4,
        "NOT_PERMITTED": 5,
        "TIMED_OUT": 6,
        "NO_SUPERVISOR": 7,
    }


def test_each_level_includes_those_below() -> None:
    """Who may administer may operate, and who may operate may read."""
    assert control.Level.READ < control.Level.OPERATE < control.Level.ADMIN
    assert len(control.Level) == 3


def test_log_levels_are_those_of_the_guest_abi() -> None:
    """A guest's level is an index: 0 is trace, 4 is error."""
    assert control.LOG_LEVELS == ("trace", "debug", "info", "warn", "error")
