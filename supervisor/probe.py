"""What this machine can hold of the isolation, for this user: tried in a process that is thrown away.

The worker's own steps try it (`capsuled.sandbox.probing`), in a process that is started as a worker is. Nothing is
concluded from a version.
"""

from __future__ import annotations

import json
import os
import sys
from typing import cast

import trio

from capsuled.proto.order import Namespaces
from capsuled.supervisor import spawn
from capsuled.supervisor.modes import LAYERS, Layer, Probed

COMMAND = (sys.executable, "-I", "-B", "-m", "capsuled.sandbox.probing")

SECONDS = 20.0
"""It takes a tenth of one."""

MOST = 64 * 1024
"""Bytes of its answer, far more than it has."""

NO_CGROUP = "not in this version"


class CannotProbe(Exception):
    """The process that tries has failed; the message says how."""


async def probe(user: int) -> Probed:
    """Try all layers; `user` is a number that capsules may have as their own. Call it in Trio's main thread.

    Raises `CannotProbe`.
    """
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        process = spawn.spawn((*COMMAND, str(user)), stdin=null, stdout=writer, stderr=2)
    except spawn.SpawnError as exc:
        os.close(reader)
        raise CannotProbe(str(exc)) from exc
    finally:
        os.close(null)
        os.close(writer)
    said, how = b"", "it has not ended"
    with trio.CancelScope(shield=True):
        with trio.move_on_after(SECONDS):
            async with trio.lowlevel.FdStream(reader) as pipe:
                while len(said) < MOST and (data := await pipe.receive_some(MOST)):
                    said += data
        process.kill()  # it has closed its output, or will never
        ended = await process.wait()
        how = f"it ended with status {ended.status}, signal {ended.signal}"
    return read(said, how)


def read(said: bytes, ended: str) -> Probed:
    """What the process that tried has said. Raises `CannotProbe`, with how it ended, for anything else."""
    try:
        told = cast(dict[str, dict[str, object]], json.loads(said))
        layers = {name: Layer(bool(each["held"]), str(each["why"])) for name, each in told.items()}
        kind = str(told["namespaces"]["how"]) or "none"
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CannotProbe(f"the process that tries the isolation has not answered: {ended}") from exc
    layers["process"] = Layer(True, "each capsule has a process and a session of its own")
    layers["cgroup"] = Layer(False, NO_CGROUP)
    if missing := set(LAYERS) - set(layers):
        raise CannotProbe(f"the process that tries the isolation has not tried {sorted(missing)}: {ended}")
    return Probed({name: layers[name] for name in LAYERS}, cast(Namespaces, kind))
