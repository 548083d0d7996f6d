"""What every conformance test runs on."""

from __future__ import annotations

import sys
from typing import cast

import pytest

ENGINES = ["wasmer", "wasmtime"] if sys.version_info < (3, 11) else ["wasmtime"]
"""Each test runs on each of them: whatever a guest can tell apart is a defect."""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that the capsules name in their manifests."""
    return cast(str, request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases have passed on which engine."""
    passed = [each.nodeid for each in terminalreporter.getreports("passed") if "conformance/" in each.nodeid]
    counts = [f"{sum(f'[{each}' in nodeid for nodeid in passed)} cases on {each}" for each in ENGINES]
    terminalreporter.write_line(f"conformance: {', '.join(counts)}")
