"""Refusals: errors as values, with the WASI preview 1 errno that the guest sees.

A refused host call returns the negated errno and leaves a sentence; it never traps, because a
denial must not end a run loop. Errnos: WASI preview 1, ``witx/typenames.witx``, ``$errno``.
"""

from __future__ import annotations

from enum import IntEnum


class Errno(IntEnum):
    """The part of WASI's errno that host functions answer with."""

    AGAIN = 6
    BADF = 8
    BADMSG = 9
    CANCELED = 11
    CONNREFUSED = 14
    CONNRESET = 15
    DQUOT = 19
    FAULT = 21
    ILSEQ = 25
    INVAL = 28
    MFILE = 33
    MSGSIZE = 35
    NAMETOOLONG = 37
    NOBUFS = 42
    NOENT = 44
    NOSYS = 52
    PERM = 63
    SPIPE = 70
    TIMEDOUT = 73
    NOTCAPABLE = 76


class Refusal(Exception):
    """A host call that is refused: an errno for the guest, a sentence for its author.

    `needed` is the number of bytes that would have sufficed, for `Errno.NOBUFS`.
    """

    def __init__(self, errno: Errno, sentence: str, needed: int = 0) -> None:
        super().__init__(sentence)
        self.errno = errno
        self.sentence = sentence
        self.needed = needed
