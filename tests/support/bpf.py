"""The kernel's interpreter of classic BPF, as far as a seccomp program may use it: bpf(4), linux/filter.h."""

from __future__ import annotations

from collections.abc import Sequence

from capsuled.sandbox.seccomp import Instruction

_WORD = 0xFFFF_FFFF


def run(program: Sequence[Instruction], *, arch: int, nr: int, args: Sequence[int] = ()) -> int:
    """What the program returns for a call. Raises AssertionError where the kernel would refuse the program."""
    words = _seccomp_data(arch, nr, [*args, *(0,) * (6 - len(args))])
    accumulator, at = 0, 0
    while True:
        assert 0 <= at < len(program), f"it jumps out of itself, to {at}"
        code, if_true, if_false, operand = program[at]
        assert 0 <= if_true < 256, "a jump is a byte"
        assert 0 <= if_false < 256, "a jump is a byte"
        assert 0 <= operand <= _WORD, "an operand is a word"
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert operand % 4 == 0, "seccomp loads aligned words only"
            accumulator = words[operand // 4]
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= operand
        elif code == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += if_true if accumulator == operand else if_false
        elif code == 0x35:  # BPF_JMP | BPF_JGE | BPF_K
            at += if_true if accumulator >= operand else if_false
        elif code == 0x06:  # BPF_RET | BPF_K
            return operand
        else:
            raise AssertionError(f"instruction {at - 1} has the code {code:#x}, which is not known here")


def _seccomp_data(arch: int, nr: int, args: Sequence[int]) -> list[int]:
    """`struct seccomp_data` in words: number, architecture, instruction pointer, six arguments."""
    words = [nr & _WORD, arch, 0, 0]
    for value in args:
        words += [value & _WORD, value >> 32 & _WORD]
    return words
