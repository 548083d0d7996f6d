"""How many connections there are, and were refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Of one server, since it began."""

    open: int = 0
    """Peers that are served now."""
    refused: int = 0
    """Peers that were refused at accept: they have no level, or there was no place for them."""
