"""Fixtures that every folder of tests may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .support import daemon as support
from .support.daemon import Daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """The real supervisor, not started yet. At the end nothing of it may be left."""
    with support.daemon() as made:
        yield made
        if made.process is not None:
            assert made.stop() == 0, made.log()
        assert made.left() == []
