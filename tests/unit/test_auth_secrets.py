"""Signing, sealing, hashing and announcing: what happens to the auth service's secrets."""

import asyncio
import io
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest

from anabranch.v1 import errors_pb2
from services.auth.api_keys import REFUSED_AFTER_S, refused_in
from services.auth.bootstrap import announcer
from services.auth.core.claims import MAX_TOKEN_BYTES, TokenClaims, claims_for
from services.auth.passwords import Passwords, new_secret
from services.auth.settings import Settings
from services.auth.store import database_url
from services.auth.tokens import (
    TokenTooLarge,
    issued_at,
    jwks_json,
    new_signing_key,
    sign,
    signing_key,
)
from services.auth.vault import Vault, VaultError, master_secret_beside
from services.chassis.encryption.keychain import Keychain
from services.chassis.errors import Fault
from services.chassis.settings import SettingsError, load


def claims(tenant: str = "shop") -> TokenClaims:
    return claims_for(
        issuer="https://i",
        audience="a",
        client_id="orders",
        tenant=tenant,
        scopes=["generate"],
        token_id="t1",
        now=1000,
        life=300,
    )


def test_a_token_verifies_with_its_published_key_and_names_type_and_key():
    key = new_signing_key(0.0)
    token = sign(claims(), key)
    published = json.loads(jwks_json([(key.kid, key.public_bytes, 1000.0)]))["keys"][0]
    assert "d" not in published
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "typ": "at+jwt", "kid": key.kid}
    public = jwt.PyJWK.from_dict(published).key
    read = jwt.decode(
        token, public, algorithms=["EdDSA"], audience="a", options={"verify_exp": False}
    )
    assert read["sub"] == "orders"
    assert issued_at(token) == 1000


def test_a_token_beyond_four_kilobytes_is_never_issued():
    with pytest.raises(TokenTooLarge):
        sign(claims(tenant="t" * MAX_TOKEN_BYTES), new_signing_key(0.0))


def test_a_key_under_the_wrong_id_is_refused_and_none_shows_its_private_half():
    key = new_signing_key(0.0)
    private = key.private_key.private_bytes_raw()
    assert signing_key(key.kid, 0.0, private).public_bytes == key.public_bytes
    with pytest.raises(ValueError, match="does not match"):
        signing_key("other", 0.0, private)
    assert "private" not in repr(key)


def test_a_sealed_key_opens_only_for_its_kid_untouched_under_its_secret():
    vault = Vault.under("s" * 32)
    sealed = vault.seal(b"private", kid="one")
    assert vault.open(sealed, kid="one") == b"private"
    tampered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for opener, blob, kid in [
        (vault, sealed, "two"),
        (vault, tampered, "one"),
        (vault, b"\x03" + sealed[1:], "one"),
        (vault, b"", "one"),
        (Vault.under("t" * 32), sealed, "one"),
    ]:
        with pytest.raises(VaultError):
            opener.open(blob, kid=kid)


FIRST_FORM = bytes.fromhex(
    "013d969da811bb0079b2c4ebf7be64f08ac2247aea1c43f9490244c378e7f10769387ae0"
)
"""What the version before keychains made of b"private" for the kid "one" under "s" * 32."""


def test_a_key_sealed_before_keychains_opens_with_its_secret_and_is_then_sealed_as_now():
    vault = Vault.under("s" * 32)
    assert vault.open(FIRST_FORM, kid="one") == b"private"
    assert not vault.is_current(FIRST_FORM)
    moved = vault.resealed(FIRST_FORM, kid="one")
    assert vault.is_current(moved)
    assert Vault(Keychain.from_secret("s" * 32)).open(moved, kid="one") == b"private"

    tampered = FIRST_FORM[:-1] + bytes([FIRST_FORM[-1] ^ 1])
    for opener, blob, kid in [
        (vault, FIRST_FORM, "two"),
        (vault, tampered, "one"),
        (vault, FIRST_FORM[:5], "one"),
        (vault, b"\x01", "one"),
        (Vault.under("t" * 32), FIRST_FORM, "one"),
        (Vault(Keychain.from_secret("s" * 32)), FIRST_FORM, "one"),
    ]:
        for attempt in (opener.open, opener.resealed):
            with pytest.raises(VaultError, match=f"signing key {kid} was sealed"):
                attempt(blob, kid=kid)


def test_a_key_under_a_key_that_the_keychain_lacks_is_refused_by_that_ones_name():
    sealed = Vault(Keychain({"2026-05": bytes(32)}, "2026-05")).seal(b"private", kid="one")
    later = Vault(Keychain({"2026-11": bytes(range(32))}, "2026-11"))
    for attempt in (later.open, later.resealed):
        with pytest.raises(VaultError, match=r"signing key one .* no key-encryption key '2026-05'"):
            attempt(sealed, kid="one")


def test_processes_that_start_together_agree_on_one_private_key_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: master_secret_beside(tmp_path / "auth.db"), range(32)))
    assert len(found) == 1
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_secrets_are_recognisable_by_scanners():
    assert re.fullmatch(r"abs_[A-Za-z0-9_-]{43}", new_secret())


async def test_only_the_right_secret_matches_and_an_unknown_client_never_does():
    with Passwords(threads=1) as passwords:
        secret = new_secret()
        hashed = await passwords.hash(secret)
        assert hashed.startswith("$argon2id$")
        assert await passwords.matches(hashed, secret)
        assert not await passwords.matches(hashed, secret + "x")
        assert not await passwords.matches(None, secret)
        assert not await passwords.matches("not a hash", secret)


async def test_a_flood_of_logins_is_refused_instead_of_queued_and_the_loop_stays_free():
    with Passwords(threads=1, waiting=2) as passwords:
        tasks = [asyncio.create_task(passwords.matches(None, "x")) for _ in range(10)]
        await asyncio.sleep(0)
        assert not tasks[0].done()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [r for r in results if isinstance(r, Fault)]
        assert len(refused) == 7
        assert {r.reason for r in refused} == {errors_pb2.ERROR_REASON_OVERLOADED}
        assert all(r.retry_after for r in refused)
        assert not await passwords.matches(None, "x")


def test_the_first_secret_is_printed_when_no_file_is_named():
    out = io.StringIO()
    announcer(None, out)("admin", "abs_secret")
    assert "abs_secret" in out.getvalue()


def test_the_first_secret_goes_to_a_private_file_and_not_to_the_output(tmp_path):
    out = io.StringIO()
    file = tmp_path / "new" / "secret"
    for secret in ("abs_one", "abs_two"):
        announcer(file, out)("admin", secret)
    assert file.read_text() == "abs_two\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    assert "abs_" not in out.getvalue()
    assert str(file) in out.getvalue()


@pytest.mark.parametrize(
    "text", ["mysql://h/d", "sqlite://", "postgresql+psycopg2://h/d", "%%%", "sqlite:///"]
)
def test_other_databases_are_refused(text):
    with pytest.raises(ValueError, match="database"):
        database_url(text)


@pytest.mark.parametrize("kind", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_postgresql_urls_get_the_async_driver(kind):
    assert database_url(f"{kind}://u@h/d").drivername == "postgresql+asyncpg"


@pytest.mark.parametrize("given", ["KEY_ENCRYPTION_KEYS_FILE", "KEY_ENCRYPTION_SECRET"])
def test_with_postgresql_a_keychain_or_a_secret_is_enough(given):
    database = {"A_DATABASE_URL": "postgresql://u:hunter2@h/d"}
    assert load(Settings, "A_", database | {f"A_{given}": "/etc/keys" + "s" * 32})
    with pytest.raises(SettingsError, match="key_encryption_keys_file or key_encryption_secret"):
        load(Settings, "A_", database)
    with pytest.raises(SettingsError, match="at least 32 characters"):
        load(Settings, "A_", {"A_KEY_ENCRYPTION_SECRET": "s" * 31})


def test_settings_have_working_defaults_and_report_all_contradictions():
    assert load(Settings, "A_", {}).url.database == ".run/auth/auth.db"
    with pytest.raises(SettingsError) as caught:
        load(
            Settings,
            "A_",
            {
                "A_DATABASE_URL": "postgresql://u:hunter2@h/d",
                "A_JWKS_MAX_AGE": "60",
                "A_ROTATION_PUBLISH_AHEAD": "2h",
                "A_ROTATION_PERIOD": "1h",
            },
        )
    assert len(caught.value.problems) == 2
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("taken", "in_all"), [(0.0, 1), (0.002, 1), (0.0099, 1), (0.0101, 2), (0.154, 16)]
)
def test_a_refusal_takes_a_whole_number_of_times_as_long_whatever_it_looked_up(taken, in_all):
    assert taken + refused_in(taken) == pytest.approx(in_all * REFUSED_AFTER_S)
