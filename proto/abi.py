"""The guest ABI, version 1, as one table: what a guest may import from the module ``capsule``.

The worker binds its host functions from this table, the loader checks a guest's imports against it,
and the C header is generated from it; so none of them can drift.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

VERSION = 1
MODULE = "capsule"
"""The import module of the host functions."""

MEMORY_EXPORT = "memory"
RUN_EXPORT = "run"
START_EXPORT = "_start"
"""WASI's command entry, taken where there is no `run`."""
INITIALIZE_EXPORT = "_initialize"
"""WASI's reactor entry: called once, before `run`, where it is exported."""

ValueType = Literal["i32", "i64"]

MAX_LOG_TEXT = 64 * 1024
"""Longest text of one `log` call in bytes."""

MAX_RECV_TIMEOUT_MS = 60_000
"""A longer timeout of a receive is clamped to this, never refused."""


class Param(NamedTuple):
    """A parameter: its name, its WebAssembly type, and its type in C."""

    name: str
    type: ValueType
    c: str


class Function(NamedTuple):
    """A host function: its name, parameters, the type and the meaning of its result."""

    name: str
    params: tuple[Param, ...]
    result: ValueType
    meaning: str

    @property
    def signature(self) -> tuple[tuple[ValueType, ...], tuple[ValueType, ...]]:
        """Parameter types and result types, as WebAssembly has them."""
        return tuple(p.type for p in self.params), (self.result,)


def _text(name: str) -> tuple[Param, Param]:
    return Param(name, "i32", "const char *"), Param(f"{name}_len", "i32", "uint32_t")


_PAYLOAD = (Param("payload", "i32", "const void *"), Param("payload_len", "i32", "uint32_t"))
_BUFFER = (Param("buf", "i32", "void *"), Param("cap", "i32", "uint32_t"))
_HANDLE = Param("handle", "i32", "uint32_t")

FUNCTIONS: tuple[Function, ...] = (
    Function("ipc_publish", (*_text("topic"), *_PAYLOAD), "i32", "0"),
    Function(
        "ipc_publish_caused",
        (*_text("topic"), *_PAYLOAD, Param("cause", "i64", "uint64_t")),
        "i32",
        "0; `cause` is the `seq` of a received message, whose principal is carried on",
    ),
    Function(
        "ipc_request",
        (*_text("topic"), *_PAYLOAD, Param("timeout_ms", "i32", "uint32_t")),
        "i32",
        "a handle, greater than 0, on which capsule_ipc_recv() gets the one answer, or its failure; then it is gone",
    ),
    Function(
        "ipc_reply",
        (Param("request", "i64", "uint64_t"), *_PAYLOAD),
        "i32",
        "0; `request` is the `seq` of a message that has `request`: true",
    ),
    Function(
        "ipc_decline",
        (Param("request", "i64", "uint64_t"), *_text("reason")),
        "i32",
        "0; its sender gets -CAPSULE_ECONNREFUSED and this reason",
    ),
    Function("ipc_subscribe", _text("pattern"), "i32", "a handle, greater than 0"),
    Function("ipc_unsubscribe", (_HANDLE,), "i32", "0"),
    Function("ipc_poll", (_HANDLE, *_BUFFER), "i32", "bytes of the envelope; never blocks"),
    Function(
        "ipc_recv",
        (_HANDLE, Param("timeout_ms", "i32", "uint32_t"), *_BUFFER),
        "i32",
        "bytes of the envelope, after a message, the timeout (60 000 ms at most) or -CAPSULE_ECANCELED",
    ),
    Function(
        "ipc_interceptors", _BUFFER, "i32", "bytes of a CBOR list of {handle_id, action, topic} written"
    ),
    Function(
        "config_get",
        (*_text("key"), *_BUFFER),
        "i32",
        "bytes of the CBOR item from the manifest's [config] written",
    ),
    Function("error_message", _BUFFER, "i32", "bytes of the sentence of the last refusal written; 0 if none"),
    Function("needed", (), "i32", "bytes that the last -CAPSULE_ENOBUFS asked for"),
    Function("log", (Param("level", "i32", "uint32_t"), *_text("text")), "i32", "0; level 0 trace … 4 error"),
    Function("clock_ms", (), "i64", "milliseconds since the Unix epoch"),
    Function("monotonic_ns", (), "i64", "nanoseconds of a clock that never steps back"),
    Function("random", (Param("buf", "i32", "void *"), Param("len", "i32", "uint32_t")), "i32", "0"),
    Function("ready", (), "i32", "0; says that this capsule is ready to serve"),
    Function(
        "cancelled", (), "i32", "0 while it may run, else milliseconds left until it is killed, at least 1"
    ),
)
