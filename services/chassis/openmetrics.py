"""OpenMetrics 1.0 of a registry: the text with exemplars, for scrapers that accept it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import exposition


def render(registry: CollectorRegistry) -> bytes:
    """The text. Thread-safe if the collectors are.

    Names stay as they are: with the library's default escaping, a sample's colon, as in vLLM's
    names, becomes an underscore. None of ours needs escaping.
    """
    escaping = exposition.ALLOWUTF8
    text: bytes = exposition.generate_latest(registry, escaping)  # type: ignore[no-untyped-call]
    return text
