"""What the throw-away process says is read with care."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from capsuled.supervisor import cgroups, modes, probe
from capsuled.supervisor.cgroup_layout import CONTROLLERS, Tree
from capsuled.supervisor.cgroups import Groups
from capsuled.supervisor.modes import LAYERS, Layer, Mode
from capsuled.supervisor.probe import CannotProbe

USER = 0x7000_0000
LIMITED = Layer(True, "limited")

GOOD = {
    name: {"held": True, "why": "tried", "how": "all" if name == "namespaces" else ""}
    for name in LAYERS
    if name not in ("process", "cgroup")
}


def test_an_answer() -> None:
    """Layer by layer, with the kind of namespaces."""
    found = probe.read(json.dumps(GOOD).encode(), "", LIMITED)
    assert found.namespaces == "all"
    assert tuple(found.layers) == LAYERS
    assert all(map(found.held, LAYERS))
    assert modes.mode(found) is Mode.A


def test_a_control_group_that_cannot_be_used() -> None:
    """What was seen of it is the layer, and its reason is kept."""
    found = probe.read(json.dumps(GOOD).encode(), "", Layer(False, "read-only"))
    assert [name for name in LAYERS if not found.held(name)] == ["cgroup"]
    assert found.layers["cgroup"].why == "read-only"
    assert modes.mode(found) is Mode.B


@pytest.mark.parametrize("missing", GOOD)
def test_a_layer_that_was_not_tried(missing: str) -> None:
    """An answer without a layer is no answer: nothing is taken for held, or for missing, that nobody tried."""
    left = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(CannotProbe, match=r"ended with status 3"):
        probe.read(json.dumps(left).encode(), "it ended with status 3", LIMITED)


@pytest.mark.parametrize(
    "said", [b"", b"{", b"[]", b"7", b"\xff", b'{"namespaces": 1}', b'{"namespaces": {"held": 1}}']
)
def test_no_answer(said: bytes) -> None:
    """Whatever else it says, or nothing, the sentence says how it ended."""
    with pytest.raises(CannotProbe, match="has not answered: it ended with status 1"):
        probe.read(said, "it ended with status 1", LIMITED)


def test_this_machine() -> None:
    """The real one answers, and what cannot be missing on a kernel that runs this is there."""
    with cgroups.opened(cgroups.passer_by()) as groups:
        found = trio.run(probe.probe, USER, groups)
    assert found.held("cgroup") == groups.usable
    assert found.held("no_new_privs")
    assert found.held("rlimits")
    assert all(found.layers[name].why for name in LAYERS)


def test_a_group_of_its_own_that_cannot_be_made(tmp_path: Path) -> None:
    """That layer is missing and says why; the others are tried all the same."""
    tree = Tree(2, CONTROLLERS, "/", tmp_path / "gone")
    found = trio.run(probe.probe, USER, Groups((tree,), "capsuled-test-"))
    assert not found.held("cgroup")
    assert "cannot limit it by a control group" in found.layers["cgroup"].why
    assert found.held("no_new_privs")
