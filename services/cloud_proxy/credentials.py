"""What authenticates a request to a provider, by its profile's scheme. The one place that reads
keys' texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from services.chassis.settings import Secret
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.config import Route

_SERVICE = "bedrock"
# In public hosts, dual-stack ones and those of private endpoints.
_REGION = re.compile(r"(?:^|\.)bedrock-runtime(?:-fips)?\.([a-z]{2}(?:-[a-z]+)+-\d+)\.")
# For addresses that name none, such as a private endpoint's or a simulator's.
_USUAL_REGION = "us-east-1"
# Parts of a key that are shorter may stand in any text.
_TELLING = 8


def credential_headers(
    route: Route, secret: Secret | None, url: str, body: bytes
) -> dict[str, str]:
    """The headers for one request, sent now. Raises ProviderFailure REFUSED_KEY for a key that
    cannot be one."""
    profile = route.profile
    if secret is None or profile.auth_scheme == "none":
        return {}
    if profile.auth_scheme == "header":
        return {profile.auth_header: secret.reveal()}
    if profile.auth_scheme == "aws-sigv4":
        return _signed(secret, url, body)
    return {"Authorization": f"Bearer {secret.reveal()}"}


def without_secret(body: bytes, secret: Secret) -> bytes:
    """A provider's words without the key, or the telling parts of one that has several."""
    text = secret.reveal()
    for part in (text, *text.split(":")):
        if part == text or len(part) >= _TELLING:
            body = body.replace(part.encode(), b"***")
    return body


def _signed(secret: Secret, url: str, body: bytes) -> dict[str, str]:
    parts = secret.reveal().split(":", 2)
    if len(parts) < 2 or not all(parts):
        raise ProviderFailure(
            FailureKind.REFUSED_KEY,
            "our AWS key is not ACCESS_KEY_ID:SECRET_ACCESS_KEY[:SESSION_TOKEN]",
        )
    host = urlsplit(url).hostname or ""
    named = _REGION.search(host)
    region = named[1] if named else _USUAL_REGION
    request = AWSRequest("POST", url, headers={"Content-Type": "application/json"}, data=body)
    SigV4Auth(Credentials(*parts), _SERVICE, region).add_auth(request)
    signed: Mapping[str, str] = request.headers
    return {name: value for name, value in signed.items() if name.lower() != "content-type"}
