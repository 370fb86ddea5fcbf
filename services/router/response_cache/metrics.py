"""What the world sees of the cache: hits by source, misses, answers kept, bytes held."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from anabranch.v1 import generation_pb2 as pb
from services.router.response_cache.cache import ResponseCache

_SOURCES = {
    pb.CACHE_SOURCE_MEMORY: "memory",
    pb.CACHE_SOURCE_REDIS: "redis",
    pb.CACHE_SOURCE_DISK: "disk",
    pb.CACHE_SOURCE_IN_FLIGHT: "in_flight",
}


def observe_cache(meter: Meter, cache: ResponseCache) -> None:
    """Creates the instruments; they read the cache at each scrape."""

    def hits(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(cache.hits[source], {"source": name}) for source, name in _SOURCES.items()
        ]

    def held(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(size, {"source": name}) for name, size in cache.held.items()]

    def dropped(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"source": name}) for name, count in cache.dropped.items()]

    meter.create_observable_counter(
        "anabranch.router.cache.hits",
        callbacks=[hits],
        description="Requests answered without a backend, by where the answer came from",
    )
    meter.create_observable_counter(
        "anabranch.router.cache.misses",
        callbacks=[lambda _: [Observation(cache.misses)]],
        description="Requests that the cache takes and that went to a backend",
    )
    meter.create_observable_counter(
        "anabranch.router.cache.stored",
        callbacks=[lambda _: [Observation(cache.stored)]],
        description="Answers kept",
    )
    meter.create_observable_counter(
        "anabranch.router.cache.dropped",
        callbacks=[dropped],
        description="Answers not written, since the tier failed, rested or was too slow",
    )
    meter.create_observable_gauge(
        "anabranch.router.cache.bytes",
        unit="By",
        callbacks=[held],
        description="What is kept in this process's memory, and in the file on disk",
    )
