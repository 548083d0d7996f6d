"""What is published holds what the source folders hold, under the names that the imports use."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("proto", "sandbox", "supervisor")


class Built(NamedTuple):
    """The file names in each archive; the sdist's without its first folder."""

    wheel: frozenset[str]
    sdist: frozenset[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("dist")
    # hatchling itself, not `build`, which would only start it; a process, for it reads the working directory.
    run = subprocess.run(
        [sys.executable, "-I", "-m", "hatchling", "build", "-d", str(out)],
        cwd=TOP,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = frozenset(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = frozenset(name.partition("/")[2] for name in archive.getnames())
    return Built(in_wheel, in_sdist)


def source_files() -> frozenset[str]:
    return frozenset(
        path.relative_to(TOP).as_posix()
        for folder in FOLDERS
        for path in (TOP / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def below(names: Iterable[str], *folders: str) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith(tuple(f"{folder}/" for folder in folders)))


def test_wheel_holds_the_sources(built: Built) -> None:
    """The wheel's packages are the files of the three folders, each under capsuled/, no more and no fewer."""
    assert below(built.wheel, "capsuled") == {f"capsuled/{name}" for name in source_files()}


@pytest.mark.parametrize("name", [*(f"{folder}/py.typed" for folder in FOLDERS), "proto/capsule.h"])
def test_wheel_holds_what_is_not_python(built: Built, name: str) -> None:
    """The type markers and the header that guests are compiled with are installed too."""
    assert f"capsuled/{name}" in built.wheel


def test_wheel_installs_nothing_beside_capsuled(built: Built) -> None:
    """At the top are capsuled and its metadata: no proto or supervisor to overwrite other packages."""
    tops = {name.partition("/")[0] for name in built.wheel}
    (metadata,) = tops - {"capsuled"}
    assert metadata.startswith("capsuled-")
    assert metadata.endswith(".dist-info")


def test_sdist_holds_the_sources(built: Built) -> None:
    """A wheel can be built from the sdist: it holds the three folders as they are, and pyproject.toml."""
    assert below(built.sdist, *FOLDERS) == source_files()
    assert "pyproject.toml" in built.sdist


def test_sdist_holds_what_init_systems_need(built: Built) -> None:
    """Packagers find the service files and their installer in it; a wheel, which installs no such files, has none."""
    assert below(built.sdist, "init") == {
        path.relative_to(TOP).as_posix() for path in (TOP / "init").rglob("*") if path.is_file()
    }
    assert "scripts/install_init" in built.sdist
