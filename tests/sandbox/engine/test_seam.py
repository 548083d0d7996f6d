"""Which engine is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from capsuled.sandbox.engine.seam import EngineUnavailable, load

WITHOUT = """
import importlib.util, sys
for name in sys.argv[2].split():
    sys.modules[name] = None  # an import of it fails, as where it is not installed
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in sys.argv[2].split() else find(name)
from capsuled.sandbox.engine import seam
try:
    print(seam.load(sys.argv[1]).name)
except seam.EngineUnavailable as exc:
    print(exc)
"""


def test_engine_is_the_one_asked_for(engine: str) -> None:
    """A name loads that engine and no other."""
    assert load(engine).name == engine


@pytest.mark.parametrize(
    ("name", "missing", "told"),
    [
        ("auto", "", "wasmer" if sys.version_info < (3, 11) else "wasmtime"),
        ("auto", "wasmer", "wasmtime"),
        ("wasmtime", "wasmer", "wasmtime"),
        ("wasmer", "wasmer", "cannot run wasmer: its binding needs CPython 3.10 on x86-64"),
        ("wasmtime", "wasmtime", "cannot run wasmtime: it is not installed; install 'wasmtime>=50,<51'"),
        ("auto", "wasmer wasmtime", "cannot run wasmtime: it is not installed"),
    ],
)
def test_auto_is_wasmer_where_it_runs(name: str, missing: str, told: str) -> None:
    """`auto` is wasmer where it runs, else wasmtime; one that is asked for by name is never replaced."""
    # In a process of its own, for what is imported there stays imported.
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, name, missing], check=True, capture_output=True, text=True
    )
    assert run.stdout.startswith(told)


@pytest.mark.parametrize("name", ["v8", "", "Wasmer"])
def test_unknown_engine_is_refused_by_name(name: str) -> None:
    """An engine that is not built in is refused, and the message says which are."""
    with pytest.raises(
        EngineUnavailable, match=f"cannot run the engine '{name}': choose 'wasmer', 'wasmtime' or 'auto'"
    ):
        load(name)
