"""What both examples need before and after their call: channels, a token, readable errors.

The environment names everything; see examples/README.md. The library (`anabranch.AsyncClient`)
does all this by itself: this is for callers that use the stubs alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2

from anabranch.v1 import auth_pb2, auth_pb2_grpc


def setting(name: str, otherwise: str = "") -> str:
    """A variable's value. Ends the program with a word about it when there is none."""
    return os.environ.get(name) or otherwise or sys.exit(f"error: {name} is not set")


def dial(target: str) -> grpc.Channel:
    """TLS when ANABRANCH_TLS_CA_FILE is set, mutual TLS when a certificate and its key are too."""
    config = os.environ.get("ANABRANCH_SERVICE_CONFIG_FILE")
    options = [("grpc.service_config", Path(config).read_text())] if config else []
    if not (ca_file := os.environ.get("ANABRANCH_TLS_CA_FILE")):
        return grpc.insecure_channel(target, options)
    own = [os.environ.get(f"ANABRANCH_TLS_{part}_FILE") for part in ("KEY", "CERT")]
    key, certificate = (Path(file).read_bytes() if file else None for file in own)
    return grpc.secure_channel(
        target, grpc.ssl_channel_credentials(Path(ca_file).read_bytes(), key, certificate), options
    )


def router() -> grpc.Channel:
    """A channel to the router. Close it."""
    return dial(setting("ANABRANCH_TARGET", "127.0.0.1:50051"))


def authorize() -> list[tuple[str, str]]:
    """The metadata of a call. Raises grpc.RpcError.

    Its token is good for minutes: whoever runs longer fetches the next one at 80 % of `expires_in`.
    """
    request = auth_pb2.IssueTokenRequest(
        client_id=setting("ANABRANCH_CLIENT_ID"),
        client_secret=Path(setting("ANABRANCH_CLIENT_SECRET_FILE")).read_text().strip(),
    )
    with dial(setting("ANABRANCH_AUTH_TARGET", "127.0.0.1:50054")) as channel:
        issued = auth_pb2_grpc.AuthServiceStub(channel).IssueToken(request, timeout=10)
    return [("authorization", f"Bearer {issued.access_token}")]


def explain(error: grpc.RpcError) -> float | None:
    """Prints why a call failed.

    Seconds to wait when the service says that repeating is safe, and when.
    """
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    trailing = dict(error.trailing_metadata() or ())
    status.ParseFromString(trailing.get("grpc-status-details-bin", b""))
    later = False
    for detail in status.details:
        detail.Unpack(info)
        later = detail.Unpack(retry) or later
    print(f"error: {info.reason or error.code().name}: {error.details()}", file=sys.stderr)
    if not later or info.metadata["work"] != "not_dispatched":
        return None
    return float(retry.retry_delay.ToTimedelta().total_seconds())
