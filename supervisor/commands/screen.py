"""The whole terminal, for a command that goes on: what it shows, the keys that are pressed, and its state restored.

However the command ends, by a key, an error, INT, TERM, HUP or a terminal that is gone, the terminal is as it was. It
is left for the time of a Ctrl-Z as well.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from capsuled.supervisor.commands import render

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LINES_AROUND = 3
"""Above the rows and below them: the title, the headings, and the keys."""

HUNG_UP = 128 + signal.SIGHUP


class Page(NamedTuple):
    """What is on the screen. Cells are what `render.text` has made; columns in `right` hold numbers."""

    title: str
    columns: Sequence[str]
    right: Sequence[bool]
    rows: Sequence[Sequence[str]]
    footer: str


class Screen:
    def __init__(self) -> None:
        self._stdin = sys.stdin.fileno()
        self._saved = termios.tcgetattr(self._stdin)
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._page: Page | None = None
        self._suspended = False
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def show(self, page: Page) -> None:
        self._page = page
        if self._live is not None:
            self._live.update(self._drawn(page), refresh=True)

    def key(self, seconds: float) -> str:
        """The key that is pressed within that time, or nothing. A new size of the terminal is heeded meanwhile."""
        ready, _, _ = select.select([self._stdin, self._woken], [], [], max(seconds, 0.0))
        if self._woken in ready:
            with suppress(BlockingIOError):
                os.read(self._woken, 4096)
            if self._suspended:
                self._suspended = False
                self._leave()
                os.kill(os.getpid(), signal.SIGSTOP)
                self._enter()
            if self._page is not None:
                self.show(self._page)
        if self._stdin not in ready:
            return ""
        try:
            pressed = os.read(self._stdin, 64)
        except OSError:
            pressed = b""
        if not pressed:
            raise SystemExit(HUNG_UP)
        # Keys such as the arrows come as several bytes: they mean nothing here, and no part of them may.
        return pressed.decode("ascii", "ignore") if len(pressed) == 1 else ""

    def _drawn(self, page: Page) -> Group:
        fitting = max(self._console.size.height - LINES_AROUND, 0)
        hidden = len(page.rows) - fitting
        title = f"{page.title}; {hidden} more do not fit" if hidden > 0 else page.title
        grid = Table(box=None, pad_edge=False, header_style="bold reverse", expand=True)
        for column, right in zip(page.columns, page.right, strict=True):
            grid.add_column(column, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
        for row in page.rows[:fitting]:
            grid.add_row(*(Text(cell, style=render.STYLES.get(cell, "")) for cell in row))
        return Group(_line(title, end="\n"), grid, _line(page.footer))

    def _enter(self) -> None:
        tty.setcbreak(self._stdin, termios.TCSANOW)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _leave(self) -> None:
        """Whatever was entered, or a part of it."""
        live, self._live = self._live, None
        try:
            if live is not None:
                live.stop()
            sys.stdout.flush()
        except OSError:
            # The terminal is gone. Python would complain at exit, when it flushes what nobody reads.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(termios.error):
            termios.tcsetattr(self._stdin, termios.TCSANOW, self._saved)

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        self._suspended = True

    @contextmanager
    def used(self) -> Generator[None, None, None]:
        """It is ours until the end of the block."""
        with ExitStack() as stack:
            stack.callback(os.close, self._woken)
            stack.callback(os.close, self._waker)
            # Not to miss a signal between a look at it and the wait: it makes the pipe readable (signal(7)).
            stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False))
            for number, handler in (
                *((number, _end) for number in ENDING),
                (signal.SIGTSTP, self._suspend),
                (signal.SIGWINCH, _ignore),
            ):
                stack.callback(signal.signal, number, signal.signal(number, handler))
            try:
                self._enter()
                yield
            finally:
                # A second Ctrl-C must not leave the work half done.
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
                try:
                    self._leave()
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@contextmanager
def opened() -> Generator[Screen, None, None]:
    """The screen, where standard input and output are a terminal; restored at the end of the block."""
    screen = Screen()
    with screen.used():
        yield screen


def _line(text: str, *, end: str = "") -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis", end=end)


def _end(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """SIGWINCH is only to wake `key`; without a handler it would not."""
