"""Requests, as guests see them: the one answer or the one failure, on a handle of its own."""

from __future__ import annotations

import cbor2

from capsuled.proto.records import MAX_REQUESTS
from capsuled.proto.refusals import Errno

from ..support.guests import Program, Result, blob, buffer, text
from .stage import Actor, Stage, tell

QUESTION = text(cbor2.dumps({"n": 20}))
ANSWER = text(cbor2.dumps([21]))
AT = 1024
"""Where a guest has what it was asked."""


class Cast:
    """The guests of this module, and their calls. Each asks itself, so that nothing is left to chance."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._answers()
        self._ends()
        self._refusals()
        self._bytes()

    def _add(self, name: str, program: Program, limits: str = "") -> Actor:
        grants = [f"{name}.ask", f"{name}.nobody"]
        return self._stage.add(name, program, publish=grants, subscribe=grants, limits=limits)

    @staticmethod
    def _asked(program: Program, name: str, handle: Result) -> Result:
        """Receive a request, and load its number."""
        program.call("ipc_recv", handle, 20_000, buffer(2000, AT), quiet=True)
        return program.number_of_request(AT, f"{name}.ask", QUESTION.data, name)

    def _answers(self) -> None:
        program = Program()
        handle = program.call("ipc_subscribe", text("answers.ask"))
        self.subscription = handle
        self.first = program.call("ipc_request", text("answers.ask"), QUESTION, 20_000)
        self.not_yet = program.call("ipc_poll", self.first, buffer(300))
        self.question = self._asked(program, "answers", handle)
        self.asked = program.show(AT, 300)
        self.reply = program.call("ipc_reply", self.question, ANSWER)
        self.again = tell(program, "ipc_reply", self.question, ANSWER)
        self.too_small = tell(program, "ipc_recv", self.first, 20_000, buffer(60))
        self.needs = program.call("needed")
        self.answer = program.call("ipc_recv", self.first, 20_000, buffer(1000))
        self.gone = program.call("ipc_poll", self.first, buffer(1000))
        self.second = program.call("ipc_request", text("answers.ask"), QUESTION, 20_000)
        declined = self._asked(program, "answers", handle)
        program.call("ipc_decline", declined, text("not today"), quiet=True)
        self.declined = tell(program, "ipc_recv", self.second, 20_000, buffer(1000))
        self.no_request = tell(program, "ipc_decline", 12, text("no"))
        self.answers = self._add("answers", program)

    def _ends(self) -> None:
        program = Program()
        handle = program.call("ipc_subscribe", text("ends.ask"), quiet=True)
        self.unheard = tell(
            program,
            "ipc_recv",
            program.call("ipc_request", text("ends.nobody"), QUESTION, 20_000),
            20_000,
            buffer(300),
        )
        late = program.call("ipc_request", text("ends.ask"), QUESTION, 1)
        self.late = tell(program, "ipc_recv", late, 20_000, buffer(300))
        closed = program.call("ipc_request", text("ends.ask"), QUESTION, 20_000)
        self.unsubscribed = program.call("ipc_unsubscribe", closed)
        self.closed = program.call("ipc_poll", closed, buffer(300))
        lost = program.call("ipc_request", text("ends.ask"), QUESTION, 60_000)
        program.call("ipc_unsubscribe", handle, quiet=True)
        self.lost = tell(program, "ipc_recv", lost, 60_000, buffer(300))
        for _ in range(MAX_REQUESTS):
            program.call("ipc_request", text("ends.nobody"), QUESTION, 20_000, quiet=True)
        self.one_more = tell(program, "ipc_request", text("ends.nobody"), QUESTION, 20_000)
        self.ends = self._add("ends", program)

    def _refusals(self) -> None:
        program = Program()
        ask = text("refusals.ask")
        self.refused = [
            (tell(program, "ipc_request", text("refusals.other"), QUESTION, 1), Errno.NOTCAPABLE),
            (tell(program, "ipc_request", text("kernel.x"), QUESTION, 1), Errno.NOTCAPABLE),
            (tell(program, "ipc_request", text("refusals..ask"), QUESTION, 1), Errno.INVAL),
            (tell(program, "ipc_request", text(b"refusals.\xff"), QUESTION, 1), Errno.ILSEQ),
            (tell(program, "ipc_request", text("r" * 257), QUESTION, 1), Errno.NAMETOOLONG),
            (tell(program, "ipc_request", ask, text(b"\xff"), 1), Errno.BADMSG),
            (tell(program, "ipc_request", ask, blob(1025), 1), Errno.MSGSIZE),
            (tell(program, "ipc_reply", 5, ANSWER), Errno.BADF),
        ]
        self.refusals = self._add("refusals", program, 'max_payload = "1KiB"')

    def _bytes(self) -> None:
        """A queue that is full by its bytes long before its messages."""
        program = Program()
        handle = program.call("ipc_subscribe", text("bytes.ask"), quiet=True)
        marker = program.call("ipc_subscribe", text("bytes.nobody"), quiet=True)
        for _ in range(4):
            program.call("ipc_publish", text("bytes.ask"), blob(2000), quiet=True)
        program.call("ipc_publish", text("bytes.nobody"), QUESTION, quiet=True)
        program.call("ipc_recv", marker, 20_000, buffer(1000), quiet=True)
        self.rest = program.call("ipc_poll", handle, buffer(16_000))
        self.bytes = self._add("bytes", program, 'queue_bytes = "5KiB"')


def test_a_handle_of_its_own(guests: Cast) -> None:
    """Each request has one that is no other's, and has nothing on it before the answer."""
    found = [guests.answers.value(each) for each in (guests.subscription, guests.first, guests.second)]
    assert min(found) > 0
    assert len(set(found)) == 3
    assert guests.answers.payloads(guests.not_yet) == []


def test_a_question_is_marked(guests: Cast) -> None:
    """Its receiver can tell it from what nobody waits for."""
    (message,) = cbor2.loads(guests.answers.called(guests.asked).data)["messages"]
    assert (message["request"], message["payload"], message["topic"]) == (True, {"n": 20}, "answers.ask")
    assert message["seq"] == guests.answers.value(guests.question)


def test_the_answer_is_received_once(guests: Cast) -> None:
    """It names its question as cause; what does not fit stays; then the handle is gone."""
    answers = guests.answers
    assert answers.value(guests.reply) == 0
    code, sentence = answers.told(guests.too_small)
    assert code == -Errno.NOBUFS
    assert str(answers.value(guests.needs)) in sentence
    (message,) = answers.envelope(guests.answer)["messages"]
    assert message["payload"] == [21]
    assert message["cause"] == answers.value(guests.question)
    assert answers.called(guests.answer).result == answers.value(guests.needs)
    assert answers.value(guests.gone) == -Errno.BADF


def test_a_question_is_answered_once(guests: Cast) -> None:
    """A second answer is refused here, as is one to what was no question."""
    for told in (guests.again, guests.no_request):
        code, sentence = guests.answers.told(told)
        assert code == -Errno.BADF
        assert "no request that was received and not answered yet" in sentence


def test_a_refusal_is_the_failure(guests: Cast) -> None:
    """With the reason that was given."""
    code, sentence = guests.answers.told(guests.declined)
    assert code == -Errno.CONNREFUSED
    assert sentence == "answers declines the request on 'answers.ask': not today"


def test_it_always_ends(guests: Cast) -> None:
    """Nobody is there, its time is over, its receiver has closed the handle unread: each with its own error."""
    for told, errno, part in (
        (guests.unheard, Errno.CONNREFUSED, "nobody is subscribed to 'ends.nobody'"),
        (guests.late, Errno.TIMEDOUT, "'ends.ask' was not answered in time"),
        (guests.lost, Errno.CONNRESET, "has lost it, or has closed its handle"),
    ):
        code, sentence = guests.ends.told(told)
        assert code == -errno
        assert part in sentence


def test_who_does_not_want_the_answer(guests: Cast) -> None:
    """Ends its handle like any other."""
    assert guests.ends.value(guests.unsubscribed) == 0
    assert guests.ends.value(guests.closed) == -Errno.BADF


def test_so_many_may_wait(guests: Cast) -> None:
    """One more is refused: those that have failed count until that was received."""
    code, sentence = guests.ends.told(guests.one_more)
    assert code == -Errno.MFILE
    assert sentence == f"{MAX_REQUESTS} requests wait already: receive their answers first"


def test_what_a_publish_may_not_a_request_may_not(guests: Cast) -> None:
    """The same rules in the same order; and an answer needs a question."""
    for told, errno in guests.refused:
        code, sentence = guests.refusals.told(told)
        assert code == -errno, sentence
        assert sentence


def test_a_queue_is_bounded_in_bytes(guests: Cast) -> None:
    """Of four messages of 2 kB, 5 KiB hold two; the older ones were dropped, and are told."""
    envelope = guests.bytes.envelope(guests.rest)
    assert (len(envelope["messages"]), envelope["dropped"] + envelope["lagged"]) == (2, 2)
