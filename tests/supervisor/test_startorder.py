"""Who starts after whom, and what can never be started."""

from __future__ import annotations

import pytest

from capsuled.supervisor import startorder
from capsuled.supervisor.manifest import Limits, Manifest, parse
from capsuled.supervisor.startorder import Need, Order


def manifest(name: str, more: str) -> Manifest:
    text = f'[package]\nname = "{name}"\nversion = "1.0.0"\n[component]\nfile = "m.wasm"\n{more}'
    return parse(text, "Capsule.toml", Limits(), True)


def ordered(**capsules: str) -> Order:
    return startorder.order({name: manifest(name, more) for name, more in capsules.items()})


def exports(version: str, interface: str = "session") -> str:
    return f'[exports.acme]\n{interface} = "{version}"\n'


def imports(accepted: str, interface: str = "session", *, optional: bool = False) -> str:
    wanted = f'{{ version = "{accepted}", optional = true }}' if optional else f'"{accepted}"'
    return f"[imports.acme]\n{interface} = {wanted}\n"


def test_who_imports_starts_after_who_exports() -> None:
    """Whatever their order in the catalogue; who imports nothing starts after nobody."""
    found = ordered(app=imports("^1.0"), db=exports("1.2.0"), other="")
    assert found.needs == {"app": (Need("db", "acme.session", False),), "db": (), "other": ()}
    assert found.unmet == ()


@pytest.mark.parametrize(
    ("versions", "taken"),
    [
        ({"a": "1.0.0", "b": "1.10.0", "c": "1.9.0"}, "b"),
        ({"b": "1.0.0", "a": "1.0.0"}, "a"),
        ({"a": "2.0.0", "b": "1.0.0"}, "b"),
    ],
)
def test_one_of_several(versions: dict[str, str], taken: str) -> None:
    """The highest version that will do, and the first by name."""
    found = ordered(app=imports("^1.0"), **{name: exports(version) for name, version in versions.items()})
    assert [need.provider for need in found.needs["app"]] == [taken]


def test_a_missing_provider() -> None:
    """It is named, with what there is instead; who imports from who is left out is left out too."""
    found = ordered(app=imports("^2.0"), db=exports("1.2.0"), web=imports("^1.0", "page"))
    told = {each.capsule: (each.key, each.sentence) for each in found.unmet}
    assert told == {
        "app": (
            "imports.acme.session",
            "'^2.0' is wanted and no capsule exports it in such a version (db exports 1.2.0): add one that does, or "
            "write optional = true",
        ),
        "web": (
            "imports.acme.page",
            "'^1.0' is wanted and no capsule exports it: add one that does, or write optional = true",
        ),
    }
    assert set(found.needs) == {"db"}


def test_one_that_is_left_out_leaves_others_without() -> None:
    """From the end of a chain to its beginning."""
    chain = ordered(
        a=imports("^1.0", "b"),
        b=imports("^1.0", "c") + exports("1.0.0", "b"),
        c=imports("^1.0", "d") + exports("1.0.0", "c"),
        d=exports("0.1.0", "d"),
    )
    assert [each.capsule for each in chain.unmet] == ["c", "b", "a"]
    assert set(chain.needs) == {"d"}


def test_an_optional_import() -> None:
    """It is waited for where it is, and missed by nobody where it is not."""
    assert ordered(app=imports("^1.0", optional=True)).unmet == ()
    found = ordered(app=imports("^1.0", optional=True), db=exports("1.0.0"))
    assert found.needs["app"] == (Need("db", "acme.session", True),)


def test_a_circle_is_named() -> None:
    """With all of its members, in the order of their imports; who only imports from one of them goes with it."""
    found = ordered(
        a=imports("^1.0", "b") + exports("1.0.0", "a"),
        b=imports("^1.0", "c") + exports("1.0.0", "b"),
        c=imports("^1.0", "a") + exports("1.0.0", "c"),
        beside=imports("^1.0", "a"),
        apart="",
    )
    circle = [each for each in found.unmet if each.capsule != "beside"]
    assert {each.capsule for each in circle} == {"a", "b", "c"}
    (told,) = {each.sentence for each in circle}
    names = told.partition(":")[0].split(" imports from ")
    assert len(names) == 4
    assert names[0] == names[-1]
    assert "".join(names[:3]) in "abcabc"
    assert set(found.needs) == {"apart"}


def test_who_needs_itself() -> None:
    """The smallest circle."""
    found = ordered(a=imports("^1.0", "a") + exports("1.0.0", "a"))
    assert [each.sentence.partition(":")[0] for each in found.unmet] == ["a imports from a"]


def test_an_optional_wait_closes_no_circle() -> None:
    """It is not waited for, whatever the names are; of two that are optional one is."""
    for one, two in (("a", "b"), ("b", "a")):
        found = ordered(
            **{
                one: imports("^1.0", two, optional=True) + exports("1.0.0", one),
                two: imports("^1.0", one) + exports("1.0.0", two),
            }
        )
        assert found.unmet == ()
        assert found.needs == {one: (), two: (Need(one, f"acme.{one}", False),)}
    found = ordered(
        a=imports("^1.0", "b", optional=True) + exports("1.0.0", "a"),
        b=imports("^1.0", "a", optional=True) + exports("1.0.0", "b"),
    )
    assert found.needs == {"a": (Need("b", "acme.b", True),), "b": ()}


def test_a_long_chain_without_its_end() -> None:
    """A thousand capsules that all cannot start are told in one go."""
    names = [f"c{number}" for number in range(1000)]
    found = ordered(
        **{
            name: imports("^1.0", f"c{number + 1}") + exports("1.0.0", name)
            for number, name in enumerate(names)
        }
    )
    assert len(found.unmet) == 1000
