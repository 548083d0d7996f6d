"""Engines under malformed modules, in a process of its own: a crash must be seen, not suffered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*/*.wasm"))

OUTCOMES = ("loaded", "ModuleRejected", "GuestTrap")

LOADING = """
import faulthandler, signal, sys
faulthandler.enable()
from capsuled.proto import abi
from capsuled.sandbox.engine import seam
compiler, engine = seam.load_compiler(sys.argv[1]), seam.load(sys.argv[1])
limits = seam.GuestLimits(16 * 65536)
imports = {(abi.MODULE, f.name): seam.HostFunction(f.signature, lambda *_: 0) for f in abi.FUNCTIONS}
for line in sys.stdin:
    signal.alarm(60)  # ends a start section that does not
    try:
        blob = compiler.compile(bytes.fromhex(line), seam.signatures(imports), limits)
        engine.instantiate(engine.load(blob), imports, limits)
        outcome = "loaded"
    except BaseException as exc:
        outcome = type(exc).__name__
    print(outcome, flush=True)
"""


class Loader:
    """A process that loads module after module; when it dies of one, the next has a new one."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._process = self._start()

    def outcome(self, wasm: bytes) -> str:
        """`loaded`, the name of an exception, or how the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(wasm.hex() + "\n")
        self._process.stdin.flush()
        told = self._process.stdout.readline().strip()
        if told:
            return told
        status = self._process.wait()
        self.close()
        self._process = self._start()
        return f"died with {status}"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", LOADING, self._engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def loader(engine: str) -> Iterator[Loader]:
    process = Loader(engine)
    yield process
    process.close()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real module with some bytes changed, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(EXAMPLES)).read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(8, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_loads(loader: Loader, path: Path) -> None:
    """What is mutated below is sound before."""
    assert loader.outcome(path.read_bytes()) == "loaded"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wasm=mutated())
def test_every_mutation_loads_or_is_rejected(loader: Loader, wasm: bytes) -> None:
    """However a module is damaged, it loads, is rejected, or traps in a segment: the engine never crashes."""
    assert loader.outcome(wasm) in OUTCOMES
