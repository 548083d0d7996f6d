"""A capsule as the control socket shows it."""

from __future__ import annotations

import os
from dataclasses import asdict

import psutil

from capsuled.proto.control import State
from capsuled.supervisor import clock
from capsuled.supervisor.capsule import Capsule
from capsuled.supervisor.control.shapes import Json, JsonObject
from capsuled.supervisor.metrics import Process
from capsuled.supervisor.usage import Target


def capsule_shape(capsule: Capsule, usage: JsonObject) -> JsonObject:
    """The capsule of the control contract. Sizes are bytes, durations seconds."""
    instance, manifest = capsule.instance, capsule.entry.manifest
    pid = instance.pid if instance is not None else None
    limits: dict[str, Json] = asdict(manifest.limits)
    last: Json = capsule.exits[0].shape() if capsule.exits else None
    return {
        "name": capsule.name,
        "desired": capsule.desired.value,
        "state": capsule.state.value,
        "ready": capsule.state is State.READY,
        "since": clock.rfc3339(capsule.since),
        "pid": pid,
        "instance": capsule.instance_id,
        "attempt": capsule.budget.attempt,
        "next_attempt_at": None
        if capsule.next_attempt_at is None
        else clock.rfc3339(capsule.next_attempt_at),
        "last_exit": last,
        "usage": usage,
        "limits": limits,
        "engine": instance.engine if instance is not None and instance.engine else manifest.component.engine,
        "isolation": {}
        if instance is None
        else {name: layer._asdict() for name, layer in instance.layers().items()},
        "version": manifest.package.version,
        "manifest": str(capsule.entry.manifest_path),
        "waits_for": None if (provider := _awaited(capsule)) is None else provider.name,
        "beside": [
            {"instance": each.id.hex, "pid": each.pid, "version": each.manifest.package.version}
            for each in capsule.instances
            if each is not instance
        ],
    }


def _awaited(capsule: Capsule) -> Capsule | None:
    return capsule.awaited if capsule.state is State.STARTING else None


def next_sentence(capsule: Capsule) -> str:
    """What happens now, or what the operator has to do."""
    name = capsule.name
    match capsule.state:
        case State.READY:
            if capsule.successor is not None:
                return "it runs; its successor is starting, and takes over when it is ready"
            return "it runs"
        case State.STARTING:
            if (provider := capsule.awaited) is not None:
                return f"it waits until {provider.name} is ready, which is {provider.state.value}"
            timeout = capsule.entry.manifest.supervision.ready_timeout
            return f"it is starting; it is killed when it is not ready within {timeout:g} s"
        case State.STOPPING:
            return f"it is being stopped; it is killed after {capsule.entry.manifest.supervision.stop_timeout:g} s"
        case State.BACKOFF:
            when = clock.rfc3339(capsule.next_attempt_at) if capsule.next_attempt_at else "soon"
            policy = capsule.budget.policy
            failures = f"{capsule.budget.failures} of {policy.start_limit} failures"
            within = f"within {policy.start_limit_interval:g} s, at the last of which it is given up"
            counted = f" ({failures} {within})" if policy.start_limit else ""
            return f"it is started again at {when}, attempt {capsule.budget.attempt}{counted}"
        case State.FAILED:
            return f"nothing: it failed too often; mend it, then `capsulectl reset-failed {name}`"
        case State.STOPPED:
            return f"nothing until `capsulectl start {name}`"


def target(capsule: Capsule) -> Target | None:
    """What there is to sample of it; None while it has no process."""
    instance = capsule.instance
    if instance is None or (pid := instance.pid) is None:
        return None

    def memory() -> int:
        claims = instance.claims()
        return 0 if claims is None else claims.memory

    return Target(instance.index, pid, memory)


def own_processes(backbone: int | None) -> list[Process]:
    """The supervisor itself and its backbone, where it has a process."""
    pids = {"supervisor": os.getpid(), **({} if backbone is None else {"backbone": backbone})}
    return [_own(name, pid) for name, pid in pids.items()]


def _own(name: str, pid: int) -> Process:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Process(name, pid, round(times.user + times.system, 3), process.memory_info().rss)
    except psutil.Error:
        return Process(name, pid, None, None)
