"""What a reload does: from the capsules that there are and the manifests as they are now to a plan. A rule.

Only what has changed is touched. A manifest that has become bad takes nothing down: its capsule goes on as it is, and
the fault is told. The first start is a reload too, of nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

from capsuled.supervisor import startorder
from capsuled.supervisor.catalogue import Catalogue, Entry
from capsuled.supervisor.control.shapes import JsonObject
from capsuled.supervisor.faults import Fault
from capsuled.supervisor.startorder import Order

_PLAIN = (str, int, float, type(None))

MAX_SHOWN = 60
"""Characters of a value that is told to have changed."""


class Change(NamedTuple):
    """A capsule that is to be another one from now on, and in what."""

    entry: Entry
    why: tuple[str, ...]


class Plan(NamedTuple):
    """What follows, by name."""

    added: Mapping[str, Entry]
    removed: tuple[str, ...]
    changed: Mapping[str, Change]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]
    """Those that go on although their manifest is bad now."""
    faults: tuple[Fault, ...]
    order: Order
    """Of all that there are when it is done."""

    def shape(self, *, dry_run: bool) -> JsonObject:
        """As the control socket shows it."""
        return {
            "dry_run": dry_run,
            "added": sorted(self.added),
            "removed": sorted(self.removed),
            "changed": [
                {"name": name, "why": list(change.why)} for name, change in sorted(self.changed.items())
            ],
            "unchanged": sorted(self.unchanged),
            "kept": sorted(self.kept),
            "faults": [
                {"file": each.file, "key": each.key, "message": each.sentence} for each in self.faults
            ],
        }


def plan(current: Mapping[str, Entry], found: Catalogue) -> Plan:
    """What makes of the capsules `current` those that were `found`."""
    faults = list(found.faults)
    entries = dict(found.entries)
    kept = {
        name: entry
        for name, entry in current.items()
        if name not in entries and _is_faulty(entry.manifest_path, faults)
    }
    order = startorder.order({name: entry.manifest for name, entry in {**kept, **entries}.items()})
    for unmet in order.unmet:
        entry = entries.pop(unmet.capsule, None) or kept[unmet.capsule]
        faults.append(Fault(str(entry.manifest_path), unmet.key, unmet.sentence))
        if unmet.capsule in current:
            kept[unmet.capsule] = current[unmet.capsule]
    changes = {
        name: Change(entry, why)
        for name, entry in entries.items()
        if name in current and (why := tuple(differences(current[name], entry)))
    }
    return Plan(
        added={name: entry for name, entry in entries.items() if name not in current},
        removed=tuple(name for name in current if name not in entries and name not in kept),
        changed=changes,
        unchanged=tuple(name for name in entries if name in current and name not in changes),
        kept=tuple(kept),
        faults=tuple(faults),
        order=order,
    )


def differences(old: Entry, new: Entry) -> Iterator[str]:
    """In what two entries of one capsule differ, a phrase each; nothing where it would run the same."""
    if old.manifest_path != new.manifest_path:
        yield f"its manifest is {new.manifest_path} now"
    yield from _differences((), asdict(old.manifest), asdict(new.manifest))
    if old.module != new.module:
        yield "its module has changed"


def _differences(path: tuple[str, ...], old: object, new: object) -> Iterator[str]:
    both: tuple[object, object] = (old, new)
    if isinstance(old, dict) and isinstance(new, dict):
        was, now = cast(dict[str, object], old), cast(dict[str, object], new)
        for key in dict.fromkeys((*was, *now)):
            yield from _differences((*path, key), was.get(key), now.get(key))
    elif old != new:
        name = ".".join(path)
        # What stands in [config] may be nobody else's business.
        plain = path[0] != "config" and isinstance(old, _PLAIN) and isinstance(new, _PLAIN)
        yield f"{name}: {' to '.join(map(_shown, both))}" if plain else name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _is_faulty(manifest: Path, faults: Iterable[Fault]) -> bool:
    """Whether something is wrong with this file, or with a folder that it was found in."""
    return any(manifest == Path(each.file) or Path(each.file) in manifest.parents for each in faults)
