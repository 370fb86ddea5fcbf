"""Notes one entry for each request to a model, at its end, as its tenant wants it.

It stands between a request and its outlet, and changes nothing of what passes. Prompts and answers
are written only for tenants that ask for them, and only sealed.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from google.protobuf.message import DecodeError

from anabranch.v1 import errors_pb2, generation_pb2
from services.chassis.audit.detail import AuditDetail
from services.chassis.audit.entry import CONTENT, Act, Scalar
from services.chassis.audit.trail import Trail
from services.chassis.encryption.ciphers import CipherName
from services.chassis.errors import Fault, reason_name
from services.chassis.model_handler import Outlet
from services.chassis.principal import RELAY, Principal, current_address

_log = logging.getLogger(__name__)

Reply = TypeVar("Reply")

Sealer: TypeAlias = Callable[[bytes, str, CipherName], bytes]
"""Encrypts (plain bytes, tenant, cipher) for a tenant."""

GENERATE = "model.generate"
EMBED = "model.embed"
COUNT_TOKENS = "model.count_tokens"

LONGEST_CONTENT = 64 * 1024
"""Bytes of prompt and answer together, before they are sealed."""

_CONTENT_SPOOL = 256
"""With more entries than this waiting, contents would take too much memory to wait as well."""


class RequestAudit:
    """Watches the requests of one process for its trail."""

    def __init__(
        self,
        trail: Trail,
        sealer: Sealer | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        relays: bool = True,
    ) -> None:
        """With `relays`, what a relay brings is not written here: it was where it came in."""
        self._relays = relays
        self._trail = trail
        self._sealer = sealer
        self._clock = clock
        self._warned = False

    def watch(
        self, request: generation_pb2.GenerateRequest, caller: Principal, target: Outlet
    ) -> WatchedRequest | None:
        """What to put in the target's place; None for a request that is not written down.

        Raises Fault DEPENDENCY_UNAVAILABLE while the trail has no room for it.
        """
        if not self._trail.enabled or caller.audit_detail is AuditDetail.NONE:
            return None
        if self._relays and caller.relayed_by:
            return None
        self._check_room()
        with_content = caller.audit_detail is AuditDetail.CONTENT
        if with_content and self._sealer is None:
            self._warn("no encryption is set up: contents are not written to the audit trail")
            with_content = False
        return WatchedRequest(self, request, caller, _peer(), target, self._clock(), with_content)

    async def watched_call(
        self, action: str, model: str, caller: Principal, answer: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        """Answers a call that is no generation, and notes it: who asked which model, and how it
        ended; its contents never. A relay's is the router's to note.

        Raises what `answer` raises, and Fault DEPENDENCY_UNAVAILABLE while the trail has no room.
        """
        skipped = caller.audit_detail is AuditDetail.NONE or (self._relays and caller.has(RELAY))
        if not self._trail.enabled or skipped:
            return await answer()
        self._check_room()
        began = self._clock()
        details: dict[str, Scalar] = {}
        succeeded = False
        try:
            reply = await answer()
            succeeded = True
        except Fault as fault:
            details["error"] = reason_name(fault.reason)
            raise
        finally:
            details["ms"] = round((self._clock() - began) * 1000, 1)
            self._trail.note(
                Act(
                    action,
                    client_id=caller.client_id,
                    tenant=caller.tenant,
                    target=model,
                    succeeded=succeeded,
                    peer=_peer(),
                    details=details,
                )
            )
        return reply

    def _check_room(self) -> None:
        if not self._trail.accepts:
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "the audit trail cannot be written at the moment; requests must wait for it",
                retry_after=1.0,
            )

    def ended(self, watched: WatchedRequest, succeeded: bool, details: dict[str, Scalar]) -> None:
        """Notes a request that is over."""
        details["ms"] = round((self._clock() - watched.began) * 1000, 1)
        caller = watched.caller
        if caller.relayed_by:
            details["relayed_by"] = caller.relayed_by
        if watched.content is not None:
            if self._trail.spooled < _CONTENT_SPOOL:
                self._add_content(details, watched.content.plain(), caller)
            else:
                details["content_omitted"] = True
        self._trail.note(
            Act(
                GENERATE,
                client_id=caller.client_id,
                tenant=caller.tenant,
                target=watched.model,
                succeeded=succeeded,
                peer=watched.peer,
                details=details,
            )
        )

    def _add_content(self, details: dict[str, Scalar], plain: bytes, caller: Principal) -> None:
        assert self._sealer is not None
        try:
            sealed = self._sealer(plain, caller.tenant, caller.cipher)
        except Exception as exc:  # noqa: BLE001 - what cannot be sealed is not written; the request is over
            self._warn(f"contents cannot be sealed: {type(exc).__name__}")
            details["content_omitted"] = True
            return
        details[CONTENT] = base64.b64encode(sealed).decode()

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(text)


class WatchedRequest:
    """The outlet of a request that is written down when it ends."""

    __slots__ = (
        *("_audit", "_ended", "_target", "began", "caller"),
        *("content", "model", "peer", "request_id"),
    )

    def __init__(
        self,
        audit: RequestAudit,
        request: generation_pb2.GenerateRequest,
        caller: Principal,
        peer: str,
        target: Outlet,
        began: float,
        with_content: bool,
    ) -> None:
        self._audit = audit
        self._target = target
        self._ended = False
        self.began = began
        self.caller = caller
        self.peer = peer
        self.model = request.model
        self.request_id = request.request_id
        self.content = _Content(request) if with_content else None

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if self.content is not None:
            self.content.add(raw)
        if last:
            self._succeeded(raw)
        self._target.chunk(raw, last=last, tokens=tokens)

    def fail(self, fault: Fault) -> None:
        self._end(False, {"error": reason_name(fault.reason)})
        self._target.fail(fault)

    def abandoned(self) -> None:
        """The caller is gone."""
        self._end(False, {"error": "CANCELLED"})

    def _succeeded(self, raw: bytes) -> None:
        try:
            chunk = generation_pb2.GenerateChunk.FromString(raw)
        except DecodeError:
            self._end(True, {})
            return
        details: dict[str, Scalar] = {
            "finish": _name(generation_pb2.FinishReason, chunk.finish_reason, "FINISH_REASON_"),
            "prompt_tokens": chunk.usage.prompt_tokens,
            "completion_tokens": chunk.usage.completion_tokens,
        }
        if chunk.HasField("receipt"):
            receipt = chunk.receipt
            details["tier"] = _name(generation_pb2.Tier, receipt.tier, "TIER_")
            details["backend"] = receipt.backend_id
            details["served_model"] = receipt.served_model
            details["cost_microusd"] = receipt.cost_microusd
        cancelled = chunk.finish_reason == generation_pb2.FINISH_REASON_CANCELLED
        self._end(not cancelled, details)

    def _end(self, succeeded: bool, details: dict[str, Scalar]) -> None:
        if not self._ended:
            self._ended = True
            self._audit.ended(self, succeeded, {"request_id": self.request_id, **details})


class _Content:
    """The texts of a request and its answer, as far as there is room."""

    def __init__(self, request: generation_pb2.GenerateRequest) -> None:
        self._prompt = _Text()
        self._answer = _Text()
        self._prompt.add(request.prompt)
        for message in request.messages:
            role = _name(generation_pb2.Role, message.role, "ROLE_")
            for part in message.content:
                self._prompt.add(f"{role}: {part.text or '(image)'}\n")
            for call in message.tool_calls:
                self._prompt.add(f"{role} calls {call.name}: {call.arguments}\n")

    def add(self, raw: bytes) -> None:
        """A serialised chunk of the answer; of several choices the texts are mixed."""
        if self._answer.full:
            return
        try:
            chunk = generation_pb2.GenerateChunk.FromString(raw)
        except DecodeError:
            return
        self._answer.add(chunk.text)
        for call in chunk.tool_calls:
            self._answer.add(f"{call.name}{call.arguments}")

    def plain(self) -> bytes:
        """JSON of at most `LONGEST_CONTENT` bytes."""
        prompt, answer = self._prompt.text(), self._answer.text()
        cut = self._prompt.full or self._answer.full
        while True:
            value = {"prompt": prompt, "answer": answer, "cut": cut}
            plain = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
            if len(plain) <= LONGEST_CONTENT:
                return plain
            # Of what is longer than its characters, the longer half gives way.
            cut = True
            if len(prompt) >= len(answer):
                prompt = prompt[: len(prompt) * 3 // 4]
            else:
                answer = answer[: len(answer) * 3 // 4]


class _Text:
    """A text of at most half of what a content may have."""

    _MOST = LONGEST_CONTENT // 2

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = self._MOST
        self.full = False

    def add(self, text: str) -> None:
        if len(text) > self._left:
            self.full = True
        if text and self._left:
            self._parts.append(text[: self._left])
            self._left -= len(self._parts[-1])

    def text(self) -> str:
        return "".join(self._parts)


def _peer() -> str:
    """The caller's address; empty for a sibling process."""
    address = current_address()
    return "" if address is None else str(address)


def _name(enum: type[object], number: int, prefix: str) -> str:
    try:
        return str(enum.Name(number)).removeprefix(prefix)  # type: ignore[attr-defined]
    except ValueError:
        return str(number)
