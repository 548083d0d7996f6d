"""Which module may import what, read from the sources without running them.

An import counts wherever it stands: in a function, behind `TYPE_CHECKING`, or as `import_module("...")`. One
that only types need ties two modules together all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("proto", "sandbox", "supervisor")

PROTO = "capsuled.proto"
SANDBOX = "capsuled.sandbox"
SUPERVISOR = "capsuled.supervisor"

ENGINES = (
    *("wasmer", "wasmer_compiler_cranelift", "wasmer_compiler_llvm", "wasmer_compiler_singlepass"),
    "wasmtime",
)

WORLD = (
    *("asyncio", "multiprocessing", "select", "selectors", "socket", "subprocess", "threading", "time"),
    *("trio", "zmq"),
)
"""What reaches outside the process, or reads a clock."""

SPAWNING = (
    *("subprocess", "multiprocessing", "pty", "trio.run_process", "trio.lowlevel.open_process"),
    *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    *("os.fork", "os.forkpty", "os.popen", "os.posix_spawn", "os.posix_spawnp", "os.system"),
    *("os.spawnl", "os.spawnle", "os.spawnlp", "os.spawnlpe"),
    *("os.spawnv", "os.spawnve", "os.spawnvp", "os.spawnvpe"),
)

C_LIBRARY = ("sandbox/kernel.py", "sandbox/engine/wasmtime_raw.py")
"""The raw calls of the kernel, and wasmtime's C API, which its own Python layer makes 15 times slower."""

RULES = (
    "supervisor/lifecycle.py",
    "supervisor/restart.py",
    "supervisor/history.py",
    "supervisor/startorder.py",
    "supervisor/reload.py",
    "supervisor/balance.py",
    "supervisor/exits.py",
    "supervisor/manifest.py",
    "supervisor/metrics.py",
    "supervisor/configuration.py",
    "supervisor/modes.py",
    "supervisor/users.py",
    "supervisor/cgroup_layout.py",
    "sandbox/seccomp.py",
    "sandbox/syscalls.py",
    "sandbox/landlock.py",
    "supervisor/quantities.py",
    "supervisor/blobs.py",
    "supervisor/compilation.py",
    "supervisor/backbone/router.py",
    "supervisor/backbone/outbox.py",
    "supervisor/backbone/conversations.py",
    "supervisor/backbone/delivery.py",
    "supervisor/backbone/members.py",
    "supervisor/backbone/notes.py",
    "supervisor/backbone/requests.py",
    "supervisor/backbone/retained.py",
    "supervisor/backbone/traces.py",
    "supervisor/backbone/watchers.py",
    "supervisor/backbone/figures.py",
    "supervisor/backbone/origins.py",
    "sandbox/answers.py",
    "sandbox/inbox.py",
    "sandbox/loading.py",
    "sandbox/outgoing.py",
    "sandbox/subscription.py",
)
"""Modules that only decide. `now` and randomness are their arguments."""

IMPURE = (*WORLD, "logging", "random", "secrets")

Sources = dict[str, str]
"""Path below the top, with slashes, to text."""


def sources() -> Sources:
    return {
        path.relative_to(TOP).as_posix(): path.read_text()
        for folder in FOLDERS
        for path in sorted((TOP / folder).rglob("*.py"))
    }


def used_names(path: str, text: str) -> set[str]:
    """Dotted names of all that a module imports, or reaches through what it imported: `os`, `os.fork`."""
    tree = ast.parse(text, path)
    bound: dict[str, str] = {}  # name in the module -> what it stands for
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.add(alias.name)
                first = alias.name.partition(".")[0]
                bound.update({alias.asname: alias.name} if alias.asname else {first: first})
        elif isinstance(node, ast.ImportFrom):
            origin = from_what(path, node)
            names.add(origin)
            for alias in node.names:
                names.add(f"{origin}.{alias.name}")
                bound[alias.asname or alias.name] = f"{origin}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := dotted_name(node, bound)):
            names.add(dotted)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            constants = (arg.value for arg in node.args if isinstance(arg, ast.Constant))
            names.update(value for value in constants if isinstance(value, str))
    return names


def from_what(path: str, node: ast.ImportFrom) -> str:
    """The absolute name of the module that `from ... import` names."""
    if not node.level:
        return node.module or ""
    package = ["capsuled", *path.split("/")[:-1]]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def dotted_name(node: ast.expr, bound: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    if isinstance(node, ast.Attribute) and (base := dotted_name(node.value, bound)):
        return f"{base}.{node.attr}"
    return None


def touches(names: Iterable[str], forbidden: Iterable[str]) -> list[str]:
    """Those names that are one of the forbidden, or something in it."""
    return sorted(n for n in names if any(n == f or n.startswith(f + ".") for f in forbidden))


def violations(files: Sources, where: str, forbidden: Iterable[str], but: Iterable[str] = ()) -> list[str]:
    """`path uses name` for each file that matches `where` and uses what only those in `but` may."""
    forbidden, but = tuple(forbidden), tuple(but)
    return [
        f"{path} uses {name}"
        for path, text in files.items()
        if fnmatch(path, where) and not any(fnmatch(path, pattern) for pattern in but)
        for name in touches(used_names(path, text), forbidden)
    ]


def impurities(files: Sources, rule: str) -> list[str]:
    """`path uses name` for a rule and everything of this project that importing it loads."""
    loaded = {path: files[path] for path in sorted(loaded_by(files, rule))}
    return violations(loaded, "*", IMPURE)


def loaded_by(files: Sources, path: str) -> set[str]:
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        module = ".".join(["capsuled", *current.removesuffix(".py").split("/")])
        for name in (module, *used_names(current, files[current])):
            waiting.extend(files_of(files, name))
    return seen


def files_of(files: Sources, name: str) -> Iterator[str]:
    """The modules that importing a dotted name runs: itself and the packages above it."""
    parts = name.split(".")
    if parts[0] != "capsuled":
        return
    for end in range(2, len(parts) + 1):
        stem = "/".join(parts[1:end])
        yield from (path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in files)


def test_proto_knows_nothing_of_those_who_use_it() -> None:
    """proto imports neither sandbox nor supervisor."""
    assert violations(sources(), "proto/*", (SANDBOX, SUPERVISOR)) == []


def test_proto_is_pure() -> None:
    """proto does no I/O, starts nothing and reads no clock."""
    assert violations(sources(), "proto/*", WORLD) == []


def test_sandbox_and_supervisor_never_import_each_other() -> None:
    """What runs beside a guest and what holds authority share proto, and nothing else."""
    assert violations(sources(), "sandbox/*", [SUPERVISOR]) == []
    assert violations(sources(), "supervisor/*", [SANDBOX]) == []


def test_only_links_import_zmq() -> None:
    """ZeroMQ is known to the backbone and to the worker's edge only."""
    assert violations(sources(), "*", ["zmq"], but=["supervisor/backbone/*", "sandbox/edge.py"]) == []


def test_only_engines_import_wasm_engines() -> None:
    """wasmer and wasmtime stand behind one seam, sandbox/engine."""
    assert violations(sources(), "*", ENGINES, but=["sandbox/engine/*"]) == []


def test_only_one_module_spawns() -> None:
    """Processes are started in supervisor/spawn.py and nowhere else."""
    assert violations(sources(), "*", SPAWNING, but=["supervisor/spawn.py"]) == []


def test_only_one_module_calls_the_c_library() -> None:
    """ctypes and cffi are imported in the two modules of `C_LIBRARY` and nowhere else."""
    assert violations(sources(), "*", ["ctypes", "_ctypes", "cffi"], but=list(C_LIBRARY)) == []


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_pure(rule: str) -> None:
    """A rule, with all that it imports from this project, has no I/O, clock, logger or randomness."""
    files = sources()
    assert rule not in files or impurities(files, rule) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import zmq", "zmq"),
        ("import zmq.utils as u", "zmq.utils"),
        ("from zmq import Context", "zmq.Context"),
        ("def f():\n    import zmq", "zmq"),
        ("if TYPE_CHECKING:\n    from zmq import Socket", "zmq.Socket"),
        ("import importlib\nimportlib.import_module('zmq')", "zmq"),
        ("__import__('zmq')", "zmq"),
        ("import os\nos.fork()", "os.fork"),
        ("import os as system\nsystem.fork()", "os.fork"),
        ("from os import fork as start", "os.fork"),
        ("import os.path\nos.fork()", "os.fork"),
        ("from capsuled import sandbox", "capsuled.sandbox"),
        ("from . import outbox", "capsuled.supervisor.backbone.outbox"),
        ("from ..lifecycle import State", "capsuled.supervisor.lifecycle.State"),
        ("from ...sandbox import edge", "capsuled.sandbox.edge"),
    ],
)
def test_checker_sees_a_use(text: str, name: str) -> None:
    """However a module imports or reaches something, its full dotted name is seen."""
    assert name in used_names("supervisor/backbone/x.py", text)


@pytest.mark.parametrize(
    "text",
    [
        "import zmqish",
        "from capsuled.proto import zmq_names",
        "zmq = 1\nzmq.real",
        "'import zmq'",
        "self.zmq.send()",
    ],
)
def test_checker_does_not_see_what_is_only_called_alike(text: str) -> None:
    """A name that only resembles a forbidden module is no use of it."""
    assert violations({"proto/x.py": text}, "proto/*", ["zmq"]) == []


def test_checker_applies_to_the_place() -> None:
    """A use is reported with its file where it is forbidden, and not where it is allowed."""
    files: Sources = dict.fromkeys(
        ["sandbox/edge.py", "sandbox/engine/a.py", "supervisor/x.py"], "import zmq"
    )
    assert violations(files, "*", ["zmq"], but=["sandbox/edge.py"]) == [
        "sandbox/engine/a.py uses zmq",
        "supervisor/x.py uses zmq",
    ]
    assert violations(files, "sandbox/engine/*", ["zmq"]) == ["sandbox/engine/a.py uses zmq"]


def test_checker_follows_a_rule_into_what_it_imports() -> None:
    """A rule is impure when a module that it loads is: directly, through another, or as a package."""
    files = {
        "supervisor/__init__.py": "",
        "supervisor/restart.py": "from capsuled.supervisor.middle import thing",
        "supervisor/middle.py": "from .backbone import shell",
        "supervisor/backbone/__init__.py": "import logging",
        "supervisor/backbone/shell.py": "from time import monotonic",
        "supervisor/other.py": "import trio",
    }
    assert impurities(files, "supervisor/restart.py") == [
        "supervisor/backbone/__init__.py uses logging",
        "supervisor/backbone/shell.py uses time",
        "supervisor/backbone/shell.py uses time.monotonic",
    ]
    assert impurities({"supervisor/restart.py": "import math"}, "supervisor/restart.py") == []


def test_checker_reads_this_project() -> None:
    """The sources are found: the checks above are not green because they looked at nothing."""
    assert "proto/_version.py" in sources()
