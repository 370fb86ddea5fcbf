"""Reads the arguments of a client from ANABRANCH_* variables; used by from_env and the CLI alone.

    ANABRANCH_TARGET          host:port of the router (default 127.0.0.1:50051)
    ANABRANCH_TOKEN           a token or API key
    ANABRANCH_AUTH_TARGET     host:port of the auth service
    ANABRANCH_CLIENT_ID, ANABRANCH_CLIENT_SECRET
    ANABRANCH_TLS_CA_FILE     PEM roots; switches TLS on
    ANABRANCH_TLS_CERT_FILE, ANABRANCH_TLS_KEY_FILE   for mutual TLS

TOKEN and CLIENT_SECRET may be given as files instead, with _FILE appended to the name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

DEFAULT_TARGET = "127.0.0.1:50051"


def client_arguments(environ: Mapping[str, str] | None = None, **given: Any) -> dict[str, Any]:
    """Keyword arguments for a client: those given (unless None), then the environment's.

    Raises ValueError when a variable and its _FILE are both set, or a file cannot be read.
    """
    env = os.environ if environ is None else environ
    given = {name: value for name, value in given.items() if value is not None}
    arguments: dict[str, Any] = {"target": env.get("ANABRANCH_TARGET") or DEFAULT_TARGET}
    if "token" not in given:
        # A token given by hand replaces the identity of the environment as a whole.
        arguments["auth_target"] = env.get("ANABRANCH_AUTH_TARGET")
        arguments["client_id"] = env.get("ANABRANCH_CLIENT_ID")
        arguments["client_secret"] = _secret(env, "ANABRANCH_CLIENT_SECRET")
        if not given.get("client_id"):
            arguments["token"] = _secret(env, "ANABRANCH_TOKEN")
    if ca_file := env.get("ANABRANCH_TLS_CA_FILE"):
        certificate, key = env.get("ANABRANCH_TLS_CERT_FILE"), env.get("ANABRANCH_TLS_KEY_FILE")
        if bool(certificate) != bool(key):
            raise ValueError("set both ANABRANCH_TLS_CERT_FILE and ANABRANCH_TLS_KEY_FILE, or none")
        arguments["credentials"] = grpc.ssl_channel_credentials(
            _bytes("ANABRANCH_TLS_CA_FILE", ca_file),
            _bytes("ANABRANCH_TLS_KEY_FILE", key) if key else None,
            _bytes("ANABRANCH_TLS_CERT_FILE", certificate) if certificate else None,
        )
    arguments = {name: value for name, value in arguments.items() if value}
    return arguments | given


def auth_arguments(environ: Mapping[str, str] | None = None, **given: Any) -> dict[str, Any]:
    """Keyword arguments for an AuthAdmin, from the same places: its `target` is the auth service.

    Raises ValueError as client_arguments, and when no auth service is named.
    """
    env = os.environ if environ is None else environ
    arguments = client_arguments(environ, **given)
    target = given.get("auth_target") or env.get("ANABRANCH_AUTH_TARGET")
    if not target:
        raise ValueError(
            "no auth service is named: give --auth-target HOST:PORT, or set ANABRANCH_AUTH_TARGET"
        )
    arguments.pop("auth_target", None)
    return arguments | {"target": target}


def _secret(env: Mapping[str, str], name: str) -> str | None:
    value, file = env.get(name), env.get(f"{name}_FILE")
    if value and file:
        raise ValueError(f"set {name} or {name}_FILE, not both")
    if file:
        return _bytes(f"{name}_FILE", file).decode().strip()
    return value


def _bytes(name: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot read {file}: {error.strerror}") from None
