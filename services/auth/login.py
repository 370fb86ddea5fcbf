"""Decides whether a client is who it says: one answer, in one time, for every wrong login."""

from __future__ import annotations

from anabranch.v1 import errors_pb2
from services.auth.core.clients import Problem, login_problems
from services.auth.core.throttle import LoginThrottle
from services.auth.passwords import Passwords
from services.auth.records import Client
from services.auth.store import Store
from services.chassis.errors import Fault, Violation, invalid


def refuse(problems: list[Problem]) -> None:
    """Raises Fault (INVALID_REQUEST) that lists all problems, if there are any."""
    if problems:
        raise invalid([Violation(field, description) for field, description in problems])


def wrong_login() -> Fault:
    """One text for an unknown client, a wrong secret and a disabled client."""
    return Fault(
        errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED, "the client's credentials were not accepted"
    )


class Login:
    """Checks client credentials against the store, slowed down per client id."""

    def __init__(self, store: Store, passwords: Passwords, throttle: LoginThrottle) -> None:
        self._store = store
        self._passwords = passwords
        self._throttle = throttle

    async def client(
        self,
        client_id: str,
        client_secret: str,
        *,
        grant_type: str = "",
        problems: list[Problem] | None = None,
    ) -> Client:
        """The client of these credentials.

        `problems` are further faults of the same request, reported together
        with those of the login. Raises Fault: INVALID_REQUEST,
        CREDENTIAL_REJECTED, QUOTA_EXCEEDED after too many failures,
        OVERLOADED, DEPENDENCY_UNAVAILABLE.
        """
        refuse(login_problems(grant_type, client_id, client_secret) + (problems or []))
        wait = self._throttle.attempt(client_id)
        if wait > 0:
            raise Fault(
                errors_pb2.ERROR_REASON_QUOTA_EXCEEDED,
                "too many failed logins for this client",
                retry_after=wait,
                quota=[(f"client:{client_id}", "failed logins")],
            )
        try:
            async with self._store.reading() as records:
                client = await records.client(client_id)
            secret_hash = client.secret_hash if client is not None else None
            right = await self._passwords.matches(secret_hash, client_secret)
        except Fault:
            # We failed, not the caller: an outage must not use up its attempts.
            self._throttle.give_back(client_id)
            raise
        if client is None or not right or client.disabled:
            raise wrong_login()
        self._throttle.give_back(client_id)
        return client
