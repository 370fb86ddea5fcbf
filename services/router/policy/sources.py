"""Opens the source of a router's policy; only here it is known which kinds there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.chassis.registry import open_key_values
from services.chassis.setting_values import Secret
from services.chassis.workers import Worker
from services.router.policy.board import OwnBoard, SharedBoard
from services.router.policy.consul_source import ConsulSource
from services.router.policy.local_source import LocalSource
from services.router.policy.place import Place
from services.router.policy.source import PolicySource
from services.router.policy.store import PolicyStore


@asynccontextmanager
async def open_source(
    place: Place,
    store: PolicyStore,
    *,
    registry: str,
    registry_token: Secret | None,
    worker: Worker | None,
) -> AsyncIterator[PolicySource]:
    """The source of a place, until the context is left."""
    board = OwnBoard() if worker is None else SharedBoard(worker)
    if not place.key:
        yield LocalSource(store, board, place.path)
        return
    key_values = open_key_values(registry, token=registry_token)
    try:
        yield ConsulSource(store, board, key_values, place.key)
    finally:
        await key_values.close()
