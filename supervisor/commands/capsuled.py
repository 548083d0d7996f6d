"""capsuled: run capsules, each in a process of its own; check manifests."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from capsuled.proto._version import __version__
from capsuled.proto.control import Exit
from capsuled.supervisor import catalogue, configuration, ownlog
from capsuled.supervisor.configuration import Configuration, ConfigurationInvalid

LOG = logging.getLogger("capsuled")

ENDED_BY_TERM = 128 + signal.SIGTERM
"""What shells and container engines make of an end by SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    if os.getpid() == 1:
        # The first process of a container has to say that TERM ends it: without a handler nothing would happen. The
        # daemon puts its own in place as soon as there is something to be graceful to.
        signal.signal(signal.SIGTERM, _end_at_once)
    given = parser().parse_args(argv)
    if given.command == "version":
        print(f"capsuled {__version__}")
        return Exit.DONE
    if given.command == "check":
        from capsuled.supervisor.commands.check import check

        return check(given.paths, given.config)
    if given.command == "doctor":
        from capsuled.supervisor.commands.doctor import doctor

        return doctor(given.config)
    return run(given.config, given.capsules, insecure=given.insecure, ready_fd=given.ready_fd)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(ENDED_BY_TERM)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser("capsuled", description=__doc__)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run_it = commands.add_parser("run", help="supervise capsules in the foreground, until TERM or INT")
    _config(run_it)
    run_it.add_argument(
        "--capsules",
        type=Path,
        action="append",
        metavar="DIR",
        help="a folder that holds a folder for each capsule; may be repeated; instead of the configured ones",
    )
    run_it.add_argument(
        "--insecure",
        action="store_true",
        help="run capsules even where nothing holds a guest that breaks out of its engine (mode E)",
    )
    run_it.add_argument(
        "--ready-fd",
        type=_ready_fd,
        metavar="N",
        help="an open descriptor, to which a newline is written when the control socket answers (s6)",
    )
    check_it = commands.add_parser(
        "check", help="read manifests and configuration, tell every fault, start nothing"
    )
    _config(check_it)
    check_it.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="folders, manifests, or a capsuled.toml (default: the configured)",
    )
    doctor_it = commands.add_parser(
        "doctor", help="try what this machine can hold of the isolation, for this user; start nothing"
    )
    _config(doctor_it)
    commands.add_parser("version", help="print the version")
    return top


def _ready_fd(given: str) -> int:
    from capsuled.supervisor import notify

    try:
        return notify.check_ready_fd(int(given))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def run(
    config: Path | None,
    folders: Sequence[Path] | None,
    *,
    insecure: bool = False,
    ready_fd: int | None = None,
) -> Exit:
    """Supervise until a signal ends it."""
    # Here, so that `check` and `version` need neither Trio nor the control server.
    import trio

    from capsuled.supervisor import daemon, notify
    from capsuled.supervisor.control.listening import CannotListen
    from capsuled.supervisor.folders import CannotStart

    try:
        using = configured(config)
        if folders is not None:
            _check_folders(folders)
            using = replace(using, capsules=tuple(folder.absolute() for folder in folders))
        with ownlog.to_stderr(using.log):
            told = notify.heed(os.environ, os.getpid())
            found = catalogue.load(using.capsules, using)
            try:
                trio.run(partial(daemon.run, using, found, insecure=insecure, told=told, ready_fd=ready_fd))
            except (CannotStart, CannotListen):
                raise
            except Exception:
                LOG.exception(
                    "cannot go on: a defect in the supervisor; all is stopped: please report what follows"
                )
                return Exit.FAILED
    except ConfigurationInvalid as exc:
        for fault in exc.faults:
            print(f"capsuled: {fault}", file=sys.stderr)
        return Exit.FAILED
    except (CannotStart, CannotListen) as exc:
        print(f"capsuled: {exc}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:  # before the supervisor takes its signals, or after
        return Exit.FAILED
    return Exit.DONE


def _config(to: argparse.ArgumentParser) -> None:
    to.add_argument("--config", type=Path, metavar="FILE", help="the operator's capsuled.toml")


def configured(file: Path | None) -> Configuration:
    base = configuration.defaults(os.environ, os.getuid())
    usual = configuration.default_file(os.environ, os.getuid())
    if file is None and not usual.exists():
        return base
    return catalogue.read_configuration((file or usual).absolute(), base)


def _check_folders(folders: Sequence[Path]) -> None:
    from capsuled.supervisor.folders import CannotStart

    for folder in folders:
        if not folder.exists():
            raise CannotStart(
                f"cannot look for capsules in {folder}: it does not exist: name another --capsules"
            )


if __name__ == "__main__":
    sys.exit(main())
