"""For authors: `new`, `build` and `run`, by real processes and with a real supervisor."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from capsuled.proto.control import Exit
from capsuled.supervisor import faults
from capsuled.supervisor.commands.authoring import with_hash
from capsuled.supervisor.commands.client import CannotAsk

from .running import COMMAND, environment

SECONDS = 60.0


def ctl(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment(None, {} if path is None else {"PATH": path}),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def made(folder: Path, name: str = "echo-1") -> Path:
    """A new capsule that is built."""
    assert ctl(folder, "new", name).returncode == Exit.DONE
    done = ctl(folder, "build", name)
    assert (done.returncode, done.stderr) == (Exit.DONE, "")
    return folder / name


def test_new_and_build(tmp_path: Path) -> None:
    """What `new` writes can be built as it is; the hash in the manifest is the module's, and all else is as it was."""
    done = ctl(tmp_path, "new", "echo-1")
    assert (done.returncode, done.stderr) == (Exit.DONE, "")
    folder = tmp_path / "echo-1"
    assert sorted(path.name for path in folder.iterdir()) == ["Capsule.toml", "echo-1.wat"]
    before = (folder / "Capsule.toml").read_text()
    done = ctl(folder, "build")
    assert (done.returncode, done.stderr) == (Exit.DONE, "")
    module = (folder / "echo-1.wasm").read_bytes()
    assert module.startswith(b"\0asm\x01\0\0\0")
    line = f'hash = "sha256:{hashlib.sha256(module).hexdigest()}"\n'
    after = (folder / "Capsule.toml").read_text()
    assert after.replace(line, "") == before
    assert ctl(tmp_path, "build", "echo-1").returncode == Exit.DONE
    assert (folder / "Capsule.toml").read_text() == after
    assert sorted(path.name for path in folder.iterdir()) == ["Capsule.toml", "echo-1.wasm", "echo-1.wat"]


@pytest.mark.parametrize("name", ["Echo", "-a", "a/b", "..", "", "a" * 64, "a\x1b]0;b"])
def test_new_with_no_name(tmp_path: Path, name: str) -> None:
    """What no manifest may be called is refused, and nothing is made."""
    done = ctl(tmp_path, "new", "--", name)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert done.stderr.startswith("capsulectl: cannot name a capsule like that: ")
    assert "\x1b" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_new_where_something_is(tmp_path: Path) -> None:
    """What is there is not touched."""
    (tmp_path / "echo").mkdir()
    done = ctl(tmp_path, "new", "echo")
    assert done.returncode == Exit.FAILED
    assert done.stderr == "capsulectl: cannot make echo: File exists: choose another name\n"
    assert list((tmp_path / "echo").iterdir()) == []


def test_build_with_a_mistake(tmp_path: Path) -> None:
    """A source that is none is told of with its line, without a byte that a terminal obeys; nothing is written."""
    ctl(tmp_path, "new", "echo")
    source = tmp_path / "echo/echo.wat"
    source.write_text(source.read_text() + "(nonsense \x1b]0;evil\x07)")
    before = (tmp_path / "echo/Capsule.toml").read_text()
    done = ctl(tmp_path, "build", "echo")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert done.stderr.startswith("capsulectl: cannot build echo/echo.wat:\n")
    assert "\x1b" not in done.stderr
    assert (tmp_path / "echo/Capsule.toml").read_text() == before
    assert not (tmp_path / "echo/echo.wasm").exists()


def test_build_without_a_source(tmp_path: Path) -> None:
    """One source belongs to a module: none and two are told of."""
    ctl(tmp_path, "new", "echo")
    (tmp_path / "echo/echo.c").touch()
    assert "there are both echo/echo.wat and echo/echo.c" in ctl(tmp_path, "build", "echo").stderr
    (tmp_path / "echo/echo.c").unlink()
    (tmp_path / "echo/echo.wat").unlink()
    done = ctl(tmp_path, "build", "echo")
    assert done.returncode == Exit.FAILED
    assert "there is neither echo/echo.wat nor echo/echo.c" in done.stderr
    assert "cannot read nowhere/Capsule.toml" in ctl(tmp_path, "build", "nowhere").stderr


def test_build_without_a_compiler(tmp_path: Path) -> None:
    """Where C cannot be compiled it says what to install."""
    ctl(tmp_path, "new", "echo")
    (tmp_path / "echo/echo.wat").rename(tmp_path / "echo/echo.c")
    done = ctl(tmp_path, "build", "echo", path=os.fspath(tmp_path))
    assert done.returncode == Exit.FAILED
    assert done.stderr.startswith(
        "capsulectl: cannot compile C: there is no C compiler for WebAssembly: install zig"
    )


def test_build_with_a_compiler(tmp_path: Path) -> None:
    """zig is told the source, our header's folder and where to put the module; what it complains of is shown."""
    ctl(tmp_path, "new", "echo")
    (tmp_path / "echo/echo.wat").rename(tmp_path / "echo/echo.c")
    zig = tmp_path / "zig"
    zig.write_text(
        '#!/bin/sh\n[ -n "$ZIG_LOCAL_CACHE_DIR" ] || exit 9\n'
        "while [ $# -gt 1 ]; do\n"
        'case $1 in -I) ls "$2/capsule.h" >/dev/null || exit 8;; -o) out=$2;; esac\n'
        "shift; done\n"
        '[ -s "$1" ] || exit 7\nprintf "\\0asm\\1\\0\\0\\0" > "$out"\n'
    )
    zig.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = ctl(tmp_path, "build", "echo", path=path)
    assert (done.returncode, done.stderr) == (Exit.DONE, "")
    assert (tmp_path / "echo/echo.wasm").read_bytes() == b"\0asm\1\0\0\0"
    zig.write_text("#!/bin/sh\nprintf 'echo.c:1: \\033[31mwrong' >&2\nexit 1\n")
    done = ctl(tmp_path, "build", "echo", path=path)
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert done.stderr == "capsulectl: cannot build echo/echo.c:\necho.c:1: \\x1b[31mwrong\n"


BASE = '[package]\nname = "a"\nversion = "1.0.0"\n'
NONE, SOME = "0" * 64, "ab" * 32


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('[component]\nfile = "a.wasm"\n', f'[component]\nfile = "a.wasm"\nhash = "sha256:{SOME}"\n'),
        ('[component]\nfile = "a.wasm"', f'[component]\nfile = "a.wasm"\nhash = "sha256:{SOME}"\n'),
        ('[component]\r\nfile = "a"\r\n', f'[component]\r\nfile = "a"\r\nhash = "sha256:{SOME}"\r\n'),
        (
            f'# of mine\n[ component ] # x\nhash=\'sha256:{NONE}\' # here\nfile = "a"\n[config]\nhash = "x"\n',
            f'# of mine\n[ component ] # x\nhash="sha256:{SOME}" # here\nfile = "a"\n[config]\nhash = "x"\n',
        ),
        ('[config]\nhash = "x"\n[component]\nfile = "a"\n', None),
    ],
)
def test_hash(before: str, after: str | None) -> None:
    """The hash is written into its own table, and no other sign of the file is changed."""
    made = with_hash(BASE + before, SOME)
    if after is not None:
        assert made == BASE + after
    assert faults.read_toml(made, "")["component"]["hash"] == f"sha256:{SOME}"  # type: ignore[index]
    assert with_hash(made, SOME) == made


@pytest.mark.parametrize(
    "text",
    [
        'component = { file = "a" }\n',
        'component.file = "a"\n',
        '[component]\n"file" = "a"\n',
        '[component]\nx = """\nfile = 1\n"""\n',
    ],
)
def test_hash_that_cannot_be_written(text: str) -> None:
    """Where the file is written otherwise it is left alone, and it is said what to write."""
    with pytest.raises(
        CannotAsk, match=r"cannot write the hash into Capsule.toml: write \[component\] with hash = "
    ):
        with_hash(text, SOME)


@contextmanager
def running(folder: Path, *arguments: str) -> Generator[subprocess.Popen[str], None, None]:
    """`run`, until it says hello; at the end nothing of it is left."""
    temporary = folder / "t"
    temporary.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "run", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(None, {"TMPDIR": os.fspath(temporary)}),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "hello from" in line:
                break
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        yield process
        _, alive = psutil.wait_procs(started, timeout=5)
        assert alive == []
        assert list(temporary.iterdir()) == []
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run(short: Path, number: signal.Signals) -> None:
    """It runs the capsule and shows its log; the socket that it names is its own; a signal ends it and all of it."""
    made(short)
    with running(short, "echo-1") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        socket = said.split()[-1]
        assert said.startswith("capsulectl: echo-1 runs; ")
        assert ctl(short, "--socket", socket, "bus", "publish", "echo-1.x", "1").returncode == Exit.DONE
        assert process.stdout is not None
        assert process.stdout.readline().endswith("guest info got a message\n")
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (Exit.DONE, "")
        assert "supervisor-shutdown" in out


def test_run_until_it_ends(short: Path) -> None:
    """A capsule that ends for good ends it, with the reason and 0 or 1."""
    folder = made(short)
    source = folder / "echo-1.wat"
    for last, code, reason in (("return", Exit.DONE, "ok"), ("unreachable", Exit.FAILED, "trap")):
        text = source.read_text()
        source.write_text(text.replace("(drop (call $ready))", f"(drop (call $ready)) ({last})"))
        manifest = folder / "Capsule.toml"
        if 'restart = "never"' not in manifest.read_text():
            manifest.write_text(manifest.read_text() + 'restart = "never"\n')
        assert ctl(short, "build", "echo-1").returncode == Exit.DONE
        done = ctl(short, "run", "echo-1")
        assert done.returncode == code, done
        assert f"reason:        {reason}\n" in done.stderr
        assert "hello from echo-1" in done.stdout
        source.write_text(text)


def test_run_when_nobody_reads(short: Path) -> None:
    """When the reader of its log is gone, it ends as well."""
    made(short)
    with running(short, "echo-1") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(SECONDS) in (Exit.DONE, Exit.FAILED)


def test_run_what_cannot_be(short: Path) -> None:
    """What `check` would tell is told, and nothing is started."""
    done = ctl(short, "run", "nowhere")
    assert done.returncode == Exit.FAILED
    ctl(short, "new", "echo")
    done = ctl(short, "run", "echo")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert "echo.wasm" in done.stderr
    (short / "empty").mkdir()
    done = ctl(short, "run", "empty")
    assert done.returncode == Exit.FAILED
    assert done.stderr == "capsulectl: cannot run empty: it has 0 capsules: name the folder of one\n"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with so short a name that a socket's path fits below it."""
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
