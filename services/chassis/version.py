"""The version that a process tells others: that of the installed package."""

from __future__ import annotations

import importlib.metadata

try:
    VERSION = importlib.metadata.version("anabranch")
except importlib.metadata.PackageNotFoundError:
    VERSION = "0+source"  # run from a checkout that is not installed
