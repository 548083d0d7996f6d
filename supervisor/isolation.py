"""What a worker is confined by, seen from outside: the kernel's files, never the worker's word.

proc(5): status, limits, task/ and ns/ of /proc/PID. A kernel does not show everything: Landlock stands in no file, and
the root of another's process may be looked at by root alone. These are steps of a plan that ends the worker when one
fails, and are followed by one that is seen, seccomp: who has its filters has passed them. What runs until then is our
own code, for no byte of the module has been read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from capsuled.proto.order import Confinement
from capsuled.supervisor.cgroups import Group
from capsuled.supervisor.modes import ADVICE, LAYERS, Layer

STAGES = 2
"""Of seccomp: the filters that a worker puts on itself."""

NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
"""Links in /proc/PID/ns that must not be ours."""

_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")


class Expected(NamedTuple):
    """What a worker was told, and what was seen of it when it was cloned."""

    session: int
    confinement: Confinement
    namespaces: Layer
    group: Group
    """The control group that it was put into."""


def namespaces(pid: int) -> Layer:
    """The namespaces of a process, as against ours. Who may not trace it sees them only while it is dumpable."""
    kinds = (*NAMESPACES, "user")
    try:
        own = [kind for kind in kinds if _link("self", kind) != _link(str(pid), kind)]
    except OSError as exc:
        return Layer(False, f"cannot be seen: {exc.strerror}")
    shared = [kind for kind in NAMESPACES if kind not in own]
    return Layer(
        not shared, f"own: {', '.join(own) or 'none'}" + (f"; shared: {', '.join(shared)}" if shared else "")
    )


NOT_CLONED = Layer(False, "those of the supervisor")
"""Of a process that has no namespaces of its own, or not yet."""


def observe(pid: int, expected: Expected) -> dict[str, Layer]:
    """The layers of a worker. A process that has just ended has none, and each says so."""
    try:
        status = _status(pid)
        limits = _limits(pid)
        own_session = os.getsid(pid) == expected.session
        seccomp = _seccomp(pid)
        limited = expected.group.seen(pid)
    except (OSError, ValueError) as exc:
        return {name: Layer(False, f"cannot be seen: {exc}") for name in LAYERS}
    wanted = expected.confinement
    sets = {name: status.get(name, "?") for name in (*_CAPABILITIES, "CapBnd")}
    found = {
        "process": Layer(own_session, f"a process of its own, session {expected.session}"),
        "rlimits": Layer(
            all(limits[name] != _UNLIMITED for name in _LIMITED),
            ", ".join(f"{name.removeprefix('Max ')} {limits[name]}" for name in _LIMITED),
        ),
        "no_new_privs": Layer(status.get("NoNewPrivs") == "1", f"NoNewPrivs {status.get('NoNewPrivs')}"),
        "capabilities": Layer(
            all(sets[name].strip("0") == "" for name in _CAPABILITIES),
            ", ".join(f"{name} {value}" for name, value in sets.items()),
        ),
        "uid": _user(status, wanted.user),
        "namespaces": expected.namespaces,
        "root": _root(pid, wanted, seccomp),
        "landlock": _passed(wanted.landlock, "landlock", seccomp),
        "seccomp": seccomp,
        "cgroup": limited,
    }
    return {name: found[name] for name in LAYERS}


_LIMITED = (
    *("Max data size", "Max stack size", "Max open files", "Max file size", "Max core file size"),
    "Max locked memory",
)
"""As /proc/PID/limits calls them; everybody may read it, where prlimit(2) asks for a privilege."""

_UNLIMITED = "unlimited"


def _limits(pid: int) -> dict[str, str]:
    """Soft limits by name. A line is the name, which may hold blanks, and three columns."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:25].strip(): line[25:].split()[0] for line in lines}


def _status(pid: int, thread: str = "") -> dict[str, str]:
    where = Path(f"/proc/{pid}/task/{thread}/status") if thread else Path(f"/proc/{pid}/status")
    pairs = (line.split(":", 1) for line in where.read_text().splitlines() if ":" in line)
    return {name: value.strip() for name, value in pairs}


def _link(pid: str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def _user(status: dict[str, str], user: int | None) -> Layer:
    ids = {*status.get("Uid", "?").split(), *status.get("Gid", "?").split()}
    told = f"uid {status.get('Uid', '?').split()[0]}, gid {status.get('Gid', '?').split()[0]}"
    if user is None:
        return Layer(False, f"{told}: the supervisor's")
    groups = status.get("Groups", "?")
    return Layer(ids == {str(user)} and not groups, told + (f", groups {groups}" if groups else ""))


def _seccomp(pid: int) -> Layer:
    """Filtered on every thread, by as many filters more than we have ourselves as there are stages."""
    ours = _status(os.getpid())
    threads = [_status(pid, thread) for thread in os.listdir(f"/proc/{pid}/task")]
    modes = {thread.get("Seccomp", "?") for thread in threads}
    if "Seccomp_filters" not in ours:  # before Linux 5.9
        held = modes == {"2"} and ours.get("Seccomp") == "0"
        return Layer(held, f"Seccomp {'/'.join(sorted(modes))} on {len(threads)} threads")
    filters = {int(thread["Seccomp_filters"]) - int(ours["Seccomp_filters"]) for thread in threads}
    held = modes == {"2"} and min(filters) >= STAGES
    counted = "/".join(map(str, sorted(filters)))
    return Layer(held, f"Seccomp {'/'.join(sorted(modes))} with {counted} filters on {len(threads)} threads")


def _root(pid: int, wanted: Confinement, seccomp: Layer) -> Layer:
    if wanted.namespaces == "none":
        return Layer(False, "the supervisor's")
    try:
        found = os.listdir(f"/proc/{pid}/root")
        writable = not os.statvfs(f"/proc/{pid}/root").f_flag & os.ST_RDONLY
    except OSError:
        return _passed(True, "root", seccomp)
    if found:
        return Layer(False, f"there is {found[0]} in it")
    return Layer(not writable, "empty, but it can be written" if writable else "empty, and cannot be written")


def _passed(wanted: bool, name: str, seccomp: Layer) -> Layer:
    """A layer that the kernel shows nowhere."""
    if not wanted:
        return Layer(False, f"not on this machine: {ADVICE[name]}")
    if not seccomp.held:
        return Layer(False, "not seen: no file shows it, and seccomp, which comes after it, is not there")
    return Layer(
        True,
        "no file shows it; it comes before seccomp in the plan, which ends the worker at a step that fails",
    )
