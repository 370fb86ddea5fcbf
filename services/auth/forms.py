"""Reads an OAuth form request and its client credentials (RFC 6749 sections 2.3.1 and 3.2).

It checks form only; whether the credentials are right is login.py's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote_plus

from aiohttp import web

_LARGEST_BODY = 16 * 1024
_MOST_FIELDS = 20


class OAuthError(Exception):
    """An error of RFC 6749 section 5.2: its code, HTTP status and text."""

    def __init__(self, code: str, description: str, status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.description = description
        self.status = status


@dataclass(frozen=True, slots=True)
class Form:
    """The fields, apart from the credentials; both are kept out of the repr. And the address that
    they came from."""

    fields: Mapping[str, str] = field(repr=False)
    client_id: str
    client_secret: str = field(repr=False)
    peer: str = ""

    def required(self, name: str) -> str:
        """Raises OAuthError (invalid_request) when the field is missing or empty."""
        value = self.fields.get(name, "")
        if not value:
            raise OAuthError("invalid_request", f"{name} is required")
        return value


async def read_form(request: web.Request) -> Form:
    """The form of a request. Raises OAuthError."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise OAuthError("invalid_request", "the body must be a URL-encoded form")
    fields = _fields(await _body(request))
    in_body = (fields.pop("client_id", ""), fields.pop("client_secret", ""))
    authorization = request.headers.get("Authorization")
    if authorization is None:
        return Form(fields, *in_body)
    if in_body[1]:
        raise OAuthError("invalid_request", "credentials must be sent in one way only")
    client_id, client_secret = _basic(authorization)
    if in_body[0] not in ("", client_id):
        raise OAuthError("invalid_request", "two different clients are named")
    return Form(fields, client_id, client_secret)


async def _body(request: web.Request) -> bytes:
    # Read in bounded steps: the length that a request announces proves nothing.
    body = bytearray()
    async for part in request.content.iter_chunked(4096):
        body += part
        if len(body) > _LARGEST_BODY:
            raise OAuthError("invalid_request", "the body is too large", status=413)
    return bytes(body)


def _fields(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError:
        raise OAuthError("invalid_request", "the form cannot be read") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise OAuthError("invalid_request", "a parameter is named twice")
    return fields


def _basic(authorization: str) -> tuple[str, str]:
    scheme, _, encoded = authorization.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError(scheme)
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
        client_id, colon, client_secret = decoded.partition(":")
        if not colon:
            raise ValueError(scheme)
        return (
            unquote_plus(client_id, errors="strict"),
            unquote_plus(client_secret, errors="strict"),
        )
    except (binascii.Error, ValueError):
        raise OAuthError("invalid_client", "the credentials cannot be read", status=401) from None
