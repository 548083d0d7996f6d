"""``python -I -m capsuled.supervisor.backbone``: the backbone process.

Standard input is the socket to the supervisor; standard output is the read end of a pipe whose write end
the supervisor holds for as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket

from capsuled.supervisor.backbone.loop import serve

SUPERVISOR, LIFE = 0, 1


def die_with(pipe: int) -> None:
    """Have the kernel send this process SIGKILL when the last write end of `pipe` is closed.

    fcntl(2), F_SETSIG: an O_ASYNC descriptor sends the chosen signal when it becomes ready, and a pipe does
    when its last writer goes. It acts on a stopped process too, and needs no call of the C library by hand.
    The check afterwards closes the race with a supervisor that had died before this.
    """
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(pipe, 0)
    if poller.poll(0):
        os._exit(1)


def main() -> None:
    # A terminal's Ctrl-C goes to the whole session: the supervisor alone decides when the backbone ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(LIFE)
    serve(socket.socket(fileno=SUPERVISOR))


if __name__ == "__main__":
    main()
