"""Takes up the identities whose secrets lie in a directory: a file a client, named by its id.

Who may be planted, and with what scopes, is fixed here: whoever writes the directory chooses
secrets, never rights. Which client is whose otherwise is directory.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.auth.acts import Acts
from services.auth.core.clients import MAX_SECRET
from services.auth.core.roles import BUILT_IN
from services.auth.directory import BOOTSTRAP_CLIENT, BOOTSTRAP_TENANT
from services.auth.passwords import Passwords
from services.auth.records import Client
from services.auth.store import Store
from services.chassis.audit.entry import Act
from services.chassis.encryption.keychain import MIN_SECRET
from services.chassis.errors import Fault
from services.chassis.model_patterns import ANY
from services.chassis.settings import SettingsError

_log = logging.getLogger(__name__)

_POLL_S = 2.0
_LONGEST_FILE = 4096


@dataclass(frozen=True, slots=True)
class Planted:
    """What a planted client is made with."""

    tenant: str
    display_name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] = ()


PLANTED: Mapping[str, Planted] = {
    BOOTSTRAP_CLIENT: Planted(
        BOOTSTRAP_TENANT, "First administrator", BUILT_IN["administrator"].scopes, (ANY,)
    ),
    "router": Planted(BOOTSTRAP_TENANT, "the router's calls to engines and proxies", ("relay",)),
    "tester": Planted(BOOTSTRAP_TENANT, "tests of the installation", ("generate",), (ANY,)),
    "demo": Planted("demo", "a caller", ("generate",), (ANY,)),
}
"""Client id → what it gets when it is created. One that exists keeps what it has."""


def read_secrets(directory: Path) -> dict[str, str]:
    """Client id → secret, without the white space around it.

    Raises SettingsError, which names every fault and no secret. Names that begin with a dot are no
    clients: Kubernetes keeps the versions of a mounted Secret under such names. Nor is what is no
    file.
    """
    problems: list[str] = []
    found: dict[str, str] = {}
    try:
        # A directory that may be listed but not entered refuses only here.
        paths = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as unreadable:
        raise SettingsError([f"bootstrap_identities_dir: {unreadable.strerror}"]) from None
    for path in paths:
        if path.name.startswith("."):
            continue
        where = f"bootstrap_identities_dir: {path.name}"
        if path.name not in PLANTED:
            problems.append(f"{where} is no identity; there are {', '.join(PLANTED)}")
            continue
        try:
            with path.open(encoding="utf-8") as file:
                secret = file.read(_LONGEST_FILE).strip()
        except OSError as unreadable:
            problems.append(f"{where} cannot be read: {unreadable.strerror}")
        except UnicodeDecodeError:
            problems.append(f"{where} is not UTF-8")
        else:
            problems += [f"{where} {rule}" for rule in _faults(secret)]
            found[path.name] = secret
    if problems:
        raise SettingsError(problems)
    return found


def _faults(secret: str) -> list[str]:
    if len(secret) < MIN_SECRET:
        return [f"must hold at least {MIN_SECRET} random characters"]
    if len(secret) > MAX_SECRET:
        return [f"must hold at most {MAX_SECRET} characters"]
    if not secret.isprintable() or " " in secret:
        return ["must hold one secret, without white space in it"]
    return []


class PlantedIdentities:
    """Keeps the database's clients as the directory has their secrets."""

    def __init__(
        self, store: Store, acts: Acts, passwords: Passwords, clock: Callable[[], float]
    ) -> None:
        """`clock` returns unix seconds."""
        self._store = store
        self._acts = acts
        self._passwords = passwords
        self._clock = clock

    async def follow(self, directory: Path, taken: Mapping[str, str]) -> None:
        """Takes up what changes in the directory, until cancelled; `taken` is what it had at first.

        What is refused then is logged once and changes nothing: the service is in use.
        """
        seen: Mapping[str, str] | str = taken
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                secrets = await asyncio.to_thread(read_secrets, directory)
            except SettingsError as refused:
                if seen != str(refused):
                    _log.error("identities are not taken up", extra={"cause": str(refused)})
                seen = str(refused)
                continue
            if secrets == seen:
                continue
            try:
                await self.plant(secrets)
            except Fault as fault:
                _log.warning("identities are not taken up yet", extra={"cause": fault.message})
            else:
                seen = secrets

    async def plant(self, secrets: Mapping[str, str]) -> None:
        """Creates who is missing, and replaces secrets that differ. Raises Fault when the database
        is away."""
        for client_id, secret in secrets.items():
            await self._plant(client_id, secret)

    async def _plant(self, client_id: str, secret: str) -> None:
        while True:
            async with self._store.reading() as records:
                before = await records.client(client_id)
            if before is not None and before.tenant != PLANTED[client_id].tenant:
                # Whoever manages it there could set its secret again, and it has other rights.
                _log.error(
                    "an identity is not taken up: a client of another tenant has its id",
                    extra={"client": client_id, "tenant": before.tenant},
                )
                return
            if before is not None and await self._passwords.matches(before.secret_hash, secret):
                return
            secret_hash = await self._passwords.hash(secret)
            act: Act | None = None
            # Under the lock of all replicas: one of them writes, the others find it written.
            async with self._store.alone() as records:
                now = await records.client(client_id)
                if now is None and before is None:
                    await records.add_client(self._made(client_id, secret_hash))
                    act = _act("client.create", client_id, PLANTED[client_id].tenant)
                elif now is not None and before and now.secret_hash == before.secret_hash:
                    await records.change_client(client_id, secret_hash=secret_hash)
                    act = _act("client.rotate-secret", client_id, now.tenant)
                if act is not None:
                    await records.trail.append([act], self._clock())
            if act is not None:
                if self._acts.mirror is not None:
                    self._acts.mirror(act)
                _log.info("identity taken up", extra={"client": client_id, "act": act.action})
                if before is not None and before.disabled:
                    _log.warning("a planted identity is disabled", extra={"client": client_id})
                return

    def _made(self, client_id: str, secret_hash: str) -> Client:
        planted = PLANTED[client_id]
        return Client(
            client_id=client_id,
            tenant=planted.tenant,
            display_name=planted.display_name,
            scopes=tuple(sorted(planted.scopes)),
            token_life=None,
            secret_hash=secret_hash,
            created_at=self._clock(),
            models=planted.models,
        )


def _act(action: str, client_id: str, tenant: str) -> Act:
    return Act(action, tenant=tenant, target=client_id, details={"by": "bootstrap directory"})
