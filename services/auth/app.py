"""Puts the auth service together: the one place where its collaborators are constructed.

Production and in-process tests both enter `running`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.v1 import auth_pb2_grpc
from services.auth.acts import Acts
from services.auth.api_keys import ApiKeys
from services.auth.bootstrap import announcer
from services.auth.core.throttle import LoginThrottle
from services.auth.directory import BOOTSTRAP_CLIENT, Directory
from services.auth.grants import Grants
from services.auth.keyring import Keyring
from services.auth.keyset import StoredKeySet
from services.auth.login import Login
from services.auth.login_metrics import Logins
from services.auth.oauth_http import OAuthEndpoints
from services.auth.passwords import Passwords
from services.auth.planted import PlantedIdentities, read_secrets
from services.auth.resealing import reseal
from services.auth.rpcs.api_keys import ApiKeyRpcs
from services.auth.rpcs.audit import AuditRpcs
from services.auth.rpcs.clients import ClientRpcs
from services.auth.rpcs.rules import RuleRpcs
from services.auth.rpcs.tokens import TokenRpcs
from services.auth.rulebook import Rulebook
from services.auth.rules import RuleChanges
from services.auth.sealed_secrets import AUDIT_KEY, PEPPER, sealed_secret
from services.auth.servicer import AuthServicer
from services.auth.settings import Settings
from services.auth.store import open_store, sqlite_file
from services.auth.store_watch import watch_store
from services.auth.vault import Vault, earlier_secret_beside, master_secret_beside
from services.chassis.audit.head import Signer
from services.chassis.encryption.errors import EncryptionError
from services.chassis.encryption.keychain import Keychain
from services.chassis.host import Host
from services.chassis.operations import serve_operations
from services.chassis.settings import SettingsError

SERVICE = "anabranch-auth"
FULL_NAME = "anabranch.v1.AuthService"


@asynccontextmanager
async def running(
    settings: Settings, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[Host]:
    """The service, serving, until the block is left. `clock` returns unix seconds.

    Raises Fault when the database is away, SettingsError when the keychain is
    none or an identity's file is not good, VaultError when its secrets were
    sealed under another key than it holds, OSError when an address or a file
    cannot be had.
    """
    identities_dir = settings.bootstrap_identities_dir
    secrets = await asyncio.to_thread(read_secrets, identities_dir) if identities_dir else {}
    with Passwords(threads=settings.hash_threads, waiting=settings.hash_waiting) as passwords:
        async with open_store(settings.url) as store:
            vault = await asyncio.to_thread(_vault, settings)
            keyring = Keyring(store, vault, settings.rotation, clock)
            rulebook = Rulebook(store)
            keyset = StoredKeySet(
                store,
                keyring,
                max_age=settings.jwks_max_age,
                clock=clock,
                monotonic=time.monotonic,
            )
            acts = Acts(
                store,
                spool=settings.audit_spool,
                retention=settings.audit_retention,
                clock=clock,
            )
            throttle = LoginThrottle(
                rate=settings.login_rate, burst=settings.login_burst, clock=time.monotonic
            )
            strangers = LoginThrottle(
                rate=10 * settings.login_rate,
                burst=3 * settings.login_burst,
                clock=time.monotonic,
            )
            login = Login(store, acts, passwords, throttle, strangers)
            grants = Grants(
                store,
                acts,
                keyring,
                keyset,
                rulebook,
                issuer=settings.issuer,
                audience=settings.audience,
                token_life=settings.token_life,
                clock=clock,
            )
            directory = Directory(store, acts, passwords, rulebook, keyset, clock)
            await reseal(store, vault)
            await keyring.refresh()
            await rulebook.refresh()
            pepper = await sealed_secret(store, vault, PEPPER, clock())
            audit_key = await sealed_secret(store, vault, AUDIT_KEY, clock())
            api_keys = ApiKeys(store, acts, grants, keyset, pepper, clock=clock)
            async with Host.open(
                SERVICE,
                settings,
                key_source=keyset,
                exchange=api_keys,
                on_refusal=acts.refused_at_the_door,
                clock=clock,
            ) as host:
                grants.verifies_with(host.verifier)
                if host.audit.enabled:
                    # A second trail of the same, in files or at a collector.
                    acts.mirror = host.audit.note
                logins = Logins(host.meter)
                servicer = AuthServicer(
                    TokenRpcs(
                        login=login,
                        acts=acts,
                        grants=grants,
                        api_keys=api_keys,
                        keyring=keyring,
                        keyset=keyset,
                        issuer=settings.issuer,
                        logins=logins,
                    ),
                    ClientRpcs(directory, rulebook, token_life=settings.token_life),
                    ApiKeyRpcs(api_keys),
                    RuleRpcs(RuleChanges(store, acts, rulebook), rulebook),
                    AuditRpcs(
                        store, Signer(Ed25519PrivateKey.from_private_bytes(audit_key)), clock
                    ),
                )
                host.add_servicer(
                    auth_pb2_grpc.add_AuthServiceServicer_to_server, servicer, FULL_NAME
                )
                serve_operations(host, acts.acting)
                OAuthEndpoints(
                    login,
                    grants,
                    keyset,
                    issuer=settings.issuer,
                    audience=settings.audience,
                    jwks_cache=settings.http_cache,
                    logins=logins,
                    trusted_proxies=settings.proxy_networks,
                ).hang(host.http)
                await host.start()
                # Only now: a process that cannot bind must not use up the one announcement.
                if BOOTSTRAP_CLIENT not in secrets:
                    await directory.bootstrap(announcer(settings.bootstrap_secret_file, sys.stdout))
                if identities_dir is not None:
                    planted = PlantedIdentities(store, acts, passwords, clock)
                    await planted.plant(secrets)
                    host.tasks.create_task(
                        planted.follow(identities_dir, secrets), name="planted-identities"
                    )
                host.tasks.create_task(
                    keyring.keep_fresh(settings.refresh_period), name="signing-keys"
                )
                host.tasks.create_task(rulebook.keep_fresh(), name="rules")
                host.tasks.create_task(watch_store(store, host.health), name="database-watch")
                host.tasks.create_task(acts.keep_written(), name="audit-database")
                await host.serve()
                try:
                    yield host
                finally:
                    # Whoever waits for a change would hold up the shutdown.
                    keyset.close()


def _vault(settings: Settings) -> Vault:
    file, keys_file = sqlite_file(settings.url), settings.key_encryption_keys_file
    secret: str | None = None
    if settings.key_encryption_secret is not None:
        secret = settings.key_encryption_secret.reveal()
    elif file is not None:
        # With a keychain the file beside the database only opens what it sealed before.
        secret = earlier_secret_beside(file) if keys_file else master_secret_beside(file)
    try:
        if keys_file is not None:
            keychain = Keychain.read(keys_file)
            return Vault(keychain if secret is None else keychain.and_secret(secret), secret)
        if secret is None:
            raise EncryptionError("no key is set that encrypts the signing keys")
        return Vault.under(secret)
    except EncryptionError as refused:
        raise SettingsError([str(refused)]) from None
