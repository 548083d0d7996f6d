"""What this machine can hold of the isolation, for this user: tried in a process that is thrown away.

The worker's own steps try it (`capsuled.sandbox.probing`), in a process that is started as a worker is. Nothing is
concluded from a version.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AsyncExitStack
from typing import cast

import trio

from capsuled.proto.order import Namespaces
from capsuled.supervisor import spawn
from capsuled.supervisor.cgroup_layout import Caps
from capsuled.supervisor.cgroups import Group, Groups
from capsuled.supervisor.modes import LAYERS, Layer, Probed
from capsuled.supervisor.quantities import MIB

COMMAND = (sys.executable, "-I", "-B", "-m", "capsuled.sandbox.probing")

SECONDS = 20.0
"""It takes a tenth of one."""

CAPS = Caps.beside(512 * MIB, 1.0)
"""Of the process that tries: far more than it takes."""

MOST = 64 * 1024
"""Bytes of its answer, far more than it has."""


class CannotProbe(Exception):
    """The process that tries has failed; the message says how."""


async def probe(user: int, groups: Groups) -> Probed:
    """Try all layers; `user` is a number that capsules may have as their own. Call it in Trio's main thread.

    Raises `CannotProbe`.
    """
    async with AsyncExitStack() as stack:
        try:
            group = await stack.enter_async_context(groups.group("probe", CAPS))
        except spawn.SpawnError as exc:
            group = Group("", (), CAPS, str(exc))  # this layer is missing, and the others are tried
        try:
            return await _probe(user, group)
        except (spawn.SpawnError, OSError) as exc:
            raise CannotProbe(str(exc)) from exc


async def _probe(user: int, group: Group) -> Probed:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process = spawn.spawn((*COMMAND, str(user)), stdin=null, stdout=writer, stderr=2)
    except spawn.SpawnError:
        os.close(reader)
        raise
    finally:
        os.close(null)
        os.close(writer)
    said, how, limited = b"", "it has not ended", Layer(False, "not tried")
    with trio.CancelScope(shield=True):
        limited = _join(group, process.pid)
        with trio.move_on_after(SECONDS):
            async with trio.lowlevel.FdStream(reader) as pipe:
                while len(said) < MOST and (data := await pipe.receive_some(MOST)):
                    said += data
        process.kill()  # it has closed its output, or will never
        ended = await process.wait()
        how = f"it ended with status {ended.status}, signal {ended.signal}"
    return read(said, how, limited)


def _join(group: Group, pid: int) -> Layer:
    """The process that tries is limited itself, and it is looked whether it is."""
    try:
        group.join(pid)
        return group.seen(pid)
    except OSError as exc:
        return Layer(False, f"cannot be used: {exc}")


def read(said: bytes, ended: str, limited: Layer) -> Probed:
    """What the process that tried has said, and whether a control group held it.

    Raises `CannotProbe`, with how it ended, for anything else.
    """
    try:
        told = cast(dict[str, dict[str, object]], json.loads(said))
        layers = {name: Layer(bool(each["held"]), str(each["why"])) for name, each in told.items()}
        kind = str(told["namespaces"]["how"]) or "none"
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CannotProbe(f"the process that tries the isolation has not answered: {ended}") from exc
    layers["process"] = Layer(True, "each capsule has a process and a session of its own")
    layers["cgroup"] = limited
    if missing := set(LAYERS) - set(layers):
        raise CannotProbe(f"the process that tries the isolation has not tried {sorted(missing)}: {ended}")
    return Probed({name: layers[name] for name in LAYERS}, cast(Namespaces, kind))
