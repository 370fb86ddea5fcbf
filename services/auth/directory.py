"""Creates and changes clients, for administrators. Requests arrive validated in form.

Secrets are made here and returned once; only their hashes are stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from anabranch.v1 import errors_pb2
from services.auth.acts import Acts, Change, refused
from services.auth.authority import Authority
from services.auth.checks import role_problems
from services.auth.core.roles import BUILT_IN
from services.auth.entitlements import entitlement_of, of_client
from services.auth.keyset import StoredKeySet
from services.auth.login import refuse
from services.auth.passwords import Passwords, new_secret
from services.auth.records import Client
from services.auth.rows import AlreadyThere
from services.auth.rule_records import Role
from services.auth.rulebook import Rulebook
from services.auth.store import Store
from services.chassis.audit.entry import Act
from services.chassis.errors import Fault
from services.chassis.model_patterns import ANY

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
    roles: Sequence[str] = ()
    models: Sequence[str] = ()
    networks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to change of a client; None stays as it is."""

    display_name: str | None = None
    scopes: Sequence[str] | None = None
    roles: Sequence[str] | None = None
    models: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    token_life: int | None = None


class Directory:
    """The clients of the organisation."""

    def __init__(
        self,
        store: Store,
        acts: Acts,
        passwords: Passwords,
        rulebook: Rulebook,
        keyset: StoredKeySet,
        clock: Callable[[], float],
    ) -> None:
        """`clock` returns unix seconds."""
        self._store = store
        self._acts = acts
        self._passwords = passwords
        self._rulebook = rulebook
        self._keyset = keyset
        self._clock = clock

    async def create(self, new: NewClient, authority: Authority, act: Act) -> tuple[Client, str]:
        """The client and its secret. Raises Fault: ACCESS_DENIED, ALREADY_EXISTS, and
        INVALID_REQUEST for a role that is no more."""
        with self._acts.noting_refusal(act):
            # First by what is known here, since a secret's hash is dear; then by what holds.
            _completed(new, authority, self._rulebook.now.roles)
        secret = new_secret()
        secret_hash = await self._passwords.hash(secret)
        try:
            async with self._acts.changing(act, authority) as change:
                new = _completed(new, change.authority, change.roles)
                client = self._made(new, secret_hash)
                change.concerns(tenant=client.tenant, target=client.client_id)
                await change.records.add_client(client)
        except AlreadyThere:
            fault = Fault(
                errors_pb2.ERROR_REASON_ALREADY_EXISTS,
                "this client_id is taken",
                metadata={"client_id": client.client_id},
            )
            self._acts.note(refused(act, fault))
            raise fault from None
        return client, secret

    async def page(self, after: str, size: int, authority: Authority) -> tuple[list[Client], bool]:
        """Clients whose id comes after this one, and whether there are more."""
        async with self._store.reading() as records:
            found = await records.clients_after(after, size + 1, tenant=authority.own_tenant)
        return found[:size], len(found) > size

    async def change(
        self, client_id: str, changes: Changes, authority: Authority, act: Act
    ) -> Client:
        """The client after the change. Raises Fault: ACCESS_DENIED, NOT_FOUND, and INVALID_REQUEST
        for a role that is no more."""
        async with self._acts.changing(act, authority) as change:
            before = await _managed(change, client_id)
            refuse(role_problems("roles", changes.roles or (), change.roles))
            wanted = entitlement_of(
                before.scopes if changes.scopes is None else changes.scopes,
                before.models if changes.models is None else changes.models,
                before.roles if changes.roles is None else changes.roles,
                change.roles,
                before.networks if changes.networks is None else changes.networks,
            )
            change.authority.check_grants(wanted)
            after = await change.records.change_client(
                client_id,
                display_name=changes.display_name,
                scopes=changes.scopes,
                roles=changes.roles,
                models=changes.models,
                networks=changes.networks,
                token_life=changes.token_life,
            )
            assert after is not None, "it was there within this transaction"
        return after

    async def disable(self, client_id: str, authority: Authority, act: Act) -> None:
        """Ends the client and all of its tokens. Raises Fault: ACCESS_DENIED, NOT_FOUND."""
        async with self._acts.changing(act, authority) as change:
            await _managed(change, client_id)
            await change.records.disable_client(client_id, self._clock())
        self._keyset.changed()

    async def replace_secret(self, client_id: str, authority: Authority, act: Act) -> str:
        """The new secret; the one before it is dead. Raises Fault: ACCESS_DENIED, NOT_FOUND."""
        secret = new_secret()
        secret_hash = await self._passwords.hash(secret)
        async with self._acts.changing(act, authority) as change:
            await _managed(change, client_id)
            await change.records.change_client(client_id, secret_hash=secret_hash)
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
        new = NewClient(
            client_id=BOOTSTRAP_CLIENT,
            tenant=BOOTSTRAP_TENANT,
            display_name="First administrator",
            scopes=BUILT_IN["administrator"].scopes,
            token_life=None,
            models=(ANY,),
        )
        secret = new_secret()
        client = self._made(new, await self._passwords.hash(secret))
        async with self._store.alone() as records:
            if await records.any_client():
                return False
            await records.add_client(client)
            act = Act("client.create", tenant=client.tenant, target=client.client_id)
            await records.trail.append([act], self._clock())
            announce(client.client_id, secret)
        return True

    def _made(self, new: NewClient, secret_hash: str) -> Client:
        return Client(
            client_id=new.client_id or f"client-{secrets.token_hex(8)}",
            tenant=new.tenant,
            display_name=new.display_name,
            scopes=tuple(sorted(set(new.scopes))),
            token_life=new.token_life,
            secret_hash=secret_hash,
            created_at=self._clock(),
            roles=tuple(sorted(set(new.roles))),
            models=tuple(sorted(set(new.models))),
            networks=tuple(sorted(set(new.networks))),
        )


def _completed(new: NewClient, authority: Authority, roles: Mapping[str, Role]) -> NewClient:
    """With what was not said taken from its creator, and so written down. Raises Fault for what
    that one may not hand on."""
    refuse(role_problems("roles", new.roles, roles))
    models = new.models
    if not models and not any(roles[name].models for name in new.roles):
        models = authority.models
    networks = new.networks or authority.networks
    authority.check_tenant(new.tenant)
    authority.check_grants(entitlement_of(new.scopes, models, new.roles, roles, networks))
    return replace(new, models=models, networks=networks)


async def _managed(change: Change, client_id: str) -> Client:
    """The client, if it is the caller's to manage. Raises Fault."""
    authority = change.authority
    client = await change.records.client(client_id)
    if client is None:
        raise authority.no_such("client", client_id=client_id)
    authority.check_tenant(client.tenant)
    change.concerns(tenant=client.tenant)
    authority.check_manages(client.tenant, of_client(client, change.roles))
    return client
