"""Who may ask the simulator: keys in each form that providers take them. Pure."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tools.provider_simulator.voices import Refusal

_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?"
    r"SignedHeaders=([^,]+), ?Signature=([0-9a-f]+)"
)
_HEADERS = {
    "openai_chat": ("api-key",),
    "anthropic": ("x-api-key",),
    "gemini": ("x-goog-api-key",),
    "ollama": (),
    "bedrock_converse": (),
}


def check(
    dialect: str,
    keys: frozenset[str],
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
) -> Refusal | None:
    """None for a request with an accepted key, in a form that the dialect knows.

    A key with ":" in it is an AWS key: id, secret and perhaps a session token; requests are
    signed with it. Ollama, which asks for no key on one's own machine, takes requests without one.
    """
    authorization = headers.get("Authorization", "")
    if dialect == "bedrock_converse" and authorization.startswith("AWS4-HMAC-SHA256"):
        return _check_signature(keys, method, url, headers, body)
    offered = authorization.removeprefix("Bearer ")
    for name in _HEADERS[dialect]:
        offered = headers.get(name, offered)
    if not offered and dialect == "ollama":
        return None
    if any(hmac.compare_digest(offered.encode(), key.encode()) for key in keys):
        return None
    if dialect == "bedrock_converse":
        return Refusal(403, "The security token is invalid.", "UnrecognizedClientException")
    code = "" if dialect == "anthropic" else "invalid_api_key"
    # Real providers quote the key like this, which is why nobody may pass it on.
    return Refusal(401, f"Incorrect API key provided: {offered}.", code)


def _check_signature(
    keys: frozenset[str], method: str, url: str, headers: Mapping[str, str], body: bytes
) -> Refusal | None:
    """Signs the request again, as botocore does, with the secret of the key that it names."""
    found = _SIGNED.fullmatch(headers["Authorization"])
    if found is None:
        return Refusal(403, "Authorization is malformed.", "IncompleteSignatureException")
    identity, _, region, service, signed, signature = found.groups()
    pairs = [tuple(key.split(":", 2)) for key in keys if ":" in key]
    secrets = [pair[1:] for pair in pairs if pair[0] == identity]
    token = headers.get("x-amz-security-token")
    secrets = [secret for secret in secrets if secret[1:] == ((token,) if token else ())]
    if not secrets or service != "bedrock":
        return Refusal(
            403,
            "The security token included in the request is invalid.",
            "UnrecognizedClientException",
        )
    sent = {name: headers.get(name, "") for name in signed.split(";")}
    stated = sent.get("x-amz-content-sha256", "")
    request = AWSRequest(method=method, url=url, headers=sent, data=body)
    request.context["timestamp"] = headers.get("x-amz-date", "")
    signer = SigV4Auth(Credentials(identity, secrets[0][0]), service, region)
    expected = signer.signature(
        signer.string_to_sign(request, signer.canonical_request(request)), request
    )
    if stated in ("", sha256(body).hexdigest()) and hmac.compare_digest(expected, signature):
        return None
    return Refusal(
        403,
        "The request signature we calculated does not match the signature you provided.",
        "InvalidSignatureException",
    )
