"""What every conformance test runs on."""

from __future__ import annotations

from typing import cast

import pytest

ENGINES = ["wasmer"]
"""Each test runs on each of them: whatever a guest can tell apart is a defect."""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that the capsules name in their manifests."""
    return cast(str, request.param)
