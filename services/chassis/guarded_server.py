"""Makes the gRPC servers of a process: each with the guard in front of every method."""

from __future__ import annotations

from services.chassis.access import Access
from services.chassis.authn import Verifier, authenticate
from services.chassis.channels import transport_limits
from services.chassis.common_settings import CommonSettings
from services.chassis.guard import Guard, Observer, OnRefusal
from services.chassis.http2.server import Server
from services.chassis.model_streams import StreamLimits
from services.chassis.origin import Origin
from services.chassis.principal import Address, Principal
from services.chassis.workers.retirement import connection_age


def guarded_server(
    settings: CommonSettings,
    verifier: Verifier,
    *,
    shared: bool = False,
    siblings: bool = False,
    observer: Observer | None = None,
    on_refusal: OnRefusal | None = None,
) -> Server:
    """A server that lets in whom `verifier` knows.

    `shared`: other processes have its port too, so connections end after a while. `siblings`: only
    processes of this service reach it, and may say for whom they ask. Whoever is told of calls is
    `observer`, and of those that were refused `on_refusal`.
    """

    async def checked(
        access: Access | None, authorization: str, address: Address | None
    ) -> Principal | None:
        return await authenticate(verifier, access, authorization, address)

    guard = Guard(
        checked,
        max_seconds=StreamLimits().max_timeout,
        max_message_bytes=settings.max_message_bytes,
        max_concurrent=settings.max_concurrent_rpcs,
        origin=Origin(settings.proxy_networks, siblings=siblings),
        observer=observer,
        on_refusal=on_refusal,
    )
    return Server(
        interceptors=[guard],
        # What goes somewhat beyond a limit is refused by the guard, with details; only what goes
        # far beyond is cut off by the transport, which has few words for it.
        limits=transport_limits(2 * settings.max_message_bytes),
        max_calls=2 * settings.max_concurrent_rpcs,
        connection_age=connection_age(settings.drain_timeout) if shared else None,
    )
