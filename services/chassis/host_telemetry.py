"""The telemetry of one host, by its settings: what it is called, what every process measures."""

from __future__ import annotations

from services.chassis import telemetry
from services.chassis.common_settings import CommonSettings
from services.chassis.resources import ResourceCollector
from services.chassis.telemetry import Telemetry


def telemetry_of(service: str, settings: CommonSettings, worker: int | None) -> Telemetry:
    """Opens it; `worker` is the process's index where several of them are one service."""
    instance = settings.service_id or service
    if worker is not None:
        instance += f"-worker-{worker}"
    opened = telemetry.open(
        service, instance, settings.otlp_endpoint, sample_ratio=settings.trace_sample_ratio
    )
    if worker is None:
        # Of several, the supervisor tells: what they use is one container's.
        opened.registry.register(ResourceCollector())
    return opened
