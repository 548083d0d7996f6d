"""Control groups: how much memory, how many processes and how much of the processors a worker has, whatever it does.

cgroups(7). A worker's own limits (setrlimit(2)) give the clean errors; these hold what slips through them: memory that
is shared or the kernel's, processes, and the share of a processor. Each worker has a group of its own, below the one
that the supervisor was started in, so that whatever holds the supervisor holds all of them together.

Version 2 has one hierarchy for all controllers, and no group may have both processes and limited children: the
supervisor moves into a child of its own first. Version 1 has a hierarchy for each controller, and no such rule. What a
supervisor that was killed has left is removed by the next one with the same runtime folder.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from capsuled.supervisor import cgroup_layout
from capsuled.supervisor.cgroup_layout import CONTROLLERS, SWAP_FILES, Caps, Tree
from capsuled.supervisor.modes import Layer
from capsuled.supervisor.spawn import SpawnError

LOG = logging.getLogger("capsuled.cgroups")

REMOVE_TRIES, REMOVE_SECONDS = 100, 0.01
"""A group is empty as soon as its last process is reaped, or a moment later."""


NAMES = "capsuled-"
"""How the name of each group begins."""


class Unavailable(Exception):
    """There are no control groups that may be used here; the message says why."""


class Group:
    """The group of one worker, or none: then nothing here does anything."""

    def __init__(self, name: str, where: tuple[Tree, ...], caps: Caps, why: str = "") -> None:
        """`where` are our own groups; where there are none, because of `why`."""
        self._why = why
        self._folders = [(tree, tree.folder / name) for tree in where]
        self.name = name
        self._caps = caps
        self._refused: list[Path] = []
        """Files that keep what the group around us gives, since it gives less: to all that are in it together."""

    def make(self) -> None:
        """All of it or nothing. Raises `OSError`."""
        made: list[Path] = []
        try:
            for tree, folder in self._folders:
                folder.mkdir()
                made.append(folder)
                for file, value in self._files(tree, folder):
                    try:
                        _write(file, value)
                    except OSError as exc:
                        # Version 1 refuses a larger share than the group around it has, which holds anyway.
                        if exc.errno != errno.EINVAL or file.name != "cpu.cfs_quota_us":
                            raise
                        self._refused.append(file)
        except OSError:
            for folder in made:
                folder.rmdir()
            raise

    def join(self, pid: int) -> None:
        """Put a process into it, with what it starts from now on; nothing happens when it has ended."""
        for _, folder in self._folders:
            with suppress(ProcessLookupError):
                _write(folder / "cgroup.procs", str(pid))

    def oom_kills(self) -> int:
        """How many of its processes were killed because its own memory was used up, and not that of a group around it
        or of the machine. 0 where that cannot be read."""
        for tree, folder in self._folders:
            if "memory" in tree.controllers:
                try:
                    files = [_read(folder / name) for name in cgroup_layout.oom_files(tree)]
                except OSError as exc:
                    LOG.error("cannot read whether %s was out of memory: %s", self.name, exc)
                else:
                    return cgroup_layout.oom_kills(tree, files, self._caps)
        return 0

    def seen(self, pid: int) -> Layer:
        """Whether a process is in it, and what limits it there. Raises `OSError` when it has ended."""
        if not self._folders:
            return Layer(False, self._why)
        inside = cgroup_layout.memberships(_read(Path(f"/proc/{pid}/cgroup")))
        limits: list[str] = []
        for tree, folder in self._folders:
            path = inside.get(tree.key)
            if path != f"{tree.path.rstrip('/')}/{self.name}":
                return Layer(False, f"not in its group of {', '.join(tree.controllers)}: it is in {path}")
            for file, value in self._files(tree, folder):
                found = _read(file)
                if found != value:
                    return Layer(False, f"{file.name} is {found}, and should be {value}")
                limits.append(f"{file.name} {found}")
        limits += [
            f"{file.name} {_read(file)}: the group around it has no more to give" for file in self._refused
        ]
        return Layer(True, ", ".join(limits))

    def kill(self) -> None:
        """What is in it, however it came there."""
        for _, folder in self._folders:
            _kill(folder)

    def remove(self) -> bool:
        """False when something is still in it. Raises `OSError` for everything else."""
        return not [folder for _, folder in self._folders if not _removed(folder)]

    def _files(self, tree: Tree, folder: Path) -> Generator[tuple[Path, str], None, None]:
        for name, value in cgroup_layout.settings(tree, self._caps):
            if folder / name in self._refused:
                continue
            if name not in SWAP_FILES or (folder / name).exists():
                yield folder / name, value


NO_GROUP = Group("", (), Caps.beside(0, 1.0), "it was put into none")


class Groups:
    """All groups of one supervisor, or none."""

    def __init__(self, where: tuple[Tree, ...], prefix: str, why: str = "") -> None:
        self._trees = where
        self._prefix = prefix
        self._why = why

    @property
    def usable(self) -> bool:
        """Whether there are any."""
        return bool(self._trees)

    @asynccontextmanager
    async def group(self, name: str, caps: Caps) -> AsyncGenerator[Group, None]:
        """A group of that name, which no other has; what is in it at the end is killed. Raises `SpawnError`."""
        made = self.named(name, caps)
        try:
            made.make()
        except OSError as exc:
            raise SpawnError(f"cannot limit it by a control group: {exc}") from exc
        try:
            yield made
        finally:
            with trio.CancelScope(shield=True):
                await _remove(made)

    def use(self, until: ExitStack) -> None:
        """Begin; `until` undoes it. Raises `Unavailable` and `OSError`."""
        self.clean()
        for tree in self._trees:
            _sweep(tree.folder)
            if tree.version == 2:
                leaf = tree.folder / f"{self._prefix}supervisor"
                until.enter_context(_controllers_for_children(tree.folder, leaf))
        until.callback(self._clean_up)
        trial = self.named("trial", Caps.beside(0, 1.0))
        try:
            trial.make()
        except OSError as exc:
            raise Unavailable(f"cannot make one: {exc.strerror}: {exc.filename}") from exc
        trial.remove()

    def named(self, name: str, caps: Caps) -> Group:
        """One that is not made yet."""
        return Group(f"{self._prefix}{name}", self._trees, caps, self._why)

    def folders(self) -> Iterator[Path]:
        """Those of the groups that are there."""
        return itertools.chain.from_iterable(tree.folder.glob(f"{self._prefix}*") for tree in self._trees)

    def clean(self) -> None:
        """Remove what a supervisor that was killed has left: empty groups, for its workers have died with it. What has
        not is killed and waited for, before anything else begins. Raises `Unavailable` where that does not help."""
        left: list[Path] = []
        for tries in range(REMOVE_TRIES):
            left = [folder for folder in self.folders() if not _removed(folder)]
            if not left:
                return
            if not tries:
                LOG.warning("processes are left in %s: they are killed", _listed(left))
            for folder in left:
                _kill(folder)
            time.sleep(REMOVE_SECONDS)
        raise Unavailable(f"cannot remove {_listed(left)}: something in it does not end")

    def _clean_up(self) -> None:
        """The end: what could not be removed when its process had ended has one more try."""
        try:
            self.clean()
        except (Unavailable, OSError) as exc:
            LOG.error("a control group is left: %s", exc)


def _listed(folders: Iterable[Path]) -> str:
    return ", ".join(map(str, folders))


def _sweep(folder: Path) -> None:
    """Take away what passers-by who were killed have left."""
    for each in folder.glob(f"{NAMES}pid*-*"):
        found = re.fullmatch(r"pid(\d+)-.*", each.name.removeprefix(NAMES))
        if found and not Path(f"/proc/{found[1]}").exists():
            with suppress(OSError):  # somebody else's in a namespace that we do not see: it is not empty
                each.rmdir()


def _removed(folder: Path) -> bool:
    """Remove it; False when something is still in it."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return False
        raise
    return True


def _kill(folder: Path) -> None:
    try:
        _write(folder / "cgroup.kill", "1")
    except OSError:  # version 1, and version 2 before Linux 5.14
        with suppress(FileNotFoundError):
            for pid in map(int, _read(folder / "cgroup.procs").split()):
                # Who is in a namespace that we do not see is 0 there; to signal that is to signal ourselves.
                if pid > 0:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


async def _remove(group: Group) -> None:
    try:
        for _ in range(REMOVE_TRIES):
            if group.remove():
                return
            group.kill()
            await trio.sleep(REMOVE_SECONDS)  # nothing tells, in version 1, when a group is empty
        LOG.error("control group %s is left for now: something in it does not end", group.name)
    except OSError as exc:
        LOG.error("control group %s is left for now: %s", group.name, exc)


def none(why: str) -> Groups:
    """What there is where control groups cannot be used."""
    return Groups((), "", why)


@contextmanager
def opened(whose: str) -> Generator[Groups, None, None]:
    """The groups of somebody, of whom there is one at a time; none where that cannot be. Raises nothing.

    Before he has started any process: what is started is where its parent is.
    """
    with ExitStack() as stack:
        yield _first_usable(whose, stack)


def holder(folder: Path) -> str:
    """Who holds this folder, as `opened` wants it: the folder itself and not its path, of which it may have many."""
    found = folder.stat()
    return hashlib.sha256(f"{found.st_dev}:{found.st_ino}".encode()).hexdigest()[:8]


def passer_by() -> str:
    """Somebody who holds nothing and is soon gone, as `opened` wants it. Who is killed leaves empty groups, and the
    next who opens any takes them away."""
    return f"pid{os.getpid()}"


def possible(whose: str) -> list[Groups]:
    """The ways there may be, the best first. Raises `OSError`."""
    prefix = f"{NAMES}{whose}-"  # it leads from one start to the next
    ways = cgroup_layout.trees(_read(Path("/proc/self/mountinfo")), _read(Path("/proc/self/cgroup")))
    return [Groups(way, prefix) for way in ways]


def _first_usable(whose: str, stack: ExitStack) -> Groups:
    reasons: list[str] = []
    try:
        for groups in possible(whose):
            with ExitStack() as begun:
                try:
                    groups.use(begun)
                except (Unavailable, OSError) as exc:
                    reasons.append(str(exc))
                else:
                    stack.push(begun.pop_all())
                    return groups
    except OSError as exc:
        reasons.append(str(exc))
    return none("; ".join(reasons) or "none are mounted that have memory, pids and cpu")


@contextmanager
def _controllers_for_children(folder: Path, leaf: Path) -> Generator[None, None, None]:
    """Have version 2 limit the children of our own group, in which no process may be then: we are in `leaf` meanwhile.
    Raises `Unavailable`."""
    if missing := set(CONTROLLERS) - set(_read(folder / "cgroup.controllers").split()):
        raise Unavailable(f"{folder} has no {', '.join(sorted(missing))}")
    passed_on = _read(folder / "cgroup.subtree_control").split()
    wanted = [each for each in CONTROLLERS if each not in passed_on]
    is_root = not (folder / "cgroup.type").exists()  # to which the rule does not apply

    def undo() -> None:
        if is_root:
            return  # others may use by now what we have begun, and nobody was moved
        for file, value in (
            (folder / "cgroup.subtree_control", " ".join(f"-{each}" for each in wanted)),
            (folder / "cgroup.procs", str(os.getpid())),
        ):
            with suppress(OSError):
                _write(file, value)
        with suppress(OSError):
            leaf.rmdir()

    try:
        if wanted and not is_root:
            leaf.mkdir(exist_ok=True)
            _write(leaf / "cgroup.procs", str(os.getpid()))
        if wanted:
            _write(folder / "cgroup.subtree_control", " ".join(f"+{each}" for each in wanted))
    except OSError as exc:
        undo()
        what = "other processes are in it too" if exc.errno == errno.EBUSY else exc.strerror
        raise Unavailable(f"cannot limit the children of {folder}: {what}") from exc
    try:
        yield
    finally:
        if wanted:
            undo()


def _read(file: Path) -> str:
    return os.fsdecode(file.read_bytes()).rstrip("\n")


def _write(file: Path, value: str) -> None:
    """In one write(2), as these files want it."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as exc:
        raise type(exc)(exc.errno, exc.strerror, os.fspath(file)) from exc
    finally:
        os.close(fd)
