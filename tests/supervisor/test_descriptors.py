"""A worker's descriptors: made with what they must hold, sealed where they must not change, closed once."""

from __future__ import annotations

import mmap
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from capsuled.proto import ledger
from capsuled.proto.ledger import Total
from capsuled.supervisor import descriptors
from capsuled.supervisor.descriptors import Ends, Inherited

WASM = b"\0asm\x01\0\0\0"


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    return tmp_path / "00000001"


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_nothing_stays(edge: Path) -> None:
    """All of them are closed at the end, and the edge's file is gone; who removed it first disturbs nothing."""
    before = open_descriptors()
    for remove in (False, True):
        with ExitStack() as worker_ends, descriptors.make("echo", WASM, edge, worker_ends):
            assert edge.is_socket()
            assert len(open_descriptors()) > len(before)
            if remove:
                edge.unlink()
        assert open_descriptors() == before
        assert not edge.exists()


def test_nothing_stays_where_it_cannot_be_made(edge: Path) -> None:
    """A failure in the middle, with half of them open, closes that half."""
    edge.touch()
    before = open_descriptors()
    with pytest.raises(OSError, match="in use"), ExitStack() as stack:
        made(edge, stack)
    assert open_descriptors() == before


def made(edge: Path, stack: ExitStack) -> tuple[Ends, Inherited]:
    worker_ends = stack.enter_context(ExitStack())
    return stack.enter_context(descriptors.make("echo", WASM, edge, worker_ends))


def test_no_descriptor_is_inherited_unless_it_is_named(edge: Path) -> None:
    """Each is close-on-exec: a worker gets its own and nobody else's."""
    with ExitStack() as stack:
        before = set(open_descriptors())
        made(edge, stack)
        for fd in set(open_descriptors()) - before:
            if Path(f"/proc/self/fd/{fd}").exists():
                assert not os.get_inheritable(int(fd))


def test_the_module_is_sealed(edge: Path) -> None:
    """The worker reads what the supervisor wrote; nobody writes, grows or cuts it, or maps it to write."""
    with ExitStack() as stack:
        _, inherited = made(edge, stack)
        module = inherited.numbers.module
        assert os.read(module, 100) == WASM
        for attempt in (
            lambda: os.pwrite(module, b"x", 0),
            lambda: os.ftruncate(module, 1),
            lambda: os.ftruncate(module, 1 << 20),
            lambda: mmap.mmap(module, len(WASM), mmap.MAP_SHARED, mmap.PROT_WRITE | mmap.PROT_READ),
        ):
            with pytest.raises(PermissionError):
                attempt()


def test_the_page_has_its_size_for_ever(edge: Path) -> None:
    """A worker writes its page and cannot cut it, which would kill its reader by SIGBUS."""
    with ExitStack() as stack:
        ends, inherited = made(edge, stack)
        page = inherited.numbers.ledger
        for size in (0, ledger.BYTES - 1, ledger.BYTES + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(page, size)
        slots = memoryview(mmap.mmap(page, ledger.BYTES)).cast("Q")
        slots[Total.PUBLISHED] = 7
        claims = ends.ledger.claims()
        assert claims is not None
        assert claims.published == 7
        slots[Total.VERSION] = 1  # in the middle of an update, for ever
        assert ends.ledger.claims() is None
        slots.release()


def test_a_packet_is_a_packet(edge: Path) -> None:
    """Control and log keep the bounds of what is sent, and our ends do not block."""
    with ExitStack() as stack:
        ends, inherited = made(edge, stack)
        for mine, number in ((ends.control, inherited.numbers.control), (ends.log, inherited.numbers.log)):
            with pytest.raises(BlockingIOError):
                mine.recv(10)
            with socket.socket(fileno=os.dup(number)) as worker:
                worker.send(b"one")
                worker.send(b"two")
            assert [mine.recv(10), mine.recv(10)] == [b"one", b"two"]


def test_what_is_kept_is_what_the_order_names(edge: Path) -> None:
    """The worker inherits its five, beside standard input, output and error."""
    with ExitStack() as stack:
        _, inherited = made(edge, stack)
        numbers = inherited.numbers
        assert set(inherited.to_keep()) == {
            *(numbers.module, numbers.edge, numbers.control, numbers.log, numbers.ledger)
        }


def test_the_order_is_read_from_its_beginning() -> None:
    """Standard input of the worker is at the first byte, and sealed."""
    with ExitStack() as stack:
        fd = descriptors.order_file(b"the order", stack)
        assert os.read(fd, 100) == b"the order"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)


def test_a_large_module_is_written_whole(edge: Path) -> None:
    """Whatever one write takes."""
    wasm = WASM + bytes(5_000_000)
    with ExitStack() as stack:
        worker_ends = stack.enter_context(ExitStack())
        _, inherited = stack.enter_context(descriptors.make("echo", wasm, edge, worker_ends))
        assert os.fstat(inherited.numbers.module).st_size == len(wasm)
