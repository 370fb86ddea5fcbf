"""Decides whether a client is who it says: one answer, in one time, for every wrong login."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from anabranch.v1 import errors_pb2
from services.auth.acts import Acts
from services.auth.core.clients import Problem, login_problems
from services.auth.core.throttle import LoginThrottle
from services.auth.passwords import Passwords
from services.auth.records import Client
from services.auth.store import Store
from services.chassis.audit.entry import Act
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.peer_address import networks_of
from services.chassis.principal import is_within


def refuse(problems: list[Problem]) -> None:
    """Raises Fault (INVALID_REQUEST) that lists all problems, if there are any."""
    if problems:
        raise invalid([Violation(field, description) for field, description in problems])


def wrong_login() -> Fault:
    """One text for an unknown client, a wrong secret, a disabled client and a wrong address."""
    return Fault(
        errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED, "the client's credentials were not accepted"
    )


class Login:
    """Checks client credentials against the store, slowed down per client id and address."""

    def __init__(
        self,
        store: Store,
        acts: Acts,
        passwords: Passwords,
        throttle: LoginThrottle,
        strangers: LoginThrottle,
    ) -> None:
        """`throttle` slows down guesses at one client from one address, `strangers` those from one
        address at whichever: each costs a hash, and there are few places for them."""
        self._strangers = strangers
        self._store = store
        self._acts = acts
        self._passwords = passwords
        self._throttle = throttle

    async def client(
        self,
        client_id: str,
        client_secret: str,
        *,
        peer: str,
        grant_type: str = "",
        problems: list[Problem] | None = None,
    ) -> Client:
        """The client of these credentials; a refusal is in the audit trail, what follows is not.

        `peer` is the address that it is said from: who guesses there locks out nobody elsewhere.
        `problems` are further faults of the same request, reported together
        with those of the login. Raises Fault: INVALID_REQUEST,
        CREDENTIAL_REJECTED, QUOTA_EXCEEDED after too many failures,
        OVERLOADED, DEPENDENCY_UNAVAILABLE.
        """
        refuse(login_problems(grant_type, client_id, client_secret) + (problems or []))
        act = Act("token.issue", client_id, target=client_id, peer=peer)
        guesser = f"{peer}|{client_id}"
        wait = self._throttle.attempt(guesser)
        if not wait and (wait := self._strangers.attempt(peer)):
            self._throttle.give_back(guesser)
        if wait > 0:
            self._acts.note_stranger(
                replace(act, succeeded=False, details={"error": "QUOTA_EXCEEDED"})
            )
            raise Fault(
                errors_pb2.ERROR_REASON_QUOTA_EXCEEDED,
                "too many failed logins for this client, or from this address",
                retry_after=wait,
                quota=[(f"client:{client_id}", "failed logins")],
            )
        try:
            async with self._store.reading() as records:
                client = await records.client(client_id)
            # Who may not log in at all, or not from there, costs and counts as a wrong secret does:
            # a right one that leaked must not be told from a wrong one by trying it.
            may = client is not None and not client.disabled and _is_within(peer, client.networks)
            secret_hash = client.secret_hash if client is not None and may else None
            right = await self._passwords.matches(secret_hash, client_secret)
        except Fault:
            # We failed, not the caller: an outage must not use up its attempts.
            self._throttle.give_back(guesser)
            self._strangers.give_back(peer)
            raise
        if client is None or not right:
            tenant = "" if client is None else client.tenant
            self._acts.note_stranger(replace(act, tenant=tenant, succeeded=False))
            raise wrong_login()
        self._throttle.give_back(guesser)
        self._strangers.give_back(peer)
        return client


def _is_within(peer: str, networks: Sequence[str]) -> bool:
    """Whether the client may log in from there."""
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    return is_within(address, networks_of(networks))
