"""Sends an audit trail to an OpenTelemetry collector, as log records over OTLP/HTTP.

A record's body is the line that a file would hold, so what a collector kept can be verified like a
file. What waits to be sent is the trail's to bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from services.chassis.audit.entry import ChainedEntry
from services.chassis.audit.head import Head
from services.chassis.audit.sink import SinkError, in_thread
from services.chassis.version import VERSION

_TIMEOUT_S = 4.0
_LARGEST = 2 * 1024 * 1024
_ENTRY = "anabranch.audit.entry"
_HEAD = "anabranch.audit.head"


class OtlpSink:
    """One collector, at its base URL. What it acknowledged is safe as far as we can know."""

    name = "otlp"

    def __init__(self, endpoint: str, service: str, instance: str) -> None:
        self._exporter = OTLPLogExporter(
            f"{endpoint.rstrip('/')}/v1/logs", timeout=_TIMEOUT_S, max_request_size=2 * _LARGEST
        )
        self._scope = InstrumentationScope("anabranch.audit", VERSION)
        self._resource = Resource(
            {
                "service.name": service,
                "service.instance.id": instance,
                "service.version": VERSION,
            }
        )

    async def append(self, entries: Sequence[ChainedEntry], head: Head | None) -> None:
        """As Sink.append."""
        await in_thread(lambda: self._export(entries, head), "audit-otlp")

    async def close(self) -> None:
        """Ends the exporter."""
        await in_thread(self._exporter.shutdown, "audit-otlp")

    def _export(self, entries: Sequence[ChainedEntry], head: Head | None) -> None:
        batch: list[ReadableLogRecord] = []
        size = 0
        for entry in entries:
            line = entry.line()
            if batch and size + len(line) > _LARGEST:
                self._send(batch)
                batch, size = [], 0
            batch.append(self._of_entry(entry, line))
            size += len(line)
        if head is not None:
            batch.append(self._of_head(head))
        if batch:
            self._send(batch)

    def _send(self, batch: Sequence[ReadableLogRecord]) -> None:
        if self._exporter.export(batch) is not LogRecordExportResult.SUCCESS:
            raise SinkError("the collector did not take the records")

    def _of_entry(self, chained: ChainedEntry, line: bytes) -> ReadableLogRecord:
        entry = chained.entry
        return self._record(
            _ENTRY,
            line,
            entry.time_us,
            {
                "audit.trail": entry.trail,
                "audit.sequence": entry.sequence,
                "audit.hash": chained.hash.hex(),
                "audit.action": entry.act.action,
                "audit.succeeded": entry.act.succeeded,
                "audit.client": entry.act.client_id,
                "audit.tenant": entry.act.tenant,
            },
        )

    def _of_head(self, head: Head) -> ReadableLogRecord:
        return self._record(
            _HEAD,
            head.line(),
            head.time_us,
            {
                "audit.trail": head.trail,
                "audit.sequence": head.sequence,
                "audit.hash": head.hash.hex(),
            },
        )

    def _record(
        self, event: str, line: bytes, time_us: int, attributes: dict[str, str | int | bool]
    ) -> ReadableLogRecord:
        record = LogRecord(
            timestamp=time_us * 1000,
            observed_timestamp=time_us * 1000,
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            event_name=event,
            body=line.decode().removesuffix("\n"),
            attributes=attributes,
        )
        return ReadableLogRecord(record, self._resource, self._scope)
