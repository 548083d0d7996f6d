"""The manual pages: nothing that a parser or a schema knows is missing, and roff takes them without a warning."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from capsuled.proto.control import Exit
from capsuled.supervisor.commands import capsulectl, capsuled, commandline, manual
from capsuled.supervisor.configuration import Tables as Configuration
from capsuled.supervisor.manifest import Tables as Manifest

PAGES = manual.pages()
COMMITTED = Path(__file__).resolve().parents[3] / "docs/man"

FORMATTERS = [
    command
    for command in (
        ("groff", "-man", "-ww", "-Tutf8"),
        ("man", "--warnings", "-l"),
        ("mandoc", "-T", "lint", "-W", "error"),
    )
    if shutil.which(command[0])
]
"""Those that are there."""


def plain(page: str) -> str:
    """What the page says, without what roff needs."""
    for escape, shown in (
        ("\\-", "-"),
        ("\\(dq", '"'),
        ("\\(aq", "'"),
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
    ):
        page = page.replace(escape, shown)
    return page


def test_committed() -> None:
    """docs/man holds these pages and no other."""
    assert {path.name: path.read_text() for path in COMMITTED.iterdir()} == PAGES


@pytest.mark.parametrize(
    ("page", "parser"), [("capsulectl.1", capsulectl.parser()), ("capsuled.8", capsuled.parser())]
)
def test_every_command_and_option(page: str, parser: argparse.ArgumentParser) -> None:
    """Each command that can be typed is there with its options, and all that its help says."""
    said = plain(PAGES[page])
    for command in commandline.read(parser).all():
        for option in command.options:
            assert option.flags[-1] in said
            assert option.help[1:] in said
        if not command.commands:
            assert f"\n{' '.join(command.path[1:])}" in said
            assert command.summary[1:] in said


def test_exit_codes() -> None:
    """Each exit code is told, in the words of --help."""
    said = plain(PAGES["capsulectl.1"])
    assert set(capsulectl.EXITS) == set(Exit)
    for code, told in capsulectl.EXITS.items():
        assert f".B {code.value}\n{told.capitalize()}.\n" in said


@pytest.mark.parametrize(
    ("page", "tables"), [("Capsule.toml.5", Manifest), ("capsuled.toml.5", Configuration)]
)
def test_every_key(page: str, tables: type[Manifest | Configuration]) -> None:
    """Each table and key at the top of the file is there."""
    said = plain(PAGES[page])
    for name in (field.name for field in fields(tables)):
        assert f"[{name}]" in said or f"\n{name}\n" in said


@pytest.mark.parametrize(
    ("page", "line"),
    [
        ("Capsule.toml.5", '\nmemory\nThe guest\'s linear memory. (size, 64KiB to 4GiB; default "64MiB")\n'),
        ("Capsule.toml.5", '("always" | "on-failure" | "never"; default "on-failure")'),
        ("Capsule.toml.5", "\nname\nIts name, unique in a supervisor. (text; required)\n"),
        ("Capsule.toml.5", '.SH "[[interceptor]]"\n'),
        ("Capsule.toml.5", '(duration, 1s to 1h; default "10s")'),
        (
            "capsuled.toml.5",
            "\nallow_unhashed\nThe developer's mode: manifests need no hash of their module. (true",
        ),
        ("capsulectl.1", '\n.BR "capsuled" (8),\n'),
    ],
)
def test_lines(page: str, line: str) -> None:
    """What a key takes is told as a file has it."""
    assert line in plain(PAGES[page])


@pytest.mark.parametrize("formatter", FORMATTERS, ids=lambda formatter: formatter[0])
@pytest.mark.parametrize("page", PAGES)
def test_no_warning(formatter: tuple[str, ...], page: str) -> None:
    """Nothing in a page is a mistake to who shows it."""
    done = subprocess.run(
        [*formatter, str(COMMITTED / page)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_text_is_no_request() -> None:
    """Whatever a help text begins with, roff does not take it for one of its own."""
    assert manual.text(".so /etc/passwd") == "\\&.so /etc/passwd"
    assert manual.text("'tis \\fB --x") == "\\(aqtis \\efB \\-\\-x"
