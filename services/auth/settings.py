"""What the auth service can be told. Meanings and bounds only: nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL

from services.auth.core.claims import MAX_TOKEN_LIFE, MIN_TOKEN_LIFE
from services.auth.core.rotation import RotationPolicy
from services.auth.store import database_url, sqlite_file
from services.chassis.common_settings import CommonSettings
from services.chassis.encryption.keychain import MIN_SECRET
from services.chassis.settings import Secret, SettingsError, setting

_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """The auth service's settings."""

    listen: str = setting("127.0.0.1:50054", help="Address and port of the gRPC server, host:port.")
    http_listen: str = setting(
        "127.0.0.1:9104",
        help="Address and port of the OAuth endpoints, /metrics, /livez, /readyz and /startupz.",
    )
    data_dir: Path = setting(
        Path(".run/auth"), help="Directory of the SQLite database and of its encryption key."
    )
    database_url: Secret | None = setting(
        None,
        help="sqlite+aiosqlite:///path or postgresql+asyncpg://user:password@host/name. "
        "Empty: auth.db in the data directory.",
    )
    key_encryption_secret: Secret | None = setting(
        None,
        help="Encrypts the private signing keys in the database; at least 32 random characters, "
        "the same on every replica. Empty: a key file beside the SQLite database. Beside "
        "key_encryption_keys_file it only opens what was encrypted under it before.",
    )
    key_encryption_keys_file: Path | None = setting(
        None,
        help="A keychain, as JSON or YAML, whose current key encrypts the private signing keys in "
        "the database; the others open what they encrypted. The same on every replica.",
    )
    bootstrap_secret_file: Path | None = setting(
        None,
        help="Where the first administrator's secret is written at the very first start. "
        "Empty: it is printed on standard output.",
    )
    token_life: int = setting(
        300,
        minimum=MIN_TOKEN_LIFE,
        maximum=MAX_TOKEN_LIFE,
        help="Seconds for which a token is good, for clients without a life of their own.",
    )
    jwks_max_age: float = setting(
        1.0,
        minimum=0.5,
        maximum=60,
        help="How often services ask for keys and revocations; bounds how late one is noticed.",
    )
    rotation_period: float = setting(
        30 * _DAY, minimum=3600, help="How long a signing key signs before the next one does."
    )
    rotation_publish_ahead: float = setting(
        900.0,
        minimum=120,
        maximum=_DAY,
        help="How long a new key is published before it signs. At least twice as long as any "
        "verifier may cache the key set.",
    )
    refresh_period: float = setting(
        5.0, minimum=0.1, maximum=60, help="How often replicas learn each other's key changes."
    )
    login_burst: int = setting(
        100,
        minimum=1,
        help="Failed logins of one client, from one address, that are answered at once; of all "
        "clients from one address, three times as many.",
    )
    login_rate: float = setting(
        1.0,
        minimum=0.01,
        help="Further failed logins of one client from there, per second; of all, ten times.",
    )
    hash_threads: int = setting(
        2, minimum=1, maximum=64, help="Threads that check client secrets (argon2id)."
    )
    hash_waiting: int = setting(
        128, minimum=1, help="Logins that may wait for such a thread before more are refused."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        try:
            url = self.url
        except ValueError as refused:
            problems.append(str(refused))
        else:
            given = self.key_encryption_secret or self.key_encryption_keys_file
            if given is None and sqlite_file(url) is None:
                problems.append(
                    "key_encryption_keys_file or key_encryption_secret is required with PostgreSQL"
                )
        secret = self.key_encryption_secret
        if secret is not None and len(secret.reveal()) < MIN_SECRET:
            problems.append(f"key_encryption_secret must have at least {MIN_SECRET} characters")
        if self.rotation_publish_ahead < 2 * self.jwks_max_age:
            problems.append("rotation_publish_ahead must be at least twice jwks_max_age")
        if self.rotation_publish_ahead > self.rotation_period:
            problems.append("rotation_publish_ahead must not exceed rotation_period")
        if problems:
            raise SettingsError(problems)

    @property
    def url(self) -> URL:
        """The database. Raises ValueError."""
        if self.database_url is not None:
            return database_url(self.database_url.reveal())
        return database_url(f"sqlite+aiosqlite:///{self.data_dir / 'auth.db'}")

    @property
    def rotation(self) -> RotationPolicy:
        return RotationPolicy(self.rotation_period, self.rotation_publish_ahead)

    @property
    def http_cache(self) -> int:
        """Seconds for which an HTTP cache may keep the key set, by the rule of two lifetimes."""
        return int(min(300, self.rotation_publish_ahead / 2))
