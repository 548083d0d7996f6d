"""The rest of what a capsule may call: its configuration, chance, clocks, log and its last error."""

from __future__ import annotations

import time

import cbor2
import pytest

from capsuled.proto.abi import MAX_LOG_TEXT
from capsuled.proto.control import LOG_LEVELS
from capsuled.proto.refusals import Errno

from ..support.guests import Padded, Program, buffer, text
from .stage import Stage, tell

CONFIG: dict[str, tuple[str, object]] = {
    "text": ('"grüß dich"', "grüß dich"),
    "empty": ('""', ""),
    "integer": ("-7", -7),
    "large": ("9223372036854775807", 2**63 - 1),
    "float": ("0.1", 0.1),
    "boolean": ("true", True),
    "list": ('["a", 1, [2.5, false]]', ["a", 1, [2.5, False]]),
    "table": ('{ x = 1, inner = { y = "z" } }', {"x": 1, "inner": {"y": "z"}}),
}
"""Key to its TOML and its value."""


class Cast:
    """The guests of this module, and their calls."""

    def __init__(self, stage: Stage) -> None:
        self._config(stage)
        self._errors(stage)
        self._world(stage)
        self._log(stage)

    def _config(self, stage: Stage) -> None:
        program = Program()
        self.config = {key: program.call("config_get", text(key), buffer(1000)) for key in CONFIG}
        size = len(cbor2.dumps("grüß dich"))
        self.exact = program.call("config_get", text("text"), buffer(size))
        self.small = tell(program, "config_get", text("text"), buffer(size - 1))
        self.needed = program.call("needed")
        self.no_room = program.call("config_get", text("text"), 4096, 0)
        self.missing = tell(program, "config_get", text("other"), buffer(100))
        self.no_key = tell(program, "config_get", text(""), buffer(100))
        self.not_utf8 = tell(program, "config_get", text(b"\xff\xfe"), buffer(100))
        self.noent_first = program.call("config_get", text("other"), 4096, 0)
        table = "\n".join(f"{key} = {toml}" for key, (toml, _) in CONFIG.items())
        self.reader = stage.add("reader", program, more=f"[config]\n{table}")

    def _errors(self, stage: Stage) -> None:
        program = Program()
        self.no_error = program.call("error_message", buffer(100))
        self.nothing_needed = program.call("needed")
        program.call("ipc_publish", text("é"), text(b"\x00"), quiet=True)
        self.sentences = [program.call("error_message", buffer(size)) for size in (1000, 13, 14, 15, 0)]
        program.call("ready", quiet=True)
        self.kept = program.call("error_message", buffer(1000))
        program.call("ipc_interceptors", 4096, 0, quiet=True)
        program.call("ipc_publish", text("é"), text(b"\x00"), quiet=True)
        self.still_needed = program.call("needed")
        self.failing = stage.add("failing", program)

    def _world(self, stage: Stage) -> None:
        program = Program()
        for at in (4096, 4128):
            program.call("random", at, 32)
        self.no_chance = program.call("random", 4192, 0)
        self.chance = [program.show(at, 32) for at in (4096, 4128, 4160)]
        self.much = program.call("random", 131_072, 200_000)
        self.much_of_it = program.show(131_072 + 199_990, 10)
        self.clock = program.call("clock_ms")
        self.monotonic = [program.call("monotonic_ns") for _ in range(3)]
        self.ready = [program.call("ready") for _ in range(2)]
        self.cancelled = program.call("cancelled")
        program.pages = 8
        self.world = stage.add("world", program)

    def _log(self, stage: Stage) -> None:
        program = Program()
        self.levels = [program.call("log", level, text(f"level {level}")) for level in range(len(LOG_LEVELS))]
        self.bad_levels = [
            tell(program, "log", level, text("not logged")) for level in (len(LOG_LEVELS), 0xFFFF_FFFF)
        ]
        self.longest = program.call("log", 2, Padded(b"long" + b"x" * 32, MAX_LOG_TEXT))
        self.too_long = tell(program, "log", 2, Padded(b"not logged", MAX_LOG_TEXT + 1))
        self.log_not_utf8 = tell(program, "log", 2, text(b"not logged\xff"))
        self.level_first = program.call("log", 5, Padded(b"\xff", MAX_LOG_TEXT + 1))
        self.size_first = program.call("log", 4, Padded(b"\xff", MAX_LOG_TEXT + 1))
        self.empty = program.call("log", 0, text(""))
        self.logger = stage.add("logger", program)


@pytest.mark.parametrize("key", CONFIG)
def test_config_values_arrive_as_they_are_written(guests: Cast, key: str) -> None:
    """Each type of the manifest's has its CBOR item."""
    assert guests.reader.called(guests.config[key]).data == cbor2.dumps(CONFIG[key][1])


def test_config_that_does_not_fit_is_nobufs(guests: Cast) -> None:
    """Exactly its size is enough; one byte less is refused, and `needed` tells the size."""
    size = guests.reader.value(guests.exact)
    assert guests.reader.told(guests.small) == (
        -Errno.NOBUFS,
        f"the buffer has {size - 1} bytes: {size} are needed",
    )
    assert guests.reader.value(guests.needed) == size
    assert guests.reader.value(guests.no_room) == -Errno.NOBUFS


def test_an_unknown_key_is_noent_and_the_others_are_named(guests: Cast) -> None:
    """The sentence has the key and those that there are; whether it would fit is not asked."""
    assert guests.reader.told(guests.missing) == (
        -Errno.NOENT,
        f"[config] has no key 'other': it has {sorted(CONFIG)}",
    )
    assert guests.reader.told(guests.no_key)[0] == -Errno.NOENT
    assert guests.reader.told(guests.not_utf8) == (-Errno.ILSEQ, r"the key b'\xff\xfe' is not UTF-8")
    assert guests.reader.value(guests.noent_first) == -Errno.NOENT


def test_the_last_sentence_is_kept_and_cut_where_a_character_ends(guests: Cast) -> None:
    """None at first; then the last refusal's, whole or as much as fits, also after a call that succeeds."""
    whole = "publish to 'é' is not granted: ipc_publish = []".encode()
    assert guests.failing.value(guests.no_error) == 0
    found = [guests.failing.called(each).data for each in guests.sentences]
    assert found == [whole, whole[:12], whole[:14], whole[:15], b""]
    assert [guests.failing.value(each) for each in guests.sentences] == [len(each) for each in found]
    assert guests.failing.called(guests.kept).data == whole


def test_needed_is_of_the_last_nobufs(guests: Cast) -> None:
    """0 at first; another refusal in between changes nothing."""
    assert guests.failing.value(guests.nothing_needed) == 0
    assert guests.failing.value(guests.still_needed) == len(b"\x80")


def test_random_fills_what_it_is_asked_for(guests: Cast) -> None:
    """Each call gives other bytes, in the range and nowhere else; 0 bytes and more than one chunk are allowed."""
    first, second, behind = (guests.world.called(each).data for each in guests.chance)
    assert len({first, second, bytes(32)}) == 3
    assert behind == bytes(32)
    assert guests.world.value(guests.no_chance) == guests.world.value(guests.much) == 0
    assert guests.world.called(guests.much_of_it).data != bytes(10)


def test_clocks(guests: Cast) -> None:
    """One is the wall's, in milliseconds; the other never steps back."""
    assert abs(guests.world.value(guests.clock) - time.time() * 1000) < 600_000
    times = [guests.world.value(each) for each in guests.monotonic]
    assert times == sorted(times)
    assert times[0] > 0


def test_ready_may_be_said_twice(guests: Cast) -> None:
    """And nobody has cancelled it."""
    assert [guests.world.value(each) for each in guests.ready] == [0, 0]
    assert guests.world.value(guests.cancelled) == 0


def test_log_lines_have_their_level(guests: Cast) -> None:
    """Levels 0 to 4 are trace to error, and the stream is the guest's."""
    assert [guests.logger.value(each) for each in guests.levels] == [0] * 5
    assert guests.logger.value(guests.empty) == 0
    found = [
        (line["level"], line["stream"], line["message"])
        for line in guests.logger.lines()
        if line["message"].startswith("level")
    ]
    assert found == [(name, "guest", f"level {level}") for level, name in enumerate(LOG_LEVELS)]


def test_a_level_that_is_not_there_is_refused(guests: Cast) -> None:
    """5 and above are inval, and the sentence says which there are."""
    for told, level in zip(guests.bad_levels, (5, 0xFFFF_FFFF), strict=True):
        assert guests.logger.told(told) == (
            -Errno.INVAL,
            f"there is no log level {level}: 0 is trace, 4 error",
        )
    assert guests.logger.value(guests.level_first) == -Errno.INVAL


def test_64_kib_are_the_longest_log_text(guests: Cast) -> None:
    """That much is one line; one byte more is msgsize, whatever it holds, and what is not UTF-8 is ilseq."""
    assert guests.logger.value(guests.longest) == 0
    assert guests.logger.told(guests.too_long) == (
        -Errno.MSGSIZE,
        "a log text of 65537 bytes: 65536 at most",
    )
    assert guests.logger.value(guests.size_first) == -Errno.MSGSIZE
    result, sentence = guests.logger.told(guests.log_not_utf8)
    assert result == -Errno.ILSEQ
    assert "is not UTF-8" in sentence
    guests.logger.value(guests.empty)
    messages = [line["message"] for line in guests.logger.lines()]
    assert [len(message) for message in messages if message.startswith("long")] == [MAX_LOG_TEXT]
    assert not [message for message in messages if message.startswith("not logged")]
