"""Opens the audit trail that a service's settings describe, and keeps it in order.

What is written to it is decided where it happens.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.chassis.audit.audit_key import KeyFileError, signing_key
from services.chassis.audit.entry import CONTENT_FIELD, Act, Scalar
from services.chassis.audit.file_sink import FileSink
from services.chassis.audit.head import Signer
from services.chassis.audit.otlp_sink import OtlpSink
from services.chassis.audit.recovery import Doubts, doubts_about
from services.chassis.audit.requests import Sealer
from services.chassis.audit.segments import CorruptError, trail_name
from services.chassis.audit.sink import Sink, in_thread
from services.chassis.audit.trail import LocalChain, Trail
from services.chassis.audit.verify import PRUNED, RECOVERED
from services.chassis.common_settings import CommonSettings
from services.chassis.encryption.ciphers import CipherName
from services.chassis.encryption.envelope import Envelope
from services.chassis.encryption.errors import EncryptionError
from services.chassis.encryption.keychain import Keychain
from services.chassis.errors import Fault
from services.chassis.settings import SettingsError
from services.chassis.version import VERSION

_log = logging.getLogger(__name__)

OPENED = "trail.opened"
KEY_NAME = "audit.key"

_PRUNE_EVERY_S = 3600.0
_WRITTEN_WITHIN_S = 30.0


@asynccontextmanager
async def open_trail(service: str, settings: CommonSettings, meter: Meter) -> AsyncIterator[Trail]:
    """The trail of this process; one that keeps nothing when the settings name no place for it.

    The host runs it (`Trail.run`) and lets it finish. Raises SettingsError, and OSError when the
    place cannot be written: a service that must keep a trail does not start without it.
    """
    if settings.audit_otlp and not settings.otlp_endpoint:
        raise SettingsError(["AUDIT_OTLP needs OTLP_ENDPOINT: the collector that takes the trail"])
    if settings.audit_dir is None and not settings.audit_otlp:
        yield Trail()
        return
    name = trail_name(settings.service_id or service)
    try:
        file, signer, doubts = await asyncio.to_thread(_open_files, name, settings)
    except (CorruptError, KeyFileError) as exc:
        raise SettingsError([str(exc)]) from exc
    # Without a file nobody knows where the last process ended: each begins a trail of its own.
    trail_id = file.trail if file is not None else f"{name}.{secrets.token_hex(4)}"
    sinks: list[Sink] = [] if file is None else [file]
    if settings.audit_otlp:
        sinks.append(OtlpSink(settings.otlp_endpoint, service, settings.service_id or service))
    last = file.last if file is not None else None
    trail = Trail(sinks, LocalChain(trail_id, last), signer, spool=settings.audit_spool)
    _observe(trail, meter)
    if file is not None:
        _note_recovery(trail, file, doubts)
        retention = settings.audit_retention
        trail.chores.append(lambda: _prune_for_ever(trail, file, signer, retention))
    trail.note(Act(OPENED, target=trail_id, details={"service": service, "version": VERSION}))
    _log.info(
        "audit trail",
        extra={"trail": trail_id, "key": signer.key_id, "public_key": signer.public_key.hex()},
    )
    try:
        yield trail
    finally:
        await trail.close()


def content_sealer(settings: CommonSettings) -> Sealer | None:
    """What encrypts prompts and answers in the trail; None without keys: they are not written.

    Raises SettingsError for a keychain that is none.
    """
    if settings.encryption_keys_file is None:
        return None
    try:
        envelope = Envelope(Keychain.read(settings.encryption_keys_file))
    except EncryptionError as refused:
        raise SettingsError([f"ENCRYPTION_KEYS_FILE: {refused}"]) from None

    def seal(plain: bytes, tenant: str, cipher: CipherName) -> bytes:
        return envelope.seal(plain, tenant=tenant, field=CONTENT_FIELD, cipher=cipher)

    return seal


async def prune(trail: Trail, file: FileSink, signer: Signer, before: float) -> int:
    """Removes the segments in which nothing is younger than `before`, in seconds since the epoch;
    returns how many. The trail says so first, in the file itself.

    Raises Fault when the trail cannot be written, and OSError.
    """
    removed = 0
    while old := await in_thread(lambda: file.removable(before), "audit-prune"):
        details: dict[str, Scalar] = {
            "first_sequence": 1,
            "last_sequence": old.last.entry.sequence,
            "last_hash": old.last.hash.hex(),
        }
        entry = await trail.record(Act(PRUNED, target=old.path.name, details=details))
        if entry is None or not await _written(file, entry.entry.sequence):
            break
        head = signer.sign(old.last, time=time.time())
        await in_thread(lambda old=old, head=head: file.remove(old, head), "audit-prune")  # type: ignore[misc]
        removed += 1
    return removed


def _open_files(name: str, settings: CommonSettings) -> tuple[FileSink | None, Signer, Doubts]:
    directory = settings.audit_dir
    key_file = settings.audit_key_file
    if key_file is None and directory is not None:
        key_file = directory / KEY_NAME
    key = signing_key(key_file) if key_file is not None else Ed25519PrivateKey.generate()
    signer = Signer(key)
    if directory is None:
        return None, signer, Doubts()
    file = FileSink.open(directory, name)
    return file, signer, doubts_about(directory, file.trail, file.head, signer.public_key)


def _note_recovery(trail: Trail, file: FileSink, doubts: Doubts) -> None:
    last = 0 if file.last is None else file.last.entry.sequence
    signed = 0 if file.head is None else file.head.sequence
    if not file.cut and signed <= last and not doubts:
        return
    # Beyond a signed head nothing is lost by a crash: that somebody cut the file is for
    # `audit verify` to show, and is said here at once. What states a gap is signed as it is
    # written: where it is not, the heads of this process must not make it credible.
    good = signed <= last and not doubts
    details: dict[str, Scalar] = {
        "cut_bytes": file.cut,
        "last_sequence": last,
        "signed_sequence": signed,
    }
    if doubts.first_unsigned:
        details["unsigned_gap_at"] = doubts.first_unsigned
    if doubts.head_differs:
        details["head_differs"] = True
    log = _log.warning if good else _log.error
    log("audit trail recovered", extra=dict(details))
    trail.note(Act(RECOVERED, target=file.trail, succeeded=good, details=details))


async def _prune_for_ever(trail: Trail, file: FileSink, signer: Signer, retention: float) -> None:
    while True:
        try:
            await prune(trail, file, signer, time.time() - retention)
        except (Fault, OSError, CorruptError) as exc:
            _log.error("old audit entries cannot be removed", extra={"cause": str(exc)})
        await asyncio.sleep(_PRUNE_EVERY_S)


async def _written(file: FileSink, sequence: int) -> bool:
    try:
        async with asyncio.timeout(_WRITTEN_WITHIN_S):
            while file.written < sequence:  # noqa: ASYNC110 - written by a thread, in an outage late
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    return True


def _observe(trail: Trail, meter: Meter) -> None:
    def up(_: CallbackOptions) -> list[Observation]:
        return [
            Observation(int(not lane.failing), {"sink": lane.sink.name}) for lane in trail.lanes
        ]

    def waiting(_: CallbackOptions) -> list[Observation]:
        return [Observation(len(lane), {"sink": lane.sink.name}) for lane in trail.lanes]

    meter.create_observable_gauge(
        "anabranch.audit.sink.up", callbacks=[up], description="Whether a sink takes entries"
    )
    meter.create_observable_gauge(
        "anabranch.audit.sink.waiting", callbacks=[waiting], description="Entries a sink lacks"
    )
    meter.create_observable_gauge(
        "anabranch.audit.spooled",
        callbacks=[lambda _: [Observation(trail.spooled)]],
        description="Entries that are safe nowhere yet",
    )
    meter.create_observable_counter(
        "anabranch.audit.entries",
        callbacks=[
            lambda _: [Observation(ln.entries, {"sink": ln.sink.name}) for ln in trail.lanes]
        ],
        description="Entries written",
    )
    meter.create_observable_counter(
        "anabranch.audit.failures",
        callbacks=[
            lambda _: [Observation(ln.failures, {"sink": ln.sink.name}) for ln in trail.lanes]
        ],
        description="Attempts to write that failed",
    )
