"""One instance takes over from another between two messages: nothing is lost and nothing comes twice."""

from __future__ import annotations

from dataclasses import replace

from capsuled.proto import records
from capsuled.proto.grants import Grants
from capsuled.proto.records import DownKind, UpKind
from capsuled.supervisor.backbone.members import Admission
from capsuled.supervisor.backbone.router import HANDED_OVER_AT_ONCE

from .making import admission, publish, subscribe, unsubscribe
from .test_router import Bench

OLD, NEW, SAYER = 1, 2, 0


def instance(index: int, *, standby: bool = False) -> Admission:
    return admission(index, name="echo", subscriptions=((1, "a.*", True),), standby=standby)


def bench() -> Bench:
    """One that publishes, an instance that serves and one that stands by."""
    sayer = replace(admission(SAYER), grants=Grants(("a.*",), (), ("a.kept",)))
    return Bench(sayer, instance(OLD), instance(NEW, standby=True))


def bodies(stage: Bench, index: int) -> list[bytes]:
    return [each.body for each in stage.sent(index) if each.kind in (DownKind.MESSAGE, DownKind.RETAINED)]


def test_every_message_reaches_one_of_the_two() -> None:
    """Before the succession the old one, after it the new one; each in order, none twice."""
    stage = bench()
    for count in range(10):
        if count == 4:
            stage.router.succeed(NEW, OLD)
        stage.take(SAYER, publish("a.b", count, bytes([count])))
    assert bodies(stage, OLD) == [bytes([count]) for count in range(4)]
    assert bodies(stage, NEW) == [bytes([count]) for count in range(4, 10)]
    assert [stage.figures(index)["subscriptions"][0]["matched"] for index in (OLD, NEW)] == [4, 6]


def test_what_it_subscribes_to_while_it_stands_by() -> None:
    """It is answered, and matches from the succession on; what is ended again does not."""
    stage = bench()
    stage.take(NEW, subscribe(5, "a.x"), subscribe(6, "a.y"), unsubscribe(6))
    stage.take(SAYER, publish("a.x", 0))
    assert [each.kind for each in stage.sent(NEW)] == [
        DownKind.SUBSCRIBED,
        DownKind.SUBSCRIBED,
        DownKind.UNSUBSCRIBED,
    ]
    stage.router.succeed(NEW, OLD)
    stage.take(SAYER, publish("a.x", 1), publish("a.y", 2))
    handles = {each["handle"]: each["matched"] for each in stage.figures(NEW)["subscriptions"]}
    assert handles == {1: 2, 5: 1}


def test_what_is_retained() -> None:
    """It gets what is kept when it subscribes, and at the succession what has been kept since."""
    stage = bench()
    stage.take(SAYER, publish("a.kept", 0, b"first"))
    stage.take(NEW, subscribe(5, "a.kept"))
    assert bodies(stage, NEW) == [b"first"]
    stage.router.succeed(NEW, OLD)
    # Its interceptor was there before the first was kept.
    assert bodies(stage, NEW) == [b"first"]
    again = bench()
    again.take(NEW, subscribe(5, "a.kept"))
    again.take(SAYER, publish("a.kept", 0, b"second"))
    assert bodies(again, NEW) == []
    again.router.succeed(NEW, OLD)
    assert bodies(again, NEW) == [b"second"] * 2


def test_the_old_one_goes_on_with_what_it_has() -> None:
    """It publishes, answers what it was asked, ends its subscriptions and ends; none of it disturbs the new one."""
    stage = Bench(admission(SAYER), instance(OLD), instance(NEW, standby=True))
    stage.take(SAYER, records.up(UpKind.REQUEST, b"a.ask", a=5, body=b"\0"))
    (request,) = (each for each in stage.sent(OLD) if each.kind == DownKind.REQUEST)
    stage.router.succeed(NEW, OLD)
    stage.take(OLD, records.up(UpKind.REPLY, b=request.b, body=b"\1"))
    assert [each.body for each in stage.sent(SAYER) if each.kind == DownKind.REPLY] == [b"\1"]
    stage.router.detach(OLD)
    stage.take(SAYER, publish("a.b", 0, b"x"))
    assert bodies(stage, NEW) == [b"x"]


def test_an_old_one_that_has_ended_meanwhile() -> None:
    """The new one takes over all the same."""
    stage = bench()
    stage.router.detach(OLD)
    stage.router.succeed(NEW, OLD)
    stage.take(SAYER, publish("a.b", 0, b"x"))
    assert bodies(stage, NEW) == [b"x"]


def test_who_stands_by_can_end() -> None:
    """Without a word to those whose place it never took."""
    stage = bench()
    stage.router.detach(NEW)
    stage.take(SAYER, publish("a.b", 0, b"x"))
    assert bodies(stage, OLD) == [b"x"]


def test_what_is_handed_over_at_once_is_bounded() -> None:
    """However many subscriptions there are, and however much is retained: everybody waits meanwhile."""
    publishers = range(10, 14)
    stage = bench()
    for index in publishers:
        stage.router.attach(replace(admission(index), grants=Grants(("a.*",), (), ("a.*",))), 0.0)
    for handle in range(2, 100):
        stage.take(NEW, subscribe(handle, "a.*"))
    stage.sent(NEW)
    for index in publishers:
        for topic in range(200):
            stage.take(index, publish(f"a.{index}.{topic}", topic, b"x"))
    before = stage.router.seq
    stage.router.succeed(NEW, OLD)
    assert 0 < stage.router.seq - before <= HANDED_OVER_AT_ONCE
    stage.take(SAYER, publish("a.b", 0, b"y"))
    assert b"y" in bodies(stage, NEW)
