"""Sealed data opens where it belongs and nowhere else, before and after keys are rotated."""

import base64
import json
import threading

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.encryption import ciphers, envelope
from services.chassis.encryption.ciphers import FORMS, CipherName, require
from services.chassis.encryption.envelope import MAX_NAME_BYTES, OVERHEAD_BYTES, Envelope
from services.chassis.encryption.errors import CANNOT_OPEN, EncryptionError, UnknownKeyError
from services.chassis.encryption.keychain import MAX_FILE_BYTES, MIN_SECRET, Keychain
from services.chassis.encryption.keychain_document import (
    MAX_KEYS,
    new_keychain_text,
    parse_keychain,
)

AES, SM4 = CipherName.AES_256_GCM, CipherName.SM4_GCM
BOTH = pytest.mark.parametrize("cipher", list(CipherName))
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
BEFORE = Keychain({"2026-05": OLD}, "2026-05")
DURING = Keychain({"2026-05": OLD, "2026-11": NEW}, "2026-11")
AFTER = Keychain({"2026-11": NEW}, "2026-11")
WHERE = {"tenant": "shop", "field": "answer"}
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
ciphers_drawn = st.sampled_from(list(CipherName))


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


def base64_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


def written(keys: dict[str, bytes], current: str) -> str:
    return json.dumps(
        {"current": current, "keys": {name: base64_of(key) for name, key in keys.items()}}
    )


# The ciphers

# The GCM specification's test case 16 (McGrew and Viega), which NIST's validation repeats.
AES_VECTOR = (
    hexed("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"),
    hexed("cafebabefacedbaddecaf888"),
    hexed(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    ),
    hexed("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
    hexed(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    ),
)
# RFC 8998, appendix A.1.
SM4_VECTOR = (
    hexed("0123456789abcdeffedcba9876543210"),
    hexed("00001234567800000000abcd"),
    hexed("aa" * 8 + "bb" * 8 + "cc" * 8 + "dd" * 8 + "ee" * 8 + "ff" * 8 + "ee" * 8 + "aa" * 8),
    hexed("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
    hexed(
        "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735"
        "d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d"
        "83de3541e4c2b58177e065a9bf7b62ec"
    ),
)


@pytest.mark.parametrize(("cipher", "vector"), [(AES, AES_VECTOR), (SM4, SM4_VECTOR)])
def test_a_cipher_gives_the_published_answer_and_reads_it_back(cipher, vector):
    key, nonce, plain, bound_to, sealed = vector
    aead = FORMS[cipher].new(key)
    assert aead.encrypt(nonce, plain, bound_to) == sealed
    assert aead.decrypt(nonce, sealed, bound_to) == plain
    with pytest.raises(EncryptionError):
        aead.decrypt(nonce, sealed, bound_to + b"!")
    for cut in (sealed[:-1], sealed[:15], b""):
        with pytest.raises(EncryptionError):
            aead.decrypt(nonce, cut, bound_to)


@BOTH
def test_this_build_offers_both_ciphers(cipher):
    require(cipher)


def test_a_build_without_a_cipher_says_so_when_it_is_configured(monkeypatch):
    class Lacking:
        def __init__(self, algorithm, mode):
            assert isinstance(algorithm, algorithms.SM4)

        def encryptor(self):
            raise UnsupportedAlgorithm("no such cipher")

    monkeypatch.setattr(ciphers, "Cipher", Lacking)
    with pytest.raises(EncryptionError, match="SM4_GCM is not offered by the OpenSSL"):
        require(SM4)
    require(AES)


# Envelopes


@given(plain=st.binary(max_size=3000), tenant=texts, field=texts, cipher=ciphers_drawn)
def test_what_was_sealed_opens_for_its_tenant_and_field(plain, tenant, field, cipher):
    sealed = Envelope(DURING).seal(plain, tenant=tenant, field=field, cipher=cipher)
    assert len(sealed) <= len(plain) + OVERHEAD_BYTES
    assert len(plain) < 16 or plain not in sealed
    for opener in (Envelope(DURING), Envelope(AFTER)):
        assert opener.open(sealed, tenant=tenant, field=field) == plain


@given(
    plain=st.binary(max_size=40),
    cipher=ciphers_drawn,
    at=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    warm=st.booleans(),
)
def test_any_single_flipped_bit_is_refused(plain, cipher, at, bit, warm):
    own = Envelope(DURING)
    sealed = own.seal(plain, **WHERE, cipher=cipher)
    if warm:
        own.open(sealed, **WHERE)
    flipped = bytearray(sealed)
    flipped[int(at * len(sealed))] ^= 1 << bit
    with pytest.raises(EncryptionError) as refused:
        own.open(bytes(flipped), **WHERE)
    assert isinstance(refused.value, UnknownKeyError) or str(refused.value) == CANNOT_OPEN


@BOTH
def test_each_bit_of_the_head_and_the_wrapped_key_is_vouched_for(cipher):
    own = Envelope(DURING)
    sealed = own.seal(b"p", **WHERE, cipher=cipher)
    own.open(sealed, **WHERE)
    for at in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(EncryptionError):
            own.open(bytes(flipped), **WHERE)


def test_a_key_under_two_names_is_still_bound_to_the_name_it_was_used_under():
    twice = Keychain({"a": OLD, "c": OLD}, "a")
    sealed = Envelope(twice).seal(b"p", **WHERE, cipher=AES)
    renamed = sealed.replace(b"\x01a", b"\x01c", 1)
    assert Envelope(twice).kek_of(renamed) == "c"
    with pytest.raises(EncryptionError):
        Envelope(twice).open(renamed, **WHERE)


@BOTH
def test_the_form_is_the_documented_one_and_both_layers_are_bound_to_their_place(cipher):
    """Read by hand: what is stored must open in every later version."""
    sealed = Envelope(AFTER).seal(b"plain", tenant="shöp", field="f", cipher=cipher)
    number, key_bytes, new = FORMS[cipher]
    assert sealed[:10] == bytes((2, number, 7)) + b"2026-11"
    wrap_nonce, wrapped, rest = sealed[10:22], sealed[22 : 38 + key_bytes], sealed[38 + key_bytes :]
    nonce, body = rest[:12], rest[12:]
    place = bytes((2, number)) + b"\0\0\0\x05sh\xc3\xb6p" + b"\0\0\0\x01f"
    info = b"anabranch data key wrapping v1|" + cipher.encode()
    wrapping = HKDF(SHA256(), key_bytes, salt=None, info=info).derive(NEW)
    data_key = new(wrapping).decrypt(wrap_nonce, wrapped, b"\x01" + place + b"2026-11")
    assert new(data_key).decrypt(nonce, body, b"\x02" + place) == b"plain"


names = st.sampled_from(["", "a", "b", "ab", "a|b", "b|", "|"])


@given(names, names, names, names, ciphers_drawn)
def test_another_tenant_or_field_is_refused_however_the_names_are_cut(t1, f1, t2, f2, cipher):
    own = Envelope(DURING)
    sealed = own.seal(b"p", tenant=t1, field=f1, cipher=cipher)
    if (t1, f1) == (t2, f2):
        assert own.open(sealed, tenant=t2, field=f2) == b"p"
        return
    own.seal(b"p", tenant=t2, field=f2, cipher=cipher)
    for attempt in (own.open, own.rewrap):
        with pytest.raises(EncryptionError, match=CANNOT_OPEN):
            attempt(sealed, tenant=t2, field=f2)


@given(st.data(), ciphers_drawn)
def test_what_is_cut_or_longer_is_refused(data, cipher):
    own = Envelope(DURING)
    sealed = own.seal(b"plain", **WHERE, cipher=cipher)
    end = data.draw(st.integers(0, len(sealed) - 1))
    for wrong in (sealed[:end], sealed + b"\0"):
        with pytest.raises(EncryptionError, match=CANNOT_OPEN):
            own.open(wrong, **WHERE)


@given(st.binary(max_size=300))
def test_no_garbage_does_anything_but_be_refused(garbage):
    own = Envelope(DURING)
    for raw in (garbage, b"\x02\x01" + garbage, b"\x02\x02\x072026-11" + garbage):
        for attempt in (own.open, own.rewrap):
            with pytest.raises(EncryptionError):
                attempt(raw, **WHERE)


def test_every_cause_reads_the_same():
    own = Envelope(DURING)
    sealed = own.seal(b"plain", **WHERE, cipher=AES)
    other_key = Envelope(Keychain({"2026-11": OLD}, "2026-11"))
    long = "t" * (MAX_NAME_BYTES + 1)
    attempts = [
        lambda: own.open(sealed, tenant="other", field="answer"),
        lambda: own.open(sealed, tenant="shop", field="other"),
        lambda: own.open(sealed, tenant=long, field="answer"),
        lambda: own.open(sealed, tenant="\ud800", field="answer"),
        lambda: own.open(sealed[:-1] + bytes([sealed[-1] ^ 1]), **WHERE),
        lambda: own.open(sealed[:-1], **WHERE),
        lambda: own.open(b"", **WHERE),
        lambda: own.open(b"\x03" + sealed[1:], **WHERE),
        lambda: own.open(sealed[:1] + b"\x09" + sealed[2:], **WHERE),
        lambda: own.open(sealed.replace(b"2026-11", b"2026\n11"), **WHERE),
        lambda: other_key.open(sealed, **WHERE),
        lambda: other_key.rewrap(sealed, **WHERE),
        lambda: own.kek_of(b"\x01" + sealed[1:]),
    ]
    for attempt in attempts:
        with pytest.raises(EncryptionError) as refused:
            attempt()
        assert (type(refused.value), str(refused.value)) == (EncryptionError, CANNOT_OPEN)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_what_is_too_large_is_not_sealed(monkeypatch):
    monkeypatch.setattr(envelope, "MAX_PLAIN_BYTES", 100)
    own = Envelope(DURING)
    assert own.open(own.seal(bytes(100), **WHERE, cipher=AES), **WHERE) == bytes(100)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        own.seal(bytes(101), **WHERE, cipher=AES)
    with pytest.raises(ValueError, match="tenant or field"):
        own.seal(b"", tenant="t" * (MAX_NAME_BYTES + 1), field="f", cipher=AES)
    with pytest.raises(EncryptionError):
        own.open(bytes([2]) * 1000, **WHERE)


# Data keys


def wrapped_keys(own: Envelope, count: int, **where: str) -> list[bytes]:
    """The head and wrapped key of blobs sealed one after the other."""
    place = WHERE | where
    return [own.seal(b"", **place, cipher=AES)[:-28] for _ in range(count)]


def test_a_data_key_is_used_so_often_and_so_long_and_no_nonce_twice():
    now = 0.0
    own = Envelope(DURING, clock=lambda: now, seals_per_key=3, key_life=10.0)
    first = wrapped_keys(own, 4)
    assert len(set(first[:3])) == 1
    assert first[3] != first[0]
    now = 9.9
    assert wrapped_keys(own, 1) == [first[3]]
    now = 10.0
    assert wrapped_keys(own, 1) != [first[3]]
    nonces = {own.seal(b"", **WHERE, cipher=AES)[-28:-16] for _ in range(100)}
    assert len(nonces) == 100


def test_no_data_key_serves_two_tenants_fields_or_ciphers():
    drawn: list[bytes] = []

    def random_bytes(count: int) -> bytes:
        drawn.append(len(drawn).to_bytes(count))
        return drawn[-1]

    own = Envelope(DURING, random_bytes=random_bytes)
    for tenant in ("shop", "bank"):
        for field in ("answer", "prompt"):
            for cipher in CipherName:
                own.seal(b"p", tenant=tenant, field=field, cipher=cipher)
                own.seal(b"p", tenant=tenant, field=field, cipher=cipher)
    # For each: a data key, the nonce of its wrapping, and a nonce for either seal.
    assert len(drawn) == 8 * 4
    assert len([key for key in drawn if len(key) > 12]) == 8


def test_only_so_many_data_keys_are_remembered_and_the_others_still_open():
    own = Envelope(DURING, remembered=3)
    sealed = {
        tenant: own.seal(tenant.encode(), tenant=tenant, field="answer", cipher=AES)
        for tenant in "abcdefgh"
    }
    for tenant, blob in sealed.items():
        assert own.open(blob, tenant=tenant, field="answer") == tenant.encode()
    assert len(own._sealing) == len(own._opening) == 3


def test_threads_may_share_an_envelope():
    own = Envelope(DURING, seals_per_key=5, remembered=2)
    done: list[str] = []

    def work(tenant: str) -> None:
        for number in range(200):
            plain = f"{tenant}{number}".encode()
            blob = own.seal(plain, tenant=tenant, field="answer", cipher=AES)
            assert own.open(blob, tenant=tenant, field="answer") == plain
        done.append(tenant)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == ["t0", "t1", "t2", "t3"]


# Rotation


@BOTH
def test_a_rotation_moves_what_is_sealed_and_then_the_old_key_can_go(cipher):
    old = Envelope(BEFORE).seal(b"kept", **WHERE, cipher=cipher)
    during = Envelope(DURING)
    assert during.kek_of(old) == "2026-05"
    assert during.open(old, **WHERE) == b"kept"
    assert during.kek_of(during.seal(b"", **WHERE, cipher=cipher)) == "2026-11"

    moved = during.rewrap(old, **WHERE)
    assert during.kek_of(moved) == "2026-11"
    assert during.rewrap(moved, **WHERE) == moved
    assert moved[-32:] == old[-32:], "its body stays"
    after = Envelope(AFTER)
    assert after.open(moved, **WHERE) == b"kept"
    for attempt in (after.open, after.rewrap):
        with pytest.raises(UnknownKeyError, match="no key-encryption key '2026-05'"):
            attempt(old, **WHERE)


def test_a_text_secret_is_a_key_that_can_be_rotated_away_from():
    secret = "s" * MIN_SECRET
    sealed = Envelope(Keychain.from_secret(secret)).seal(b"kept", **WHERE, cipher=AES)
    both = Envelope(AFTER.and_secret(secret))
    assert both.kek_of(sealed) == "secret"
    moved = both.rewrap(sealed, **WHERE)
    assert Envelope(AFTER).open(moved, **WHERE) == b"kept"
    with pytest.raises(EncryptionError, match=CANNOT_OPEN):
        Envelope(Keychain.from_secret("t" * MIN_SECRET)).open(sealed, **WHERE)


# Keychains


def test_a_keychain_is_read_from_json_and_from_yaml(tmp_path):
    as_json, as_yaml = tmp_path / "keys.json", tmp_path / "keys.yaml"
    as_json.write_text("\t" + written({"2026-05": OLD, "2026-11": NEW}, "2026-11"))
    as_yaml.write_text(
        f"current: 2026-11-01  # not a date\nkeys:\n  2026-11-01: {base64_of(NEW)}\n  7: "
        f"{base64_of(OLD)}\n"
    )
    assert Keychain.read(as_json).current == "2026-11"
    read = Keychain.read(as_yaml)
    assert repr(read) == "Keychain(current='2026-11-01', ids=['2026-11-01', '7'])"
    sealed = Envelope(Keychain({"7": OLD}, "7")).seal(b"p", **WHERE, cipher=SM4)
    assert Envelope(read).open(sealed, **WHERE) == b"p"


GOOD = base64_of(NEW)
BAD_KEYCHAINS = {
    "": "a keychain must be a mapping",
    "[]": "a keychain must be a mapping",
    "{": "a keychain must be valid JSON or YAML: it is not in line 1",
    "a: 1\n b: 2": "a keychain must be valid JSON or YAML: it is not in line 2",
    "[" * 50_000: "a keychain must be valid JSON or YAML: it nests too deeply",
    "{}": "a keychain must have `current`",
    '{"current": "a"}': "a keychain must have `keys`",
    '{"current": "a", "keys": {}, "more": 1}': "a keychain has an unknown field 'more'; "
    "it may have `current` and `keys`",
    f'{{"{GOOD}": 1}}': "a keychain has an unknown field; it may have `current` and `keys`",
    '{"current": "a", "keys": []}': "`keys` must be a mapping",
    '{"current": "a", "keys": {}}': "`keys` must hold at least one key",
    '{"current": "a", "keys": {"a": 7}}': "the key 'a' must be 32 bytes in base64, not 0",
    '{"current": "a", "keys": {"a": "$$$$"}}': "the key 'a' is not valid base64",
    '{"current": "a", "keys": {"a": "AAAA"}}': "the key 'a' must be 32 bytes in base64, not 3",
    f'{{"current": "a", "keys": {{"a": "{GOOD}", "a": "{GOOD}"}}}}': "a mapping of the keychain "
    "has a name twice",
    f"current: a\nkeys: {{a: {GOOD}, a: {GOOD}}}": "a mapping of the keychain has a name twice",
    f'{{"current": "a", "keys": {{"a": "{GOOD}", "b": "{GOOD}"}}}}': "the keys 'a' and 'b' are "
    "the same",
    f'{{"current": "b", "keys": {{"a": "{GOOD}"}}}}': "`current` names a key 'b' that is not "
    "among `keys`",
    f'{{"current": "{GOOD}", "keys": {{"a": "{GOOD}"}}}}': "`current` names a key that is not "
    "among `keys`",
    f'{{"current": 1, "keys": {{"a": "{GOOD}"}}}}': "`current` must be the id of a key, as text",
    f'{{"current": "a b", "keys": {{"a b": "{GOOD}"}}}}': "a key's id must be 1 to 64 letters, "
    "digits, dots, dashes or underscores",
    f'{{"current": "secret", "keys": {{"secret": "{GOOD}"}}}}': "no key may be called 'secret': "
    "the text secret's is",
}


@pytest.mark.parametrize("text", BAD_KEYCHAINS, ids=lambda text: repr(text[:20]))
def test_a_bad_keychain_is_refused_with_what_to_correct_and_no_key_quoted(text, tmp_path):
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(EncryptionError) as refused:
        Keychain.read(file)
    assert str(refused.value) == f"{file}: {BAD_KEYCHAINS[text]}"


def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path):
    with pytest.raises(EncryptionError, match=r"none: cannot be read: No such file"):
        Keychain.read(tmp_path / "none")
    file = tmp_path / "file"
    file.write_bytes(b"\xff")
    with pytest.raises(EncryptionError, match="file: is not UTF-8"):
        Keychain.read(file)
    file.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(EncryptionError, match=r"file: a keychain must have at most 65536 bytes"):
        Keychain.read(file)


def test_keys_that_are_none_are_refused():
    with pytest.raises(UnknownKeyError, match="'b'"):
        Keychain({"a": OLD}, "b")
    with pytest.raises(EncryptionError, match="32 bytes"):
        Keychain({"a": OLD[1:]}, "a")
    with pytest.raises(EncryptionError, match="the id"):
        Keychain({"é": OLD}, "é")
    with pytest.raises(EncryptionError, match="at least 32 characters"):
        Keychain.from_secret("s" * (MIN_SECRET - 1))


def test_nothing_shows_a_key():
    secret = "s" * MIN_SECRET
    chain = DURING.and_secret(secret)
    document = parse_keychain(written({"2026-05": OLD}, "2026-05"))
    shown = repr([chain, Envelope(chain), document]) + str(chain)
    assert "2026-11" in shown
    for key in (OLD, NEW):
        assert not any(form in shown for form in (repr(key), key.hex(), base64_of(key)))
    assert secret not in shown


def test_a_new_key_is_added_as_the_current_one_and_the_others_stay():
    first = new_keychain_text(None, "2026-05", random_bytes=lambda count: OLD[:count])
    assert parse_keychain(first) == ("2026-05", {"2026-05": OLD})
    second = new_keychain_text(first, "2026-11", random_bytes=lambda count: NEW[:count])
    assert parse_keychain(second) == ("2026-11", {"2026-05": OLD, "2026-11": NEW})
    waiting = new_keychain_text(first, "2026-11", make_current=False)
    assert parse_keychain(waiting).current == "2026-05"
    assert set(parse_keychain(waiting).keys) == {"2026-05", "2026-11"}
    assert new_keychain_text(None, "a") != new_keychain_text(None, "a")


def test_no_key_is_added_that_would_replace_one_or_cannot_be():
    first = new_keychain_text(None, "2026-05")
    with pytest.raises(EncryptionError, match="already holds a key '2026-05'"):
        new_keychain_text(first, "2026-05")
    for bad in ("", "a b", "secret", "é", "x" * 65):
        with pytest.raises(EncryptionError):
            new_keychain_text(first, bad)
    with pytest.raises(EncryptionError, match="must be a mapping"):
        new_keychain_text("", "2026-05")
    full = {f"k{number}": number.to_bytes(32) for number in range(MAX_KEYS)}
    with pytest.raises(EncryptionError, match="already holds 256 keys"):
        new_keychain_text(written(full, "k0"), "one-more")
    assert len(written(full, "k0")) < MAX_FILE_BYTES
