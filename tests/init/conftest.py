"""The supervisor as a service of each init system that can be started here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.daemon import Daemon
from . import inits
from .inits import Init


@pytest.fixture(params=list(inits.ALL))
def init(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Init]:
    """Not started yet; at the end nothing of it may be left."""
    made = inits.ALL[request.param](daemon)
    try:
        yield made
    finally:
        made.close()
