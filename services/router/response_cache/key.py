"""The name under which an answer is kept: a hash of all that decides what the answer says. Pure.

Whether an answer may be kept at all is cacheable.py's.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from anabranch.v1 import generation_pb2 as pb
from services.chassis.encryption.ciphers import CipherName

KEY_BYTES = 32
_FORMAT = 2
"""Changes whenever the same request gets another key, or a kept answer another meaning."""

_ASKED_FOR = ("request_id", "labels", "timeout", "model")
_HOW_SOON = ("priority", "ttft_slo", "max_cost_microusd", "affinity_key")


class AnswerKey(NamedTuple):
    """Under what an answer is kept: KEY_BYTES that stand for all of it, whose answer it is, and
    with what it is sealed where it is."""

    digest: bytes
    tenant: str
    cipher: CipherName = CipherName.AES_256_GCM


class Circumstances(NamedTuple):
    """What decides about an answer and is not in the request.

    `model` is the public name that an alias was resolved to. `local` and `cloud` are what that is
    called in each tier, `leaves` says whether the tenant may use the cloud, and `masked` names
    what is masked before a prompt goes there. `weights` are those behind the local name.
    """

    tenant: str
    model: str
    local: str
    cloud: str
    leaves: bool = True
    masked: frozenset[str] = frozenset()
    weights: str = ""


def answer_key(request: pb.GenerateRequest, circumstances: Circumstances) -> AnswerKey:
    """Equal only for requests that may have the same answer.

    Who asks for it within a tenant, how urgently and at what cost does not matter; fields that
    this version does not know do.
    """
    tenant, model, local, cloud, leaves, masked, weights = circumstances
    hashed = hashlib.sha256(bytes((_FORMAT, leaves)))
    parts = [tenant, model, local, cloud, weights, *sorted(masked)]
    hashed.update(len(parts).to_bytes(4))
    for part in parts:
        raw = part.encode()
        hashed.update(len(raw).to_bytes(4))
        hashed.update(raw)
    hashed.update(_content(request))
    return AnswerKey(hashed.digest(), tenant)


def _content(request: pb.GenerateRequest) -> bytes:
    asked = pb.GenerateRequest()
    asked.CopyFrom(request)
    for field in _ASKED_FOR:
        asked.ClearField(field)
    routing = asked.routing
    for field in _HOW_SOON:
        routing.ClearField(field)
    # Always said, so that a request without routing is one with the default.
    routing.residency = routing.residency or pb.RESIDENCY_LOCAL_FIRST
    return asked.SerializeToString(deterministic=True)
