from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from capsuled.sandbox.engine import seam
from capsuled.sandbox.engine.seam import Guest, GuestLimits, HostFunction

LIMITS = GuestLimits(memory_bytes=4 * 64 * 1024, table_elements=10)

HAS_WASMER = sys.version_info < (3, 11)
"""By the version, not by trying: where wasmer must be and is broken, its tests fail."""

collect_ignore = [] if HAS_WASMER else ["test_wasmer.py"]

MEASURE = Path(__file__).resolve().parents[3] / "scripts/measure_host_calls"


@pytest.fixture(scope="session", params=["wasmer", "wasmtime"] if HAS_WASMER else ["wasmtime"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine of this Python: a test that takes it proves its sentence for all of them."""
    return str(request.param)


@pytest.fixture(scope="session")
def wat() -> Callable[[str], bytes]:
    """From WebAssembly's text to a module."""
    return lambda text: bytes(wat2wasm(text))


@pytest.fixture
def make_guest(engine: str, wat: Callable[[str], bytes]) -> Callable[..., Guest]:
    """`make_guest(text, limits=…, name=function, …)`: a guest on `engine`; functions are of the module `h`."""
    compiler, loaded = seam.load_compiler(engine), seam.load(engine)

    def make(text: str, limits: GuestLimits = LIMITS, **functions: HostFunction) -> Guest:
        imports = {("h", name): function for name, function in functions.items()}
        code = loaded.load(compiler.compile(wat(text), seam.signatures(imports), limits))
        return loaded.instantiate(code, imports, limits)

    return make


@pytest.fixture
def measure() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`measure(engine, before="…")`: scripts/measure_host_calls, a million calls; `before` is code to run first."""

    def run(engine: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
        code = (
            f"import runpy, sys; sys.path.insert(0, {str(MEASURE.parent)!r});"
            "import _environment; _environment.enter = lambda: None;"  # this Python is to be measured, not .venv's
            f"sys.argv[1:] = ['--engine', {engine!r}, '--calls', '1000000'];"
            f"{before}; runpy.run_path({str(MEASURE)!r}, run_name='__main__')"
        )
        return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    return run
