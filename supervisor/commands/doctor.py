"""`capsuled doctor`: what this machine can hold of the isolation, for this user, layer by layer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import trio

from capsuled.proto.control import Exit
from capsuled.supervisor import cgroups, modes, probe
from capsuled.supervisor.commands.capsuled import configured
from capsuled.supervisor.configuration import ConfigurationInvalid
from capsuled.supervisor.modes import LAYERS, LOST, Probed


def doctor(config: Path | None) -> Exit:
    """Try all layers and print a line for each. `Exit.DONE` when `capsuled run` would run like this.

    `config` is the configuration, None the one in its usual place, which need not be there.
    """
    try:
        using = configured(config)
        # Not the supervisor's, which may run at this moment.
        with cgroups.opened(cgroups.passer_by()) as groups:
            probed = trio.run(probe.probe, using.isolation.numbers()[0], groups)
    except ConfigurationInvalid as exc:
        for fault in exc.faults:
            print(f"capsuled: {fault}", file=sys.stderr)
        return Exit.FAILED
    except probe.CannotProbe as exc:
        print(f"capsuled: cannot find out how capsules can be isolated: {exc}", file=sys.stderr)
        return Exit.FAILED
    print("\n".join(lines(probed, os.uname().release, os.getuid())))
    if refusal := modes.refusal(probed, using.isolation.required, insecure=False):
        print(f"capsuled: {refusal}", file=sys.stderr)
        return Exit.FAILED
    return Exit.DONE


def lines(probed: Probed, kernel: str, uid: int) -> Iterator[str]:
    """What is printed, for people."""
    mode = modes.mode(probed)
    yield f"Linux {kernel}, user {uid}: mode {mode.value}, {LOST[mode]}"
    width = max(map(len, LAYERS))
    for name in LAYERS:
        held, why = probed.layers[name]
        yield f"{name:{width}}  {'held   ' if held else 'missing'}  {why}"
        if not held:
            yield f"{'':{width}}           {modes.ADVICE[name]}"
