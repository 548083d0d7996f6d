"""Where control groups are and what is written into one: from what machines of several kinds say."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsuled.supervisor import cgroup_layout
from capsuled.supervisor.cgroup_layout import CONTROLLERS, MEMORY_SLACK, PROCESSES, Caps, Tree

SYSTEMD = (
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
)
OTHERS = "22 1 254:0 / / rw - ext4 /dev/vda rw\n31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755"


def mount(point: str, options: str, root: str = "/") -> str:
    return f"40 31 0:37 {root} {point} rw,relatime - cgroup cgroup rw,{options}"


SEPARATE = "\n".join(mount(f"/sys/fs/cgroup/{each}", each) for each in ("memory", "pids", "cpu"))
SHARED = "\n".join(
    [
        mount("/sys/fs/cgroup/memory", "memory"),
        mount("/sys/fs/cgroup/pids", "pids"),
        mount("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
    ]
)


def test_version_2() -> None:
    """One hierarchy for all of them, below our own group."""
    ((found,),) = cgroup_layout.trees(f"{OTHERS}\n{SYSTEMD}", "0::/system.slice/capsuled.service\n")
    assert found == Tree(
        2,
        CONTROLLERS,
        "/system.slice/capsuled.service",
        Path("/sys/fs/cgroup/system.slice/capsuled.service"),
    )
    assert found.key == ""


def test_version_1() -> None:
    """A hierarchy for each, each with a group of our own."""
    (found,) = cgroup_layout.trees(SEPARATE, "9:pids:/\n4:memory:/a/b\n1:cpu:/\n0::/")
    assert [(each.key, each.path, str(each.folder)) for each in found] == [
        ("memory", "/a/b", "/sys/fs/cgroup/memory/a/b"),
        ("pids", "/", "/sys/fs/cgroup/pids"),
        ("cpu", "/", "/sys/fs/cgroup/cpu"),
    ]


def test_two_controllers_in_one_hierarchy() -> None:
    """As cpu and cpuacct are on most machines: it is known by both names."""
    (found,) = cgroup_layout.trees(SHARED, "9:pids:/\n4:memory:/\n1:cpu,cpuacct:/user.slice")
    assert found[2] == Tree(
        1, ("cpu", "cpuacct"), "/user.slice", Path("/sys/fs/cgroup/cpu,cpuacct/user.slice")
    )


def test_a_machine_with_both() -> None:
    """Version 2 is tried first: which controllers it has stands elsewhere."""
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    found = cgroup_layout.trees(f"{SEPARATE}\n{unified}", "9:pids:/\n4:memory:/\n1:cpu:/\n0::/")
    assert [way[0].version for way in found] == [2, 1]


def test_a_container_sees_a_part() -> None:
    """What is mounted begins at the container's group, and paths are told from the machine's."""
    mounts = "\n".join(mount(f"/sys/fs/cgroup/{each}", each, "/docker/12") for each in CONTROLLERS)
    own = "\n".join(f"1:{each}:/docker/12/x" for each in CONTROLLERS)
    (found,) = cgroup_layout.trees(mounts, own)
    assert {str(each.folder) for each in found} == {f"/sys/fs/cgroup/{each}/x" for each in CONTROLLERS}
    (found,) = cgroup_layout.trees(mounts, own.replace("/x", ""))
    assert {str(each.folder) for each in found} == {f"/sys/fs/cgroup/{each}" for each in CONTROLLERS}


@pytest.mark.parametrize(
    ("mounts", "own"),
    [
        ("", ""),
        (OTHERS, "0::/"),
        (SYSTEMD, ""),
        (SYSTEMD, "0::/../other"),
        (SYSTEMD.replace("0:26 /", "0:26 /docker/12"), "0::/docker/123"),
        (SEPARATE, "4:memory:/\n1:cpu:/"),
        (SEPARATE.replace("rw,pids", "rw,name=pids"), "9:pids:/\n4:memory:/\n1:cpu:/"),
    ],
)
def test_there_is_no_way(mounts: str, own: str) -> None:
    """Nothing is mounted, we are in none, we are not below what is mounted, or a controller is missing."""
    assert cgroup_layout.trees(mounts, own) == []


def test_a_mount_point_with_a_blank() -> None:
    """proc(5) writes it in octal."""
    ((found,),) = cgroup_layout.trees(SYSTEMD.replace("/sys/fs/cgroup", "/a\\040b"), "0::/")
    assert found.folder == Path("/a b")


CAPS = Caps(memory=1 << 20, processes=7, cpu=0.25)


def test_what_is_written_in_version_2() -> None:
    """The files of cgroup-v2: memory without swap, processes, and a share of each period."""
    tree = Tree(2, CONTROLLERS, "/", Path("/x"))
    assert list(cgroup_layout.settings(tree, CAPS)) == [
        ("memory.max", "1048576"),
        ("memory.swap.max", "0"),
        ("pids.max", "7"),
        ("cpu.max", "25000 100000"),
    ]


def test_what_is_written_in_version_1() -> None:
    """Only the files of the controllers that this hierarchy has."""
    found = {
        each: list(cgroup_layout.settings(Tree(1, (each,), "/", Path("/x")), CAPS)) for each in CONTROLLERS
    }
    assert found == {
        "memory": [("memory.limit_in_bytes", "1048576"), ("memory.memsw.limit_in_bytes", "1048576")],
        "pids": [("pids.max", "7")],
        "cpu": [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "25000")],
    }


@pytest.mark.parametrize(
    ("cores", "quota"), [(0.001, "1000"), (0.01, "1000"), (1.0, "100000"), (3.5, "350000")]
)
def test_the_kernels_least_share(cores: float, quota: str) -> None:
    """A millisecond of each period; a smaller share would be refused."""
    files = dict(cgroup_layout.settings(Tree(1, ("cpu",), "/", Path("/x")), CAPS._replace(cpu=cores)))
    assert files["cpu.cfs_quota_us"] == quota


def test_a_processs_own_limit_comes_first() -> None:
    """The group's memory is above it, in whole pages."""
    found = Caps.beside(100_000_001, 1.0)
    assert 100_000_001 + MEMORY_SLACK - 65536 < found.memory <= 100_000_001 + MEMORY_SLACK
    assert found.memory % 4096 == 0
    assert found.processes == PROCESSES


@pytest.mark.parametrize(
    ("version", "files", "kills"),
    [
        (2, ["low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0"], 2),
        (2, ["low 3\nhigh 0\nmax 0\noom 0\noom_kill 1"], 0),
        (1, ["oom_kill_disable 0\nunder_oom 0\noom_kill 5", str(64 << 20)], 5),
        (1, ["oom_kill_disable 0\nunder_oom 0\noom_kill 5", str(60 << 20)], 0),
        (1, ["oom_kill_disable 0\nunder_oom 0", str(64 << 20)], 0),
    ],
)
def test_oom_kills(version: int, files: list[str], kills: int) -> None:
    """Those of a group that has met its own limit; else they were for others' sake. Some kernels do not count."""
    tree = Tree(version, ("memory",), "/", Path("/x"))
    assert len(cgroup_layout.oom_files(tree)) == len(files)
    assert cgroup_layout.oom_kills(tree, files, CAPS._replace(memory=64 << 20)) == kills


def test_a_second_mount_of_the_same() -> None:
    """The first one that can be written is taken."""
    line = "31 1 0:9 / {} {} - cgroup c rw,{}"
    mounts = [
        line.format("/ro/memory", "ro,nosuid", "memory"),
        line.format("/one/memory", "rw", "memory"),
        line.format("/two/memory", "rw", "memory"),
        line.format("/one/pids", "rw", "pids"),
        line.format("/one/cpu", "rw", "cpu"),
    ]
    (way,) = cgroup_layout.trees("\n".join(mounts), "3:memory:/\n2:pids:/\n1:cpu:/")
    assert {str(tree.folder) for tree in way} == {"/one/memory", "/one/pids", "/one/cpu"}


def test_mount_points_that_hold_separators() -> None:
    """What only looks like the end of a line, and lines that are none, change nothing."""
    strange = "50 1 0:9 / /mnt/a\x0cb\udcfc rw - tmpfs t rw\nnonsense\n"
    ((found,),) = cgroup_layout.trees(f"{strange}{SYSTEMD}", "0::/\nnonsense")
    assert found.folder == Path("/sys/fs/cgroup")
