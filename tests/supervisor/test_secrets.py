"""Secrets: read for their own capsule, from files that nobody else can read, and shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import cbor2
import pytest

from capsuled.supervisor import secrets
from capsuled.supervisor.secrets import MAX_BYTES, Secret, SecretUnreadable

VALUE = b"s3cr3t-of-echo"


def put(folder: Path, content: bytes = VALUE, mode: int = 0o600) -> Path:
    path = folder / "echo" / "token"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_secret_takes_the_place_of_its_name(tmp_path: Path) -> None:
    """Each value is a CBOR item; a secret's is what its file holds, without the newline at its end."""
    put(tmp_path, VALUE + b"\n")
    found = secrets.resolve({"token": Secret("token"), "n": 1}, tmp_path, "echo")
    assert {key: cbor2.loads(item) for key, item in found.items()} == {"token": VALUE.decode(), "n": 1}


def test_what_is_not_text_is_bytes(tmp_path: Path) -> None:
    """A key that is no UTF-8 reaches the guest as a byte string, whole."""
    assert secrets.read(put(tmp_path, b"\xff\n")) == b"\xff\n"


def test_another_capsules_secret_is_out_of_reach(tmp_path: Path) -> None:
    """The capsule's own name is part of the path: the same name means another file."""
    put(tmp_path)
    with pytest.raises(SecretUnreadable, match="No such file"):
        secrets.resolve({"token": Secret("token")}, tmp_path, "thief")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o777])
def test_what_others_may_touch_is_no_secret(tmp_path: Path, mode: int) -> None:
    """Any right of the group's or of others is refused, with the mode, and without the content."""
    path = put(tmp_path, mode=mode)
    with pytest.raises(SecretUnreadable, match=f"{mode:04o}") as caught:
        secrets.read(path)
    assert VALUE.decode() not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to another user")
def test_somebody_elses_file_is_no_secret(tmp_path: Path) -> None:
    """Whoever owns the file can change it."""
    path = put(tmp_path)
    os.chown(path, 4711, 4711)
    with pytest.raises(SecretUnreadable, match="its owner is 4711"):
        secrets.read(path)


def test_size(tmp_path: Path) -> None:
    """The largest secret is read, one byte more is not."""
    assert len(secrets.read(put(tmp_path, b"x" * MAX_BYTES))) == MAX_BYTES
    with pytest.raises(SecretUnreadable, match=f"more than {MAX_BYTES} bytes"):
        secrets.read(put(tmp_path, b"x" * (MAX_BYTES + 1)))


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    """What the name leads to is not ours to judge."""
    path = put(tmp_path)
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(SecretUnreadable, match="symbolic links"):
        secrets.read(link)


def test_a_pipe_does_not_hold_us_up(tmp_path: Path) -> None:
    """What is no file is refused at once."""
    path = put(tmp_path).with_name("pipe")
    os.mkfifo(path, 0o600)
    with pytest.raises(SecretUnreadable, match="no regular file"):
        secrets.read(path)
