"""How the library opens channels: safe defaults for keepalive, sizes and retries.

Every default can be replaced through channel_options. Opens nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import grpc

ChannelOptions = Sequence[tuple[str, Any]]
Dial = Callable[[], grpc.aio.Channel]

# Only calls that may be repeated freely are retried below the library (not Embed: a provider may
# bill it twice); retryThrottling stops the retries of all of them together once too many calls
# fail. A file, since callers in other languages give it to their channels as it is.
SERVICE_CONFIG = resources.files("anabranch").joinpath("service_config.json").read_text("utf-8")

DEFAULT_OPTIONS: ChannelOptions = (
    # A peer that vanished is noticed within 7 s; ping_timeout is what makes that true, as the
    # keepalive timeout alone waits a minute. The services allow pings this frequent.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Bandwidth probing grows the window of a stream that nobody reads to megabytes.
    ("grpc.http2.bdp_probe", 0),
    # What a session's caller lets arrive before it is read: a window of 64 KiB is full, and the
    # sender held up, after ten steps of 256 streams.
    ("grpc.http2.lookahead_bytes", 256 * 1024),
    # A message holds a step of every running request, so answers are larger than requests.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),
    # A channel is a connection of its own: a new session after go_away may reach another
    # instance behind the same address.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # The details of an error travel in metadata, and a list of violations can be long.
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    # Cluster-internal calls follow neither the environment's web proxy nor a config from DNS.
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.service_config", SERVICE_CONFIG),
)


def dialler(
    target: str,
    credentials: grpc.ChannelCredentials | None = None,
    channel_options: ChannelOptions = (),
) -> Dial:
    """Returns a function that opens a new channel to `target` (host:port or a gRPC URI).

    `channel_options` replace defaults of the same key. Without `credentials` the channel is
    plaintext.
    """
    if "://" in target and target.partition("://")[0] in ("http", "https", "grpc", "grpcs"):
        raise ValueError(f"the target is host:port without a scheme, not {target!r}")
    options = list({**dict(DEFAULT_OPTIONS), **dict(channel_options)}.items())

    def dial() -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, credentials, options=options)

    return dial
