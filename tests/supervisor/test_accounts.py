"""The sums over all capsules' instances, from claims that nobody believes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from capsuled.proto import ledger
from capsuled.proto.ledger import Claims, Column, Total
from capsuled.supervisor.accounts import MAX_FAULTS, Accounts
from capsuled.supervisor.bus import BusFigures


def page(*rows: tuple[int, ...], **totals: int) -> Claims:
    """A worker's page: totals by their names in lower case, and rows in the order of their columns."""
    slots = [0] * ledger.SLOTS
    slots[Total.EPOCH] = 1
    for name, value in totals.items():
        slots[Total[name.upper()]] = value
    for number, row in enumerate(rows):
        at = ledger.ROWS + number * ledger.ROW_SLOTS
        slots[at : at + len(Column)] = row
    return ledger.claims(slots)


def figures(index: int, *subscriptions: tuple[int, str, int], **more: int) -> dict[str, Any]:
    """The backbone's word about a member: subscriptions by handle, pattern and matched."""
    known: dict[str, Any] = {
        "index": index,
        "published": 0,
        "missing": 0,
        "refused": {},
        "queued": 0,
        "sent": sum(matched for _, _, matched in subscriptions),
        "closed_matched": 0,
        "closed_lagged": 0,
    }
    lines = [
        {"handle": handle, "pattern": pattern, "matched": matched, "lagged": 0, "queued": 0}
        for handle, pattern, matched in subscriptions
    ]
    return {**known, "subscriptions": lines, **more}


def document(accounts: Accounts, **live: tuple[int, Claims | None, dict[str, Any] | None]) -> dict[str, Any]:
    claims = {name: [(index, claimed)] for name, (index, claimed, _) in live.items()}
    told = {index: each for index, _, each in live.values() if each is not None}
    retained = {"idle": {"retained": 2, "retained_bytes": 30, "retained_evicted": 1}}
    return dict(accounts.document(claims, BusFigures(1, told, retained, {}), ["echo", "idle"]))


def of(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["capsules"] if each["name"] == name)


def test_who_has_never_lived_has_zeros() -> None:
    """A capsule without an instance stands there, with nothing."""
    found = document(Accounts())
    assert found["balanced"] is True
    assert of(found, "idle")["published"] == 0
    assert [each["name"] for each in found["capsules"]] == ["echo", "idle"]


def test_what_is_retained_is_told_of_who_does_not_live() -> None:
    """It stands at the backbone by name, not by instance; of whom nothing was ever kept there are zeros."""
    found = document(Accounts())
    kept = ("retained", "retained_bytes", "retained_evicted")
    assert [of(found, "idle")[key] for key in kept] == [2, 30, 1]
    assert [of(found, "echo")[key] for key in kept] == [0, 0, 0]


def test_what_has_ended_stays_in_the_sums() -> None:
    """Two instances that have ended and one that lives add up."""
    accounts = Accounts()
    for _ in range(2):
        accounts.end("echo", 1, page(published=3, host_calls=5), figures(1, published=3))
    found = of(document(accounts, echo=(2, page(published=4, host_calls=1), figures(2, published=4))), "echo")
    assert (found["published"], found["routed"], found["host_calls"]) == (10, 10, 11)


def test_two_instances_at_a_time() -> None:
    """As during an upgrade: both are counted, and each of their subscriptions is a line."""
    known = {index: figures(index, (1, "a.*", 0), published=index, queued=index) for index in (2, 3)}
    claims = {"echo": [(2, page(published=2)), (3, page(published=3)), (4, None)]}
    found: dict[str, Any] = dict(Accounts().document(claims, BusFigures(1, known, {}, {}), ["echo"]))
    echo = of(found, "echo")
    assert (echo["published"], echo["routed"], echo["queued"]) == (5, 5, 5)
    assert len(found["subscriptions"]) == 2


def test_looking_changes_nothing() -> None:
    """A document is the same when it is asked for again: what lives is not taken into the sums."""
    accounts = Accounts()
    live = (2, page(published=4), figures(2, published=4))
    assert document(accounts, echo=live) == document(accounts, echo=live)


def test_an_ended_subscription_is_a_line_of_its_own() -> None:
    """What was received, delivered and left when an instance ended is kept, under handle 0."""
    accounts = Accounts()
    row = (1, 5, 3, 1, 1, 0)  # handle, received, delivered, dropped, queued, carried
    accounts.end("echo", 1, page(row, received=5), figures(1, (1, "a.b", 5)))
    (line,) = document(accounts)["subscriptions"]
    assert (line["handle"], line["matched"], line["delivered"], line["dropped"]) == (0, 5, 3, 1)


def test_what_does_not_add_up_is_never_forgotten() -> None:
    """A worker that claims more than the backbone has sent is a fault, told with its name ever after."""
    accounts = Accounts()
    row = (1, 9, 9, 0, 0, 0)
    accounts.end("echo", 1, page(row, received=9), figures(1, (1, "a.b", 5)))
    for _ in range(2):
        found = document(accounts)
        assert found["balanced"] is False
        assert any("echo" in fault for fault in found["faults"])


def test_faults_are_bounded() -> None:
    """However many ways there are not to add up, `MAX_FAULTS` sentences are kept."""
    accounts = Accounts()
    for number in range(MAX_FAULTS + 5):
        row = (1, 9 + number, 9 + number, 0, 0, 0)
        accounts.end("echo", 1, page(row, received=9 + number), figures(1, (1, "a.b", 5)))
    assert len(document(accounts)["faults"]) == MAX_FAULTS


def test_who_died_with_its_backbone_is_not_compared() -> None:
    """Without the backbone's figures there is nothing to compare: the claims count, and no fault is made up."""
    accounts = Accounts()
    accounts.end("echo", 1, page((1, 9, 9, 0, 0, 0), published=2, received=9), None)
    found = document(accounts)
    assert found["balanced"] is True
    assert of(found, "echo")["published"] == 2


def test_who_was_found_in_the_middle_of_an_update() -> None:
    """Neither a live page nor a last one that cannot be read stops the ledger."""
    accounts = Accounts()
    accounts.end("echo", 1, None, figures(1, (1, "a.b", 5)))
    assert document(accounts, idle=(2, None, figures(2)))["balanced"] is True


slot = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))


@given(
    st.dictionaries(st.integers(0, ledger.SLOTS - 1), slot, max_size=60),
    st.lists(st.tuples(st.integers(1, 5), st.just("a.b"), st.integers(0, 9)), max_size=4),
    st.booleans(),
)
def test_no_page_brings_the_ledger_down(
    written: dict[int, int], subscriptions: list[tuple[int, str, int]], known: bool
) -> None:
    """Invariant: whatever a worker writes to its page, its end is taken, and the document is JSON."""
    slots = [0] * ledger.SLOTS
    for at, value in written.items():
        slots[at] = value
    claims = ledger.claims(slots)
    told = figures(1, *{each[0]: each for each in subscriptions}.values())
    accounts = Accounts()
    accounts.end("echo", 1, claims, told if known else None)
    json.dumps(document(accounts, echo=(1, claims, told if known else None)))
