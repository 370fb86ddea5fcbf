"""Writes files that only their owner can read, whole or not at all, and never through a link."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

OWNER_ALONE = 0o600


def write_private(path: Path, data: bytes, *, mode: int = OWNER_ALONE) -> None:
    """Writes a new file, with its mode from its first moment; it is on the disk afterwards.

    Raises FileExistsError, and OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put_once(path: Path, data: bytes, *, mode: int = OWNER_ALONE) -> None:
    """Puts a file in place, unless there is one: processes that start together agree on it.

    A finished file is linked into place, so a crash leaves no half of one. Raises OSError.
    """
    draft = _draft(path)
    write_private(draft, data, mode=mode)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def put_over(path: Path, data: bytes, *, mode: int = OWNER_ALONE) -> None:
    """Puts a file in place, in one step, of whichever is there. Raises OSError."""
    draft = _draft(path)
    try:
        write_private(draft, data, mode=mode)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
