"""Where the processes of a benchmark find their packages."""

from __future__ import annotations

import os

from tools.cluster.recipes import ROOT


def python_path() -> str:
    """The repository, and what this process was told besides: packages need not be in an
    environment of their own."""
    told = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, told)]))
