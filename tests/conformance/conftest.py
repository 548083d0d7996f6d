"""What every conformance test runs on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from .stage import Stage, stage

ENGINES = ["wasmer", "wasmtime"] if sys.version_info < (3, 11) else ["wasmtime"]
"""Each test runs on each of them: whatever a guest can tell apart is a defect."""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that the capsules name in their manifests."""
    return cast(str, request.param)


@pytest.fixture(scope="module")
def guests(request: pytest.FixtureRequest, engine: str) -> Iterator[object]:
    """The `Cast` of a module, made on an empty stage that has begun then: all of its guests run beside each other."""
    module: object = getattr(request, "module")  # noqa: B009  (pytest does not say what it is)
    cast_of = cast(Callable[[Stage], object], vars(module)["Cast"])
    with stage(engine) as made:
        found = cast_of(made)
        made.start()
        yield found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases have passed on which engine."""
    passed = [each.nodeid for each in terminalreporter.getreports("passed") if "conformance/" in each.nodeid]
    counts = [f"{sum(f'[{each}' in nodeid for nodeid in passed)} cases on {each}" for each in ENGINES]
    terminalreporter.write_line(f"conformance: {', '.join(counts)}")
