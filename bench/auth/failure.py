"""What ends a run: a look that shows nothing."""

from __future__ import annotations


class LookFailed(Exception):
    """Answers were not those that the look is about; the text says which came."""
