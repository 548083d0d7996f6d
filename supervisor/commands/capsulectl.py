"""capsulectl: ask the supervisor."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from capsuled.proto.control import Exit
from capsuled.supervisor.commands import asking, following, rates, top
from capsuled.supervisor.commands.client import CannotAsk, Client, socket_path
from capsuled.supervisor.control import durations

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

Command = Callable[[Client, argparse.Namespace], Exit]

EXITS: Mapping[Exit, str] = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "wrong usage",
    Exit.NOT_RUNNING: "the capsule is not up",
    Exit.NO_SUCH_CAPSULE: "no such capsule",
    Exit.NOT_PERMITTED: "not permitted",
    Exit.TIMED_OUT: "timed out waiting",
    Exit.NO_SUPERVISOR: "no supervisor there",
}

INTERRUPTED = 128 + signal.SIGINT
"""As shells report it; no word of the supervisor's, so not in `Exit`."""


def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_args(argv)
    command: Command = given.command
    _print_any_letter(sys.stdout)
    try:
        code = command(Client(given.socket or socket_path(os.environ, os.getuid())), given)
        sys.stdout.flush()
    except CannotAsk as error:
        print(f"capsulectl: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # `| head` has enough. Python would complain at exit, when it flushes what nobody reads.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _print_any_letter(out: TextIO) -> None:
    # A guest's message may have letters that the terminal's encoding does not: no reason to fail.
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    told = "".join(f"  {code.value}  {what}\n" for code, what in EXITS.items())
    epilog = f"exit codes:\n{told}With several names it is the highest of theirs."
    raw = argparse.RawDescriptionHelpFormatter
    # No abbreviations, here and below: one that a script uses is ambiguous after the next option.
    whole = argparse.ArgumentParser(
        "capsulectl", description=__doc__, epilog=epilog, formatter_class=raw, allow_abbrev=False
    )
    whole.set_defaults(json=False, socket=None)
    _common(whole)
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    _asking(commands)
    _following(commands)
    _authoring(commands)
    return whole


def _asking(commands: Commands) -> None:
    one = _add(
        commands, "status", asking.status, "the supervisor, or one capsule (exits 3 when it is not up)"
    )
    one.add_argument("name", nargs="?", metavar="NAME")
    _add(commands, "list", asking.list_capsules, "all capsules")
    for verb, summary in (
        ("start", "want it up; one that has failed needs reset-failed"),
        ("stop", "want it down; cancelled first, killed at the end of its stop_timeout"),
        ("restart", "stop it, then start it"),
        ("kill", "kill its process now, and want it down"),
        ("reset-failed", "forget its failures; it starts again when it is wanted up"),
    ):
        act = _add(commands, verb, asking.act, summary)
        act.set_defaults(verb=verb)
        act.add_argument("names", nargs="+", metavar="NAME")
        act.add_argument(
            "--wait", choices=("ready", "down"), help="return when it is so, not when it is begun"
        )
        _timeout(act)
    reload = _add(
        commands, "reload", asking.reload, "read the manifests again; only what changed is restarted"
    )
    reload.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
    reload.add_argument(
        "--wait", action="store_true", help="return when all of it has settled, not when it is begun"
    )
    _timeout(reload)
    why = _add(commands, "why", asking.why, "its last exits, each with its evidence, and what happens next")
    why.add_argument("name", metavar="NAME")
    bus = _add(commands, "bus", None, "the message bus").add_subparsers(metavar="COMMAND", required=True)
    stats = _add(bus, "stats", asking.bus_stats, "what was published, delivered and dropped")
    stats.add_argument("--check", action="store_true", help="exit 1 when the ledger does not balance")
    publish = _add(bus, "publish", asking.bus_publish, "send a message, as the operator")
    publish.add_argument("topic", metavar="TOPIC")
    publish.add_argument("payload", nargs="?", metavar="JSON", help="default: read standard input")
    publish.add_argument("--cbor", action="store_true", help="standard input is one CBOR item")
    trace = _add(bus, "trace", asking.bus_trace, "what a message was caused by, and what it has caused")
    trace.add_argument("id", metavar="SEQ", help="of any message of the chain")
    tap = _add(bus, "tap", following.bus_tap, "show messages as they pass")
    tap.add_argument("pattern", metavar="PATTERN", help="a topic, or a pattern such as 'sensor.*'")
    acl = _add(commands, "acl", None, "grants").add_subparsers(metavar="COMMAND", required=True)
    explain = _add(
        acl, "explain", asking.acl_explain, "may it, and which grant says so (exits 1 when denied)"
    )
    explain.add_argument("name", metavar="NAME")
    explain.add_argument("acl_verb", choices=("publish", "subscribe"), metavar="publish|subscribe")
    explain.add_argument("topic", metavar="TOPIC")
    _add(commands, "metrics", asking.metrics, "every count, as OpenMetrics for a scraper")
    health = _add(commands, "health", asking.health, "exit 0 when all is well, 1 when not")
    health.add_argument("--level", choices=("alive", "ready"), default="alive", help="default: alive")
    _add(commands, "shutdown", asking.shutdown, "stop all capsules, then the supervisor")
    shell = _add(commands, "completion", _completion, "a script that lets a shell complete capsulectl")
    shell.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="bash|zsh|fish")
    _add(commands, "schema", asking.schema, "JSON Schema of Capsule.toml and capsuled.toml")


def _following(commands: Commands) -> None:
    logs = _add(commands, "logs", following.logs, "what it logged")
    logs.add_argument("name", metavar="NAME")
    logs.add_argument("-f", "--follow", action="store_true", help="and what it will log")
    logs.add_argument("-n", "--lines", type=_count, metavar="N", help="the last N lines")
    events = _add(commands, "events", following.events, "what happened to capsules")
    events.add_argument("-f", "--follow", action="store_true", help="what happens from now on")
    load = _add(commands, "top", top.top, "what capsules use and move; live on a terminal")
    load.add_argument("--once", action="store_true", help="print one table, as where there is no terminal")
    load.add_argument("--sort", choices=tuple(rates.BY_TITLE), default="cpu", help="default: cpu")
    load.add_argument("--reverse", action="store_true", help="the other way round")
    load.add_argument(
        "--interval",
        type=_duration,
        default=top.INTERVAL,
        metavar="D",
        help="between two looks: 500ms, 5s (default: 2s)",
    )
    wait = _add(commands, "wait", following.wait, "wait until it is as asked, changing nothing")
    wait.add_argument("name", metavar="NAME")
    wait.add_argument("--for", dest="wait_for", choices=("ready", "down"), required=True)
    _timeout(wait)


def _authoring(commands: Commands) -> None:
    fresh = _add(commands, "new", _new, "for authors: a folder with a capsule that runs, to begin with")
    fresh.add_argument("new_name", metavar="NAME", help="its name, and that of the folder")
    make = _add(
        commands, "build", _build, "for authors: the module from its source, its hash into Capsule.toml"
    )
    make.add_argument("folder", nargs="?", default=".", metavar="DIR", help="default: this one")
    trial = _add(
        commands, "run", _run, "for authors: one capsule under a supervisor of its own, with its log"
    )
    trial.add_argument("folder", nargs="?", default=".", metavar="DIR", help="default: this one")
    trial.add_argument(
        "--insecure", action="store_true", help="even where nothing holds a guest that breaks out (mode E)"
    )


# What takes long to import is imported by the command that needs it.


def _completion(client: Client, given: argparse.Namespace) -> Exit:
    from capsuled.supervisor.commands.completion import completion

    return completion(client, given)


def _new(client: Client, given: argparse.Namespace) -> Exit:
    from capsuled.supervisor.commands.authoring import new

    return new(client, given)


def _build(client: Client, given: argparse.Namespace) -> Exit:
    from capsuled.supervisor.commands.authoring import build

    return build(client, given)


def _run(client: Client, given: argparse.Namespace) -> Exit:
    from capsuled.supervisor.commands.trial import run

    return run(client, given)


def _add(commands: Commands, name: str, command: Command | None, summary: str) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    if command is not None:
        added.set_defaults(command=command)
        _common(added)
    return added


def _common(to: argparse.ArgumentParser) -> None:
    # Before the command or after it. Suppressed, so that the default of the later one doesn't win.
    hidden = argparse.SUPPRESS
    to.add_argument("--json", action="store_true", default=hidden, help="print what the socket answered")
    to.add_argument(
        "--socket", metavar="PATH", default=hidden, help="the control socket (also CAPSULED_SOCKET)"
    )


def _timeout(to: argparse.ArgumentParser) -> None:
    to.add_argument("--timeout", type=_duration, metavar="D", help="wait that long at most: 500ms, 5s, 2m")


def _duration(text: str) -> float:
    try:
        return durations.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of lines: write 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
