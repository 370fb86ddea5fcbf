"""Where models and adapters may be loaded from at run time: directories, and names on a hub.

Nothing is allowed unless it is said. What a request names is resolved, links included, before it
is compared, so that nothing leads out of what is allowed.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.model_refusal import refused

SETTING = "ANABRANCH_ENGINE_MODEL_SOURCES"
HUB = "hf:"
_HUB_PATTERN = re.compile(r"[A-Za-z0-9*?._-]+/[A-Za-z0-9*?._-]+")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """What a source is: `directory`, resolved, or else the hub's name in `name`."""

    name: str
    directory: Path | None = None


class ModelSources:
    """The allowed ones: directories, and patterns of hub names that begin with `hf:`."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._roots = [Path(item) for item in allowed if not item.startswith(HUB)]
        self._patterns = [item.removeprefix(HUB) for item in allowed if item.startswith(HUB)]

    @property
    def hub(self) -> bool:
        """Whether anything on the hub is allowed."""
        return bool(self._patterns)

    def find(self, source: str, *, hub: bool = True) -> Found:
        """Where it is. Reads the file system.

        Raises Fault NOT_ENABLED, ACCESS_DENIED and NOT_FOUND; `hub`: a name there will do.
        """
        if not self._roots and not self._patterns:
            raise Fault(
                errors_pb2.ERROR_REASON_NOT_ENABLED,
                f"nothing is loaded at run time here: {SETTING} allows no source",
                metadata={"setting": SETTING},
            )
        if "\0" in source:
            raise _denied(source)
        name = source.removeprefix(HUB)
        named = hub and _HUB_NAME.fullmatch(name) and ".." not in name
        if named and any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns):
            return Found(name)
        if source.startswith(HUB):
            raise _denied(source)
        directory = self._inside(source)
        if directory is None:
            raise _denied(source)
        if not directory.is_dir():
            raise Fault(errors_pb2.ERROR_REASON_NOT_FOUND, f"there is no directory {source!r}")
        self._check_links(directory, source)
        return Found(str(directory), directory)

    def _inside(self, source: str) -> Path | None:
        """The resolved directory, if it is within an allowed one; it need not exist."""
        inside: list[Path] = []
        for root in self._roots:
            top = Path(os.path.realpath(root))
            # A relative name is looked for in each allowed directory, and from where we are.
            for start in (top, Path.cwd()):
                found = Path(os.path.realpath(start / source))
                if found.is_relative_to(top):
                    inside.append(found)
        return next((path for path in inside if path.exists()), inside[0] if inside else None)

    def _check_links(self, directory: Path, source: str) -> None:
        """Looks at all that is in it. Raises Fault ACCESS_DENIED for a link to what is not allowed,
        MODEL_REFUSED for what is neither a file nor a directory, which may be waited for for ever.
        """
        tops = [Path(os.path.realpath(root)) for root in self._roots]
        left, seen, count = [directory], {directory}, 0
        while left:
            for path in left.pop().iterdir():
                real = Path(os.path.realpath(path))
                count += 1
                if count > _MOST_FILES or not any(real.is_relative_to(top) for top in tops):
                    raise _denied(source)
                if real.is_dir():
                    left += {real} - seen
                    seen.add(real)
                elif real.exists() and not real.is_file():
                    raise refused(f"{path.name} is neither a file nor a directory")


def check_patterns(allowed: Sequence[str]) -> None:
    """Raises ValueError for an entry that can be neither a directory nor a pattern."""
    for item in allowed:
        if item.startswith(HUB):
            if not _HUB_PATTERN.fullmatch(item.removeprefix(HUB)):
                raise ValueError(
                    f"holds {item!r}: a pattern of hub names is {HUB}organisation/name, "
                    "with * for any part of either"
                )
        elif not item.strip() or "*" in item or "\0" in item:
            raise ValueError(
                f"holds {item!r}, which is no directory; patterns of hub names begin with {HUB}"
            )


def _denied(source: str) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_ACCESS_DENIED,
        f"{source!r} is none of the sources that {SETTING} allows",
        metadata={"setting": SETTING},
    )
