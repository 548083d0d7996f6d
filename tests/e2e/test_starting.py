"""What the supervisor starts over, what it refuses to start over, and what it leaves out."""

from __future__ import annotations

import grp
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from capsuled.supervisor.commands.client import Client

from ..support.daemon import Daemon
from . import lives

GOOD = '[package]\nname = "{name}"\nversion = "1.0.0"\n[component]\nfile = "m.wasm"\nhash = "sha256:{hash}"\n'


def test_a_second_supervisor_on_the_same_folders(daemon: Daemon) -> None:
    """It exits with 1 and a sentence, and the first one's capsules, socket and edges are as before."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    pid, edges = daemon.worker("sleeper"), os.listdir(daemon.runtime / "edges")
    status, said = daemon.refused()
    assert status == 1
    assert said.startswith("capsuled: cannot use ")
    assert "another supervisor holds it" in said
    assert said.count("\n") == 1
    assert daemon.worker("sleeper") == pid
    assert os.listdir(daemon.runtime / "edges") == edges


def test_a_second_supervisor_on_the_same_state(daemon: Daemon) -> None:
    """The state folder is held as well: two must not write the same log files."""
    daemon.start()
    other = daemon.folder / "other.toml"
    other.write_text('capsules = ["capsules"]\nruntime_dir = "rt2"\nstate_dir = "st"\n')
    status, said = daemon.refused(arguments=["--config", str(other)])
    assert status == 1
    assert "/st: another supervisor holds it" in said


def test_what_a_killed_supervisor_left_is_replaced(daemon: Daemon) -> None:
    """A socket that nobody listens to, and edges of workers that are gone, are in nobody's way."""
    (daemon.runtime / "edges" / "deeper").mkdir(parents=True)
    (daemon.runtime / "edges" / "00000001").write_text("stale")
    daemon.runtime.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(daemon.socket))
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    assert len(os.listdir(daemon.runtime / "edges")) == 1


def test_one_folder_for_both(daemon: Daemon) -> None:
    """Runtime and state in one folder: it is not held against ourselves."""
    both = daemon.folder / "both.toml"
    both.write_text('capsules = ["capsules"]\nruntime_dir = "rt"\nstate_dir = "rt"\n')
    daemon.start(arguments=["--config", str(both)])
    assert daemon.get("/v1/health")["healthy"]


def test_a_group_is_let_in_where_the_folder_is_new(daemon: Daemon) -> None:
    """With a group in [control] the folder is made so that its members come in."""
    name = next(each.gr_name for each in grp.getgrall() if each.gr_gid == os.getgid())
    daemon.start(configuration=f'[control]\ngroups = {{ {name} = "read" }}\n')
    assert daemon.runtime.stat().st_mode & 0o777 == 0o755
    assert (daemon.runtime / "edges").stat().st_mode & 0o777 == 0o700


def a_file(name: str) -> Callable[[Daemon], None]:
    def make(daemon: Daemon) -> None:
        path = daemon.folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text("in the way")

    return make


def a_link(name: str, to: str) -> Callable[[Daemon], None]:
    def make(daemon: Daemon) -> None:
        path = daemon.folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.symlink_to(to)

    return make


def open_folder(daemon: Daemon) -> None:
    daemon.runtime.mkdir()
    daemon.runtime.chmod(0o777)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (a_file("rt"), ["cannot use", "/rt: Not a directory"]),
        (a_file("st"), ["cannot use", "/st: Not a directory"]),
        (a_file("st/logs"), ["cannot make", "/st/logs", "choose another state_dir"]),
        (a_file("rt/edges"), ["cannot make", "/rt/edges", "empty it, or choose another runtime_dir"]),
        (a_link("rt/edges", ".."), ["cannot make", "/rt/edges"]),
        (a_link("rt", "/proc/none/such"), ["cannot use", "/rt"]),
        (a_file("rt/control.sock"), ["cannot listen at", "no socket"]),
        (open_folder, ["cannot trust", "/rt"]),
    ],
)
def test_folders_that_cannot_be_used(
    daemon: Daemon, prepare: Callable[[Daemon], None], words: list[str]
) -> None:
    """One sentence names the folder and what to do, the status is 1, and what was in the way is still there."""
    prepare(daemon)
    before = sorted(path.name for path in daemon.folder.rglob("*"))
    status, said = daemon.refused()
    assert status == 1
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said
    assert set(before) <= {path.name for path in daemon.folder.rglob("*")}


def test_a_runtime_folder_too_deep_for_sockets(daemon: Daemon) -> None:
    """Where the control socket just fits and a worker's does not, that is said at the start, not at each spawn."""
    deep = daemon.folder / ("d" * (107 - len("/control.sock") - len(str(daemon.folder)) - 1))
    assert len(str(deep / "control.sock")) == 107
    file = daemon.folder / "deep.toml"
    file.write_text(f'capsules = ["capsules"]\nruntime_dir = "{deep}"\nstate_dir = "st"\n')
    status, said = daemon.refused(arguments=["--config", str(file)])
    assert status == 1
    assert "109 bytes, 107 at most" in said
    # One that is two letters shorter is fine.
    file.write_text(f'capsules = ["capsules"]\nruntime_dir = "{str(deep)[:-2]}"\nstate_dir = "st"\n')
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.client = Client(str(deep)[:-2] + "/control.sock")
    daemon.start(arguments=["--config", str(file)], wait_for=["sleeper"])


@pytest.mark.parametrize(
    ("arguments", "configuration", "words"),
    [
        (["--capsules", "/none/such"], "", ["cannot look for capsules in /none/such"]),
        (["--config", "/none/such.toml"], "", ["cannot read /none/such.toml"]),
        ([], "speed = 3\nallow_unhashed = 7\n", ["speed", "allow_unhashed"]),
        ([], '[control]\ngroups = { "no-such-group-here" = "read" }\n', ["no-such-group-here"]),
    ],
)
def test_what_it_is_told_wrong(
    daemon: Daemon, arguments: list[str], configuration: str, words: list[str]
) -> None:
    """Arguments and configuration with faults: all of them are named, the status is 1, and nothing starts."""
    status, said = daemon.refused(configuration, arguments)
    assert status == 1
    assert "Traceback" not in said
    for word in words:
        assert word in said
    assert not daemon.socket.exists()


def broken(daemon: Daemon) -> dict[str, str]:
    """Capsules that cannot be taken, beside a good one: folder to a word of what is wrong with each."""
    daemon.capsule("good", lives.sleeper(), subscribe=lives.QUIET)
    wasm = lives.returns()
    manifests = {
        "nameless": ('[package]\nversion = "one"\n', "package.name"),
        "unclosed": ('[package\nname = "x"\n', "unclosed"),
        "twin": (GOOD.format(name="good", hash=hashlib.sha256(wasm).hexdigest()), "is taken by"),
        "escaper": (
            GOOD.format(name="escaper", hash="0" * 64).replace("m.wasm", "../good/good.wasm"),
            "component.file",
        ),
        "misspelt": (
            GOOD.format(name="misspelt", hash="0" * 64) + '[supervision]\nrestrat = "never"\n',
            "restrat",
        ),
        "unhashed": (GOOD.format(name="unhashed", hash="abc"), "component.hash"),
    }
    for name, (text, _) in manifests.items():
        (daemon.capsules / name).mkdir()
        (daemon.capsules / name / "Capsule.toml").write_text(text)
        (daemon.capsules / name / "m.wasm").write_bytes(wasm)
    return {name: word for name, (_, word) in manifests.items()}


def test_bad_manifests_are_left_out(daemon: Daemon) -> None:
    """Each fault stands in the status and in the log, and the capsule beside them runs."""
    wrong = broken(daemon)
    daemon.start(wait_for=["good"])
    faults = daemon.get("/v1/status")["faults"]
    for name, word in wrong.items():
        told = [str(each) for each in faults if f"/{name}/" in each["file"]]
        assert any(word in each for each in told), (name, faults)
        assert f"/{name}/" in daemon.log()
    assert [each["name"] for each in daemon.get("/v1/capsules")["capsules"]] == ["good"]


def test_check_tells_every_fault(daemon: Daemon) -> None:
    """`capsuled check` names the same faults, all of them, starts nothing and exits with 1."""
    wrong = broken(daemon)
    (daemon.folder / "capsuled.toml").write_text(
        'capsules = ["capsules"]\nruntime_dir = "rt"\nstate_dir = "st"\n'
    )
    command = [sys.executable, "-m", "capsuled.supervisor.commands.capsuled", "check", "--config"]
    found = subprocess.run(
        [*command, str(daemon.folder / "capsuled.toml")],
        cwd=daemon.folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert found.returncode == 1
    said = found.stdout + found.stderr
    for name, word in wrong.items():
        assert any(f"/{name}/" in line and word in line for line in said.splitlines()), (name, said)
    assert not daemon.runtime.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_not_let_in(daemon: Daemon) -> None:
    """Who is neither root nor the supervisor's user gets 401 by the kernel's word, however open the file is."""
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(wait_for=["sleeper"])
    _open_up(daemon)
    assert _ask_as(daemon, 65534, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 401 ")
    assert daemon.of("sleeper")["ready"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_group_has_its_level(daemon: Daemon) -> None:
    """A member of a group that may read, reads; it stops nothing."""
    group = next(each for each in grp.getgrall() if each.gr_gid not in (0, 65534))
    daemon.capsule("sleeper", lives.sleeper(), subscribe=lives.QUIET)
    daemon.start(
        wait_for=["sleeper"], configuration=f'[control]\ngroups = {{ "{group.gr_name}" = "read" }}\n'
    )
    daemon.folder.chmod(0o711)
    get, stop = b"GET /v1/status", b"POST /v1/capsules/sleeper/stop"
    rest = b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    assert _ask_as(daemon, 65534, get + rest, group.gr_gid).startswith(b"HTTP/1.1 200 ")
    assert _ask_as(daemon, 65534, stop + rest, group.gr_gid).startswith(b"HTTP/1.1 403 ")
    assert daemon.of("sleeper")["ready"]


def _open_up(daemon: Daemon) -> None:
    daemon.folder.chmod(0o711)
    daemon.runtime.chmod(0o711)
    daemon.socket.chmod(0o666)


def _ask_as(daemon: Daemon, uid: int, request: bytes, gid: int | None = None) -> bytes:
    """Ask with another effective user, as the kernel then tells the supervisor; the answer's first bytes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        own = os.getegid()
        try:
            if gid is not None:
                os.setegid(gid)
            os.seteuid(uid)
            sock.connect(str(daemon.socket))
        finally:
            os.seteuid(0)
            os.setegid(own)
        # Refused at accept, it is the answer that is there to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(request)
        return sock.recv(4096)


@pytest.mark.parametrize(
    ("patch", "first", "traceback"),
    [
        # A defect: its traceback is wanted, behind a sentence that says what has become of the capsules.
        ("async def run(*_): raise KeyError('x')\ndaemon.run = run", "cannot go on: a defect in the", True),
        ("def load(*_): raise KeyboardInterrupt\ncatalogue.load = load", "", False),
    ],
    ids=["defect", "interrupt"],
)
def test_what_ends_it_from_inside(daemon: Daemon, patch: str, first: str, traceback: bool) -> None:
    """Neither a defect nor Ctrl-C while manifests are read ends in a bare traceback; the status is 1."""
    file = daemon.folder / "capsuled.toml"
    file.write_text('capsules = ["capsules"]\nruntime_dir = "rt"\nstate_dir = "st"\n')
    code = (
        "import sys\nfrom capsuled.supervisor import catalogue, daemon\n"
        f"from capsuled.supervisor.commands.capsuled import main\n{patch}\n"
        f"sys.exit(main(['run', '--config', {str(file)!r}]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert found.returncode == 1, found
    assert first in (found.stderr.splitlines() or [""])[0]
    assert ("Traceback" in found.stderr) is traceback
