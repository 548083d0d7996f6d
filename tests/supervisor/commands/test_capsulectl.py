"""What operators type: each command and each exit code, by real processes against the real server."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from capsuled.proto.control import Exit, Level
from capsuled.supervisor.commands.client import AT_ONCE
from capsuled.supervisor.control.access import Access, Peer
from capsuled.supervisor.control.operations import Verb
from capsuled.supervisor.control.shapes import Json

from ..control.serving import Daemon, event, log_line, run, serving
from .running import EVIL, SHOWN, Ran, ctl


def ran(*arguments: str, daemon: Daemon | None = None) -> Ran:
    """What a command did, asked by an admin."""
    found: list[Ran] = []

    async def main() -> None:
        async with serving(daemon) as served:
            found.append(await ctl(served, *arguments))

    run(main)
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["status"], Exit.DONE, "version:   1.2.3\n", ""),
        (["status", "echo"], Exit.DONE, "state:     ready\n", ""),
        (["status", "slow"], Exit.DONE, "state:     starting\n", ""),
        (["status", "idle"], Exit.NOT_RUNNING, "state:     stopped\n", ""),
        (["status", "broken"], Exit.NOT_RUNNING, "last_exit: reason trap, trap unreachable\n", ""),
        (["status", "nobody"], Exit.NO_SUCH_CAPSULE, "", "capsulectl: cannot find capsule 'nobody'"),
        (
            ["list"],
            Exit.DONE,
            "broken  failed    up       -     2026-01-31T12:00:00.000Z  0        trap\n",
            "",
        ),
        (["start", "idle"], Exit.DONE, "idle: start accepted as c1, stopped\n", ""),
        (["start", "echo", "--wait", "ready"], Exit.DONE, "echo: start done, ready\n", ""),
        (["stop", "echo", "--wait", "down", "--timeout", "5s"], Exit.DONE, "echo: stop done, ready\n", ""),
        (["restart", "echo"], Exit.DONE, "echo: restart accepted as c1, ready\n", ""),
        (["kill", "echo", "--wait=down"], Exit.DONE, "echo: kill done, ready\n", ""),
        (["reset-failed", "broken"], Exit.DONE, "broken: reset-failed accepted as c1, failed\n", ""),
        (["start", "broken"], Exit.FAILED, "", "capsulectl: cannot start broken: it has failed: use reset-"),
        (["restart", "broken", "--wait", "ready"], Exit.FAILED, "", "capsulectl: cannot wait for broken: "),
        (["start", "nobody"], Exit.NO_SUCH_CAPSULE, "", "capsulectl: cannot find capsule 'nobody'"),
        (
            ["stop", "slow", "--wait", "down", "--timeout", "1ms"],
            Exit.TIMED_OUT,
            "",
            "capsulectl: cannot wait",
        ),
        (["logs", "echo"], Exit.DONE, "2026-01-31T12:00:00.000Z 1 guest info line 2\n", ""),
        (["logs", "echo", "-n", "1"], Exit.DONE, "2026-01-31T12:00:00.000Z 1 guest info line 2\n", ""),
        (["logs", "echo", "-n", "10001"], Exit.FAILED, "", "capsulectl: parameter 'lines' cannot be '10001'"),
        (["logs", "nobody"], Exit.NO_SUCH_CAPSULE, "", "capsulectl: cannot find capsule 'nobody'"),
        (["logs", "nobody", "-f"], Exit.NO_SUCH_CAPSULE, "", "capsulectl: cannot find capsule 'nobody'"),
        (["why", "broken"], Exit.DONE, "\nlast exit but 1\ntime:     2026-01-31T11:00:00.000Z\n", ""),
        (["why", "nobody"], Exit.NO_SUCH_CAPSULE, "", "capsulectl: cannot find capsule 'nobody'"),
        (["events"], Exit.DONE, "2026-01-31T12:00:00.000Z echo state (instance 1, state ready)\n", ""),
        (["wait", "echo", "--for", "ready"], Exit.DONE, "echo: ready\n", ""),
        (["wait", "idle", "--for", "down"], Exit.DONE, "idle: stopped\n", ""),
        (["wait", "broken", "--for", "down"], Exit.DONE, "broken: failed\n", ""),
        (["wait", "broken", "--for", "ready"], Exit.FAILED, "", "capsulectl: cannot wait for broken: it has"),
        (["wait", "slow", "--for=down", "--timeout=1ms"], Exit.TIMED_OUT, "", "capsulectl: cannot wait any"),
        (["wait", "nobody", "--for", "down"], Exit.NO_SUCH_CAPSULE, "", "capsulectl: cannot find capsule"),
        (["bus", "stats"], Exit.DONE, "echo  5          quota 2\n", ""),
        (["bus", "stats", "--check"], Exit.DONE, "\nbalanced\n", ""),
        (["acl", "explain", "echo", "publish", "room.7"], Exit.DONE, "allowed: grant 'room.*' says so\n", ""),
        (
            ["acl", "explain", "echo", "subscribe", "a.*"],
            Exit.FAILED,
            "denied: no grant of echo lets it ",
            "",
        ),
        (["acl", "explain", "echo", "publish", "a..b"], Exit.FAILED, "", "capsulectl: parameter 'topic' "),
        (["acl", "explain", "nobody", "publish", "a"], Exit.NO_SUCH_CAPSULE, "", "capsulectl: cannot find"),
        (
            ["reload"],
            Exit.DONE,
            "+ new\n- idle\n~ echo (the module is another; limits.memory is 32MiB now)\n= 1 unchanged\n",
            "",
        ),
        (["reload", "--dry-run"], Exit.DONE, "+ new\n", ""),
        (["reload", "--wait", "--timeout", "5s"], Exit.DONE, "+ new\n", ""),
        (["metrics"], Exit.DONE, "# TYPE up gauge\nup 1\n# EOF\n", ""),
        (["health"], Exit.DONE, "healthy: yes\n", ""),
        (["health", "--level", "ready"], Exit.DONE, "level:   ready\n", ""),
        (["shutdown"], Exit.DONE, "shutting_down: yes\n", ""),
    ],
)
def test_commands(arguments: list[str], code: Exit, out: str, err: str) -> None:
    """Each command prints what was answered and exits with its code; what is wrong is told on stderr."""
    done = ran(*arguments)
    assert done.code == code, done
    assert out in done.out
    assert done.err.startswith(err)
    assert bool(done.err) is bool(err)
    assert bool(done.out) is bool(out)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bus"],
        ["acl"],
        ["dance"],
        ["status", "a", "b"],
        ["start"],
        ["start", "echo", "--wait", "up"],
        ["start", "echo", "--timeout", "5s"],
        ["start", "echo", "--wait", "ready", "--timeout", "0"],
        ["start", "echo", "--wait", "ready", "--timeout", "soon"],
        ["start", "echo", "--wai", "ready"],
        ["reload", "echo"],
        ["reload", "--timeout", "5s"],
        ["reload", "--dry-run", "--wait"],
        ["logs", "echo", "-n", "-1"],
        ["logs", "echo", "-n", "some"],
        ["wait", "echo"],
        ["wait", "echo", "--for", "up"],
        ["acl", "explain", "echo", "read", "a"],
        ["health", "--level", "well"],
        ["--colour", "status"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    """What the command line does not know exits 2, says so, and asks nothing."""
    daemon = Daemon()
    done = ran(*arguments, daemon=daemon)
    assert (done.code, done.out) == (Exit.USAGE, "")
    assert "capsulectl" in done.err
    assert (daemon.acted, daemon.asked) == ([], [])


@pytest.mark.parametrize(
    ("unwell", "command"), [("is_healthy", ["health"]), ("is_balanced", ["bus", "stats"])]
)
def test_what_is_not_well_is_told(unwell: str, command: list[str]) -> None:
    """`health` exits 1 when not all is well; `bus stats` does only with --check."""
    daemon = Daemon()
    setattr(daemon, unwell, False)
    done = ran(*command, daemon=daemon)
    if command == ["health"]:
        assert (done.code, done.err) == (Exit.FAILED, "")
        assert "healthy: no\n" in done.out
    else:
        assert done.code == Exit.DONE
        assert "NOT balanced" in done.out
        assert ran(*command, "--check", daemon=daemon).code == Exit.FAILED


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], Exit.DONE),
        (["status", "idle"], Exit.NOT_RUNNING),
        (["list"], Exit.DONE),
        (["start", "echo"], Exit.DONE),
        (["why", "broken"], Exit.DONE),
        (["reload", "--dry-run"], Exit.DONE),
        (["bus", "stats"], Exit.DONE),
        (["acl", "explain", "echo", "publish", "a"], Exit.FAILED),
        (["health"], Exit.DONE),
        (["wait", "echo", "--for", "ready"], Exit.DONE),
        (["wait", "broken", "--for", "ready"], Exit.FAILED),
        (["status", "nobody"], Exit.NO_SUCH_CAPSULE),
        (["logs", "nobody"], Exit.NO_SUCH_CAPSULE),
        (["logs", "nobody", "-f"], Exit.NO_SUCH_CAPSULE),
        (["shutdown"], Exit.DONE),
    ],
)
def test_json(arguments: list[str], code: Exit) -> None:
    """With --json, before the command or after it, stdout is what the socket answered, errors too."""
    for line in (["--json", *arguments], [*arguments, "--json"]):
        done = ran(*line)
        assert done.code == code
        value = json.loads(done.out)
        assert set(value) == ({"error"} if "nobody" in arguments else set(value) - {"error"})
        assert bool(value)


def test_json_lines() -> None:
    """Logs and events are JSON lines."""
    daemon = Daemon()
    assert json_lines(ran("logs", "echo", "--json", daemon=daemon)) == daemon.log_lines
    assert json_lines(ran("events", "--json", daemon=daemon)) == daemon.past_events


def json_lines(done: Ran) -> list[dict[str, Json]]:
    return [json.loads(line) for line in done.out.splitlines()]


def test_several_names() -> None:
    """Every name is tried, answers come in the order of the names, and the highest exit code counts."""
    daemon = Daemon()
    done = ran("stop", "broken", "nobody", "echo", "--wait", "down", daemon=daemon)
    assert done.code == Exit.NO_SUCH_CAPSULE
    assert done.out == "echo: stop done, ready\n"
    assert [line.partition(":")[2][:25] for line in done.err.splitlines()] == [
        " cannot wait for broken: ",
        " cannot find capsule 'nob",
    ]
    assert {name for name, *_ in daemon.acted} == {"broken", "nobody", "echo"}


def test_more_names_than_at_once() -> None:
    """More capsules than connections are done in waves; no name is left out."""
    daemon = Daemon()
    names = [f"c{n}" for n in range(2 * AT_ONCE + 1)]
    daemon.capsules_by_name.update((name, {"name": name, "state": "ready"}) for name in names)
    done = ran("stop", *names, daemon=daemon)
    assert (done.code, done.err) == (Exit.DONE, "")
    assert [line.partition(":")[0] for line in done.out.splitlines()] == names
    assert sorted(name for name, *_ in daemon.acted) == sorted(names)


@pytest.mark.parametrize("verb", Verb)
def test_verbs_reach_the_daemon(verb: Verb) -> None:
    """What the command line says is what the daemon is asked."""
    daemon = Daemon()
    assert ran(verb.value, "echo", "--wait", "ready", "--timeout", "1500ms", daemon=daemon).code == Exit.DONE
    assert daemon.acted == [("echo", verb, "ready", 1.5)]


def test_faults_of_a_reload() -> None:
    """Each fault and who is kept for it has a line; the exit code is 1, though the rest was done."""
    daemon = Daemon()
    fault: dict[str, Json] = {
        "file": "a/Capsule.toml",
        "key": "limits.memory",
        "message": f"{EVIL} is no size",
    }
    daemon.plan.update(faults=[fault, {**fault, "key": ""}], kept=["echo"], changed=[], unchanged=[])
    done = ran("reload", daemon=daemon)
    assert (done.code, done.err) == (Exit.FAILED, "")
    assert done.out.splitlines() == [
        "+ new",
        "- idle",
        "= 0 unchanged",
        f"! a/Capsule.toml: limits.memory: {SHOWN} is no size",
        f"! a/Capsule.toml: {SHOWN} is no size",
        "! echo goes on as it is: what its manifest says now has a fault",
    ]
    assert ran("reload", "--json", daemon=daemon).code == Exit.FAILED


def test_a_reload_that_takes_too_long() -> None:
    """What does not settle in time exits 6."""
    daemon = Daemon()
    daemon.plan.update(added=["slow"])
    done = ran("reload", "--wait", "--timeout", "1ms", daemon=daemon)
    assert (done.code, done.out) == (Exit.TIMED_OUT, "")
    assert done.err.startswith("capsulectl: cannot wait")


def test_names_with_escapes() -> None:
    """A name is one segment of the path whatever is in it, and nothing that a terminal obeys is printed."""
    name = "a/../b?x=1#%2F ü" + EVIL
    daemon = Daemon()
    daemon.capsules_by_name[name] = {"name": name, "state": "ready"}
    shown = "a/../b?x=1#%2F ü" + SHOWN
    done = ran("status", name, daemon=daemon)
    assert (done.code, done.out) == (Exit.DONE, f"name:  {shown}\nstate: ready\n")
    assert shown in ran("list", daemon=daemon).out
    assert ran("why", "no" + EVIL, daemon=daemon).err.startswith(
        f"capsulectl: cannot find capsule 'no{SHOWN}'"
    )
    assert json.loads(ran("status", name, "--json", daemon=daemon).out)["name"] == name


def test_what_a_guest_logs_is_no_command() -> None:
    """Log lines and events are printed without anything that a terminal would obey."""
    daemon = Daemon()
    daemon.log_lines = [log_line(EVIL + "end")]
    daemon.past_events = [event(EVIL, "ready")]
    assert ran("logs", "echo", daemon=daemon).out == (f"2026-01-31T12:00:00.000Z 1 guest info {SHOWN}end\n")
    assert ran("events", daemon=daemon).out.startswith(f"2026-01-31T12:00:00.000Z {SHOWN} state (")


def test_an_encoding_without_the_letter_is_no_failure() -> None:
    """A letter that stdout's encoding does not have is an escape."""
    daemon = Daemon()
    daemon.log_lines = [log_line("grün …")]

    async def main() -> None:
        async with serving(daemon) as served:
            done = await ctl(served, "logs", "echo", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
        assert (done.code, done.err) == (Exit.DONE, "")
        assert done.out.endswith("gr\\xfcn \\u2026\n")

    run(main)


def test_a_newer_supervisor_is_understood() -> None:
    """Fields that are new are shown, and those that are missing are a dash."""
    daemon = Daemon()
    daemon.capsules_by_name = {"new": {"name": "new", "state": "ready", "mood": ["good", {"so": "so"}]}}
    assert "mood:  good; so so\n" in ran("status", "new", daemon=daemon).out
    assert "new   ready  -        -    -      -        -\n" in ran("list", daemon=daemon).out
    daemon.past_events = [{"event": "new"}]
    assert ran("events", daemon=daemon).out == "- - new\n"


def test_what_is_seldom_there_is_shown_when_it_is() -> None:
    """What a capsule waits for, and another instance of it during an upgrade, have a line only then."""
    daemon = Daemon()
    echo = daemon.capsules_by_name["echo"]
    echo.update(waits_for=None, beside=[])
    out = ran("status", "echo", daemon=daemon).out
    assert "waits_for" not in out
    assert "beside" not in out
    echo.update(waits_for="bank", beside=[{"instance": "5d", "pid": 12, "version": "2.0.0"}])
    out = ran("status", "echo", daemon=daemon).out
    assert "waits_for: bank\n" in out
    assert "beside:    instance 5d, pid 12, version 2.0.0\n" in out


# Who is there, and who may.


def test_no_supervisor(tmp_path: Path) -> None:
    """Where nobody listens, or nothing is, the exit code is 7 and the sentence says what to do."""

    async def main() -> None:
        stale = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            os.chdir(tmp_path)
            dead.bind("s")
        for path, why in ((stale.name, "Connection refused"), ("nowhere", "No such file"), ("x" * 200, "AF")):
            done = await ctl(None, "status", "--socket", path)
            assert (done.code, done.out) == (Exit.NO_SUPERVISOR, "")
            assert done.err.startswith(f"capsulectl: cannot reach a supervisor at {path}: {why}")
            assert "start capsuled, or name its socket with --socket or CAPSULED_SOCKET" in done.err
        done = await ctl(None, "stop", "a", "b", "--socket", "nowhere")
        assert done.code == Exit.NO_SUPERVISOR
        assert [line[:15] for line in done.err.splitlines()] == ["capsulectl: a: ", "capsulectl: b: "]

    before = Path.cwd()
    try:
        run(main)
    finally:
        os.chdir(before)


def test_the_option_wins_over_the_environment(tmp_path: Path) -> None:
    """--socket names the socket, else CAPSULED_SOCKET does."""

    async def main() -> None:
        async with serving() as served:
            elsewhere = {"CAPSULED_SOCKET": os.fspath(tmp_path / "nowhere")}
            done = await ctl(None, "--socket", os.fspath(served.path), "health", env=elsewhere)
            assert done.code == Exit.DONE
            assert (await ctl(None, "health", env=elsewhere)).code == Exit.NO_SUPERVISOR

    run(main)


@pytest.mark.parametrize("command", [["status"], ["start", "a", "b"], ["logs", "a", "-f"], ["shutdown"]])
def test_a_stranger_is_told(command: list[str]) -> None:
    """Who has no level gets exit code 5 and the supervisor's sentence."""

    async def main() -> None:
        async with serving(access=Access(1), credentials=lambda _: Peer(1, 4711, 2)) as served:
            done = await ctl(served, *command)
        assert (done.code, done.out) == (Exit.NOT_PERMITTED, "")
        assert "capsulectl: cannot let you in (uid 4711, gid 2, pid 1): ask as root" in done.err

    run(main)


def test_a_level_too_low_is_told() -> None:
    """Who may only read is told which level the command needs."""

    async def main() -> None:
        async with serving(
            access=Access(1, {10: Level.READ}),
            credentials=lambda _: Peer(1, 4711, 10),
            groups=lambda peer: frozenset((peer.gid,)),
        ) as served:
            assert (await ctl(served, "status", "echo")).code == Exit.DONE
            done = await ctl(served, "kill", "echo")
            assert done.code == Exit.NOT_PERMITTED
            assert "it needs level operate, you have read" in done.err

    run(main)
