"""Modes A to E, and what is required of them."""

from __future__ import annotations

import itertools

import pytest

from capsuled.proto.order import Confinement
from capsuled.supervisor import modes
from capsuled.supervisor.modes import ADVICE, ALWAYS, LAYERS, WALLS, Mode, Probed

from ..support.machines import probed


@pytest.mark.parametrize(
    ("found", "mode"),
    [
        (probed(), Mode.A),
        (probed("cgroup"), Mode.B),
        (probed("uid"), Mode.B),
        (probed("uid", "cgroup", namespaces="user"), Mode.B),
        (probed(namespaces="user"), Mode.B),
        (probed("namespaces", namespaces="none"), Mode.C),
        (probed("root"), Mode.C),
        (probed("namespaces", "root", "uid", "cgroup"), Mode.C),
        (probed("landlock"), Mode.C),
        (probed("namespaces", "landlock"), Mode.D),
        (probed("root", "landlock"), Mode.D),
        *((probed(name), Mode.E) for name in ALWAYS),
    ],
)
def test_layers_make_a_mode(found: Probed, mode: Mode) -> None:
    """The mode is that of the table in the documents, and says what it loses."""
    assert modes.mode(found) is mode
    assert modes.LOST[mode]


def test_fewer_layers_make_no_better_mode() -> None:
    """Whatever is missing besides, the mode is never a better one: all pairs of sets of two layers."""
    for first in itertools.combinations(LAYERS, 1):
        for second in LAYERS:
            assert modes.mode(probed(*first)) <= modes.mode(probed(*{*first, second}))


@pytest.mark.parametrize("required", ["best", "strict", *((name,) for name in LAYERS)])
def test_a_machine_that_holds_everything_is_enough(required: str | tuple[str, ...]) -> None:
    """Whatever is required, such a machine is not refused."""
    assert modes.refusal(probed(), required, insecure=False) is None


@pytest.mark.parametrize("missing", LAYERS)
def test_what_best_demands(missing: str) -> None:
    """`best` refuses mode E alone, and names the layer, why it is missing, and what to do."""
    refusal = modes.refusal(probed(missing), "best", insecure=False)
    assert (refusal is not None) == (missing in ALWAYS)
    if refusal is not None:
        assert f"{missing} is missing (because of {missing}): {ADVICE[missing]}" in refusal
        assert refusal.startswith("cannot isolate capsules as required, this is mode E: ")


@pytest.mark.parametrize("missing", LAYERS)
def test_what_strict_demands(missing: str) -> None:
    """`strict` refuses whatever is below B, and names the layer."""
    refusal = modes.refusal(probed(missing), "strict", insecure=False)
    assert (refusal is not None) == (missing in (*ALWAYS, *WALLS))
    assert refusal is None or f"{missing} is missing" in refusal


@pytest.mark.parametrize("missing", LAYERS)
def test_what_a_list_demands(missing: str) -> None:
    """A list refuses what it names, and mode E."""
    for named in LAYERS:
        refusal = modes.refusal(probed(missing), (named,), insecure=False)
        assert (refusal is not None) == (missing == named or missing in ALWAYS)
        assert refusal is None or f"{missing} is missing" in refusal


def test_every_missing_layer_is_named_once() -> None:
    """Several that are missing are all told, in one sentence."""
    refusal = modes.refusal(probed("seccomp", "landlock", "uid"), ("uid", "seccomp"), insecure=False)
    assert refusal is not None
    assert [refusal.count(f"{name} is missing") for name in ("seccomp", "uid", "landlock")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("required", "refused"), [("best", False), ("strict", True), (("seccomp",), True), (("uid",), False)]
)
def test_insecure_lets_mode_e_pass_and_nothing_else(required: str | tuple[str, ...], refused: bool) -> None:
    """On demand a machine without seccomp will do, unless the configuration asks for it by name or by `strict`."""
    assert (modes.refusal(probed("seccomp"), required, insecure=True) is not None) == refused


@pytest.mark.parametrize(
    ("found", "own", "told"),
    [
        (probed(), True, Confinement(7, "all", landlock=True, seccomp=True)),
        (probed(namespaces="user"), False, Confinement(7, "user", landlock=True, seccomp=True)),
        (probed("uid"), False, Confinement(7, "all", landlock=True, seccomp=True)),
        (probed("namespaces"), True, Confinement(7, "none", landlock=True, seccomp=True)),
        (probed("root", namespaces="user"), True, Confinement(7, "none", landlock=True, seccomp=True)),
        (probed("landlock"), True, Confinement(7, "all", landlock=False, seccomp=True)),
        (probed("seccomp"), True, Confinement(7, "all", landlock=True, seccomp=False)),
    ],
)
def test_what_a_worker_is_told(found: Probed, own: bool, told: Confinement) -> None:
    """All that the machine holds, and no more; without an empty root no namespaces, whose users have one number."""
    assert modes.confinement(found, 7) == told
    assert modes.own_users(found) is own


def test_every_layer_has_advice() -> None:
    """What is missing comes with what the operator can do about it."""
    assert set(ADVICE) == set(LAYERS)
    assert all(ADVICE.values())
