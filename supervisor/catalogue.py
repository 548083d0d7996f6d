"""The catalogue: every capsule that the configured folders hold, read from their files.

One bad manifest disturbs no other: it is a fault, and its capsule is left out. The files come from authors
who are not trusted, so each is opened as if it were a trap: a pipe, a device, a symlink to somewhere else.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from capsuled.supervisor import configuration, manifest
from capsuled.supervisor.configuration import Configuration, ConfigurationInvalid
from capsuled.supervisor.faults import MAX_BYTES, Fault
from capsuled.supervisor.manifest import Manifest, ManifestInvalid
from capsuled.supervisor.quantities import MIB, format_size

MAX_MODULE = 64 * MIB
"""Largest module that is read: compilers of today make 30 MiB of an interpreter with its library."""

MAGIC = b"\0asm\x01\0\0\0"
"""WebAssembly Core Specification 2.0, 5.5.16: the first bytes of a module."""

COMPONENT = b"\0asm\x0d\0\x01\0"
"""The first bytes of a component, which a toolchain may make where a core module was meant."""

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe without a writer would hold us up


class CannotRead(Exception):
    """A file that cannot be read; the message names it and is a sentence for the operator."""


class Entry(NamedTuple):
    """A capsule of the catalogue. `module_path` is inside the manifest's folder; the file may be missing."""

    manifest: Manifest
    manifest_path: Path
    module_path: Path
    module: str = ""
    """The module's hash where the manifest does not name it: else it could change, and nobody would see that."""


@dataclass(frozen=True)
class Catalogue:
    """Capsules by name, and what was wrong with those that are left out."""

    entries: Mapping[str, Entry]
    faults: tuple[Fault, ...] = ()


def load(
    paths: Iterable[Path], using: Configuration, check: bool = False, known: Mapping[str, Path] | None = None
) -> Catalogue:
    """The capsules at `paths`, in the order of `paths` and of names.

    A path is a folder that holds a folder for each capsule, or one capsule's folder, or its manifest. With
    `check` each module is read too: that it is there, is WebAssembly and has the manifest's hash. `known` are the
    manifests of capsules that there are already: nobody takes a name or a place from them.
    """
    known = known or {}
    entries: dict[str, Entry] = {}
    faults: list[Fault] = []
    for path in _manifests(paths, faults):
        try:
            entry = _entry(path, using, check)
        except ManifestInvalid as exc:
            faults.extend(exc.faults)
            continue
        name = entry.manifest.package.name
        first = entries.setdefault(name, entry)
        if first is not entry:
            holder, other = (entry, first) if known.get(name) == path else (first, entry)
            entries[name] = holder
            sentence = f"'{name}' is taken by {holder.manifest_path}: write another name"
            faults.append(Fault(str(other.manifest_path), "package.name", sentence))
    limit = using.limits.total_capsules
    for name in [each for each in entries if each not in known][
        max(0, limit - len(known.keys() & entries)) :
    ]:
        sentence = f"one capsule more than total_capsules = {limit} in [limits] of {manifest.CONFIGURATION}"
        faults.append(
            Fault(str(entries.pop(name).manifest_path), "", f"{sentence}: raise it, or take some away")
        )
    return Catalogue(entries, tuple(faults))


def look(paths: Iterable[Path]) -> tuple[object, ...]:
    """What is to be seen of the files at `paths` without reading any: it is another where one was changed.

    Of each manifest and of all that lies beside it in its folder, where the module is.
    """
    seen: list[object] = []
    for path in paths:
        for manifest_path in _manifests([path], []):
            with suppress(OSError):
                for file in sorted(manifest_path.parent.iterdir()):
                    with suppress(OSError):
                        found = file.stat()
                        seen.append((str(file), found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(seen)


def read_module(entry: Entry) -> bytes:
    """The module's bytes. The worker compares their hash, for it trusts nobody who reads for it.

    Raises `CannotRead`, also when a symlink has led out of the manifest's folder since it was loaded.
    """
    folder, inside = _real(entry.manifest_path.parent), _real(entry.module_path)
    if not inside.is_relative_to(folder):
        raise CannotRead(
            f"cannot read {entry.module_path}: it leads out of its folder, to {inside}: put the file there"
        )
    with ExitStack() as stack:
        at = _open(folder, os.O_DIRECTORY)
        stack.callback(os.close, at)
        # Step by step: who puts a symlink in place of a folder after the look above is refused by NOFOLLOW.
        *folders, name = inside.relative_to(folder).parts or (".",)
        for part, kind in (*((each, os.O_DIRECTORY) for each in folders), (name, 0)):
            at = _open(part, kind | os.O_NOFOLLOW, at, entry.module_path)
            stack.callback(os.close, at)
        return _bytes(at, entry.module_path, MAX_MODULE)


def read_configuration(file: Path, base: Configuration) -> Configuration:
    """The configuration in `file` over `base`. Raises `ConfigurationInvalid`, also when there is no file."""
    try:
        text = read_text(file)
    except CannotRead as exc:
        raise ConfigurationInvalid([Fault(str(file), "", str(exc))]) from exc
    return configuration.parse(text, file, base)


def read_text(path: Path) -> str:
    """The text of a manifest or configuration. Raises `CannotRead`."""
    at = _open(path)
    try:
        data = _bytes(at, path, MAX_BYTES)
    finally:
        os.close(at)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise CannotRead(f"cannot read {path}: line {line} is not UTF-8: save it as UTF-8") from exc


def _manifests(paths: Iterable[Path], faults: list[Fault]) -> Iterator[Path]:
    """The manifests at `paths`, each once, however many ways lead to it."""
    seen: set[Path] = set()
    for path in paths:
        try:
            found: Sequence[Path] = _manifests_at(path)
        except (OSError, ValueError) as exc:
            # ValueError: a NUL in the path.
            reason = os.strerror(exc.errno or 0) if isinstance(exc, OSError) else str(exc)
            sentence = f"cannot look for capsules there: {reason}: name a folder that holds some"
            faults.append(Fault(str(path), "", sentence))
            continue
        for each in found:
            if (real := _real(each)) not in seen:
                seen.add(real)
                yield each


def _manifests_at(path: Path) -> Sequence[Path]:
    if not stat.S_ISDIR(path.stat().st_mode):
        return [path]
    if _is_there(path / manifest.FILE):
        return [path / manifest.FILE]
    return [file for each in sorted(path.iterdir()) if _is_there(file := each / manifest.FILE)]


def _is_there(file: Path) -> bool:
    """Whether there is something to read, or to complain about: a symlink to nowhere, a closed folder."""
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _real(path: Path) -> Path:
    # Not Path.resolve, which raises RuntimeError on a loop of symlinks. Opening it fails, with a reason.
    return Path(os.path.realpath(path))


def _entry(path: Path, using: Configuration, check: bool) -> Entry:
    try:
        text = read_text(path)
    except CannotRead as exc:
        raise ManifestInvalid([Fault(str(path), "", str(exc))]) from exc
    read = manifest.parse(text, str(path), using.limits, using.allow_unhashed)
    entry = Entry(read, path, path.parent / read.component.file)
    real = _real(entry.module_path)
    if not real.is_relative_to(_real(path.parent)):
        sentence = f"'{read.component.file}' leads out of the folder to {real}: put the file itself there"
        raise ManifestInvalid([Fault(str(path), "component.file", sentence)])
    if check and (fault := _module_fault(entry)):
        raise ManifestInvalid([fault])
    return entry if read.component.hash else entry._replace(module=_hash_of_module(entry))


def _hash_of_module(entry: Entry) -> str:
    """Empty where it cannot be read: that is told when it is started."""
    try:
        return f"sha256:{hashlib.sha256(read_module(entry)).hexdigest()}"
    except CannotRead:
        return ""


def _module_fault(entry: Entry) -> Fault | None:
    file, expected = str(entry.manifest_path), entry.manifest.component.hash
    try:
        module = read_module(entry)
    except CannotRead as exc:
        return Fault(file, "component.file", str(exc))
    if not module.startswith(MAGIC):
        what = "a component" if module.startswith(COMPONENT) else f"something that begins with {module[:8]!r}"
        sentence = f"'{entry.manifest.component.file}' is {what}, not a core WebAssembly module: build one"
        return Fault(file, "component.file", sentence)
    found = f"sha256:{hashlib.sha256(module).hexdigest()}"
    if expected not in (None, found):
        sentence = (
            f"expected {expected}, found {found}: write the latter if the module is the one that you mean"
        )
        return Fault(file, "component.hash", sentence)
    return None


def _open(path: Path | str, flags: int = 0, at: int | None = None, named: Path | None = None) -> int:
    try:
        return os.open(path, _OPEN | flags, dir_fd=at)
    except OSError as exc:
        raise CannotRead(f"cannot read {named or path}: {exc.strerror}: check the path and its mode") from exc
    except ValueError as exc:
        raise CannotRead(f"cannot read {named or path}: {exc}: check the path") from exc


def _bytes(at: int, path: Path, most: int) -> bytes:
    found = os.fstat(at)
    if stat.S_ISDIR(found.st_mode):
        raise CannotRead(f"cannot read {path}: it is a folder: name a file")
    if not stat.S_ISREG(found.st_mode):
        raise CannotRead(f"cannot read {path}: it is no regular file: put one there")
    try:
        with open(at, "rb", closefd=False) as file:
            # One more than the bound, and not st_size: the file may grow meanwhile.
            data = file.read(most + 1)
    except OSError as exc:
        raise CannotRead(f"cannot read {path}: {exc.strerror}: check the disk") from exc
    if len(data) > most:
        raise CannotRead(f"cannot read {path}: it has more than {format_size(most)}: make it smaller")
    return data
