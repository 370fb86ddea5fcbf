"""What keys look like in settings and files, and how a file of them is read.

No error repeats what was read, which may be a key in the wrong place.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from services.chassis.settings import Secret
from services.cloud_proxy.keys import AccountKey

_LARGEST = 64 * 1024


class BadKeys(Exception):
    """Keys that cannot be used; `problems` says why."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


def parse_keys(text: str) -> dict[str, tuple[AccountKey, ...]]:
    """Keys by name from "name=key" or "name@quota=key" entries, separated by commas, spaces or
    line ends.

    A name that comes again adds a key to its pool. Raises BadKeys with every entry's fault.
    """
    found: dict[str, tuple[AccountKey, ...]] = {}
    problems = []
    for number, entry in enumerate(text.replace(",", " ").split(), start=1):
        # At the first "=" only: keys may hold further ones, and "@" as well.
        owner, _, value = entry.partition("=")
        name, at, quota = owner.partition("@")
        if not (name and value) or (at and not quota):
            problems.append(f"entry {number} is not name=key or name@quota=key")
        elif not (value.isascii() and value.isprintable()):
            problems.append(f"the key of entry {number} is not plain ASCII")
        else:
            found[name] = (*found.get(name, ()), AccountKey(Secret(value), quota))
    if problems:
        raise BadKeys(*problems)
    return found


def read_key_file(path: Path) -> bytes:
    """The bytes of a file of keys. Raises BadKeys where it cannot be read or is too large."""
    try:
        # A pipe in its place is not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadKeys("is not a file")
            content = file.read(_LARGEST + 1)
    except OSError as unreadable:
        raise BadKeys(f"cannot be read: {unreadable.strerror}") from None
    if len(content) > _LARGEST:
        raise BadKeys(f"is larger than {_LARGEST >> 10} KiB")
    return content


def parse_key_file(content: bytes) -> tuple[AccountKey, ...]:
    """The keys of a file: one a line, perhaps after its quota and a space. Raises BadKeys."""
    try:
        lines = content.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise BadKeys("is not plain ASCII") from None
    found = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) > 2 or not all(word.isprintable() for word in words):
            raise BadKeys(f"line {number} is not a key, or a quota and a key")
        if words:
            found.append(AccountKey(Secret(words[-1]), words[0] if len(words) == 2 else ""))
    if not found:
        raise BadKeys("is empty")
    return tuple(found)
