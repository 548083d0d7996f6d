"""`capsuled doctor`: what is printed, and the exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsuled.proto.control import Exit
from capsuled.supervisor import probe
from capsuled.supervisor.cgroups import Groups
from capsuled.supervisor.commands import capsuled
from capsuled.supervisor.commands.doctor import lines
from capsuled.supervisor.modes import ADVICE, LAYERS, LOST, Mode, Probed

from ...support.machines import probed


def test_everything_held() -> None:
    """The first line is the mode; then each layer has one, in their order."""
    first, *rest = lines(probed(), "6.1", 0)
    assert first == f"Linux 6.1, user 0: mode A, {LOST[Mode.A]}"
    assert [line.split()[:2] for line in rest] == [[name, "held"] for name in LAYERS]


@pytest.mark.parametrize("missing", LAYERS)
def test_one_missing(missing: str) -> None:
    """A layer that is missing says why, and in the line below it what the operator can do."""
    shown = list(lines(probed(missing), "6.1", 1000))
    at = next(i for i, line in enumerate(shown) if line.split()[:2] == [missing, "missing"])
    assert shown[at].endswith(f"because of {missing}")
    assert shown[at + 1].strip() == ADVICE[missing]
    assert len(shown) == len(LAYERS) + 2


@pytest.mark.parametrize(
    ("found", "configuration", "status"),
    [
        (probed("cgroup"), "", Exit.DONE),
        (probed("landlock"), "", Exit.DONE),
        (probed("landlock"), "[isolation]\nrequired = 'strict'", Exit.FAILED),
        (probed("uid"), "[isolation]\nrequired = ['uid']", Exit.FAILED),
        (probed("seccomp"), "", Exit.FAILED),
        (probed(), "[isolation]\nrequired = 'most'", Exit.FAILED),
    ],
)
def test_the_status_says_whether_it_would_run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    found: Probed,
    configuration: str,
    status: Exit,
) -> None:
    """0 when `capsuled run` would run like this; else 1, and a sentence on standard error."""

    async def find(user: int, groups: Groups) -> Probed:
        assert user == 0x7000_0000
        return found

    monkeypatch.setattr(probe, "probe", find)
    file = tmp_path / "capsuled.toml"
    file.write_text(configuration)
    assert capsuled.main(["doctor", "--config", str(file)]) == status
    assert bool(capsys.readouterr().err) == (status != Exit.DONE)


def test_a_probe_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be found out is no machine that holds nothing: it is told, with status 1."""
    monkeypatch.setattr(probe, "COMMAND", ("/bin/false",))
    (tmp_path / "capsuled.toml").write_text("")
    assert capsuled.main(["doctor", "--config", str(tmp_path / "capsuled.toml")]) == Exit.FAILED
    assert "cannot find out how capsules can be isolated: " in capsys.readouterr().err
