"""``python -I -B -m capsuled.sandbox.probing USER``: which layers a worker could put around itself here.

Each layer is tried with the steps of the real plan, in a process that is thrown away, and what it should prevent is
tried afterwards: never is anything believed because of a version. Standard output is one JSON object, layer to
`{"held", "why"}`; a layer may be held in more than one way, and then `how` says which.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from capsuled.sandbox import kernel, namespaces, sealing, seccomp
from capsuled.sandbox.sealing import SealingFailed, Step

_MOST = 1000
"""Bytes of a reason, in a pipe that takes more than that at once."""


class Found(NamedTuple):
    held: bool
    why: str
    how: str = ""


def main() -> None:
    user = int(sys.argv[1])
    json.dump({name: found._asdict() for name, found in probe(user).items()}, sys.stdout)


def probe(user: int) -> dict[str, Found]:
    """Try all layers. `user` is a number that a worker could have as its own user."""
    found = {
        "uid": _try(_become(user), f"a process can become user {user}, or any other"),
        **_namespaces(),
        "capabilities": _try(sealing.privileges(None, user_namespace=False), "all can be given up"),
        "no_new_privs": _try([Step("no new privileges", kernel.set_no_new_privileges)], "can be set"),
        "rlimits": _try([Step("resource limits", _limit_files)], "a file that is written meets its limit"),
        "landlock": _try(_landlock(), ""),
        "seccomp": _try(_seccomp(), "a filter refuses what it should"),
    }
    if found["landlock"].held:
        found["landlock"] = Found(True, f"version {kernel.landlock_abi()}; no file can be opened")
    return found


def _namespaces() -> dict[str, Found]:
    """Without a namespace of users first: who has the privilege keeps it apart from the users' numbers."""
    root = [Step("empty root", namespaces.empty_root), Step("empty root", _check_root)]
    why = ""
    for how in ("all", "user"):
        flags = namespaces.flags(user=how == "user")
        maps = [Step("map of users", _map(os.getuid(), os.getgid()))] if how == "user" else []
        own = _try(maps, "mounts, processes, network, memory, host name and control groups of its own", flags)
        if own.held:
            return {"namespaces": own._replace(how=how), "root": _try([*maps, *root], "an empty one", flags)}
        why = f"{why}; with a namespace of users: {own.why}" if why else own.why
    return {"namespaces": Found(False, why), "root": Found(False, "it needs a namespace of mounts")}


def _map(uid: int, gid: int) -> Callable[[], None]:
    return lambda: namespaces.map_user(uid, gid)


def _check_root() -> None:
    if found := os.listdir("/"):
        raise OSError(f"there is {found[0]} in it")


def _become(user: int) -> Iterable[Step]:
    def check() -> None:
        if os.getresuid() != (user,) * 3 or os.getresgid() != (user,) * 3 or os.getgroups():
            raise OSError("the change had no effect")

    yield from sealing.privileges(user, user_namespace=False)
    yield Step("user of its own", check)


def _limit_files() -> None:
    sealing.limit({resource.RLIMIT_FSIZE: (0, 0), resource.RLIMIT_DATA: (1 << 40, 1 << 40)})
    if resource.getrlimit(resource.RLIMIT_FSIZE) != (0, 0):
        raise OSError("the limit had no effect")


def _landlock() -> Iterable[Step]:
    def check() -> None:
        try:
            os.close(os.open("/", os.O_RDONLY))
        except PermissionError:
            return
        raise OSError("a folder could be opened all the same")

    yield Step("no new privileges", kernel.set_no_new_privileges)
    yield Step("landlock", sealing.confine_by_landlock)
    yield Step("landlock", check)


def _seccomp() -> Iterable[Step]:
    def check() -> None:
        try:
            os.uname()
        except PermissionError:
            return
        raise OSError("a call that it refuses was made all the same")

    yield Step("no new privileges", kernel.set_no_new_privileges)
    yield Step("seccomp, first stage", lambda: sealing.filter_calls(seccomp.first_stage))
    yield Step("seccomp, second stage", lambda: sealing.filter_calls(seccomp.second_stage))
    yield Step("seccomp", check)


def _try(steps: Iterable[Step], why: str, flags: int = 0) -> Found:
    """Carry the steps out in a clone; `why` is said when all can be done."""
    reader, writer = os.pipe()
    try:
        pid = kernel.clone(flags)
    except OSError as exc:
        os.close(reader)
        os.close(writer)
        return Found(False, f"{exc.strerror or exc}")
    if pid == 0:
        try:
            sealing.carry_out(steps)
        except SealingFailed as exc:
            os.write(writer, str(exc.__cause__).encode()[:_MOST])
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read(_MOST).decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return Found(True, why)
    return Found(False, said or f"the process that tried it ended with {code}")


if __name__ == "__main__":
    main()
