"""The ledger page as a worker writes it, read as the supervisor reads it."""

from __future__ import annotations

import os

import pytest

from capsuled.proto import ledger
from capsuled.proto.ledger import Row, Total
from capsuled.proto.refusals import Errno
from capsuled.sandbox.page import Page


@pytest.fixture
def page() -> Page:
    return Page(memoryview(bytearray(ledger.BYTES)).cast("Q"))


def test_a_row_is_read_as_it_was_written(page: Page) -> None:
    """Each number stands in its own column; the last row is there too."""
    page.row(0, 1, 2, 3, 4, 5, 6)
    page.row(ledger.MAX_SUBSCRIPTIONS - 1, 2**31 - 1, 20, 30, 40, 50, 2**64 - 1)
    found = ledger.read(page.slots)
    assert found is not None
    assert found.rows == (Row(1, 2, 3, 4, 5, 6), Row(2**31 - 1, 20, 30, 40, 50, 2**64 - 1))


def test_a_row_has_all_its_columns(page: Page) -> None:
    """One number too few or too many is a defect of ours."""
    for numbers in (range(5), range(7)):
        with pytest.raises(ValueError, match="argument"):
            page.row(0, *numbers)


def test_there_is_no_row_behind_the_last(page: Page) -> None:
    """Nothing is written elsewhere instead."""
    with pytest.raises(IndexError):
        page.row((len(page.slots) - ledger.ROWS) // ledger.ROW_SLOTS, 1, 2, 3, 4, 5, 6)


def test_a_freed_row_is_not_read(page: Page) -> None:
    """It is zeros, and the others stay."""
    page.row(0, 1, 2, 3, 4, 5, 6)
    page.row(1, 7, 0, 0, 0, 0, 0)
    page.free_row(0)
    found = ledger.read(page.slots)
    assert found is not None
    assert [row.handle for row in found.rows] == [7]
    assert not any(page.slots[ledger.ROWS : ledger.ROWS + ledger.ROW_SLOTS])


def test_an_update_in_progress_is_not_read(page: Page) -> None:
    """Between begin and end a reader gets nothing, and after it all."""
    page.begin()
    page.row(0, 1, 2, 3, 4, 5, 6)
    assert ledger.read(page.slots) is None
    page.end()
    found = ledger.read(page.slots)
    assert found is not None
    assert len(found.rows) == 1


@pytest.mark.parametrize("errno", Errno)
def test_each_errno_has_a_count_of_its_own(page: Page, errno: Errno) -> None:
    """Its name is in what is read; the slots of no two meet, nor those of the totals and rows."""
    page.refused(errno)
    page.refused(errno)
    found = ledger.read(page.slots)
    assert found is not None
    assert found.refused == {errno.name.lower(): 2}
    assert max(Total) <= ledger.ERRNO_SLOT[errno] < ledger.ROWS


def test_totals_add_up(page: Page) -> None:
    """One by one, or several at once."""
    page.add(Total.LOGS_CUT)
    page.add(Total.LOGS_CUT, 4)
    found = ledger.read(page.slots)
    assert found is not None
    assert found.logs_cut == 5


def test_the_page_is_shared_with_who_has_the_descriptor() -> None:
    """What is written through one mapping is read through another."""
    fd = os.memfd_create("page")
    try:
        os.ftruncate(fd, ledger.BYTES)
        writer, reader = Page.map(fd), Page.map(fd)
    finally:
        os.close(fd)
    writer.add(Total.PUBLISHED, 3)
    found = ledger.read(reader.slots)
    assert found is not None
    assert found.published == 3
