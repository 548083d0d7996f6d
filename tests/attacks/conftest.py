"""The matrix, printed at the end of the run."""

from __future__ import annotations

import pytest

MATRIX = pytest.StashKey[dict[str, dict[str, str]]]()
"""Outcomes by what is missing and by attack."""


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    return request.config.stash.setdefault(MATRIX, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Attack by attack; one column of the machines on which it was tried."""
    matrix: dict[str, dict[str, str]] = config.stash.setdefault(MATRIX, {})
    for missing, outcomes in matrix.items():
        terminalreporter.section(f"attacks, {missing} missing")
        for attack, outcome in outcomes.items():
            terminalreporter.write_line(f"{attack:18} {outcome}")
        through = sum(outcome == "THROUGH" for outcome in outcomes.values())
        terminalreporter.write_line(f"{len(outcomes)} attacks, {through} got through")
