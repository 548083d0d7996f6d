"""`capsulectl new` and `build`: a capsule's folder, and its module from its source."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import trio

import capsuled.proto
from capsuled.proto.control import Exit
from capsuled.supervisor import catalogue, faults, manifest, spawn
from capsuled.supervisor.catalogue import CannotRead
from capsuled.supervisor.commands import render
from capsuled.supervisor.commands.client import CannotAsk, Client
from capsuled.supervisor.configuration import LIMITS
from capsuled.supervisor.manifest import FILE, ManifestInvalid

ASSEMBLER = (sys.executable, "-I", "-B", "-m", "capsuled.sandbox.engine.text")

C_FLAGS = (
    *("-target", "wasm32-freestanding", "-std=c11", "-Os", "-nostdlib", "-Wall", "-Wextra"),
    # No main, and 16 KiB of stack instead of 1 MiB: the smallest capsule has one page of memory.
    *("-Wl,--no-entry", "-Wl,-z,stack-size=16384", "-s"),
)

PASSED_ON = ("PATH", "HOME", "XDG_CACHE_HOME", "TMPDIR")
"""What zig needs of our environment, to find its cache."""

NO_COMPILER = (
    "there is no C compiler for WebAssembly: install zig (ziglang.org), or the Python package ziglang beside capsuled, "
    "or write the module in WebAssembly's text format, which needs none"
)

MAX_SAID = 64 * 1024
"""Bytes shown of what a compiler says."""

MANIFEST = """\
[package]
name = "{name}"
version = "0.1.0"
description = "Logs each message that it gets."

[component]
file = "{name}.wasm"  # from {name}.wat, or {name}.c: `capsulectl build` makes it and writes its hash below

[capabilities]
ipc_publish = []
ipc_subscribe = ["{name}.*"]

[supervision]
ready = "guest"
"""

SOURCE = """\
;; {name}: subscribes, says that it is ready, and logs a line for each message until it is cancelled.
;; What a guest may call, and what each call returns, is in docs/guests.md and capsule.h.
(module
  (import "capsule" "ipc_subscribe" (func $subscribe (param i32 i32) (result i32)))
  (import "capsule" "ipc_recv" (func $recv (param i32 i32 i32 i32) (result i32)))
  (import "capsule" "log" (func $log (param i32 i32 i32) (result i32)))
  (import "capsule" "ready" (func $ready (result i32)))

  (memory (export "memory") 2)
  (data (i32.const 0) "{name}.*")
  (data (i32.const 256) "hello from {name}")
  (data (i32.const 512) "got a message")

  (global $info i32 (i32.const 2))
  (global $envelope i32 (i32.const 65536)) ;; the second page is for what comes

  (func (export "run")
    (local $handle i32)
    (local $got i32)
    ;; A capability of Capsule.toml has to cover this pattern; a refusal is a negative number.
    (local.set $handle (call $subscribe (i32.const 0) (i32.const {pattern_size})))
    (if (i32.lt_s (local.get $handle) (i32.const 0)) (then unreachable))
    (drop (call $log (global.get $info) (i32.const 256) (i32.const {hello_size})))
    (drop (call $ready))
    (loop $next
      ;; Waits a minute at most, for an envelope: {{"messages": [...], "dropped": n, "lagged": n}} in CBOR.
      (local.set $got (call $recv (local.get $handle) (i32.const 60000) (global.get $envelope) (i32.const 65536)))
      (if (i32.eq (local.get $got) (i32.const -11)) (then return)) ;; -CAPSULE_ECANCELED: it is being stopped
      (if (i32.lt_s (local.get $got) (i32.const 0)) (then unreachable))
      ;; The eleventh byte begins the list of messages; 0x80 is an empty one, after a minute without any.
      (if (i32.ne (i32.load8_u offset=10 (global.get $envelope)) (i32.const 0x80))
        (then (drop (call $log (global.get $info) (i32.const 512) (i32.const 13)))))
      (br $next))))
"""

_TABLE = re.compile(r"\s*\[")
_COMPONENT = re.compile(r"\s*\[\s*component\s*\]\s*(#.*)?$")
_HASH = re.compile(r"""(\s*hash\s*=\s*)("[^"]*"|'[^']*')(.*)$""", re.DOTALL)
_FILE = re.compile(r"(\s*)file\s*=")


def new(_client: Client, given: argparse.Namespace) -> Exit:
    """A folder with a manifest and a source that runs as it is."""
    try:
        name = str(manifest.NAME.read(given.new_name))
    except ValueError as exc:
        raise CannotAsk(f"cannot name a capsule like that: {render.text(str(exc))}", Exit.USAGE) from exc
    folder = Path(name)
    text = SOURCE.format(name=name, pattern_size=len(f"{name}.*"), hello_size=len(f"hello from {name}"))
    try:
        folder.mkdir()
        (folder / FILE).write_text(MANIFEST.format(name=name))
        (folder / f"{name}.wat").write_text(text)
    except OSError as exc:
        raise CannotAsk(f"cannot make {folder}: {exc.strerror}: choose another name", Exit.FAILED) from exc
    print(f"{folder / FILE}\n{folder / f'{name}.wat'}\nnow: capsulectl build {name} && capsulectl run {name}")
    return Exit.DONE


def build(_client: Client, given: argparse.Namespace) -> Exit:
    """The module from its source, and its hash in the manifest."""
    folder = Path(given.folder)
    path = folder / FILE
    try:
        text = catalogue.read_text(path)
        read = manifest.parse(with_hash(text, "0" * 64), str(path), LIMITS)
        module = folder / read.component.file
        made = _module(_source(module))
        digest = hashlib.sha256(made).hexdigest()
        _replace(module, made)
        _replace(path, with_hash(text, digest).encode())
    except ManifestInvalid as exc:
        for fault in exc.faults:
            print(f"capsulectl: {render.text(str(fault))}", file=sys.stderr)
        return Exit.FAILED
    except (CannotRead, OSError) as exc:
        raise CannotAsk(f"cannot build {folder}: {render.text(str(exc))}", Exit.FAILED) from exc
    print(f"{render.text(str(module))}: {len(made)} bytes, sha256:{digest}")
    return Exit.DONE


def with_hash(text: str, digest: str) -> str:
    """A manifest with this hash of its module; nothing else of it is changed. Raises `CannotAsk` where it cannot."""
    lines = text.splitlines(keepends=True)
    within, after, changed = False, None, False
    for n, line in enumerate(lines):
        if _TABLE.match(line):
            within = _COMPONENT.match(line.rstrip("\r\n")) is not None
        elif within and (found := _HASH.match(line)):
            lines[n] = f'{found[1]}"sha256:{digest}"{found[3]}'
            changed = True
            break
        elif within and (found := _FILE.match(line)):
            after = n
    if not changed and after is not None:
        end = "\r\n" if lines[after].endswith("\r\n") else "\n"
        if not lines[after].endswith("\n"):
            lines[after] += end
        lines.insert(after + 1, f'hash = "sha256:{digest}"{end}')
    made = "".join(lines)
    if _meaning(made) != _with(_meaning(text), digest):
        raise CannotAsk(
            f'cannot write the hash into {FILE}: write [component] with hash = "sha256:{digest}" by hand',
            Exit.FAILED,
        )
    return made


def _meaning(text: str) -> Mapping[str, object]:
    try:
        return faults.read_toml(text, FILE)
    except faults.FileInvalid as exc:
        raise ManifestInvalid(exc.faults) from exc


def _with(table: Mapping[str, object], digest: str) -> Mapping[str, object]:
    component = table.get("component")
    # A manifest without the table is told of by `manifest.parse`.
    if not isinstance(component, dict):
        return table
    return {**table, "component": {**cast(dict[str, object], component), "hash": f"sha256:{digest}"}}


def _source(module: Path) -> Path:
    """The one source that belongs to a module."""
    found = [source for suffix in (".wat", ".c") if (source := module.with_suffix(suffix)).is_file()]
    if len(found) == 1:
        return found[0]
    stem = module.with_suffix("")
    what = f"are both {stem}.wat and" if found else f"is neither {stem}.wat nor"
    raise CannotAsk(f"cannot build {module}: there {what} {stem}.c: have one of them", Exit.FAILED)


def _module(source: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="capsuled-build-") as folder:
        made = Path(folder, "made.wasm")
        if source.suffix == ".wat":
            with source.open("rb") as text, made.open("wb") as module:
                _run(ASSEMBLER, source, stdin=text.fileno(), stdout=module.fileno())
        else:
            includes = os.fspath(Path(next(iter(capsuled.proto.__path__))))
            command = (*_compiler(), "cc", *C_FLAGS, "-I", includes, "-o", os.fspath(made))
            environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            environment["ZIG_LOCAL_CACHE_DIR"] = folder
            with open(os.devnull, "r+b") as null:
                _run(
                    (*command, os.fspath(source.absolute())),
                    source,
                    stdin=null.fileno(),
                    stdout=null.fileno(),
                    environment=environment,
                )
        return made.read_bytes()


def _compiler() -> Sequence[str]:
    if zig := shutil.which("zig"):
        return (zig,)
    if find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang")
    raise CannotAsk(f"cannot compile C: {NO_COMPILER}", Exit.FAILED)


def _run(
    command: Sequence[str],
    source: Path,
    *,
    stdin: int,
    stdout: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Raises `CannotAsk` with what it said, unless it did well."""
    with tempfile.TemporaryFile() as said:

        async def main() -> spawn.Exit:
            process = spawn.spawn(
                command, stdin=stdin, stdout=stdout, stderr=said.fileno(), environment=environment
            )
            try:
                return await process.wait()
            finally:
                if not process.gone:
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()

        # So that what it has started is killed and its folder removed: without a handler nothing would be.
        before = signal.signal(signal.SIGTERM, _end)
        try:
            ended = trio.run(main)
        except spawn.SpawnError as exc:
            raise CannotAsk(f"cannot build {source}: {exc}", Exit.FAILED) from exc
        finally:
            signal.signal(signal.SIGTERM, before)
        if ended.status == 0:
            return
        said.seek(0)
        lines = said.read(MAX_SAID).decode(errors="replace").splitlines()
        told = "\n".join(render.text(line) for line in lines)
        raise CannotAsk(f"cannot build {source}:\n{told}", Exit.FAILED)


def _end(_number: int, _frame: object) -> None:
    # As Ctrl-C does, which Trio turns into the end of its tasks.
    signal.raise_signal(signal.SIGINT)


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all; who reads the old one goes on reading it."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
