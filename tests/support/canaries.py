"""Secrets that a test plants, and the search for them: whole, in part, and in other spellings."""

from __future__ import annotations

import base64
import gc
import gzip
import io
import json
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import quote

from aiohttp import web

from services.chassis import logs

WINDOW = 16
"""Characters. So many of a secret in a row are found, wherever they begin."""

_OF_ONE_TYPE = 200


def canary() -> str:
    """A new one, of no form that any filter of logs knows."""
    return "Canary" + secrets.token_urlsafe(36)


def spellings(secret: str | bytes) -> Iterator[str]:
    """The secret as it may turn up: as it is, escaped, in hexadecimal, in base64 at any offset."""
    raw = secret.encode() if isinstance(secret, str) else secret
    yield raw.decode("latin-1")
    yield repr(raw)[2:-1]
    yield json.dumps(raw.decode("latin-1"))[1:-1]
    yield quote(raw, safe="")
    yield raw.hex()
    yield raw.hex().upper()
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The ends are mixed with what stands before and behind.
            yield encode(b"x" * offset + raw).decode()[4 if offset else 0 : -4]


class Planted:
    """Named secrets, none of which may be found."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def plant(self, name: str, secret: str | bytes) -> None:
        """From now on it is looked for."""
        for text in spellings(secret):
            for start in range(len(text) - WINDOW + 1):
                self._names[text[start : start + WINDOW]] = name

    def found(self, text: str) -> dict[str, str]:
        """The names of those of which the text holds a part, each with what stands around it."""
        names, found = self._names, dict[str, str]()
        for start in range(len(text) - WINDOW + 1):
            name = names.get(text[start : start + WINDOW])
            if name is not None and name not in found:
                found[name] = text[max(0, start - 200) : start + 200]
        return found


class Logged:
    """All that is logged meanwhile: the lines of production, and the records as they were before
    anything was removed from them."""

    def __init__(self) -> None:
        self.lines = io.StringIO()
        self.records: list[str] = []

    @property
    def text(self) -> str:
        """Both."""
        return self.lines.getvalue() + "\n".join(self.records)


class _Kept(logging.Handler):
    def __init__(self, records: list[str]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(f"{record.getMessage()} {record.__dict__!r}")


@contextmanager
def everything_logged(service: str) -> Iterator[Logged]:
    """Logging as production configures it, at its most talkative."""
    root, logged = logging.getLogger(), Logged()
    handlers, level = root.handlers[:], root.level
    logs.configure(service, "debug", logged.lines)
    root.addHandler(_Kept(logged.records))
    try:
        yield logged
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def reprs() -> str:
    """How every object of the services that is alive now shows itself, some of each type."""
    seen: Counter[type] = Counter()
    shown = []
    for one in gc.get_objects():
        kind = type(one)
        # Of some built-in types it is no text.
        ours = str(kind.__module__).startswith("services.")
        if ours and seen[kind] < _OF_ONE_TYPE:
            seen[kind] += 1
            shown.append(f"{kind.__name__} {one!r}")
    return "\n".join(shown)


@asynccontextmanager
async def otlp_collector() -> AsyncIterator[tuple[list[bytes], str]]:
    """A collector that keeps the bytes of spans and metrics; and its URL."""
    bodies: list[bytes] = []

    async def keep(request: web.Request) -> web.Response:
        body = await request.read()
        bodies.append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        return web.Response()

    application = web.Application()
    application.router.add_post("/v1/traces", keep)
    application.router.add_post("/v1/metrics", keep)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield bodies, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
