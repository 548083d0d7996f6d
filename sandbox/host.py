"""The host functions of the guest ABI: from a guest's pointers to the worker's rules, and a refusal back as a value.

One method for each line of the table in `proto.abi`, under its name. A call that is refused answers the negated
errno and leaves a sentence. Nothing may be raised into the engine but what ends the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from capsuled.proto import abi, payloads, topics
from capsuled.proto.control import LOG_LEVELS, LogStream
from capsuled.proto.refusals import Errno, Refusal
from capsuled.sandbox import ipc as ipc_module
from capsuled.sandbox.engine.seam import GuestMemory, HostFunction, OutOfBounds
from capsuled.sandbox.ipc import Ipc
from capsuled.sandbox.logs import Logs
from capsuled.sandbox.page import Page
from capsuled.sandbox.supervisor import Supervisor

RANDOM_CHUNK = 64 * 1024
"""Random bytes are made in pieces, so that a guest that asks for 4 GiB does not get them twice."""


class _NoMemory:
    """Before the guest is instantiated: every range is outside."""

    def read(self, pointer: int, length: int) -> bytes:
        raise OutOfBounds(f"{length} bytes at {pointer}: the memory is not there yet")

    def write(self, pointer: int, data: bytes) -> None:
        raise OutOfBounds(f"{len(data)} bytes at {pointer}: the memory is not there yet")

    def check(self, pointer: int, length: int) -> None:
        raise OutOfBounds(f"{length} bytes at {pointer}: the memory is not there yet")

    def size(self) -> int:
        return 0


class Readiness(Protocol):
    """Told that the guest is ready."""

    def __call__(self) -> None: ...


class Host:
    """What a guest may call."""

    def __init__(
        self,
        ipc: Ipc,
        logs: Logs,
        supervisor: Supervisor,
        page: Page,
        config: Mapping[str, bytes],
        on_ready: Readiness,
        has_run_loop: bool,
    ) -> None:
        self.memory: GuestMemory = _NoMemory()
        self._ipc = ipc
        self._logs = logs
        self._supervisor = supervisor
        self._page = page
        self._config = config
        self._on_ready = on_ready
        self._has_run_loop = has_run_loop
        self._sentence = b""
        self._needed = 0

    def functions(self) -> dict[tuple[str, str], HostFunction]:
        """The table's functions, bound to this host."""
        return {
            (abi.MODULE, each.name): HostFunction(each.signature, self._bound(each.name))
            for each in abi.FUNCTIONS
        }

    # ── messages ─────────────────────────────────────────────────────────────────────────────────

    def ipc_publish(self, topic: int, topic_len: int, payload: int, payload_len: int, cause: int = 0) -> int:
        # The busiest line of a publisher, so it has no guard around it. All checks before `read(payload, …)` are
        # done without touching the payload, and a refusal costs no quota.
        try:
            ipc, memory = self._ipc, self.memory
            if topic_len > topics.MAX_BYTES:
                raise ipc_module.too_long("publish to", topic_len)
            name = memory.read(topic, topic_len)
            ipc.check_topic(name)
            if payload_len > ipc.max_payload:
                raise Refusal(
                    Errno.MSGSIZE, f"a payload of {payload_len} bytes: max_payload is {ipc.max_payload}"
                )
            memory.check(payload, payload_len)
            ipc.admit(payload_len)
            ipc.publish(name, memory.read(payload, payload_len), cause)
        except (Refusal, OutOfBounds) as exc:
            return self._refuse(exc)
        return 0

    def ipc_publish_caused(
        self, topic: int, topic_len: int, payload: int, payload_len: int, cause: int
    ) -> int:
        if not cause:
            return self._refuse(Refusal(Errno.BADF, "the message 0 was not delivered here lately: no cause"))
        return self.ipc_publish(topic, topic_len, payload, payload_len, cause)

    def ipc_request(self, topic: int, topic_len: int, payload: int, payload_len: int, timeout_ms: int) -> int:
        if topic_len > topics.MAX_BYTES:
            raise ipc_module.too_long("publish to", topic_len)
        name = self.memory.read(topic, topic_len)
        self._ipc.check_topic(name)
        return self._ipc.request(name, self._admitted(payload, payload_len), timeout_ms)

    def ipc_reply(self, request: int, payload: int, payload_len: int) -> int:
        self._ipc.reply(request, self._admitted(payload, payload_len))
        return 0

    def ipc_decline(self, request: int, reason: int, reason_len: int) -> int:
        if reason_len > topics.MAX_BYTES:
            raise Refusal(Errno.MSGSIZE, f"a reason of {reason_len} bytes: {topics.MAX_BYTES} at most")
        text = self.memory.read(reason, reason_len)
        _text("reason", text)
        self._ipc.decline(request, text)
        return 0

    def ipc_subscribe(self, pattern: int, pattern_len: int) -> int:
        if pattern_len > topics.MAX_BYTES:
            raise ipc_module.too_long("subscribe to", pattern_len)
        return self._ipc.subscribe(self.memory.read(pattern, pattern_len))

    def ipc_unsubscribe(self, handle: int) -> int:
        self._ipc.unsubscribe(handle)
        return 0

    def ipc_poll(self, handle: int, buf: int, cap: int) -> int:
        self.memory.check(buf, cap)
        return self._fill(buf, self._ipc.poll(handle, cap))

    def ipc_recv(self, handle: int, timeout_ms: int, buf: int, cap: int) -> int:
        self.memory.check(buf, cap)
        return self._fill(buf, self._ipc.receive(handle, timeout_ms, cap))

    def ipc_interceptors(self, buf: int, cap: int) -> int:
        listed = self._ipc.interceptors() if self._has_run_loop else []
        return self._give(buf, cap, payloads.encode(listed))

    # ── the capsule itself ───────────────────────────────────────────────────────────────────────

    def config_get(self, key: int, key_len: int, buf: int, cap: int) -> int:
        name = _text("key", self.memory.read(key, key_len))
        if name not in self._config:
            raise Refusal(Errno.NOENT, f"[config] has no key '{name[:64]}': it has {sorted(self._config)}")
        return self._give(buf, cap, self._config[name])

    def ready(self) -> int:
        self._on_ready()
        return 0

    def cancelled(self) -> int:
        self._ipc.flush_due()  # what computes for long calls this, if anything
        return self._supervisor.left_ms()

    def log(self, level: int, text: int, text_len: int) -> int:
        if level >= len(LOG_LEVELS):
            raise Refusal(
                Errno.INVAL, f"there is no log level {level}: 0 is trace, {len(LOG_LEVELS) - 1} error"
            )
        if text_len > abi.MAX_LOG_TEXT:
            raise Refusal(Errno.MSGSIZE, f"a log text of {text_len} bytes: {abi.MAX_LOG_TEXT} at most")
        line = self.memory.read(text, text_len)
        _text("log text", line)
        self._logs.write(LogStream.GUEST, level, line)
        self._ipc.flush_due()
        return 0

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    def error_message(self, buf: int, cap: int) -> int:
        # Cut and not refused where it does not fit: a refusal would replace the sentence that is asked for.
        self.memory.check(buf, cap)
        sentence = self._sentence[:cap].decode(errors="ignore").encode()
        return self._fill(buf, sentence)

    def needed(self) -> int:
        return self._needed

    # ── the world ────────────────────────────────────────────────────────────────────────────────

    def clock_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def random(self, buf: int, length: int) -> int:
        self.memory.check(buf, length)
        for start in range(0, length, RANDOM_CHUNK):
            self.memory.write(buf + start, os.urandom(min(RANDOM_CHUNK, length - start)))
        return 0

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _admitted(self, payload: int, payload_len: int) -> bytes:
        """A payload that is within its size and the rate; nothing of it is touched before."""
        if payload_len > self._ipc.max_payload:
            raise Refusal(
                Errno.MSGSIZE, f"a payload of {payload_len} bytes: max_payload is {self._ipc.max_payload}"
            )
        self.memory.check(payload, payload_len)
        self._ipc.admit(payload_len)
        return self.memory.read(payload, payload_len)

    def _bound(self, name: str) -> Callable[..., int]:
        method: Callable[..., int] = getattr(self, name)
        if name in _UNGUARDED:
            return method

        def guarded(*arguments: int) -> int:
            try:
                return method(*arguments)
            except (Refusal, OutOfBounds) as exc:
                return self._refuse(exc)

        return guarded

    def _refuse(self, exc: Refusal | OutOfBounds) -> int:
        refusal = exc if isinstance(exc, Refusal) else Refusal(Errno.FAULT, str(exc))
        self._sentence = refusal.sentence.encode(errors="replace")
        if refusal.errno is Errno.NOBUFS:
            self._needed = refusal.needed
        self._page.refused(refusal.errno)
        return -refusal.errno

    def _fill(self, buf: int, data: bytes) -> int:
        self.memory.write(buf, data)
        return len(data)

    def _give(self, buf: int, cap: int, data: bytes) -> int:
        self.memory.check(buf, cap)
        if len(data) > cap:
            raise Refusal(Errno.NOBUFS, f"the buffer has {cap} bytes: {len(data)} are needed", len(data))
        return self._fill(buf, data)


_UNGUARDED = {"ipc_publish", "ipc_publish_caused", "cancelled", "clock_ms", "monotonic_ns", "needed"}
"""Those that refuse nothing, or answer their refusals themselves."""


def _text(what: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise Refusal(Errno.ILSEQ, f"the {what} {data[:32]!r} is not UTF-8") from exc
