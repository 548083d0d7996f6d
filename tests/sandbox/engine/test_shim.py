"""What a guest passes is what a host function gets, and the other way round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capsuled.proto.abi import ValueType
from capsuled.sandbox.engine import shim
from capsuled.sandbox.engine.binary import inspect
from capsuled.sandbox.engine.seam import Guest, HostFunction, Signature

MakeGuest = Callable[..., Guest]

NINE: list[ValueType] = ["i32"] * 9
TWENTY: list[ValueType] = ["i64"] * 20

SIGNATURES: list[Signature] = [
    ((), ("i32",)),
    (("i64",), ("i64",)),
    (("i32", "i64"), ()),
    (("i32", "i32", "i32", "i32"), ("i32",)),
    (("i32", "i32", "i32", "i32", "i64"), ("i32",)),
    (("i32", "i64", "i32", "i64", "i32", "i64"), ("i64",)),
    (tuple(NINE), ("i32",)),
    (tuple(TWENTY), ("i32",)),
]


def passed(
    make_guest: MakeGuest, signature: Signature, arguments: list[int], result: int
) -> tuple[list[int], int]:
    """What the host got for these arguments, and what the guest got for this result, unsigned."""
    params, results = signature
    got: list[int] = []

    def function(*values: int) -> int:
        got.extend(values)
        return result

    types = " ".join(params)
    call = "(call $f " + " ".join(f"({k}.const {a})" for k, a in zip(params, arguments, strict=True)) + ")"
    store = f"({results[0]}.store (i32.const 8) {call})" if results else call
    guest = make_guest(
        f"""(module (import "h" "f" (func $f (param {types}) (result {" ".join(results)})))
          (memory (export "memory") 1) (func (export "run") {store}))""",
        f=HostFunction(signature, function),
    )
    guest.call("run")
    return got, int.from_bytes(guest.memory.read(8, 8), "little")


@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
def test_arguments_keep_their_order(make_guest: MakeGuest, signature: Signature) -> None:
    """From none to twenty, of both types: each argument arrives in its place, with all of its bits."""
    arguments = [
        (i + 1) * (0x0101_0101_0101 if kind == "i64" else 0x0101) for i, kind in enumerate(signature[0])
    ]
    assert passed(make_guest, signature, arguments, 5) == (arguments, 5 if signature[1] else 0)


@pytest.mark.parametrize(("kind", "bits"), [("i32", 32), ("i64", 64)])
@pytest.mark.parametrize("value", [-1, -4, 0, 1])
def test_arguments_are_unsigned(make_guest: MakeGuest, kind: ValueType, bits: int, value: int) -> None:
    """What the engine sees as -4 is the pointer 0xfffffffc: no argument is negative."""
    assert passed(make_guest, ((kind,), (kind,)), [value], 0) == ([value % (1 << bits)], 0)


@pytest.mark.parametrize(("kind", "bits"), [("i32", 32), ("i64", 64)])
def test_results_may_be_signed(make_guest: MakeGuest, kind: ValueType, bits: int) -> None:
    """A negated errno arrives as the guest's negative number, and the largest one whole."""
    for value in (-21, 2**bits - 1, 2 ** (bits - 1), 0):
        assert passed(make_guest, ((), (kind,)), [], value) == ([], value % (1 << bits))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_call_is_passed_on_unchanged(make_guest: MakeGuest, data: st.DataObject) -> None:
    """For any signature and values, the host gets what the guest gave, and the guest what the host gave."""
    kinds: st.SearchStrategy[ValueType] = st.sampled_from(("i32", "i64"))
    params = tuple(data.draw(st.lists(kinds, max_size=12)))
    result = data.draw(kinds)
    values = [data.draw(st.integers(0, 2 ** int(kind[1:]) - 1)) for kind in params]
    answer = data.draw(st.integers(0, 2 ** int(result[1:]) - 1))
    assert passed(make_guest, (params, (result,)), values, answer) == (values, answer)


def test_shim_has_the_signatures_it_is_built_from() -> None:
    """Function `i` is exported as `i` with its signature; more than 127 of them make longer numbers."""
    signatures = [SIGNATURES[i % len(SIGNATURES)] for i in range(200)]
    info = inspect(shim.build(signatures))
    assert info.exports == {str(i): ("function", each) for i, each in enumerate(signatures)}
    assert [(each.module, each.name) for each in info.imports] == [
        *((shim.HOST, str(i)) for i in range(200)),
        (shim.HOST, shim.MEMORY),
    ]
