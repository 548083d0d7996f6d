"""Which engine is loaded."""

from __future__ import annotations

import pytest

from capsuled.sandbox.engine.seam import EngineUnavailable, load


@pytest.mark.usefixtures("wat")
@pytest.mark.parametrize("name", ["auto", "wasmer"])
def test_wasmer_is_the_default(name: str) -> None:
    """`auto` is wasmer where it runs."""
    assert load(name).name == "wasmer"


def test_unknown_engine_is_refused_by_name() -> None:
    """An engine that is not built in is refused, and the message says which one is."""
    with pytest.raises(EngineUnavailable, match=r"cannot run the engine 'v8': this build has wasmer"):
        load("v8")
