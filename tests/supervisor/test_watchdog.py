"""The watchdog: who computes for ever without a host call, and who merely waits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import psutil
import pytest

from capsuled.proto import ledger
from capsuled.proto.ledger import Claims, Total
from capsuled.supervisor.watchdog import LOOKS, Watchdog

SECONDS = 1.0


class Times(NamedTuple):
    user: float
    system: float


class Process:
    """A process that has used so many CPU seconds."""

    used = 0.0

    def __init__(self, pid: int) -> None:
        if pid < 0:
            raise psutil.NoSuchProcess(pid)

    def cpu_times(self) -> Times:
        return Times(self.used * 0.75, self.used * 0.25)


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    monkeypatch.setattr(Process, "used", 0.0)
    monkeypatch.setattr(psutil, "Process", Process)
    return Process


def page(host_calls: int = 0, *, waiting: bool = False) -> Claims:
    slots = [0] * ledger.SLOTS
    slots[Total.HOST_CALLS], slots[Total.WAITING] = host_calls, waiting
    return ledger.claims(slots)


def looks(process: type[Process], pages: Iterable[Claims | None], share: float = 1.0) -> list[bool]:
    """What each look says, `LOOKS` in the time allowed, of a process that uses so much of a core."""
    dog, now, found = Watchdog(SECONDS), 1000.0, list[bool]()
    for claims in pages:
        now += dog.interval
        process.used += share * dog.interval
        found.append(dog.hung(1, claims, now))
    return found


def test_it_is_patient_for_as_long_as_it_was_told(process: type[Process]) -> None:
    """A guest that computes without a host call is hung when the time is over, and not one look before."""
    assert looks(process, [page(7)] * (LOOKS + 1)) == [False] * LOOKS + [True]


def test_a_host_call_starts_it_anew(process: type[Process]) -> None:
    """Who calls its host in time is never hung."""
    assert not any(looks(process, [page(n // LOOKS) for n in range(5 * LOOKS)]))


@pytest.mark.parametrize(("share", "hung"), [(0.05, False), (0.0, False), (0.15, True), (2.0, True)])
def test_what_computes_nothing_is_not_hung(process: type[Process], share: float, hung: bool) -> None:
    """A tenth of a core is computing; a stopped or sleeping process uses less."""
    assert any(looks(process, [page(7)] * (3 * LOOKS), share)) is hung


def test_what_waits_is_not_hung(process: type[Process]) -> None:
    """In a host call it is the host that works, however long it takes."""
    assert not any(looks(process, [page(7, waiting=True)] * (3 * LOOKS)))


def test_a_page_that_cannot_be_read_tells_of_no_host_call(process: type[Process]) -> None:
    """Who keeps its page in the middle of an update does not escape by it."""
    assert looks(process, [page(7), *[None] * LOOKS])[-1]


def test_without_a_process_there_is_nothing_to_watch(process: type[Process]) -> None:
    """Neither before it has started, nor when it has just ended."""
    dog = Watchdog(SECONDS)
    process.used = 100.0
    assert not dog.hung(None, page(7), 1000.0)
    assert not dog.hung(-1, page(7), 2000.0)
