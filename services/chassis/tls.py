"""The TLS of one process: its present contexts, whom it calls, and the files looked at for newer.

Contexts are only ever replaced as a whole, so what is open goes on as it began. Files become
contexts in tls_files.py; who listens with them is told, and looks after itself.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable

import grpc
from opentelemetry.metrics import CallbackOptions, Counter, Meter, NoOpMeter, Observation

from services.chassis.common_settings import CommonSettings
from services.chassis.http2.client import ServerIdentity
from services.chassis.settings import SettingsError
from services.chassis.tls_files import BadTlsFiles, TlsContexts, TlsFiles, load

_log = logging.getLogger(__name__)

_Renewed = Callable[[bool], Awaitable[None]]
_UNREADABLE = b"unreadable"


class Tls:
    """The newest good set of files, as contexts. Made by `open`; `follow` keeps it the newest.

    With `client_auth`, who connects to a gRPC port must show a certificate.
    """

    def __init__(self, files: TlsFiles, *, client_auth: bool, period: float) -> None:
        """Reads the files, blocking. Raises BadTlsFiles."""
        self.client_auth = client_auth
        self._files = files
        self._period = period
        self._present = load(files, client_auth=client_auth)
        self._seen = self._refused = self._present.pem.digest
        self._listeners: list[_Renewed] = []
        self._reloads: Counter = NoOpMeter("none").create_counter("none")
        self._https = self._present.https
        self._https.sni_callback = self._newest_https

    @classmethod
    def open(cls, settings: CommonSettings) -> Tls | None:
        """As the settings say; None for plaintext. Raises SettingsError for unusable files."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        files = TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file)
        try:
            return cls(
                files,
                client_auth=settings.requires_client_certificates,
                period=settings.tls_reload_period,
            )
        except BadTlsFiles as bad:
            raise SettingsError([f"TLS: {bad}"]) from None

    @property
    def present(self) -> TlsContexts:
        """The set in force."""
        return self._present

    def server_context(self) -> ssl.SSLContext:
        """For a gRPC port: what new connections are to be met with."""
        return self._present.server

    @property
    def https(self) -> ssl.SSLContext:
        """For an HTTP port, for as long as it listens: each handshake takes the newest set."""
        return self._https

    def expecting(self, name: str) -> ServerIdentity:
        """For a new connection to the service called `name`."""
        return ServerIdentity(self._present.client, name)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a new channel of grpc.aio; its option grpc.ssl_target_name_override names the
        service."""
        return self._present.credentials

    def on_renewed(self, listener: _Renewed) -> None:
        """Awaits `listener` after each change of contexts, with whether the authorities changed."""
        self._listeners.append(listener)

    def observe(self, meter: Meter) -> None:
        """Creates the instruments."""
        meter.create_observable_gauge(
            "anabranch.tls.certificate.expiry",
            callbacks=[self._expiry],
            unit="s",
            description="When the certificate in force expires, in seconds since 1970",
        )
        self._reloads = meter.create_counter(
            "anabranch.tls.reloads", description="Changed certificate files, by what came of them"
        )

    async def follow(self) -> None:
        """Looks at the files every period, until cancelled; listeners' failures escape."""
        while True:
            await asyncio.sleep(self._period)
            await self.look()

    async def look(self) -> None:
        """Takes up a changed set that has been the same for two looks.

        A set is written file by file, and half a file of authorities may be a good one.
        """
        try:
            digest = await asyncio.to_thread(lambda: self._files.read().digest)
        except BadTlsFiles as bad:
            if self._seen == _UNREADABLE:
                self._refuse(_UNREADABLE, bad)
            self._seen = _UNREADABLE
            return
        rested, self._seen = digest == self._seen, digest
        if digest == self._present.pem.digest:
            self._refused = digest
        elif rested and digest != self._refused:
            await self._take_up(digest)

    async def _take_up(self, digest: bytes) -> None:
        try:
            contexts = await asyncio.to_thread(load, self._files, client_auth=self.client_auth)
        except BadTlsFiles as bad:
            self._refuse(digest, bad)
            return
        authorities_changed = contexts.pem.ca != self._present.pem.ca
        self._present = contexts
        self._seen = self._refused = contexts.pem.digest
        for listener in self._listeners:
            await listener(authorities_changed)
        self._reloads.add(1, {"outcome": "ok"})
        _log.info("certificates were taken up from changed files", extra=self._facts())

    def _refuse(self, digest: bytes, why: BadTlsFiles) -> None:
        if self._refused == digest:
            return  # told already
        self._refused = digest
        self._reloads.add(1, {"outcome": "refused"})
        _log.error(
            "changed certificate files cannot be used, the last good ones stay in force",
            extra={"cause": str(why), **self._facts()},
        )

    def _newest_https(self, handshake: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        # Where no client certificate is asked for, the certificate is all that differs, and
        # OpenSSL lets a handshake take that of another context.
        handshake.context = self._present.https

    def _facts(self) -> dict[str, object]:
        present = self._present
        return {"names": ",".join(present.names), "expires_at": int(present.expires_at)}

    def _expiry(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._present.expires_at)


def https_of(settings: CommonSettings, tls: Tls | None) -> ssl.SSLContext | None:
    """What the HTTP port speaks TLS with; None for plain text."""
    return None if tls is None or settings.http_tls == "off" else tls.https
