"""The catalogue: what the folders hold, what is left out and why, and files that are traps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from capsuled.supervisor import configuration
from capsuled.supervisor.catalogue import (
    COMPONENT,
    MAGIC,
    MAX_MODULE,
    CannotRead,
    Catalogue,
    load,
    read_configuration,
    read_module,
    read_text,
)
from capsuled.supervisor.configuration import Configuration, ConfigurationInvalid
from capsuled.supervisor.faults import MAX_BYTES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

USING = configuration.defaults({}, 0)


def capsule(folder: Path, name: str = "", module: bytes = MAGIC, file: str = "a.wasm") -> Path:
    """Make a capsule's folder, named like the capsule by default; its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.wasm").write_bytes(module)
    path = folder / "Capsule.toml"
    path.write_text(
        f'[package]\nname = "{name or folder.name}"\nversion = "1.0.0"\n[component]\nfile = "{file}"\n'
        f'hash = "sha256:{hashlib.sha256(module).hexdigest()}"\n'
    )
    return path


def told(catalogue: Catalogue) -> list[tuple[str, str]]:
    """Key and sentence of each fault."""
    return [(each.key, each.sentence) for each in catalogue.faults]


def test_examples() -> None:
    """Each example is an entry, its module is there and has its hash; a folder without a manifest is none."""
    found = load([EXAMPLES], USING, check=True)
    assert found.faults == ()
    assert list(found.entries) == sorted(path.parent.name for path in EXAMPLES.glob("*/Capsule.toml"))
    assert "include" not in found.entries
    ping = found.entries["ping"]
    assert ping.manifest_path == EXAMPLES / "ping/Capsule.toml"
    assert ping.module_path == EXAMPLES / "ping/ping.wasm"
    assert read_module(ping) == ping.module_path.read_bytes()


@pytest.mark.parametrize("below", ["", "a", "a/Capsule.toml"])
def test_paths(tmp_path: Path, below: str) -> None:
    """A path is a folder of capsules, a capsule's folder or its manifest."""
    manifest = capsule(tmp_path / "a")
    found = load([tmp_path / below], USING)
    assert [entry.manifest_path for entry in found.entries.values()] == [manifest]


def test_one_capsule_by_two_ways(tmp_path: Path) -> None:
    """A capsule that several paths lead to is one capsule, and its name is not taken twice."""
    capsule(tmp_path / "a")
    (tmp_path / "b").symlink_to("a")
    found = load([tmp_path, tmp_path / "a", tmp_path / "a/Capsule.toml"], USING)
    assert (list(found.entries), found.faults) == (["a"], ())


def test_a_bad_manifest_disturbs_no_other(tmp_path: Path) -> None:
    """What is wrong with one is told with its file and key, and the others are entries."""
    capsule(tmp_path / "a")
    capsule(tmp_path / "b").write_text("[package]\nname = 'b'\n")
    capsule(tmp_path / "c")
    found = load([tmp_path], USING)
    assert list(found.entries) == ["a", "c"]
    assert {each.file for each in found.faults} == {str(tmp_path / "b/Capsule.toml")}
    assert {each.key for each in found.faults} == {"package.version", "component"}


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    """The second of a name is left out, and both files are named."""
    first, second = capsule(tmp_path / "a", "same"), capsule(tmp_path / "b", "same")
    found = load([tmp_path], USING)
    assert found.entries["same"].manifest_path == first
    (fault,) = found.faults
    assert (fault.file, fault.key) == (str(second), "package.name")
    assert fault.sentence == f"'same' is taken by {first}: write another name"


def test_most_capsules(tmp_path: Path) -> None:
    """As many capsules as the operator allows are entries, one more is told."""
    for name in ("a", "b", "c"):
        capsule(tmp_path / name)
    using = replace(USING, limits=replace(USING.limits, total_capsules=2))
    found = load([tmp_path], using)
    assert list(found.entries) == ["a", "b"]
    limit = "total_capsules = 2 in [limits] of capsuled.toml"
    assert told(found) == [("", f"one capsule more than {limit}: raise it, or take some away")]


def test_the_operator_s_will_holds(tmp_path: Path) -> None:
    """Ceilings and the developer's mode are those of the configuration."""
    path = capsule(tmp_path / "a")
    path.write_text(path.read_text().split("hash")[0] + "[limits]\nmemory = '128MiB'\n")
    tight = replace(USING, limits=replace(USING.limits, memory=64 << 20))
    assert [key for key, _ in told(load([tmp_path], tight))] == ["component.hash", "limits.memory"]
    assert load([tmp_path], replace(USING, allow_unhashed=True)).entries["a"].manifest.component.hash is None


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("missing")


def no_text(path: Path) -> None:
    path.write_bytes(b"# one\n# \xff\n")


def too_large(path: Path) -> None:
    path.write_bytes(b"#" * (MAX_BYTES + 1))


TRAPS: list[tuple[Callable[[Path], None], str]] = [
    (a_folder, "it is a folder: name a file"),
    (a_pipe, "it is no regular file: put one there"),
    (a_device, "it is no regular file: put one there"),
    (a_loop, "Too many levels of symbolic links: check the path and its mode"),
    (nowhere, "No such file or directory: check the path and its mode"),
    (no_text, "line 2 is not UTF-8: save it as UTF-8"),
    (too_large, "it has more than 1MiB: make it smaller"),
]


@pytest.mark.parametrize(("trap", "sentence"), TRAPS)
def test_manifests_that_are_traps(tmp_path: Path, trap: Callable[[Path], None], sentence: str) -> None:
    """What is no readable file is one fault of its own; nothing waits, and the next capsule is an entry."""
    path = tmp_path / "a/Capsule.toml"
    path.parent.mkdir()
    trap(path)
    capsule(tmp_path / "b")
    found = load([tmp_path], USING)
    assert list(found.entries) == ["b"]
    assert told(found) == [("", f"cannot read {path}: {sentence}")]


@pytest.mark.parametrize(("trap", "sentence"), TRAPS)
def test_configurations_that_are_traps(tmp_path: Path, trap: Callable[[Path], None], sentence: str) -> None:
    """A configuration that cannot be read is invalid, with one fault."""
    path = tmp_path / "capsuled.toml"
    trap(path)
    with pytest.raises(ConfigurationInvalid) as caught:
        read_configuration(path, USING)
    assert [str(each) for each in caught.value.faults] == [f"{path}: cannot read {path}: {sentence}"]


def test_largest_file(tmp_path: Path) -> None:
    """A file of exactly the bound is read."""
    path = tmp_path / "Capsule.toml"
    path.write_text("#" * MAX_BYTES)
    assert len(read_text(path)) == MAX_BYTES


def test_configuration_is_read(tmp_path: Path) -> None:
    """What the file says is over the base, and relative to the file."""
    path = tmp_path / "capsuled.toml"
    path.write_text("state_dir = 's'")
    assert read_configuration(path, USING) == replace(USING, state_dir=tmp_path / "s")


@pytest.mark.parametrize("path", ["missing", "a\0b", "x" * 300])
def test_paths_that_are_none(tmp_path: Path, path: str) -> None:
    """A path that holds no capsules because it is none is told."""
    found = load([tmp_path / path], USING)
    assert found.entries == {}
    ((key, sentence),) = told(found)
    assert (key, sentence.startswith("cannot look for capsules there: ")) == ("", True)


def test_a_folder_that_cannot_be_entered(tmp_path: Path) -> None:
    """A folder that cannot be looked into is told, and not passed over as one without a manifest."""
    a_loop(tmp_path / "a")
    path = tmp_path / "a/Capsule.toml"
    sentence = "Too many levels of symbolic links: check the path and its mode"
    assert told(load([tmp_path], USING)) == [("", f"cannot read {path}: {sentence}")]


def module_fault(path: Path, using: Configuration = USING) -> tuple[str, str]:
    """Key and sentence of the one fault that a look at the module finds, and a mere load does not."""
    assert load([path], using).faults == ()
    (fault,) = load([path], using, check=True).faults
    return fault.key, fault.sentence


def test_module_is_missing(tmp_path: Path) -> None:
    """A module that is not there is told."""
    path = capsule(tmp_path / "a")
    (tmp_path / "a/a.wasm").unlink()
    assert module_fault(path) == (
        "component.file",
        f"cannot read {tmp_path}/a/a.wasm: No such file or directory: check the path and its mode",
    )


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (b"", "something that begins with b''"),
        (b"\x7fELF", r"something that begins with b'\x7fELF'"),
        (MAGIC[:7], r"something that begins with b'\x00asm\x01\x00\x00'"),
        (COMPONENT, "a component"),
    ],
)
def test_module_is_none(tmp_path: Path, module: bytes, what: str) -> None:
    """What is no core module is told, with what it is."""
    assert module_fault(capsule(tmp_path / "a", module=module)) == (
        "component.file",
        f"'a.wasm' is {what}, not a core WebAssembly module: build one",
    )


def test_module_has_another_hash(tmp_path: Path) -> None:
    """A hash that is not the manifest's is told, with both."""
    path = capsule(tmp_path / "a")
    (tmp_path / "a/a.wasm").write_bytes(MAGIC + b"\0")
    expected, found = (f"sha256:{hashlib.sha256(each).hexdigest()}" for each in (MAGIC, MAGIC + b"\0"))
    assert module_fault(path) == (
        "component.hash",
        f"expected {expected}, found {found}: write the latter if the module is the one that you mean",
    )


def test_module_without_a_hash_is_checked(tmp_path: Path) -> None:
    """In the developer's mode a module needs no hash, but is WebAssembly all the same."""
    path = capsule(tmp_path / "a")
    path.write_text(path.read_text().split("hash")[0])
    using = replace(USING, allow_unhashed=True)
    assert load([path], using, check=True).faults == ()
    (tmp_path / "a/a.wasm").write_bytes(b"x")
    assert module_fault(path, using)[0] == "component.file"


@pytest.mark.parametrize("file", ["out.wasm", "out/b.wasm", "twice.wasm"])
def test_module_outside_its_folder(tmp_path: Path, file: str) -> None:
    """A module that a symlink leads out to is told when the catalogue is loaded, and no entry."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.wasm").write_bytes(MAGIC)
    path = capsule(tmp_path / "a", file=file)
    (tmp_path / "a/out.wasm").symlink_to("../outside/b.wasm")
    (tmp_path / "a/out").symlink_to(outside)
    (tmp_path / "a/twice.wasm").symlink_to("out.wasm")
    assert told(load([path], USING)) == [
        ("component.file", f"'{file}' leads out of the folder to {outside}/b.wasm: put the file itself there")
    ]


@pytest.mark.parametrize("file", ["link.wasm", "sub/a.wasm", "also/a.wasm"])
def test_module_inside_its_folder(tmp_path: Path, file: str) -> None:
    """A symlink that stays in the manifest's folder is followed, and so is one to that folder."""
    path = capsule(tmp_path / "a", file=file)
    (tmp_path / "a/sub").mkdir()
    (tmp_path / "a/sub/a.wasm").write_bytes(MAGIC)
    (tmp_path / "a/link.wasm").symlink_to("sub/a.wasm")
    (tmp_path / "a/also").symlink_to("sub")
    (tmp_path / "current").symlink_to("a")
    found = load([tmp_path / "current" / path.name], USING, check=True)
    assert read_module(found.entries["a"]) == MAGIC


def test_module_that_leaves_later(tmp_path: Path) -> None:
    """A module that becomes a symlink to elsewhere after it was loaded is not read."""
    entry = load([capsule(tmp_path / "a")], USING).entries["a"]
    (tmp_path / "elsewhere").write_bytes(MAGIC)
    entry.module_path.unlink()
    entry.module_path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotRead, match=r"it leads out of its folder, to .*elsewhere"):
        read_module(entry)


@pytest.mark.parametrize("swapped", ["a/sub", "a/sub/a.wasm"])
def test_module_that_leaves_between_look_and_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """A symlink that is put there between the look and the opening is refused by the kernel."""
    path = capsule(tmp_path / "a", file="sub/a.wasm")
    (tmp_path / "a/sub").mkdir()
    (tmp_path / "a/sub/a.wasm").write_bytes(MAGIC)
    entry = load([path], USING).entries["a"]
    (tmp_path / swapped).rename(tmp_path / "moved")
    (tmp_path / swapped).symlink_to(tmp_path / "moved")
    monkeypatch.setattr(os.path, "realpath", os.fspath)  # what the look saw before the swap
    with pytest.raises(CannotRead, match=r"Not a directory|Too many levels"):
        read_module(entry)


@pytest.mark.parametrize(
    ("trap", "sentence"), [each for each in TRAPS if each[0] in (a_folder, a_pipe, a_loop)]
)
def test_modules_that_are_traps(tmp_path: Path, trap: Callable[[Path], None], sentence: str) -> None:
    """A module that is no regular file is told, and nothing waits for it."""
    path = capsule(tmp_path / "a")
    (tmp_path / "a/a.wasm").unlink()
    trap(tmp_path / "a/a.wasm")
    assert module_fault(path) == ("component.file", f"cannot read {tmp_path}/a/a.wasm: {sentence}")


def test_largest_module(tmp_path: Path) -> None:
    """A module of exactly the bound is read, one byte more is told."""
    entry = load([capsule(tmp_path / "a")], USING).entries["a"]
    os.truncate(entry.module_path, MAX_MODULE)  # a hole: it takes no room on the disk
    assert len(read_module(entry)) == MAX_MODULE
    os.truncate(entry.module_path, MAX_MODULE + 1)
    with pytest.raises(CannotRead, match="it has more than 64MiB: make it smaller"):
        read_module(entry)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Reading modules and manifests, good and bad, leaves no descriptor open."""
    capsule(tmp_path / "a")
    capsule(tmp_path / "b", module=b"x")
    a_pipe(tmp_path / "c")
    before = len(os.listdir("/proc/self/fd"))
    load([tmp_path, tmp_path / "c"], USING, check=True)
    assert len(os.listdir("/proc/self/fd")) == before
