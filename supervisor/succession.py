"""The end of an instance whose successor serves: it gets no new messages, and reads what it has got."""

from __future__ import annotations

from typing import cast

import trio

from capsuled.supervisor import balance
from capsuled.supervisor.bus import Bus, BusDown
from capsuled.supervisor.instance import Instance

LOOK_SECONDS = 0.05
"""Between two looks at whether anything waits for it: the backbone is asked each time."""


async def drain(instance: Instance, bus: Bus, seconds: float) -> None:
    """Wait until an instance that is sent nothing any more has read all, and waits for more; `seconds` at most."""
    with trio.move_on_after(seconds):
        while not await _is_drained(instance, bus):  # noqa: ASYNC110  (nothing would tell)
            await trio.sleep(LOOK_SECONDS)


async def _is_drained(instance: Instance, bus: Bus) -> bool:
    if (claims := instance.claims()) is None:
        return instance.pid is None  # else its page cannot be read at this moment
    try:
        figures = await bus.figures()
    except BusDown:
        return True  # what waited for it is lost with the backbone
    member = figures.members.get(instance.index)
    if member is None:
        return True
    name = instance.manifest.package.name
    sheet = balance.sheet(name, cast("balance.Figures", member), figures.epoch, claims)
    # Who waits for the answer to a request of its own has not done with what it has read.
    return claims.idle and not member["waiting"] and not any(line.queued for line in sheet.lines)
