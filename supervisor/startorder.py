"""The order of starting: a capsule that imports an interface starts when one that exports it is ready. A rule.

Stopping goes the other way round. Each import is met by one capsule, the one with the highest version that will do, the
first by name among equals; so that who waits for whom can be told, and does not depend on who was quicker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    def dependents(self, name: str) -> list[str]:
        """Who starts after it, and stops before it."""
        return [each for each, needs in self.needs.items() if any(need.provider == name for need in needs)]


def order(manifests: Mapping[str, Manifest]) -> Order:
    """The order among these capsules, by name. One that is left out may leave others without what they import."""
    left = dict(manifests)
    unmet: list[Unmet] = []
    while True:
        needs, missing = _needs(left)
        found = missing or list(_circle(needs))
        if not found:
            return Order(needs, tuple(unmet))
        unmet += found
        for each in found:
            del left[each.capsule]


def _needs(manifests: Mapping[str, Manifest]) -> tuple[dict[str, tuple[Need, ...]], list[Unmet]]:
    needs: dict[str, tuple[Need, ...]] = {}
    missing: list[Unmet] = []
    for name, manifest in manifests.items():
        own: list[Need] = []
        lacks: list[Unmet] = []
        for wanted in manifest.imports:
            provider = _provider(wanted, manifests, name)
            if provider is not None:
                own.append(Need(provider, wanted.interface, wanted.optional))
            elif not wanted.optional:
                lacks.append(Unmet(name, f"imports.{wanted.interface}", _lack(wanted, manifests)))
        needs[name] = tuple(own)
        missing += lacks[:1]  # it is left out for the first one already
    return needs, missing


def _provider(wanted: Requirement, manifests: Mapping[str, Manifest], importer: str) -> str | None:
    """Another capsule rather than the importer itself, which could only wait for itself."""
    able = [
        (each.version, name)
        for name, manifest in manifests.items()
        for each in manifest.exports
        if each.interface == wanted.interface and wanted.accepts(each.version)
    ]
    able = [each for each in able if each[1] != importer] or able
    if not able:
        return None
    best = faults.newest(version for version, _ in able)
    return min(name for version, name in able if version == best)


def _lack(wanted: Requirement, manifests: Mapping[str, Manifest]) -> str:
    others = [
        f"{name} exports {each.version}"
        for name, manifest in manifests.items()
        for each in manifest.exports
        if each.interface == wanted.interface
    ]
    there = (
        f"no capsule exports it in such a version ({', '.join(others)})"
        if others
        else "no capsule exports it"
    )
    return f"'{wanted.version}' is wanted and {there}: add one that does, or write optional = true"


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
