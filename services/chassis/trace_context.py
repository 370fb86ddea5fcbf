"""W3C trace context as the text that travels: what it says, and what the next hop is told.

It starts no span (tracing.py) and knows no transport.
"""

from __future__ import annotations

import random
import re

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
)
_ODD = frozenset("13579bdf")


def sampled_trace(traceparent: str) -> str:
    """The trace id, in hex, of a request whose trace is recorded; empty for any other."""
    # The lowest bit of the flags: the last digit is odd.
    if traceparent[-1:] in _ODD and _TRACEPARENT.match(traceparent):
        return traceparent[3:35]
    return ""


def unsampled(traceparent: str) -> str:
    """A valid traceparent whose trace is not recorded; its other flags stay."""
    return f"{traceparent[:-2]}{int(traceparent[-2:], 16) & 0xFE:02x}"


def trace_id_of(traceparent: str) -> str:
    """The trace id of a valid traceparent, in hex; empty of any other text."""
    return traceparent[3:35] if _TRACEPARENT.match(traceparent) else ""


def is_valid(traceparent: str) -> bool:
    """Whether it is a W3C traceparent."""
    return _TRACEPARENT.match(traceparent) is not None


def passed_on(traceparent: str) -> str:
    """The traceparent for the next hop of a service that records no spans itself.

    The caller's own, unchanged, so that the next recorded span hangs on the last one recorded;
    a new one, not to be sampled, where the caller sent none that is valid.
    """
    if traceparent and _TRACEPARENT.match(traceparent):
        return traceparent
    number = random.getrandbits(192)
    ids = f"{number:048x}"
    return f"00-{ids[:32]}-{ids[32:]}-00"
