"""The order of starting: a capsule that imports an interface starts when one that exports it is ready. A rule.

Stopping goes the other way round. Each import is met by one capsule, the one with the highest version that will do, the
first by name among equals; so that who waits for whom can be told, and does not depend on who was quicker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import NamedTuple

from capsuled.supervisor import faults
from capsuled.supervisor.manifest import Manifest, Requirement


class Need(NamedTuple):
    """What a capsule starts after."""

    provider: str
    interface: str
    optional: bool
    """It waits while the provider is on its way up, and no longer."""


class Unmet(NamedTuple):
    """Why a capsule cannot be started: the key in its manifest and a sentence."""

    capsule: str
    key: str
    sentence: str


class Order(NamedTuple):
    """What each capsule starts after, and those that can never be started and are not in it."""

    needs: Mapping[str, tuple[Need, ...]]
    unmet: tuple[Unmet, ...]


Exporters = dict[str, list[tuple[str, str]]]
"""By interface: the versions of it, and who exports them."""


def order(manifests: Mapping[str, Manifest]) -> Order:
    """The order among these capsules, by name. One that is left out may leave others without what they import."""
    exporters: Exporters = {}
    for name, manifest in manifests.items():
        for export in manifest.exports:
            exporters.setdefault(export.interface, []).append((export.version, name))
    needs: dict[str, tuple[Need, ...]] = {}
    unmet: dict[str, Unmet] = {}
    to_look_at = deque(manifests)

    def leave_out(found: Iterable[Unmet]) -> None:
        for each in found:
            unmet[each.capsule] = each
            needs.pop(each.capsule, None)
            to_look_at.extend(
                name for name, own in needs.items() if any(need.provider == each.capsule for need in own)
            )

    while True:
        while to_look_at:
            name = to_look_at.popleft()
            if name not in unmet:
                found = _needs(name, manifests[name], exporters, unmet)
                if isinstance(found, Unmet):
                    leave_out([found])
                else:
                    needs[name] = found
        circle = list(_circle(needs))
        if not circle:
            return Order(
                _without_circles({name: needs[name] for name in manifests if name in needs}),
                tuple(unmet.values()),
            )
        leave_out(circle)


def _needs(
    name: str, manifest: Manifest, exporters: Exporters, gone: Container[str]
) -> tuple[Need, ...] | Unmet:
    found: list[Need] = []
    for wanted in manifest.imports:
        exports = [each for each in exporters.get(wanted.interface, ()) if each[1] not in gone]
        provider = _provider(wanted, exports, name)
        if provider is not None:
            found.append(Need(provider, wanted.interface, wanted.optional))
        elif not wanted.optional:
            return Unmet(name, f"imports.{wanted.interface}", _lack(wanted, exports))
    return tuple(found)


def _provider(wanted: Requirement, exports: Iterable[tuple[str, str]], importer: str) -> str | None:
    """Another capsule rather than the importer itself, which could only wait for itself."""
    able = [(version, name) for version, name in exports if wanted.accepts(version)]
    able = [each for each in able if each[1] != importer] or able
    if not able:
        return None
    best = faults.newest(version for version, _ in able)
    return min(name for version, name in able if version == best)


def _lack(wanted: Requirement, exports: Iterable[tuple[str, str]]) -> str:
    others = ", ".join(f"{name} exports {version}" for version, name in exports)
    there = f"no capsule exports it in such a version ({others})" if others else "no capsule exports it"
    return f"'{wanted.version}' is wanted and {there}: add one that does, or write optional = true"


def _without_circles(needs: Mapping[str, tuple[Need, ...]]) -> dict[str, tuple[Need, ...]]:
    """Without those optional waits that would close a circle: there is always one that starts first."""
    waits = {name: {need.provider for need in own if not need.optional} for name, own in needs.items()}
    kept: dict[str, tuple[Need, ...]] = {}
    for name, own in needs.items():
        good = [need for need in own if not need.optional or not _reaches(waits, need.provider, name)]
        kept[name] = tuple(good)
        waits[name].update(need.provider for need in good)
    return kept


def _reaches(waits: Mapping[str, set[str]], first: str, last: str) -> bool:
    """Whether `first` waits for `last`, by whatever way."""
    seen, to_look_at = {first}, [first]
    while to_look_at:
        if (name := to_look_at.pop()) == last:
            return True
        fresh = waits.get(name, set()) - seen
        seen |= fresh
        to_look_at += fresh
    return False


def _circle(needs: Mapping[str, tuple[Need, ...]]) -> Iterator[Unmet]:
    """All members of one circle of capsules that wait for each other. A wait that is optional closes no circle."""
    strict = {name: [need.provider for need in own if not need.optional] for name, own in needs.items()}
    try:
        TopologicalSorter(strict).prepare()
    except CycleError as exc:
        circle: list[str] = list(reversed(exc.args[1]))  # who imports stands before who exports
        told = " imports from ".join(circle)
        for name, provider in pairwise(circle):
            interface = next(need.interface for need in needs[name] if need.provider == provider)
            yield Unmet(
                name, f"imports.{interface}", f"{told}: none of them could ever start: make one optional"
            )
