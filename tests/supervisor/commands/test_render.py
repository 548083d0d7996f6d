"""Tables and words for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsuled.supervisor.commands import render
from capsuled.supervisor.control.shapes import Json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ({}, "-"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (-7, "-7"),
        (0.0, "0"),
        (1.5, "1.5"),
        (100.0, "100"),
        (2 / 3, "0.667"),
        ("grün", "grün"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("a\tb\nc\r", "a\\tb\\nc\\r"),
        (["a", 1, None], "a; 1; -"),
        ({"a": 1, "b": {"c": True}}, "a 1, b (c yes)"),
        ({"\x1b": "\x9b"}, "\\x1b \\x9b"),
    ],
)
def test_text(value: Json, text: str) -> None:
    """Each kind of value as people read it."""
    assert render.text(value) == text


@given(st.text())
def test_nothing_that_a_terminal_obeys(text: str) -> None:
    """Whatever a text holds, what is shown of it is printable."""
    assert render.text(text).isprintable()


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, values in one column, and no name that a terminal would obey."""
    render.facts({"a": 1, "longer": None, "\x1b": "x"})
    assert capsys.readouterr().out == "a:      1\nlonger: -\n\\x1b:   x\n"
    render.facts({})
    assert capsys.readouterr().out == ""


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their widest cell, and no line ends in spaces."""
    render.table(("name", "x"), [["a", 1], ["longer", None], ["\x1b", "abc"]])
    assert capsys.readouterr().out == "NAME    X\na       1\nlonger  -\n\\x1b    abc\n"


def test_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Without rows there are the headings."""
    render.table(("name", "x"), [])
    assert capsys.readouterr().out == "NAME  X\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (3 * 1024**4, "3.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_size(value: int | None, text: str) -> None:
    """Bytes in the unit that keeps them short; the largest one takes what is more."""
    assert render.size(value) == text
