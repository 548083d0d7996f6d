from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest

from capsuled.sandbox.engine import seam
from capsuled.sandbox.engine.seam import Guest, GuestLimits, HostFunction

LIMITS = GuestLimits(memory_bytes=4 * 64 * 1024, table_elements=10)


@pytest.fixture(scope="session")
def wat() -> Callable[[str], bytes]:
    """From WebAssembly's text to a module."""
    # Where wasmer is not for this Python, PyPI has a stub of it that cannot be imported.
    pytest.importorskip("wasmer", reason="wasmer is for CPython 3.10", exc_type=ImportError)
    compiled: Callable[[str], bytes] = import_module("wasmer").wat2wasm
    return compiled


@pytest.fixture
def make_guest(wat: Callable[[str], bytes]) -> Callable[..., Guest]:
    """`make_guest(text, limits=…, name=function, …)`: a guest on wasmer; functions are of the module `h`."""

    def make(text: str, limits: GuestLimits = LIMITS, **functions: HostFunction) -> Guest:
        imports = {("h", name): function for name, function in functions.items()}
        return seam.load("wasmer").instantiate(wat(text), imports, limits)

    return make
