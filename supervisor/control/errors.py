"""Every refusal with its status and its code, in one table.

Codes are for programs and stay as they are; messages are for people and may get better.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

from capsuled.supervisor.control import shapes
from capsuled.supervisor.control.operations import (
    Conflict,
    Failed,
    NoSuchCapsule,
    Refused,
    ShuttingDown,
    WaitTimedOut,
)


class Malformed(Refused):
    """Not HTTP/1.1, or a target that is no path."""


class BadParameter(Refused):
    """A query parameter that is unknown, missing, twice there, or not what its rule says."""

    def __init__(self, parameter: str, value: str | None, rule: str) -> None:
        given = "is missing" if value is None else f"cannot be '{value}'"
        super().__init__(
            f"parameter '{parameter}' {given}: {rule}", {"parameter": parameter, "value": value, "rule": rule}
        )


class NotPermitted(Refused):
    """A peer without the level that the route asks for."""


class NoLevel(NotPermitted):
    """A peer without any level."""


class NoSuchRoute(Refused):
    """A path that the table does not have."""


class MethodNotAllowed(Refused):
    """A path that the table has, with a method that it does not have there."""

    def __init__(self, method: str, path: str, allowed: tuple[str, ...]) -> None:
        super().__init__(
            f"cannot {method} {path}: the methods there are {', '.join(allowed)}",
            {"method": method, "allowed": allowed},
        )
        self.allowed = allowed


class RequestTimedOut(Refused):
    """A request that was begun and not finished in time."""


class BodyTooLarge(Refused):
    """More body than a request may have."""


class HeadTooLarge(Refused):
    """More request line and headers than a request may have."""


class UnsupportedCoding(Refused):
    """A transfer coding other than chunked."""


class TooManyConnections(Refused):
    """All places are taken."""


class Internal(Refused):
    """A defect in the supervisor."""


class Refusal(NamedTuple):
    status: HTTPStatus
    code: str


REFUSALS: dict[type[Refused], Refusal] = {
    Malformed: Refusal(HTTPStatus.BAD_REQUEST, "malformed-request"),
    BadParameter: Refusal(HTTPStatus.BAD_REQUEST, "bad-parameter"),
    NoLevel: Refusal(HTTPStatus.UNAUTHORIZED, "not-permitted"),
    NotPermitted: Refusal(HTTPStatus.FORBIDDEN, "not-permitted"),
    NoSuchRoute: Refusal(HTTPStatus.NOT_FOUND, "no-such-route"),
    NoSuchCapsule: Refusal(HTTPStatus.NOT_FOUND, "no-such-capsule"),
    MethodNotAllowed: Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed"),
    RequestTimedOut: Refusal(HTTPStatus.REQUEST_TIMEOUT, "request-timed-out"),
    Failed: Refusal(HTTPStatus.CONFLICT, "failed"),
    Conflict: Refusal(HTTPStatus.CONFLICT, "conflict"),
    BodyTooLarge: Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large"),
    HeadTooLarge: Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large"),
    Internal: Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal"),
    UnsupportedCoding: Refusal(HTTPStatus.NOT_IMPLEMENTED, "unsupported-coding"),
    TooManyConnections: Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too-many-connections"),
    ShuttingDown: Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "shutting-down"),
    WaitTimedOut: Refusal(HTTPStatus.GATEWAY_TIMEOUT, "timed-out"),
}


def status(refused: Refused) -> int:
    return _refusal(refused).status


def body(refused: Refused) -> bytes:
    """``{"error": {"code", "message", "detail"}}``"""
    code = _refusal(refused).code
    return shapes.line({"error": {"code": code, "message": refused.message, "detail": refused.detail}})


def _refusal(refused: Refused) -> Refusal:
    # The daemon may subclass what it raises: the nearest class in the table decides.
    for kind in type(refused).__mro__:
        if kind in REFUSALS:
            return REFUSALS[kind]
    return REFUSALS[Internal]
