"""Secrets: values of a manifest's `[config]` that stand in files which only the supervisor can read.

    token = { secret = "api-token" }      reads <folder>/<capsule>/api-token at each start

The folder is the operator's, and the capsule's name is part of the path: a manifest, which comes with its capsule and
is trusted no more than that, can name its own secrets and no others. A value reaches the worker in its launch order and
stands nowhere else: not in argv, environ, log, status or an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from capsuled.proto import payloads

MAX_BYTES = 64 * 1024
"""Of one secret: keys and certificates are below it."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe without a writer would hold us up


class SecretUnreadable(Exception):
    """A secret cannot be had; the message names the file and never its content."""


@dataclass(frozen=True)
class Secret:
    """The name of one, in a manifest's `[config]`."""

    name: str


def resolve(config: Mapping[str, object], folder: Path, capsule: str) -> dict[str, bytes]:
    """Each value as a CBOR item, secrets read. Raises `SecretUnreadable`."""
    return {
        key: payloads.encode(read(folder / capsule / value.name) if isinstance(value, Secret) else value)
        for key, value in config.items()
    }


def read(path: Path) -> str | bytes:
    """A secret: text where it is UTF-8, without the newline that editors put at its end; else bytes.

    Raises `SecretUnreadable`, also for a file that others may read: it is no secret.
    """
    try:
        fd = os.open(path, _OPEN)
    except OSError as exc:
        raise SecretUnreadable(
            f"cannot read the secret {path}: {exc.strerror}: put it there, mode 0600"
        ) from exc
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SecretUnreadable(f"cannot read the secret {path}: it is no regular file: put one there")
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & _OTHERS:
            raise SecretUnreadable(
                f"cannot trust the secret {path}: its owner is {found.st_uid} and its mode "
                f"{stat.S_IMODE(found.st_mode):04o}: it must be the supervisor's or root's, mode 0600"
            )
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise SecretUnreadable(f"cannot read the secret {path}: it has more than {MAX_BYTES} bytes")
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        return data
