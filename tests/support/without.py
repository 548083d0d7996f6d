"""A program: `capsuled` on a machine that lacks something.

The first argument is JSON: `{"calls": [[call, errno name], ...], "believe": false, "cgroup": true}`; the rest is the
command line of `capsuled`. Each call is refused with that errno for this process and all that it starts, by a seccomp
filter: CLONE_NEW is clone(2) with a namespace, and NO_NEW_PRIVS that option of prctl(2). With `believe` the supervisor
does not find out: it believes that all layers can be held; with null, that none can. Without `cgroup` no control groups
are mounted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from capsuled.sandbox import kernel, seccomp
from capsuled.sandbox.seccomp import Action, Check, Rule
from capsuled.sandbox.syscalls import Machine
from capsuled.supervisor import cgroup_layout, probe
from capsuled.supervisor.cgroup_layout import Tree
from capsuled.supervisor.cgroups import Groups
from capsuled.supervisor.commands import capsuled
from capsuled.supervisor.modes import LAYERS, Layer, Probed

_WORD = 0xFFFF_FFFF
_NEW = 0x7E02_0000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_PR_SET_NO_NEW_PRIVS = 38

_MORE = {"setresuid": (117, 147), "setgroups": (116, 159), "mount": (165, 40)}


class WiderMachine(Machine):
    """Knows calls that the project's own table does not need."""

    def number(self, name: str) -> int | None:
        return _MORE[name][self.column] if name in _MORE else super().number(name)


def rule(call: str, errno: str) -> Rule:
    action = Action[errno]
    if call == "CLONE_NEW":
        return Rule("clone", when=((Check(0, _NEW, 0),),), otherwise=action)
    if call == "NO_NEW_PRIVS":
        return Rule("prctl", action, ((Check(0, _WORD, _PR_SET_NO_NEW_PRIVS),),), otherwise=Action.ALLOW)
    return Rule(call, action)


async def all_held(user: int, groups: Groups) -> Probed:
    """What the probe says of a machine that lacks nothing."""
    return Probed({name: Layer(True, "believed") for name in LAYERS}, "all")


async def none_held(user: int, groups: Groups) -> Probed:
    """What it says of one that holds nothing."""
    return Probed({name: Layer(False, "not wanted") for name in LAYERS}, "none")


def no_trees(mountinfo: str, own: str) -> list[tuple[Tree, ...]]:
    """What there is where none are mounted."""
    return []


def main(argv: Sequence[str]) -> int:
    given = json.loads(argv[0])
    if given["believe"] is not False:
        probe.probe = all_held if given["believe"] else none_held
    if not given.get("cgroup", True):
        cgroup_layout.trees = no_trees
    if given["calls"]:
        rules = [rule(*each) for each in given["calls"]]
        program = seccomp.program(rules, WiderMachine(*kernel.machine()), Action.ALLOW)
        kernel.set_no_new_privileges()  # or only root could put a filter on
        kernel.seccomp(seccomp.encode(program))
    return capsuled.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
