"""Compiling: a process for each module; whatever it does, there is an answer, and no process is left."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from capsuled.proto import blob
from capsuled.proto.blob import Head
from capsuled.proto.order import Confinement
from capsuled.supervisor import cgroups, probe
from capsuled.supervisor.blobs import Compiled
from capsuled.supervisor.cgroup_layout import Caps
from capsuled.supervisor.cgroups import Group
from capsuled.supervisor.compilation import BOUNDS, Bounds, Job, LoadError
from capsuled.supervisor.compiling import COMMAND, CannotCompile, Compiler
from capsuled.supervisor.confining import Confining
from capsuled.supervisor.spawn import SpawnError
from capsuled.supervisor.users import NoUserLeft

from ..support import mutations
from ..support.machines import BARE, unconfined
from .control.serving import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SENSOR = (EXAMPLES / "sensor/sensor.wasm").read_bytes()
PING = (EXAMPLES / "ping/ping.wasm").read_bytes()

ENGINES = ["wasmer", "wasmtime"] if sys.version_info < (3, 11) else ["wasmtime"]

MIB = 1024 * 1024
JOB = Job("auto", "", MIB, SENSOR)
OTHER = replace(JOB, wasm=PING)

BLOB = blob.pack(Head("wasmer", "1", "c"), b"code")
ANSWER = f"import os; os.write(1, {BLOB!r})"


UNCONFINED = unconfined()


def made(
    bounds: Bounds = BOUNDS,
    *,
    command: tuple[str, ...] = COMMAND,
    confine: Callable[[], AbstractContextManager[Confinement]] = UNCONFINED.confinement,
    **more: int,
) -> Compiler:
    return Compiler(confine, UNCONFINED.group, bounds=bounds, command=command, **more)


def acting(code: str) -> tuple[str, ...]:
    """The command of a compiler that does this instead."""
    return (sys.executable, "-I", "-S", "-c", code)


def using(compiler: Compiler, main: Callable[[Compiler], Awaitable[None]]) -> None:
    """Run `main` beside the compiler. At the end no process may be left."""

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(compiler.run)
            await main(compiler)
            nursery.cancel_scope.cancel()

    run(both)
    assert psutil.Process().children(recursive=True) == []


def answer(job: Job, compiler: Compiler) -> Compiled | LoadError:
    """What becomes of one job."""
    found: list[Compiled | LoadError] = []

    async def main(compiler: Compiler) -> None:
        found.append(await compiler.compile(job))

    using(compiler, main)
    return found[0]


# ── the real one ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def confining() -> Confining:
    """All layers that this machine can hold."""
    found: list[Confining] = []

    async def main() -> None:
        users = range(1_900_000_000, 1_900_000_004)
        none = cgroups.none("none")
        found.append(Confining(await probe.probe(users[0], none), users, none))

    run(main)
    return found[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_it_compiles_in_all_confinement_that_there_is(engine: str, confining: Confining) -> None:
    """With every layer that this machine can hold a module is compiled, and what it makes is the same."""
    job = replace(JOB, engine=engine)
    confined = answer(job, made(confine=confining.confinement))
    assert isinstance(confined, Compiled)
    assert confined == answer(job, made())


def test_its_user_is_given_back(confining: Confining) -> None:
    """More modules than there are users are compiled one after the other, also when they are given up."""

    async def main(compiler: Compiler) -> None:
        for number in range(6):
            await compiler.compile(replace(JOB, wasm=bytes([number])))
            with trio.move_on_after(0.01):
                await compiler.compile(replace(JOB, wasm=bytes([number, 0])))

    using(made(confine=confining.confinement), main)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(confining.confinement())


def test_limits_are_told_in_confinement_too(confining: Confining) -> None:
    """Process 1 of a namespace ignores SIGXCPU, and cannot abort: the sentences are the same."""
    for bounds, told in (
        (replace(BOUNDS, cpu_seconds=1), "CPU limit 1 s"),
        (replace(BOUNDS, base_memory=16 * MIB, memory_per_byte=0), "limit of 16 MiB of memory"),
    ):
        found = answer(replace(JOB, wasm=mutations.slow()), made(bounds, confine=confining.confinement))
        assert isinstance(found, LoadError)
        assert told in found.message


def test_no_user_left_is_not_the_modules_fault() -> None:
    """Where no number is left for it the sentence is the one that says so."""

    def none() -> AbstractContextManager[Confinement]:
        raise NoUserLeft("cannot give it a user of its own")

    async def main(compiler: Compiler) -> None:
        with pytest.raises(SpawnError, match="cannot compile: cannot give it a user of its own"):
            await compiler.compile(JOB)

    using(made(confine=none), main)


@contextmanager
def cloning() -> Generator[Confinement, None, None]:
    """As if in namespaces: what follows the line with the clone's pid is the answer."""
    yield replace(BARE, namespaces="user")


CLONING = """
import os, sys
told, tell = os.pipe()
pid = os.fork()
if pid:
    {launcher}
os.close(tell); os.read(told, 1)
{clone}
"""


@pytest.mark.parametrize(
    ("launcher", "told"),
    [
        ("os.write(1, b'clone 1\\n'); os._exit(0)", "the compiler "),
        ("os.write(1, b'clone %d\\n' % os.getpid()); os._exit(0)", "the compiler "),
        ("os.write(1, b'capsuled'); os._exit(0)", "the compiler "),
        ("os._exit(3)", "the compiler ended with status 3"),
        ("os.kill(os.getpid(), 9)", "the compiler was ended by SIGKILL"),
    ],
)
def test_a_clone_that_cannot_be_followed_is_killed(launcher: str, told: str) -> None:
    """Another's pid, its own, no line, or an end before it: there is a sentence, and the clone is gone."""
    code = CLONING.format(launcher=launcher, clone="import time; time.sleep(1000)")
    found = answer(JOB, made(confine=cloning, command=acting(code)))
    assert isinstance(found, LoadError)
    assert told in found.message


def test_a_clone_that_cannot_be_limited_is_not_the_modules_fault(
    confining: Confining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed, and what is told is that it could not be put into its control group."""
    joining: list[int] = []

    def join(_: Group, pid: int) -> None:
        joining.append(pid)
        if len(joining) > 1:
            raise PermissionError(1, "Operation not permitted", "cgroup.procs")

    monkeypatch.setattr(Group, "join", join)

    async def main(compiler: Compiler) -> None:
        with pytest.raises(CannotCompile, match=r"cannot compile: .*cgroup\.procs") as failed:
            await compiler.compile(JOB)
        assert failed.value.status is None

    using(made(confine=confining.confinement), main)
    assert len(joining) == 2, "it needs namespaces, which this machine had"


def test_a_module_is_compiled_once() -> None:
    """The first start costs a process, the next none; another module has a process of its own."""

    async def main(compiler: Compiler) -> None:
        first = await compiler.compile(JOB)
        assert isinstance(first, Compiled)
        assert blob.unpack(first.blob)[0].engine == first.engine
        assert await compiler.compile(replace(JOB, wasm=bytes(bytearray(SENSOR)))) == first
        assert compiler.processes == 1
        other = await compiler.compile(OTHER)
        assert isinstance(other, Compiled)
        assert other != first
        assert compiler.processes == 2

    using(made(), main)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (replace(JOB, wasm=b"hello"), "not a WebAssembly module of version 1"),
        (replace(JOB, wasm=b""), "not a WebAssembly module of version 1"),
        (replace(JOB, wasm=SENSOR[:-1]), "cut off at byte"),
        (replace(JOB, module_hash="sha256:0"), "the manifest says sha256:0"),
        (replace(JOB, engine="v8"), "cannot run the engine 'v8'"),
        (replace(JOB, memory=65535), "it asks for a memory of"),
    ],
)
def test_what_does_not_fit_is_told_in_the_compilers_words(job: Job, told: str) -> None:
    """Malformed, cut off, another hash, no such engine, over a limit."""
    found = answer(job, made())
    assert isinstance(found, LoadError)
    assert told in found.message


def test_a_rejected_module_is_tried_again() -> None:
    """What was rejected is not kept: the operator may have installed the engine since."""

    async def main(compiler: Compiler) -> None:
        for _ in range(2):
            assert isinstance(await compiler.compile(replace(JOB, engine="v8")), LoadError)
        assert compiler.processes == 2

    using(made(), main)


def test_the_real_one_is_held_to_its_processor_time() -> None:
    """A compiler that would need longer than it may is ended with its limit in the sentence."""
    found = answer(replace(JOB, wasm=mutations.slow()), made(replace(BOUNDS, cpu_seconds=1)))
    assert isinstance(found, LoadError)
    assert "the compiler was killed: CPU limit 1 s for a module of" in found.message


def test_the_real_one_is_held_to_its_memory() -> None:
    """A compiler that would need more memory than it may is ended with its limit in the sentence."""
    bounds = replace(BOUNDS, base_memory=16 * MIB, memory_per_byte=0)
    found = answer(replace(JOB, wasm=mutations.slow()), made(bounds))
    assert isinstance(found, LoadError)
    assert "the compiler had reached its limit of 16 MiB of memory for a module of" in found.message


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", sorted(mutations.BOMBS))
def test_a_bomb_is_compiled_or_told(engine: str, kind: str) -> None:
    """Modules out of all proportion are compiled, rejected, or meet a limit: no compiler crashes or fails."""
    wasm = mutations.bomb(kind)
    found = answer(Job(engine, "", 16 * MIB, wasm), made(replace(BOUNDS, cpu_seconds=1)))
    if isinstance(found, LoadError):
        assert any(each in found.message for each in (*REJECTED, *LIMITS_MET)), found.message


REJECTED = ("the engine rejects it: ", "elements in its tables; the limit is")
LIMITS_MET = (
    "the compiler was killed: CPU limit",
    "the compiler had reached its limit",
    "it wrote more than",
)

# ── one that has been taken over ─────────────────────────────────────────────────────────────────

SHORT = Bounds(seconds=0.5, base_output=len(BLOB), output_per_byte=0, most_printed=1000)

MISDEEDS = {
    "waits": (SHORT, "import time; time.sleep(1000)", "it took longer than 0.5 s"),
    "spins": (SHORT, "while True: pass", "it took longer than 0.5 s"),
    "ignores signals": (
        SHORT,
        "import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "it took longer than 0.5 s",
    ),
    "stops itself": (SHORT, "import os; os.kill(os.getpid(), 19)", "it took longer than 0.5 s"),
    "closes its pipes and stays": (
        SHORT,
        "import os, time; os.close(1); os.close(2); time.sleep(1000)",
        "it took longer than 0.5 s",
    ),
    "one byte too much": (
        replace(SHORT, seconds=30.0),
        f"{ANSWER}; os.write(1, b'x'); import time; time.sleep(1000)",
        "the compiler was killed: it wrote more than",
    ),
    "writes without end": (
        replace(SHORT, seconds=30.0),
        "import os\nwhile True: os.write(1, b'x' * 65536)",
        "the compiler was killed: it wrote more than",
    ),
    "prints too much": (
        replace(SHORT, seconds=30.0),
        "import os, time; os.write(2, b'x' * 1001); time.sleep(1000)",
        "or printed 1000:",
    ),
    "crashes": (BOUNDS, "import os; os.kill(os.getpid(), 11)", "the compiler was ended by SIGSEGV"),
    "writes half a head": (BOUNDS, f"import os; os.write(1, {BLOB[:50]!r})", "no blob: it has 50 bytes"),
    "says nothing": (BOUNDS, "pass", "what the compiler wrote is no blob: it has 0 bytes"),
    "ends as it likes": (BOUNDS, "raise SystemExit(3)", "the compiler ended with status 3"),
    "raises": (BOUNDS, "raise ValueError('why')", "it printed: ValueError: why"),
}


@pytest.mark.parametrize(("bounds", "code", "told"), MISDEEDS.values(), ids=MISDEEDS)
def test_whatever_it_does_there_is_an_answer(bounds: Bounds, code: str, told: str) -> None:
    """A compiler that a module has taken over ends in a sentence, and is gone."""
    found = answer(JOB, made(bounds, command=acting(code)))
    assert isinstance(found, LoadError)
    assert told in found.message


def test_output_at_its_bound_is_taken() -> None:
    """As many bytes as it may write, and as many printed."""
    compiler = made(replace(SHORT, seconds=30.0), command=acting(f"{ANSWER}; os.write(2, b'x' * 1000)"))
    assert answer(JOB, compiler) == Compiled("wasmer", BLOB)


def test_what_it_has_started_goes_with_it() -> None:
    """A child of a compiler that holds its pipes open is killed with it, and the answer does not wait for it."""
    code = f"import os, time\nif os.fork(): {ANSWER}\nelse: time.sleep(1000)"
    assert answer(JOB, made(command=acting(code))) == Compiled("wasmer", BLOB)


def test_what_left_its_group_does_not_hold_us_up(tmp_path: Path) -> None:
    """A child with a session of its own, which holds the pipes, costs a second; its output was not whole."""
    file = tmp_path / "pid"
    code = (
        f"import os, time\nif os.fork(): {ANSWER}; time.sleep(0.2)\n"
        f"else: os.setsid(); open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
    )

    async def main(compiler: Compiler) -> None:
        found = await compiler.compile(JOB)
        os.kill(int(file.read_text()), 9)
        assert isinstance(found, LoadError)
        assert "the compiler ended with status 0" in found.message

    using(made(command=acting(code)), main)


def test_not_sealed_is_not_a_load_error() -> None:
    """A compiler that cannot seal itself is the machine's affair: an error with its sentence, and its status."""
    code = "import os; os.write(1, b'cannot seal it: rlimits'); os._exit(97)"

    async def main(compiler: Compiler) -> None:
        with pytest.raises(CannotCompile, match="cannot seal it: rlimits") as caught:
            await compiler.compile(JOB)
        assert caught.value.status == 97

    using(made(command=acting(code)), main)


def test_a_compiler_that_cannot_be_started_is_said_so() -> None:
    """The reason is the system's, and the next compile is not disturbed."""

    async def main(compiler: Compiler) -> None:
        for _ in range(2):
            with pytest.raises(SpawnError, match=r"cannot compile: cannot start .*No such file"):
                await compiler.compile(JOB)

    using(made(command=("/nowhere/python",)), main)


# ── several ──────────────────────────────────────────────────────────────────────────────────────

BARRIER = """
import os, time
open({folder!r} + "/" + str(os.getpid()), "w").close()
while not os.path.exists({folder!r} + "/go"): time.sleep(0.01)
os.write(1, {blob!r})
"""


def waiting(folder: Path) -> tuple[str, ...]:
    """A compiler that leaves its pid in `folder`, and answers when there is a file `go` in it."""
    return acting(BARRIER.format(folder=str(folder), blob=BLOB))


async def until(reached: Callable[[], bool]) -> None:
    """Wait until it holds: a process of another program has no event of ours."""
    with trio.fail_after(30):
        while not reached():  # noqa: ASYNC110  (what it waits for is in another process)
            await trio.sleep(0.01)


def jobs(count: int) -> list[Job]:
    return [replace(JOB, wasm=bytes([each])) for each in range(count)]


def test_the_same_job_is_done_once(tmp_path: Path) -> None:
    """Ten that ask at the same time have one process, and one blob."""
    found: list[Compiled | LoadError] = []

    async def main(compiler: Compiler) -> None:
        async def ask() -> None:
            found.append(await compiler.compile(JOB))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            await until(lambda: len(os.listdir(tmp_path)) > 0)
            (tmp_path / "go").touch()
        assert compiler.processes == 1

    using(made(command=waiting(tmp_path)), main)
    assert found == [Compiled("wasmer", BLOB)] * 10


def test_no_more_run_than_may(tmp_path: Path) -> None:
    """Of five jobs two are done at a time; the turn of the others comes when those are done, in order."""
    turns: list[int] = []

    async def main(compiler: Compiler) -> None:
        async def ask(number: int, job: Job) -> None:
            await compiler.compile(job, lambda: turns.append(number))

        async with trio.open_nursery() as nursery:
            for number, job in enumerate(jobs(5)):
                nursery.start_soon(ask, number, job)
            await until(lambda: len(os.listdir(tmp_path)) == 2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (len(turns), compiler.processes) == (2, 2)
            (tmp_path / "go").touch()
        assert compiler.processes == 5

    using(made(command=waiting(tmp_path)), main)
    assert sorted(turns) == list(range(5))


def test_who_gives_up_leaves_it_to_the_others(tmp_path: Path) -> None:
    """A job that two have asked for goes on when one is cancelled; when the other is, too, its process is killed."""

    async def main(compiler: Compiler) -> None:
        one, two = trio.CancelScope(), trio.CancelScope()

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                await compiler.compile(JOB)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, one)
            nursery.start_soon(ask, two)
            await until(lambda: len(os.listdir(tmp_path)) == 1)
            (pid,) = map(int, os.listdir(tmp_path))
            one.cancel()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert psutil.pid_exists(pid)
            two.cancel()
        await until(lambda: not psutil.pid_exists(pid))

    using(made(command=waiting(tmp_path)), main)


def test_who_asks_after_it_was_given_up_has_a_process_of_its_own(tmp_path: Path) -> None:
    """What was cancelled is never handed to somebody who did not cancel it."""

    async def main(compiler: Compiler) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(compiler.compile, JOB)
                await until(lambda: len(os.listdir(tmp_path)) == 1)
                scope.cancel()
        (tmp_path / "go").touch()
        assert await compiler.compile(JOB) == Compiled("wasmer", BLOB)
        assert compiler.processes == 2

    using(made(command=waiting(tmp_path)), main)


def test_a_job_in_the_queue_can_be_given_up(tmp_path: Path) -> None:
    """One that waits for its turn and is cancelled never has a process."""

    async def main(compiler: Compiler) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(compiler.compile, JOB)
            await until(lambda: len(os.listdir(tmp_path)) == 1)
            with trio.move_on_after(0.05) as scope:
                await compiler.compile(OTHER)
            assert scope.cancelled_caught
            (tmp_path / "go").touch()
        assert compiler.processes == 1

    using(made(at_once=1, command=waiting(tmp_path)), main)


def test_its_end_is_the_end_of_every_process(tmp_path: Path) -> None:
    """A compiler that is cancelled kills and reaps what runs, and answers who still asks."""
    found: list[Compiled | LoadError] = []

    async def both() -> None:
        async with trio.open_nursery() as outer:

            async def ask() -> None:
                found.append(await compiler.compile(JOB))

            async with trio.open_nursery() as nursery:
                await nursery.start(compiler.run)
                outer.start_soon(ask)
                await until(lambda: len(os.listdir(tmp_path)) == 1)
                nursery.cancel_scope.cancel()
            assert psutil.Process().children(recursive=True) == []

    compiler = made(command=waiting(tmp_path))
    run(both)
    assert found == [LoadError("it was given up before it was compiled")]


def test_what_is_forgotten_is_compiled_again() -> None:
    """A blob that did not load is made anew."""

    async def main(compiler: Compiler) -> None:
        await compiler.compile(JOB)
        compiler.forget(JOB)
        await compiler.compile(JOB)
        assert compiler.processes == 2

    using(made(command=acting(ANSWER)), main)


@pytest.mark.parametrize(("room", "processes"), [(2 * len(BLOB), 2), (2 * len(BLOB) - 1, 3)])
def test_blobs_are_kept_within_their_bound(room: int, processes: int) -> None:
    """Two where there is room for two; one byte less, and the older is compiled again."""

    async def main(compiler: Compiler) -> None:
        for job in (JOB, OTHER, JOB):
            await compiler.compile(job)
        assert compiler.processes == processes

    using(made(kept_bytes=room, command=acting(ANSWER)), main)


LOOKS = """
import os, select
waiting, _, _ = select.select([0], [], [], 0.3)
with open({told!r}, "w") as told: told.write("an order" if waiting else "nothing")
os.read(0, 1)
"""


class Watching(Group):
    """A group that asks whoever is put into it what he knows already."""

    def __init__(self, told: Path) -> None:
        super().__init__("", (), Caps.beside(0, 1.0))
        self._told = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
        self.found = b""

    def join(self, pid: int) -> None:
        select.select([self._told], [], [], 30)
        self.found = os.read(self._told, 100)
        os.close(self._told)


def test_who_is_not_in_his_group_yet_has_no_order(tmp_path: Path) -> None:
    """However long it takes to put a compiler there, it has seen nothing of the module till then."""
    fifo = tmp_path / "told"
    os.mkfifo(fifo)
    group = Watching(fifo)

    @asynccontextmanager
    async def one(name: str, caps: Caps) -> AsyncGenerator[Group, None]:
        yield group

    async def main(compiler: Compiler) -> None:
        assert isinstance(await compiler.compile(JOB), LoadError)

    command = acting(LOOKS.format(told=str(fifo)))
    using(Compiler(UNCONFINED.confinement, one, command=command), main)
    assert group.found == b"nothing"


def test_who_reads_no_order_holds_nobody_up() -> None:
    """One that ends without it, with more of it to come than a pipe holds, is answered at once."""

    async def main(compiler: Compiler) -> None:
        found = await compiler.compile(replace(JOB, wasm=bytes(8 * MIB)))
        assert found == LoadError("it exports nothing")

    using(made(command=acting("import os; os.write(1, b'it exports nothing'); os._exit(65)")), main)
