"""Every refusal with its status and code."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest

from capsuled.supervisor.control import errors, messages
from capsuled.supervisor.control.errors import (
    REFUSALS,
    BadParameter,
    MethodNotAllowed,
    NoLevel,
    NotPermitted,
)
from capsuled.supervisor.control.operations import Conflict, Failed, NoSuchCapsule, Refused


def every_refusal(kind: type[Refused] = Refused) -> set[type[Refused]]:
    return {kind, *(found for sub in kind.__subclasses__() for found in every_refusal(sub))}


def test_the_table_is_complete() -> None:
    """Each kind of refusal that the socket or the daemon's contract knows has its status and code."""
    own = {kind for kind in every_refusal() if kind.__module__.startswith("capsuled.supervisor.control.")}
    assert own - {Refused} == set(REFUSALS)


def test_every_status_is_an_error() -> None:
    """No refusal looks like success."""
    assert all(refusal.status >= HTTPStatus.BAD_REQUEST for refusal in REFUSALS.values())


@pytest.mark.parametrize(
    ("refused", "status", "code"),
    [
        (NoSuchCapsule("echo"), 404, "no-such-capsule"),
        (Conflict("cannot start echo"), 409, "conflict"),
        (Failed("cannot wait"), 409, "failed"),
        (NotPermitted("cannot"), 403, "not-permitted"),
        (NoLevel("cannot"), 401, "not-permitted"),
        (Refused("cannot"), 500, "internal"),
    ],
)
def test_status_and_code(refused: Refused, status: int, code: str) -> None:
    """A refusal has the status and the code of the table; one that is of no kind is a defect."""
    assert errors.status(refused) == status
    error = json.loads(errors.body(refused))["error"]
    assert (error["code"], error["message"]) == (code, refused.message)


def test_the_daemon_may_subclass() -> None:
    """The nearest class in the table decides."""

    class Busy(Conflict):
        pass

    assert errors.status(Busy("cannot")) == HTTPStatus.CONFLICT


def test_detail_is_for_programs() -> None:
    """The facts of a refusal travel beside its sentence."""
    refused = BadParameter("wait", "up", "write ready or down")
    error = json.loads(errors.body(refused))["error"]
    assert error["message"] == "parameter 'wait' cannot be 'up': write ready or down"
    assert error["detail"] == {"parameter": "wait", "value": "up", "rule": "write ready or down"}


def test_a_wrong_method_is_told_the_right_ones() -> None:
    """405 comes with the Allow header that RFC 9110 wants."""
    answer = messages.refusal(MethodNotAllowed("PUT", "/v1/status", ("GET",)))
    assert answer.headers == (("Allow", "GET"),)


def test_a_401_has_a_challenge() -> None:
    """401 comes with the WWW-Authenticate header that RFC 9110 wants, and 403 without."""
    assert dict(messages.refusal(NoLevel("cannot")).headers).keys() == {"WWW-Authenticate"}
    assert messages.refusal(NotPermitted("cannot")).headers == ()
