"""Modes of isolation, A to E: what of it this machine can hold, what that loses, and whether it is enough.

    A  everything
    B  no user of its own for each capsule, or no control group
    C  no namespaces, or no Landlock
    D  neither: a single layer keeps files and the network out
    E  no seccomp: a guest that breaks out of the engine is not held; only on demand

A layer is what the probe found (`probe`), never what a version promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from capsuled.proto.order import Confinement, Namespaces


class Mode(str, Enum):
    """See the module's docstring. Compared by the letter: a later one holds less."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"
    E = "E"


LAYERS = (
    *("process", "rlimits", "no_new_privs", "capabilities"),
    *("uid", "namespaces", "root", "landlock", "seccomp", "cgroup"),
)
"""All layers by name, in the order in which they are shown."""

BEST, STRICT = "best", "strict"

ALWAYS = ("process", "rlimits", "no_new_privs", "capabilities", "seccomp")
"""Without one of these it is mode E."""

WALLS = ("namespaces", "root", "landlock")
"""What `strict` demands as well: mode B."""

LOST: Mapping[Mode, str] = {
    Mode.A: "nothing is lost",
    Mode.B: "hard caps of memory and processes, or a user for each capsule, are lost: limits of the process stand in, "
    "and seccomp, which refuses memory that they do not count",
    Mode.C: "of two walls behind seccomp one is lost; without namespaces seccomp alone keeps UDP, System V memory and "
    "sockets of the same user out",
    Mode.D: "single layer: seccomp alone keeps files and the network out",
    Mode.E: "not isolated: a guest that breaks out of its engine can do what the supervisor's user can",
}

ADVICE: Mapping[str, str] = {
    "process": "report this: nothing of the system can be missing for it",
    "rlimits": "let the supervisor set resource limits: a filter around it, of a container or a service, forbids it",
    "no_new_privs": "use a kernel from 3.5 on; a filter around the supervisor may forbid prctl(2) too",
    "capabilities": "allow capset(2) and prctl(2) in the filter around the supervisor",
    "uid": "run capsuled as root, with CAP_SETUID, CAP_SETGID and CAP_SETPCAP: each capsule gets a user of its own",
    "namespaces": (
        "run capsuled as root with CAP_SYS_ADMIN, or allow namespaces of users: user.max_user_namespaces above 0, "
        "kernel.unprivileged_userns_clone = 1, kernel.apparmor_restrict_unprivileged_userns = 0, and in a container a "
        "seccomp profile that allows clone(2) with them"
    ),
    "root": "allow mount(2) and pivot_root(2) in the filter around the supervisor; its root must not be an initramfs",
    "landlock": "use a kernel from 5.13 on with landlock in its list of security modules (lsm=landlock,… at boot)",
    "seccomp": "use x86-64 or aarch64, and a kernel with CONFIG_SECCOMP_FILTER from 4.14 on",
    "cgroup": (
        "run capsuled as root, or as a service of systemd with Delegate=yes (as root too, or systemd stops all for one "
        "capsule that is out of memory): in a group of its own it may limit memory, pids and cpu; in a container the "
        "control groups must be mounted writable"
    ),
}
"""What the operator can do about a layer that is missing."""


class Layer(NamedTuple):
    held: bool
    why: str


class Probed(NamedTuple):
    """What the machine can hold, for this user."""

    layers: Mapping[str, Layer]
    """By the names of `LAYERS`."""
    namespaces: Namespaces
    """The kind that is to be used."""

    def held(self, name: str) -> bool:
        return self.layers[name].held


def mode(probed: Probed) -> Mode:
    """The mode that these layers make."""
    if not all(map(probed.held, ALWAYS)):
        return Mode.E
    walls = (_inside(probed), probed.held("landlock"))
    if not all(walls):
        return Mode.C if any(walls) else Mode.D
    if probed.namespaces == "user" or not (probed.held("uid") and probed.held("cgroup")):
        return Mode.B
    return Mode.A


def confinement(probed: Probed, user: int | None) -> Confinement:
    """What a worker is told. `user` is the number for it, where there is one."""
    return Confinement(
        user=user,
        namespaces=probed.namespaces if _inside(probed) else "none",
        landlock=probed.held("landlock"),
        seccomp=probed.held("seccomp"),
    )


def own_users(probed: Probed) -> bool:
    """Whether each worker gets a user of its own. In a namespace of users there is only one."""
    return probed.held("uid") and not (_inside(probed) and probed.namespaces == "user")


def refusal(probed: Probed, required: str | Iterable[str], *, insecure: bool) -> str | None:
    """Why capsules must not run like this, a sentence with the layers' names; None when they may.

    `required` is `best`, `strict`, or names of layers, which all must be held, in mode D at least. `insecure` lets
    mode E pass, and nothing else.
    """
    needed = list(() if insecure else ALWAYS)
    if required == STRICT:
        needed = [*ALWAYS, *WALLS]
    elif not isinstance(required, str):
        needed += [name for name in required if name not in needed]
    missing = [name for name in needed if not probed.held(name)]
    if not missing:
        return None
    told = "; ".join(f"{name} is missing ({probed.layers[name].why}): {ADVICE[name]}" for name in missing)
    return f"cannot isolate capsules as required, this is mode {mode(probed).value}: {told}"


def _inside(probed: Probed) -> bool:
    return probed.held("namespaces") and probed.held("root")
