"""Creates and changes clients, for administrators. Requests arrive validated in form.

Secrets are made here and returned once; only their hashes are stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anabranch.v1 import errors_pb2
from services.auth.core.clients import KNOWN_SCOPES, ungrantable
from services.auth.keyset import StoredKeySet
from services.auth.passwords import Passwords, new_secret
from services.auth.records import AlreadyThere, Client
from services.auth.store import Store
from services.chassis.errors import Fault

BOOTSTRAP_CLIENT = "admin"
BOOTSTRAP_TENANT = "operators"


@dataclass(frozen=True, slots=True)
class NewClient:
    """A client to create; an empty id is made up, `token_life` in seconds or None."""

    client_id: str
    tenant: str
    display_name: str
    scopes: Sequence[str]
    token_life: int | None


class Directory:
    """The clients of the organisation."""

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        keyset: StoredKeySet,
        clock: Callable[[], float],
    ) -> None:
        """`clock` returns unix seconds."""
        self._store = store
        self._passwords = passwords
        self._keyset = keyset
        self._clock = clock

    async def create(self, new: NewClient, creator_scopes: frozenset[str]) -> tuple[Client, str]:
        """The client and its secret. Raises Fault: ACCESS_DENIED, ALREADY_EXISTS."""
        _refuse_ungrantable(creator_scopes, new.scopes)
        client, secret = await self._made(new)
        try:
            async with self._store.writing() as records:
                await records.add_client(client)
        except AlreadyThere:
            raise Fault(
                errors_pb2.ERROR_REASON_ALREADY_EXISTS,
                "this client_id is taken",
                metadata={"client_id": client.client_id},
            ) from None
        return client, secret

    async def page(self, after: str, size: int) -> tuple[list[Client], bool]:
        """Clients whose id comes after this one, and whether there are more."""
        async with self._store.reading() as records:
            found = await records.clients_after(after, size + 1)
        return found[:size], len(found) > size

    async def change(
        self,
        client_id: str,
        editor_scopes: frozenset[str],
        *,
        display_name: str | None,
        scopes: Sequence[str],
        token_life: int | None,
    ) -> Client:
        """The client after the change. Raises Fault: ACCESS_DENIED, NOT_FOUND."""
        _refuse_ungrantable(editor_scopes, scopes)
        async with self._store.writing() as records:
            client = await records.change_client(
                client_id, display_name=display_name, scopes=scopes, token_life=token_life
            )
        if client is None:
            raise _no_such_client(client_id)
        return client

    async def disable(self, client_id: str) -> None:
        """Ends the client and all of its tokens. Raises Fault (NOT_FOUND)."""
        async with self._store.writing() as records:
            known = await records.disable_client(client_id, self._clock())
        self._keyset.changed()
        if not known:
            raise _no_such_client(client_id)

    async def replace_secret(self, client_id: str) -> str:
        """The new secret; the one before it is dead. Raises Fault (NOT_FOUND)."""
        secret = new_secret()
        secret_hash = await self._passwords.hash(secret)
        async with self._store.writing() as records:
            client = await records.change_client(client_id, secret_hash=secret_hash)
        if client is None:
            raise _no_such_client(client_id)
        return secret

    async def bootstrap(self, announce: Callable[[str, str], None]) -> bool:
        """Creates the first administrator in an empty database; whether it did.

        `announce` receives id and secret before the commit: a crash in between
        leaves a secret that does not work and a next start that makes another,
        never a client whose secret nobody saw.
        """
        async with self._store.reading() as records:
            if await records.any_client():
                return False
        client, secret = await self._made(
            NewClient(
                client_id=BOOTSTRAP_CLIENT,
                tenant=BOOTSTRAP_TENANT,
                display_name="First administrator",
                scopes=sorted(KNOWN_SCOPES),
                token_life=None,
            )
        )
        async with self._store.alone() as records:
            if await records.any_client():
                return False
            await records.add_client(client)
            announce(client.client_id, secret)
        return True

    async def _made(self, new: NewClient) -> tuple[Client, str]:
        secret = new_secret()
        client = Client(
            client_id=new.client_id or f"client-{secrets.token_hex(8)}",
            tenant=new.tenant,
            display_name=new.display_name,
            scopes=tuple(sorted(set(new.scopes))),
            token_life=new.token_life,
            secret_hash=await self._passwords.hash(secret),
            created_at=self._clock(),
        )
        return client, secret


def _refuse_ungrantable(held: frozenset[str], wanted: Sequence[str]) -> None:
    beyond = ungrantable(held, wanted)
    if beyond:
        raise Fault(
            errors_pb2.ERROR_REASON_ACCESS_DENIED,
            f"the caller may not grant: {', '.join(beyond)}",
        )


def _no_such_client(client_id: str) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_NOT_FOUND, "no such client", metadata={"client_id": client_id}
    )
