"""Control groups of this machine: each limit one past, who is in them, and what is left of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from capsuled.supervisor import cgroup_layout, cgroups
from capsuled.supervisor.cgroup_layout import CONTROLLERS, Caps, Tree
from capsuled.supervisor.cgroups import Group, Groups, Unavailable
from capsuled.supervisor.spawn import SpawnError

from ..support import control_groups

MIB = 1 << 20
CAPS = Caps(64 * MIB, 8, 1.0)
DEADLINE = 30.0

WHOSE = f"test of cgroups {os.getpid()}"


def using(main: Callable[[Groups], Awaitable[None]]) -> None:
    """Run `main`; nothing is left of its groups, however it ends."""

    async def bounded() -> None:
        with trio.fail_after(DEADLINE), cgroups.opened(WHOSE) as groups:
            await main(groups)

    trio.run(bounded)
    assert there() == []


def there() -> list[Path]:
    return [folder for each in cgroups.possible(WHOSE) for folder in each.folders()]


@contextmanager
def joined(group: Group, code: str) -> Generator[subprocess.Popen[bytes], None, None]:
    """A process that runs `code` once it is in the group."""
    command = [sys.executable, "-I", "-S", "-c", f"import os\nos.read(0, 1)\n{code}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            group.join(process.pid)
            assert process.stdin is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            yield process
        finally:
            process.kill()


SHARED = "import mmap\nm = mmap.mmap(-1, {0})\nfor at in range(0, {0}, 4096): m[at] = 1\nprint('touched')"


@control_groups.needed
def test_memory_that_no_process_limit_counts() -> None:
    """Shared memory within the limit is given; one more than the group has is the death of it, and is counted."""

    async def main(groups: Groups) -> None:
        async with groups.group("one", CAPS) as group:
            with joined(group, SHARED.format(16 * MIB)) as process:
                assert process.wait(DEADLINE) == 0
            assert group.oom_kills() == 0
            with joined(group, SHARED.format(CAPS.memory)) as process:
                assert process.wait(DEADLINE) == -signal.SIGKILL
            assert group.oom_kills() == 1

    using(main)


@control_groups.needed
def test_processes() -> None:
    """As many as the group may have, and one more cannot be started."""
    code = """
import errno
for n in range(20):
    try:
        if not os.fork(): os.read(0, 1); os.read(0, 1); os._exit(0)
    except OSError as exc:
        print(n + 1, errno.errorcode[exc.errno], flush=True)
        break
"""

    async def main(groups: Groups) -> None:
        async with groups.group("one", CAPS) as group:
            with joined(group, code) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"%d EAGAIN\n" % CAPS.processes

    using(main)


BURNS = """
import time
while time.process_time() < 0.3: pass
print('burnt', flush=True)
os.read(0, 1)
"""


@control_groups.needed
def test_a_share_of_the_processors() -> None:
    """Who computes for ever is held up, and the kernel counts it; who has two cores for one thread is not."""

    async def main(groups: Groups) -> None:
        for cores, held_up in ((0.1, True), (2.0, False)):
            async with groups.group("one", CAPS._replace(cpu=cores)) as group:
                with joined(group, BURNS) as process:
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"burnt\n"
                    assert bool(throttles(process.pid)) == held_up

    using(main)


def throttles(pid: int) -> int:
    lines = control_groups.read(pid, "cpu", "cpu.stat").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("nr_throttled ")))


@control_groups.needed
def test_what_is_seen_of_it() -> None:
    """A process that is in it is limited, with the values of the kernel's files; one that is not is not."""

    async def main(groups: Groups) -> None:
        async with groups.group("one", CAPS) as group, groups.group("two", CAPS) as other:
            with joined(group, "os.read(0, 1)") as process:
                found = group.seen(process.pid)
                assert found.held
                assert f" {CAPS.memory}" in found.why
                assert f"pids.max {CAPS.processes}" in found.why
                assert not other.seen(process.pid).held
                assert "not in its group of " in other.seen(os.getpid()).why
            with pytest.raises(OSError, match="No such"):
                group.seen(process.pid)

    using(main)


@control_groups.needed
def test_a_limit_that_was_changed_is_seen() -> None:
    """Nobody but the operator could; then it is not what the manifest says."""

    async def main(groups: Groups) -> None:
        async with groups.group("one", CAPS) as group:
            with joined(group, "os.read(0, 1)") as process:
                for folder in groups.folders():
                    if (file := folder / "pids.max").exists():
                        file.write_text("9")
                found = group.seen(process.pid)
                assert (found.held, found.why) == (False, "pids.max is 9, and should be 8")

    using(main)


LEAVES = """
if not os.fork():
    os.setsid()
    os.write(1, b'%d\\n' % os.getpid())
    os.read(0, 2)
    while True: os.sched_yield()
os.read(0, 1)
"""


@control_groups.needed
def test_what_is_still_in_it_is_killed() -> None:
    """At the end nothing of it is there, and who has ended meanwhile is no fault."""

    async def main(groups: Groups) -> None:
        async with groups.group("one", CAPS) as group:
            with joined(group, LEAVES) as process:
                group.join(0x7FFF_FFF0)
                assert process.stdout is not None
                child = os.pidfd_open(int(process.stdout.readline()))
        await trio.lowlevel.wait_readable(child)
        os.close(child)

    using(main)


@control_groups.needed
def test_what_a_killed_supervisor_has_left() -> None:
    """The next one of that name removes it, with what is still in it; another one's is none of its business."""
    (groups,) = cgroups.possible(WHOSE)[-1:]
    others = cgroups.possible(f"{WHOSE}, another")[-1]
    stale, other = groups.named("7", CAPS), others.named("7", CAPS)
    stale.make()
    other.make()
    try:
        with joined(stale, "os.read(0, 1)") as process, cgroups.opened(WHOSE):
            assert there() == []
            assert process.wait(DEADLINE) == -signal.SIGKILL
        assert list(others.folders())
    finally:
        other.remove()


def test_what_cannot_be_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where something in it does not end the groups are not used: the next workers would find their names taken."""
    monkeypatch.setattr(cgroups, "REMOVE_SECONDS", 0.0)
    (tmp_path / "capsuled-me-1/inside").mkdir(parents=True)
    (tmp_path / "capsuled-me-1/cgroup.procs").write_text("")

    def never(_: Path) -> bool:
        return False

    monkeypatch.setattr(cgroups, "_removed", never)
    groups = Groups((Tree(1, CONTROLLERS, "/", tmp_path),), "capsuled-me-")
    with pytest.raises(Unavailable, match=r"cannot remove .*capsuled-me-1: something in it does not end"):
        groups.clean()


@control_groups.needed
def test_what_passers_by_have_left() -> None:
    """The next who opens any takes it away, unless its owner lives or something is in it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        left = cgroups.possible(f"pid{process.pid}")[-1]
        left.named("probe", CAPS).make()
        with cgroups.opened(WHOSE):
            assert list(left.folders())
        process.kill()
    with cgroups.opened(WHOSE):
        assert list(left.folders()) == []


def test_a_share_that_the_group_around_it_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 1 refuses it with EINVAL: what there is holds, and that is what is told; nothing else is passed over."""
    tree = Tree(1, ("cpu",), "/", tmp_path)

    def refuse(file: Path, value: str) -> None:
        if file.name == refused:
            raise OSError(errno.EINVAL, "Invalid argument", str(file))
        file.write_text("-1" if file.name == "cpu.cfs_quota_us" else value)

    monkeypatch.setattr(cgroups, "_write", refuse)
    refused = "cpu.cfs_quota_us"
    group = Group("one", (tree,), CAPS)
    group.make()
    (tmp_path / "one/cpu.cfs_quota_us").write_text("-1")
    inside = "1:cpu:/one\n"

    def read(file: Path) -> str:
        return inside if "proc" in file.parts else file.read_text()

    monkeypatch.setattr(cgroups, "_read", read)
    assert group.seen(7).why == (
        "cpu.cfs_period_us 100000, cpu.cfs_quota_us -1: the group around it has no more to give"
    )
    refused = "cpu.cfs_period_us"
    with pytest.raises(OSError, match="Invalid argument"):
        Group("two", (tree,), CAPS).make()
    assert not (tmp_path / "two").exists()


@control_groups.needed
def test_a_name_that_is_taken() -> None:
    """It is an error, and the one that has it keeps it."""

    async def main(groups: Groups) -> None:
        async with groups.group("one", CAPS) as group:
            with pytest.raises(SpawnError, match=r"cannot limit it by a control group: .*File exists"):
                async with groups.group("one", CAPS):
                    pass
            with joined(group, "os.read(0, 1)") as process:
                assert group.seen(process.pid).held

    using(main)


def test_where_there_are_none() -> None:
    """A group of nothing can be joined and left, limits nobody, and says why."""

    async def main() -> None:
        async with cgroups.none("because").group("one", CAPS) as group:
            group.join(os.getpid())
            assert group.seen(os.getpid()) == (False, "because")
            assert group.oom_kills() == 0

    trio.run(main)


# ── version 2, whose rules are tried on files that look like its ─────────────────────────────────


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """Our own group, and the one that we may move to."""
    for name, content in (
        ("cgroup.controllers", "cpuset cpu io memory pids"),
        ("cgroup.subtree_control", ""),
        ("cgroup.type", "domain"),
        ("cgroup.procs", ""),
    ):
        (tmp_path / name).write_text(content)
    (tmp_path / "leaf").mkdir()
    (tmp_path / "leaf/cgroup.procs").write_text("")
    return tmp_path


def test_it_moves_out_of_the_group_whose_children_are_limited(unified: Path) -> None:
    """And back again at the end, once the children are limited no more."""
    with cgroups._controllers_for_children(unified, unified / "leaf"):  # pyright: ignore[reportPrivateUsage]
        assert (unified / "leaf/cgroup.procs").read_text() == str(os.getpid())
        assert (unified / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (unified / "cgroup.subtree_control").read_text() == "-memory -pids -cpu"
    assert (unified / "cgroup.procs").read_text() == str(os.getpid())


def test_the_root_may_have_both(unified: Path) -> None:
    """It has no type, and nobody is moved."""
    (unified / "cgroup.type").unlink()
    with cgroups._controllers_for_children(unified, unified / "leaf"):  # pyright: ignore[reportPrivateUsage]
        assert (unified / "leaf/cgroup.procs").read_text() == ""
    assert (unified / "cgroup.subtree_control").read_text() == "+memory +pids +cpu", (
        "others may use them by now"
    )


def test_who_cannot_be_seen_is_not_signalled(tmp_path: Path) -> None:
    """A process of another namespace is 0 in the list: to signal that would be to signal our own group."""
    (tmp_path / "cgroup.procs").write_text("0\n")
    cgroups._kill(tmp_path)  # pyright: ignore[reportPrivateUsage]


def test_children_that_are_limited_already(unified: Path) -> None:
    """Nothing is changed, at the end neither."""
    (unified / "cgroup.subtree_control").write_text("cpu memory pids io")
    with cgroups._controllers_for_children(unified, unified / "leaf"):  # pyright: ignore[reportPrivateUsage]
        pass
    assert (unified / "cgroup.subtree_control").read_text() == "cpu memory pids io"
    assert (unified / "cgroup.procs").read_text() == ""


def test_a_group_without_the_controllers(unified: Path) -> None:
    """What is missing is named."""
    (unified / "cgroup.controllers").write_text("cpu hugetlb")
    with (
        pytest.raises(Unavailable, match="has no memory, pids"),
        cgroups._controllers_for_children(unified, unified / "leaf"),  # pyright: ignore[reportPrivateUsage]
    ):
        pass


def test_version_2_of_this_machine() -> None:
    """Where it is mounted, it can be used, or it is said what it lacks; it is left as it was."""
    reasons = ["usable"]
    for groups in cgroups.possible(WHOSE):
        with ExitStack() as stack:
            try:
                groups.use(stack)
            except (Unavailable, OSError) as exc:
                reasons.append(str(exc))
    assert all(reasons)
    assert there() == []


def test_what_is_read_of_a_group_of_version_2(tmp_path: Path) -> None:
    """Its files are those that were written, and `memory.events` counts its deaths."""
    tree = Tree(2, CONTROLLERS, "/", tmp_path)
    group = Group("one", (tree,), CAPS)
    folder = tmp_path / "one"
    folder.mkdir()
    for file, value in cgroup_layout.settings(tree, CAPS):
        (folder / file).write_text(f"{value}\n")
    (folder / "memory.events").write_text("max 0\noom 0\noom_kill 1\n")
    assert group.oom_kills() == 0, "it was not for its own limit"
    (folder / "memory.events").write_text("max 3\noom 1\noom_kill 1\n")
    assert group.oom_kills() == 1
    assert "it is in " in group.seen(os.getpid()).why
