"""Users of their own for workers: a number that no other living one has."""

from __future__ import annotations

from collections import deque


class NoUserLeft(Exception):
    """All numbers of the range are in use; the message is for the operator."""


class Users:
    """Numbers for users of their own. One that was given back is the last to be given again."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers
        self._unused = iter(numbers)
        self._back: deque[int] = deque()

    def take(self) -> int:
        """A number that nobody has. Raises `NoUserLeft`."""
        number = next(self._unused, None)
        if number is None and self._back:
            number = self._back.popleft()
        if number is None:
            raise NoUserLeft(
                f"cannot give it a user of its own: all {len(self._numbers)} from {self._numbers[0]} to "
                f"{self._numbers[-1]} are in use: widen users in [isolation]"
            )
        return number

    def give_back(self, number: int) -> None:
        """Only once no process has it any more."""
        self._back.append(number)
