"""What a reload answers: the plan that follows from the manifests as they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capsuled.supervisor.control.shapes import Json, JsonObject


def moved(plan: JsonObject) -> Sequence[str]:
    """Who starts, stops or restarts by it, by name and each once."""
    return sorted({*names(plan, "added"), *names(plan, "removed"), *names(plan, "changed")})


def names(plan: JsonObject, key: str) -> Sequence[str]:
    """The capsules in the list `key`; a newer supervisor may say more, which is passed over."""
    return [name for each in members(plan, key) if isinstance(name := _name(each), str)]


def members(plan: JsonObject, key: str) -> Sequence[Json]:
    found = plan.get(key)
    return found if isinstance(found, Sequence) and not isinstance(found, str) else ()


def _name(each: Json) -> Json:
    return each.get("name") if isinstance(each, Mapping) else each
