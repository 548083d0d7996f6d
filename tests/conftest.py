"""Fixtures that every folder of tests may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from .support import daemon as support
from .support.daemon import Daemon

# Two cores, shared and noisy: how long one example takes says nothing.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """The real supervisor, not started yet. At the end nothing of it may be left."""
    with support.daemon() as made:
        yield made
        if made.process is not None:
            assert made.stop() == 0, made.log()
        assert made.left() == []
