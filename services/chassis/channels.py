"""The gRPC options of every connection, on both of its sides, each with its reason.

They are in one place because they only work as a pair: a client that pings more often than the
server allows is cut off. Nothing here knows a service; authentication is elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc

from services.chassis.http2.connection import TransportLimits

DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_REQUEST_METADATA_BYTES = 8 * 1024
_MAX_ANSWER_METADATA_BYTES = 32 * 1024

_PING_EVERY_MS = 5000
_PING_ANSWER_MS = 2000
_PING_ALLOWED_EVERY_MS = 4000  # below the interval at which both sides ping, or calls are cut

_PACKAGE = "anabranch.v1"
# Only calls that change nothing and cost nothing when they are made twice. Generating is resumed
# by those who know how far it came; Embed may be billed.
_REPEATABLE = {
    "ModelService": ("CountTokens", "ListModels"),
    "AuthService": ("IssueToken", "ExchangeApiKey", "IntrospectToken", "GetJwks"),
}

_BOTH_SIDES: tuple[tuple[str, Any], ...] = (
    # A half-open peer is noticed within 7 s. The keepalive timeout alone does not do it: the
    # ping of HTTP/2 itself has a timeout of its own, of a minute.
    ("grpc.keepalive_time_ms", _PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
    ("grpc.http2.ping_timeout_ms", _PING_ANSWER_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    # A long prefill sends no data; pings must go on during it.
    ("grpc.http2.max_pings_without_data", 0),
    # Bandwidth probing lets one slow reader hold megabytes; without it, some 100 KiB a stream.
    ("grpc.http2.bdp_probe", 0),
)


def transport_limits(
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES, *, calling: bool = False
) -> TransportLimits:
    """Limits of a connection of our own transport: a server's, or with `calling` a caller's."""
    return TransportLimits(
        message_bytes=max_message_bytes,
        header_bytes=_MAX_ANSWER_METADATA_BYTES if calling else MAX_REQUEST_METADATA_BYTES,
        # Bounds what a rapid reset costs others. Callers with more requests open a session.
        concurrent_streams=100,
        ping_every=_PING_EVERY_MS / 1000,
        ping_answer=_PING_ANSWER_MS / 1000,
        ping_allowed_every=_PING_ALLOWED_EVERY_MS / 1000,
    )


def channel_options(max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> list[tuple[str, Any]]:
    """Options of a channel to one of our servers."""
    return [
        *_BOTH_SIDES,
        # Holds a sender of 256 streams up after some 40 steps that were not read, not after ten.
        ("grpc.http2.lookahead_bytes", 256 * 1024),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Errors carry their details in trailing metadata, and a BadRequest can be long.
        ("grpc.max_metadata_size", _MAX_ANSWER_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_ANSWER_METADATA_BYTES),
        # A process that restarts is back in seconds; the default waits up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 3000),
        # Calls between services neither follow http_proxy nor take a service config from DNS.
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", service_config()),
    ]


def service_config() -> str:
    """The service config in JSON: retries of repeatable unary calls, throttled as a whole."""
    return json.dumps(
        {
            "methodConfig": [
                {
                    "name": [
                        {"service": f"{_PACKAGE}.{service}", "method": method}
                        for service, methods in _REPEATABLE.items()
                        for method in methods
                    ],
                    "retryPolicy": {
                        "maxAttempts": 3,
                        "initialBackoff": "0.05s",
                        "maxBackoff": "1s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
            # Each failure costs a token, each success returns a tenth: when more than about a
            # tenth of the calls fail, retrying stops, so a retry storm cannot feed itself.
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
        }
    )


def open_channel(
    target: str,
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.aio.Channel:
    """A channel to `target` ("host:port" or a gRPC URI); plaintext without `credentials`.

    `options` override those of `channel_options`. Connects on first use; the caller closes it.
    """
    merged = dict(channel_options(max_message_bytes)) | dict(options)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=list(merged.items()))
    return grpc.aio.secure_channel(target, credentials, options=list(merged.items()))
