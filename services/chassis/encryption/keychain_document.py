"""The text of a keychain: read with exact complaints, and written with one more key.

Pure but for the randomness of a new key, which is passed in. Complaints never quote a value.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import yaml

from services.chassis.encryption.errors import EncryptionError

KEK_BYTES = 32
MAX_KEYS = 256
SECRET_ID = "secret"  # noqa: S105 - the name of a key, not a key
"""What the key derived from a text secret is called; no key of a document may be."""
MAX_ID_BYTES = 64
KEY_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID_BYTES}}}", re.ASCII)
_FIELDS = ("current", "keys")


class KeychainDocument(NamedTuple):
    """Key-encryption keys of KEK_BYTES by id, and the id of the one that seals."""

    current: str
    keys: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"KeychainDocument(current={self.current!r}, ids={sorted(self.keys)!r})"


def parse_keychain(text: str) -> KeychainDocument:
    """The keychain in a JSON or YAML text. Raises EncryptionError, which says what to correct."""
    document = _mapping(_values(text), "a keychain", _FIELDS)
    missing = [name for name in _FIELDS if name not in document]
    if missing:
        raise EncryptionError(f"a keychain must have `{missing[0]}`")
    written = _mapping(document["keys"], "`keys`")
    if not written:
        raise EncryptionError("`keys` must hold at least one key")
    if len(written) > MAX_KEYS:
        raise EncryptionError(f"`keys` must hold at most {MAX_KEYS} keys, not {len(written)}")
    keys: dict[str, bytes] = {}
    for key_id, value in written.items():
        check_key_id(key_id)
        key = _key(key_id, value)
        for other, known in keys.items():
            if known == key:
                raise EncryptionError(f"the keys {other!r} and {key_id!r} are the same")
        keys[key_id] = key
    current = document["current"]
    if not isinstance(current, str):
        raise EncryptionError("`current` must be the id of a key, as text")
    if current not in keys:
        named = f" {current!r}" if KEY_ID.fullmatch(current) else ""
        raise EncryptionError(f"`current` names a key{named} that is not among `keys`")
    return KeychainDocument(current, keys)


def new_keychain_text(
    previous: str | None,
    key_id: str,
    *,
    make_current: bool = True,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> str:
    """The JSON text of a keychain with one more key, fresh and current; the others stay.

    `previous` is the text of the keychain so far, None for a first one. Without `make_current` the
    new key only opens: so every replica can know it before the first one seals with it. Raises
    EncryptionError for an id that is taken or cannot be one, or a text that is no keychain.
    """
    check_key_id(key_id)
    known = parse_keychain(previous) if previous is not None else None
    keys = dict(known.keys) if known is not None else {}
    if key_id in keys:
        raise EncryptionError(f"the keychain already holds a key {key_id!r}")
    if len(keys) >= MAX_KEYS:
        raise EncryptionError(f"the keychain already holds {MAX_KEYS} keys; remove one first")
    current = key_id if known is None or make_current else known.current
    keys[key_id] = random_bytes(KEK_BYTES)
    return _written(KeychainDocument(current, keys))


def with_current(text: str, key_id: str) -> str:
    """The text of the same keychain, in which this key seals. Raises EncryptionError."""
    known = parse_keychain(text)
    if key_id not in known.keys:
        raise EncryptionError(f"the keychain holds no key {key_id!r}")
    return _written(known._replace(current=key_id))


def without_key(text: str, key_id: str) -> str:
    """The text of the keychain without a key. Raises EncryptionError, also for the current one."""
    known = parse_keychain(text)
    if key_id not in known.keys:
        raise EncryptionError(f"the keychain holds no key {key_id!r}")
    if key_id == known.current:
        raise EncryptionError(f"{key_id!r} is the current key: make another one current first")
    return _written(known._replace(keys={n: k for n, k in known.keys.items() if n != key_id}))


def _written(document: KeychainDocument) -> str:
    keys = {name: base64.b64encode(key).decode() for name, key in document.keys.items()}
    return json.dumps({"current": document.current, "keys": keys}, indent=2) + "\n"


def check_key_id(key_id: str) -> None:
    """Raises EncryptionError for what cannot name a key of a document."""
    if not KEY_ID.fullmatch(key_id):
        raise EncryptionError(
            f"a key's id must be 1 to {MAX_ID_BYTES} letters, digits, dots, dashes or underscores"
        )
    if key_id == SECRET_ID:
        raise EncryptionError(f"no key may be called {SECRET_ID!r}: the text secret's is")


def _key(key_id: str, value: object) -> bytes:
    try:
        key = base64.b64decode(value if isinstance(value, str) else "", validate=True)
    except (binascii.Error, ValueError):
        raise EncryptionError(f"the key {key_id!r} is not valid base64") from None
    if len(key) != KEK_BYTES:
        raise EncryptionError(
            f"the key {key_id!r} must be {KEK_BYTES} bytes in base64, not {len(key)}"
        )
    return key


def _mapping(value: object, what: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EncryptionError(f"{what} must be a mapping")
    for name in value:
        if not isinstance(name, str):
            raise EncryptionError(f"{what} must have text as its names")
        if known is not None and name not in known:
            # A key that stands where a name should is not repeated in a log.
            named = f" {name!r}" if KEY_ID.fullmatch(name) else ""
            raise EncryptionError(f"{what} has an unknown field{named}; it may have " + _these())
    return value


def _these() -> str:
    return " and ".join(f"`{name}`" for name in _FIELDS)


_TWICE = "has a key twice"


class _Texts(yaml.BaseLoader):  # type: ignore[misc]
    """Every scalar is text: an id such as 2026-11-01 is not a date."""


def _pairs(loader: yaml.BaseLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    names = [loader.construct_object(name) for name, _ in node.value]
    if any(not isinstance(name, str) for name in names):
        raise yaml.constructor.ConstructorError(problem="", problem_mark=node.start_mark)
    if len(set(names)) < len(names):
        raise yaml.constructor.ConstructorError(problem=_TWICE, problem_mark=node.start_mark)
    values: dict[Hashable, Any] = loader.construct_mapping(node, deep=True)
    return values


_Texts.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _pairs)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise EncryptionError("a mapping of the keychain has a name twice")
    return dict(pairs)


def _values(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError):
        pass  # YAML, then, or nothing
    try:
        return yaml.load(text, _Texts)  # noqa: S506 - it makes texts, lists and mappings only
    except yaml.YAMLError as malformed:
        # The parser's own text may quote the line, which may hold a key.
        if getattr(malformed, "problem", None) == _TWICE:
            raise EncryptionError("a mapping of the keychain has a name twice") from None
        mark = getattr(malformed, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark is not None else ""
        raise EncryptionError(f"a keychain must be valid JSON or YAML: it is not{at}") from None
    except RecursionError:
        raise EncryptionError(
            "a keychain must be valid JSON or YAML: it nests too deeply"
        ) from None
