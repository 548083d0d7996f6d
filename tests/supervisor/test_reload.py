"""From the capsules that there are and the manifests as they are now to what is to be done."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsuled.supervisor import reload
from capsuled.supervisor.catalogue import Catalogue, Entry
from capsuled.supervisor.faults import Fault
from capsuled.supervisor.manifest import Limits, parse

FOLDER = Path("/etc/capsules")


def entry(name: str, more: str = "", *, module: str = "", folder: Path = FOLDER) -> Entry:
    text = f'[package]\nname = "{name}"\nversion = "1.0.0"\n[component]\nfile = "m.wasm"\n{more}'
    path = folder / name / "Capsule.toml"
    return Entry(parse(text, str(path), Limits(), True), path, path.with_name("m.wasm"), module)


def catalogue(*entries: Entry, faults: tuple[Fault, ...] = ()) -> Catalogue:
    return Catalogue({each.manifest.package.name: each for each in entries}, faults)


def current(*entries: Entry) -> dict[str, Entry]:
    return dict(catalogue(*entries).entries)


def test_everything_at_once() -> None:
    """Each capsule is in one of the lists; what has changed is told."""
    plan = reload.plan(
        current(entry("same"), entry("gone"), entry("other"), entry("bad")),
        catalogue(
            entry("same"),
            entry("new"),
            entry("other", "[limits]\nmemory = '1MiB'\n"),
            faults=(Fault("/etc/capsules/bad/Capsule.toml", "limits.memory", "is no size"),),
        ),
    )
    assert plan.shape(dry_run=True) == {
        "dry_run": True,
        "added": ["new"],
        "removed": ["gone"],
        "changed": [{"name": "other", "why": ["limits.memory: 67108864 to 1048576"]}],
        "unchanged": ["same"],
        "kept": ["bad"],
        "faults": [
            {"file": "/etc/capsules/bad/Capsule.toml", "key": "limits.memory", "message": "is no size"}
        ],
    }


@pytest.mark.parametrize("file", ["/etc/capsules", "/etc", "/etc/capsules/a"])
def test_a_folder_that_cannot_be_read_takes_nothing_down(file: str) -> None:
    """Its capsules go on, for nobody has said that they are not wanted."""
    plan = reload.plan(current(entry("a")), catalogue(faults=(Fault(file, "", "cannot be read"),)))
    assert (plan.kept, plan.removed) == (("a",), ())


def test_another_folder_that_cannot_be_read() -> None:
    """Says nothing of those that are gone from this one."""
    plan = reload.plan(current(entry("a")), catalogue(faults=(Fault("/etc/caps", "", "cannot be read"),)))
    assert (plan.kept, plan.removed) == ((), ("a",))


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (entry("a"), []),
        (entry("a", "# another comment\n"), []),
        (entry("a", module="sha256:2"), ["its module has changed"]),
        (entry("a", folder=Path("/b")), ["its manifest is /b/a/Capsule.toml now"]),
        (entry("a", "[config]\ntoken = 'secret'\n"), ["config.token"]),
        (entry("a", "[capabilities]\nipc_publish = ['x']\n"), ["capabilities.ipc_publish"]),
        (
            entry("a", "[supervision]\nrestart = 'never'\nwatchdog = '1s'\n"),
            ["supervision.restart: 'on-failure' to 'never'", "supervision.watchdog: 0.0 to 1.0"],
        ),
        (entry("a", "[[interceptor]]\nevent = 'a.*'\naction = 'x'\n"), ["interceptors"]),
    ],
)
def test_what_is_told_of_a_change(new: Entry, why: list[str]) -> None:
    """By its key, with both values where they are short and nobody's secret."""
    old = entry("a", module="") if new.module == "" else entry("a", module="sha256:1")
    assert list(reload.differences(old, new)) == why


def test_a_long_value_is_cut() -> None:
    """It is shown by its beginning."""
    text = '[package]\nname = "a"\nversion = "1.0.0"\ndescription = "%s"\n[component]\nfile = "m.wasm"\n'
    long = parse(text % ("x" * 1000), "Capsule.toml", Limits(), True)
    (told,) = reload.differences(entry("a"), entry("a")._replace(manifest=long))
    assert told.startswith("package.description: '' to 'xxx")
    assert len(told) < 100


IMPORTS = "[imports.acme]\nsession = '^1.0'\n"
EXPORTS = "[exports.acme]\nsession = '1.0.0'\n"


def test_who_loses_what_it_imports_goes_on() -> None:
    """It is told; one that is new is left out."""
    plan = reload.plan(
        current(entry("app", IMPORTS), entry("db", EXPORTS)),
        catalogue(entry("app", IMPORTS), entry("web", IMPORTS)),
    )
    assert (plan.kept, plan.removed, plan.added) == (("app",), ("db",), {})
    assert [(each.file, each.key) for each in plan.faults] == [
        ("/etc/capsules/app/Capsule.toml", "imports.acme.session"),
        ("/etc/capsules/web/Capsule.toml", "imports.acme.session"),
    ]


def test_one_whose_manifest_is_bad_still_exports() -> None:
    """It runs on, and so others may import from it."""
    plan = reload.plan(
        current(entry("db", EXPORTS)),
        catalogue(entry("app", IMPORTS), faults=(Fault("/etc/capsules/db/Capsule.toml", "", "bad"),)),
    )
    assert (tuple(plan.added), plan.kept) == (("app",), ("db",))
    assert [need.provider for need in plan.order.needs["app"]] == ["db"]


def test_the_first_start_is_a_reload_of_nothing() -> None:
    plan = reload.plan({}, catalogue(entry("a"), entry("b")))
    assert (tuple(plan.added), plan.removed, plan.unchanged) == (("a", "b"), (), ())
