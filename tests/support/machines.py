"""Machines that hold some of the layers of isolation, as the probe would describe them."""

from __future__ import annotations

from capsuled.proto.order import Confinement, Namespaces
from capsuled.supervisor import cgroups
from capsuled.supervisor.confining import Confining
from capsuled.supervisor.modes import LAYERS, Layer, Probed

BARE = Confinement(user=None, namespaces="none", landlock=False, seccomp=False)
"""What a worker is told where nothing can be held."""


def probed(*missing: str, namespaces: Namespaces = "all") -> Probed:
    """A machine that holds everything but these."""
    assert set(missing) <= set(LAYERS)
    layers = {name: Layer(name not in missing, f"because of {name}") for name in LAYERS}
    return Probed(layers, namespaces)


def unconfined() -> Confining:
    """For processes that are no workers, and would seal themselves in vain."""
    return Confining(probed(*LAYERS, namespaces="none"), range(1000, 1001), cgroups.none("none"))
