"""A request as the routes see it, and the two kinds of answer: a document, or lines without end."""

from __future__ import annotations

from typing import NamedTuple

from capsuled.supervisor.control import errors, shapes
from capsuled.supervisor.control.errors import MethodNotAllowed, NoLevel
from capsuled.supervisor.control.operations import Refused
from capsuled.supervisor.control.streams import Follower


class Request(NamedTuple):
    """`target` is ASCII and still percent-encoded; `body` is within its bound, `media` what it says it is."""

    method: str
    target: str
    body: bytes
    media: str = ""


class Answer(NamedTuple):
    status: int
    body: bytes
    media: str = shapes.JSON
    headers: tuple[tuple[str, str], ...] = ()


class Streamed(NamedTuple):
    """Lines that are there already, and then what `follower` receives until its end."""

    backlog: bytes
    follower: Follower


def refusal(refused: Refused) -> Answer:
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(refused, MethodNotAllowed):
        headers = (("Allow", ", ".join(refused.allowed)),)
    elif isinstance(refused, NoLevel):
        # RFC 9110 wants a challenge in each 401. No registered scheme is meant: the kernel has answered it.
        headers = (("WWW-Authenticate", "Peer-Credentials"),)
    return Answer(errors.status(refused), errors.body(refused), headers=headers)
