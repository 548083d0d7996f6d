"""Guests for tests, written in Python and compiled to real WebAssembly.

A `Program` is a list of host calls that a guest makes one after the other. It logs the result of each as a line of
JSON, with the bytes that the host wrote into its buffer: what a test reads is what a guest saw.

    program = Program()
    handle = program.call("ipc_subscribe", text("a.b"))
    program.call("ready")
    program.call("ipc_recv", handle, 1000, buffer(4096))

Where a sequence is not enough, `wat` compiles any text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from capsuled.proto import abi, envelopes

SCRATCH = 64 * 1024
"""Where a log line is put together; strings and buffers stand above."""

DATA = 2 * 64 * 1024

BY_NAME = {function.name: function for function in abi.FUNCTIONS}


@dataclass(frozen=True)
class Text:
    """Bytes in the guest's memory: two arguments, pointer and length."""

    data: bytes


@dataclass(frozen=True)
class Padded:
    """These bytes and zeros after them, `size` in all: two arguments, pointer and length.

    Only the bytes stand in the module, so that megabytes cost nothing to compile.
    """

    head: bytes
    size: int


@dataclass(frozen=True)
class Buffer:
    """Room for the host to write into: two arguments, pointer and capacity."""

    size: int
    at: int | None = None
    """An address of the first page, where a test wants to know it."""


@dataclass(frozen=True)
class Result:
    """What an earlier call has returned."""

    number: int


Argument = int | Text | Padded | Buffer | Result


def text(value: str | bytes) -> Text:
    return Text(value.encode() if isinstance(value, str) else value)


def blob(size: int) -> Padded:
    """A payload of exactly `size` bytes, 6 at least: one CBOR byte string of zeros."""
    return Padded(b"\x5a" + (size - 5).to_bytes(4, "big"), size)


def buffer(size: int, at: int | None = None) -> Buffer:
    return Buffer(size, at)


def wat(source: str) -> bytes:
    """A module from its text format."""
    compiled: Callable[[str], bytes] = import_module("wasmer").wat2wasm
    return bytes(compiled(source))


@dataclass
class Program:
    """See the module's docstring. `entry` is the export that runs it."""

    entry: str = abi.RUN_EXPORT
    pages: int = 0
    """Of memory at least; it is made large enough for its texts and buffers anyway. The first page is free for
    what a test puts there by address."""
    imports: list[str] = field(default_factory=list[str])
    """Further ones, as WebAssembly's text has them."""
    _body: list[str] = field(default_factory=list[str])
    _data: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    _next: int = DATA
    _calls: int = 0
    _used: set[str] = field(default_factory=set[str])
    _loops: list[str] = field(default_factory=list[str])

    def call(self, name: str, *arguments: Argument, quiet: bool = False) -> Result:
        """A host call. Unless `quiet`, its result is logged, with what it has written."""
        function = BY_NAME[name]
        self._used.add(name)
        number, self._calls = self._calls, self._calls + 1
        pushed, where = self._push(function, arguments)
        wide = function.result == "i64"
        self._body.append(f"{pushed} call ${name} {'' if wide else 'i64.extend_i32_s'} local.set $r{number}")
        if not quiet:
            self._body.append(f"i32.const {number} local.get $r{number} i32.const {where} call $report")
        return Result(number)

    def show(self, at: int, size: int) -> Result:
        """Log these bytes of the memory as a call of the same number logs what it has written."""
        number, self._calls = self._calls, self._calls + 1
        self._body.append(f"i64.const {size} local.set $r{number}")
        self._body.append(f"i32.const {number} local.get $r{number} i32.const {at} call $report")
        return Result(number)

    def load(self, instructions: str) -> Result:
        """Log the i64 that these instructions leave."""
        number, self._calls = self._calls, self._calls + 1
        self._body.append(f"{instructions} local.set $r{number}")
        self._body.append(f"i32.const {number} local.get $r{number} i32.const 0 call $report")
        return Result(number)

    def big_endian(self, at: int) -> Result:
        """Log the 8 bytes at `at` as the number that CBOR writes like that."""
        parts = [f"(i64.load8_u (i32.const {at + i})) i64.const {56 - 8 * i} i64.shl" for i in range(8)]
        return self.load(" ".join(parts) + " i64.or" * 7)

    def number_of_request(
        self, at: int, topic: str, payload: bytes, source: str, principal: str = ""
    ) -> Result:
        """The number of the request whose envelope is at `at`: what `ipc_reply` takes. It has that topic, payload and
        source, and nothing is in the envelope beside it. The numbers of an epoch need all eight bytes."""
        part = envelopes.source_part(source.encode(), bytes(16), (principal or source).encode())
        model = envelopes.message(topic.encode(), payload, part, 1 << 41, 0, 0, envelopes.REQUEST)
        return self.big_endian(at + envelopes.envelope([model], 0, 0).index(b"\x63seq\x1b") + 5)

    def raw(self, instructions: str) -> None:
        """Instructions of one's own, such as ``unreachable``."""
        self._body.append(instructions)

    def loop(self, count: int, body: Program) -> None:
        """Run the calls that `body` holds so many times; `part` has made it."""
        label = f"$l{self._calls}_{len(self._body)}"
        counter = f"$n{len(self._body)}"
        self._loops.append(counter)
        inner = "\n".join(body._body)
        self._body.append(
            f"i32.const {count} local.set {counter} (loop {label} {inner} "
            f"local.get {counter} i32.const 1 i32.sub local.tee {counter} br_if {label})"
        )
        self._calls, self._next = body._calls, body._next
        self._data, self._used = body._data, body._used

    def part(self) -> Program:
        """An empty program that shares this one's memory, for `loop`."""
        made = Program(self.entry, self.pages)
        made._calls, made._next, made._data, made._used = self._calls, self._next, self._data, self._used
        return made

    def wasm(self, more: str = "") -> bytes:
        """The module. `more` is what else stands in it."""
        return wat(self.source(more))

    def source(self, more: str = "") -> str:
        pages = max(self.pages, self._next // 65536 + 1)
        used = sorted(self._used | {"log"})
        imports = "\n".join([_import(BY_NAME[name]) for name in used] + self.imports)
        locals_ = " ".join(f"(local $r{i} i64)" for i in range(self._calls))
        loops = " ".join(f"(local {name} i32)" for name in self._loops)
        data = "\n".join(f'(data (i32.const {at}) "{_escaped(value)}")' for at, value in self._data)
        body = "\n".join(self._body)
        return (
            f'(module {imports} (memory (export "memory") {pages}) {data} {_REPORT}\n'
            f'(func (export "{self.entry}") {locals_} {loops} {body})\n{more})'
        )

    def _push(self, function: abi.Function, arguments: tuple[Argument, ...]) -> tuple[str, int]:
        pushed: list[str] = []
        where = 0
        flat: list[str] = []
        for argument in arguments:
            if isinstance(argument, Text):
                at = self._place(argument.data)
                flat += [f"i32.const {at}", f"i32.const {len(argument.data)}"]
            elif isinstance(argument, Padded):
                at = self._place(argument.head, argument.size)
                flat += [f"i32.const {at}", f"i32.const {argument.size}"]
            elif isinstance(argument, Buffer):
                where = self._next if argument.at is None else argument.at
                self._next += argument.size + 16 if argument.at is None else 0
                flat += [f"i32.const {where}", f"i32.const {argument.size}"]
            elif isinstance(argument, Result):
                flat.append(f"local.get $r{argument.number}")
            else:
                flat.append(f"const {argument}")
        assert len(flat) == len(function.params), f"{function.name} takes {function.params}"
        for param, value in zip(function.params, flat, strict=True):
            if value.startswith("local.get"):
                pushed.append(value if param.type == "i64" else f"{value} i32.wrap_i64")
            elif value.startswith("const "):
                pushed.append(f"{param.type}.{value}")
            else:
                pushed.append(value)
        return " ".join(pushed), where

    def _place(self, value: bytes, size: int = 0) -> int:
        at = self._next
        self._data.append((at, value))
        self._next += max(len(value), size) + 16
        return at


def _import(function: abi.Function) -> str:
    params = " ".join(param.type for param in function.params)
    return (
        f'(import "{abi.MODULE}" "{function.name}" '
        f"(func ${function.name} (param {params}) (result {function.result})))"
    )


def _escaped(value: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in value)


# $report(number, result, at): log `{"call":N,"result":R,"hex":"…"}`, the bytes at `at` when the result is above 0.
_REPORT = r"""
(func $put (param $at i32) (param $byte i32) (result i32)
  local.get $at local.get $byte i32.store8 local.get $at i32.const 1 i32.add)
(func $digits (param $at i32) (param $value i64) (result i32) (local $power i64)
  (if (i64.lt_s (local.get $value) (i64.const 0))
    (then (local.set $at (call $put (local.get $at) (i32.const 45)))
          (local.set $value (i64.sub (i64.const 0) (local.get $value)))))
  (local.set $power (i64.const 1))
  (block $done (loop $grow
    (br_if $done (i64.lt_u (i64.div_u (local.get $value) (local.get $power)) (i64.const 10)))
    (local.set $power (i64.mul (local.get $power) (i64.const 10)))
    (br $grow)))
  (loop $next
    (local.set $at (call $put (local.get $at) (i32.add (i32.const 48)
      (i32.wrap_i64 (i64.rem_u (i64.div_u (local.get $value) (local.get $power)) (i64.const 10))))))
    (local.set $power (i64.div_u (local.get $power) (i64.const 10)))
    (br_if $next (i64.ne (local.get $power) (i64.const 0))))
  local.get $at)
(func $nibble (param $n i32) (result i32)
  (select (i32.add (local.get $n) (i32.const 48)) (i32.add (local.get $n) (i32.const 87))
    (i32.lt_u (local.get $n) (i32.const 10))))
(func $report (param $number i32) (param $result i64) (param $from i32)
  (local $at i32) (local $i i32) (local $byte i32)
  (local.set $at (i32.const 65536))
  (local.set $at (call $text (local.get $at) (i64.const 0x3a226c6c6163227b)))
  (local.set $at (call $digits (local.get $at) (i64.extend_i32_u (local.get $number))))
  (local.set $at (call $text (local.get $at) (i64.const 0x746c75736572222c)))
  (local.set $at (call $text (local.get $at) (i64.const 0x3a22)))
  (local.set $at (call $digits (local.get $at) (local.get $result)))
  (local.set $at (call $text (local.get $at) (i64.const 0x223a22786568222c)))
  (if (local.get $from) (then
    (block $done (loop $next
      (br_if $done (i64.ge_s (i64.extend_i32_u (local.get $i)) (local.get $result)))
      (br_if $done (i32.ge_u (local.get $i) (i32.const 30000)))
      (local.set $byte (i32.load8_u (i32.add (local.get $from) (local.get $i))))
      (local.set $at (call $put (local.get $at) (call $nibble (i32.shr_u (local.get $byte) (i32.const 4)))))
      (local.set $at (call $put (local.get $at) (call $nibble (i32.and (local.get $byte) (i32.const 15)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))))
  (local.set $at (call $text (local.get $at) (i64.const 0x7d22)))
  (drop (call $log (i32.const 2) (i32.const 65536) (i32.sub (local.get $at) (i32.const 65536)))))
(func $text (param $at i32) (param $chars i64) (result i32)
  (loop $next
    (local.set $at (call $put (local.get $at) (i32.wrap_i64 (i64.and (local.get $chars) (i64.const 255)))))
    (local.set $chars (i64.shr_u (local.get $chars) (i64.const 8)))
    (br_if $next (i64.ne (local.get $chars) (i64.const 0))))
  local.get $at)
"""
