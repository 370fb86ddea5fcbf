"""Reads fields of JSON documents that came from a provider: nothing can be taken for granted."""

from __future__ import annotations

from typing import Any

import orjson

from services.cloud_proxy.answer import FailureKind, ProviderFailure

_COUNT_LIMIT = 2**31 - 1


def broken(message: str) -> ProviderFailure:
    """An answer that is not what the format promises."""
    return ProviderFailure(FailureKind.BROKEN, message)


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises ProviderFailure for anything else."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise broken("the provider sent something that is not JSON") from None
    if not isinstance(document, dict):
        raise broken("the provider sent JSON that is no object")
    return document


def text_of(value: Any) -> str:
    """A string; "" for anything else."""
    return value if isinstance(value, str) else ""


def count_of(value: Any) -> int | None:
    """A number of tokens, within what the contract can carry; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return min(max(value, 0), _COUNT_LIMIT)


def object_of(value: Any) -> dict[str, Any]:
    """An object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """A list; an empty one for anything else."""
    return value if isinstance(value, list) else []
