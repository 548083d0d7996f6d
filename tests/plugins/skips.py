"""Fails a run in which a test was skipped that tests/allowed_skips.txt does not name.

A skip is silent: on a build machine that lost a capability all tests of the sandbox could be skipped, and the
run be green. scripts/test loads this plugin where CI=true; elsewhere a machine may lack what it lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

LIST = Path(__file__).resolve().parent.parent / "allowed_skips.txt"


class Allowed(NamedTuple):
    """One line of the list: tests whose node id begins so may be skipped, and why."""

    prefix: str
    reason: str


def parse(text: str) -> list[Allowed]:
    """The list's entries; `ValueError` names a line that gives no reason."""
    entries: list[Allowed] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        # Two spaces, for a parameter in a node id may hold one.
        prefix, _, reason = line.partition("  ")
        if not reason.strip():
            raise ValueError(f"line {number} must be `nodeid-prefix  reason`, with two spaces: {line!r}")
        entries.append(Allowed(prefix, reason.strip()))
    return entries


def unexpected(skipped: dict[str, str], allowed: list[Allowed]) -> dict[str, str]:
    """Those of `skipped` (node id to reason) that no entry allows."""
    prefixes = tuple(entry.prefix for entry in allowed)
    return {nodeid: reason for nodeid, reason in skipped.items() if not nodeid.startswith(prefixes)}


class Skips:
    """Collects what a run skips, and turns success into failure at its end."""

    def __init__(self, allowed: list[Allowed]) -> None:
        self._allowed = allowed
        self._skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unexpected() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid, reason in self._unexpected().items():
            line = f"SKIP NOT ALLOWED {nodeid}: {reason} (see tests/{LIST.name})"
            terminalreporter.write_line(line, red=True)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # An expected failure is reported as a skip that has this attribute.
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skipped[report.nodeid] = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""

    def _unexpected(self) -> dict[str, str]:
        return unexpected(self._skipped, self._allowed)


def pytest_configure(config: pytest.Config) -> None:
    try:
        allowed = parse(LIST.read_text())
    except ValueError as exc:
        raise pytest.UsageError(f"tests/{LIST.name}: {exc}") from exc
    config.pluginmanager.register(Skips(allowed), "capsuled-skips")
