"""Masks a request: every text that a model reads, of all roles, with the same placeholders.

What is no text passes: images, names and ids of tools and calls, and opaque reasoning state, which
only the provider that issued it can read and which must come back to it unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.masking import KINDS
from services.cloud_proxy.masking.detection import MOST_ENTITIES, TooManyEntities, find
from services.cloud_proxy.masking.findings import Finding, Form, find_in, replaced
from services.cloud_proxy.masking.placeholders import BRACKETS, Placeholders, draw_nonce
from services.cloud_proxy.masking.restoring import Restorer


class Unmaskable(Exception):
    """Something must be masked where that cannot be done; `feature` is the request's field."""

    def __init__(self, feature: str, why: str) -> None:
        super().__init__(f"{feature}: {why}")
        self.feature = feature
        self.why = why


_TOO_MANY = ("request", f"holds more than {MOST_ENTITIES} entities to mask")


@dataclass(frozen=True, slots=True, repr=False)
class Masked:
    """A request as it may leave, and what its placeholders stand for."""

    request: pb.GenerateRequest
    placeholders: Placeholders

    @property
    def counts(self) -> dict[pb.PiiKind, int]:
        """How many different values of each kind were masked."""
        return self.placeholders.counts

    def restorer(self) -> Restorer:
        """A fresh one, for one answer."""
        wanted = self.request.response_format.WhichOneof("format")
        return Restorer(self.placeholders, json_text=wanted in ("json_object", "json_schema"))


class _Slot(NamedTuple):
    """A text of a request: a field of `owner`, or an entry of a repeated one."""

    owner: Any
    field: str
    form: Form = Form.TEXT
    entry: int | None = None

    def read(self) -> str:
        found = getattr(self.owner, self.field)
        text: str = found if self.entry is None else found[self.entry]
        return text

    def write(self, text: str) -> None:
        if self.entry is None:
            setattr(self.owner, self.field, text)
        else:
            getattr(self.owner, self.field)[self.entry] = text


class Masker:
    """Masks requests: always the kinds of `floor`, and what is asked for beside them.

    `random_bits(k)` gives k random bits.
    """

    def __init__(self, floor: Collection[pb.PiiKind], random_bits: Callable[[int], int]) -> None:
        self._floor = frozenset(floor)
        self._random_bits = random_bits

    def mask(self, request: pb.GenerateRequest, more: Collection[int] = ()) -> Masked | None:
        """The request masked, itself unchanged; None when it holds nothing to mask.

        Raises Unmaskable, also for a kind that is not known here.
        """
        kinds = self._floor.union(_known(more))
        if not kinds:
            return None
        try:
            _check_maskable(request, kinds)
            texts = [slot.read() for slot in _slots(request)]
            found = [
                find_in(text, slot.form, kinds)
                for slot, text in zip(_slots(request), texts, strict=True)
            ]
        except TooManyEntities:
            raise Unmaskable(*_TOO_MANY) from None
        if sum(map(len, found)) > MOST_ENTITIES:
            raise Unmaskable(*_TOO_MANY)
        if not any(found):
            return None
        placeholders = self._placeholders(
            draw_nonce(texts, self._random_bits),
            list(chain.from_iterable(found)),
            [stop for stop in request.sampling.stop if not find(stop, kinds)],
        )
        masked = pb.GenerateRequest()
        masked.CopyFrom(request)
        for slot, text, findings in zip(_slots(masked), texts, found, strict=True):
            if findings:
                slot.write(replaced(text, findings, lambda f: placeholders.of(f.kind, f.value)))
        return Masked(masked, placeholders)

    def _placeholders(
        self, nonce: str, findings: Sequence[Finding], stops: Sequence[str]
    ) -> Placeholders:
        """One for each value, in the first form that none of the stop strings meets.

        Those do not count that are masked themselves: they stop at their own values.
        """
        for brackets in BRACKETS:
            made = Placeholders(nonce, brackets)
            for found in findings:
                made.of(found.kind, found.value)
            if not any(made.meets(stop) for stop in stops):
                return made
        raise Unmaskable("sampling.stop", "would stop an answer at what stands for masked data")


def _known(kinds: Collection[int]) -> list[pb.PiiKind]:
    known = {int(kind): kind for kind in KINDS.values()}
    if any(kind not in known for kind in kinds):
        # A newer caller means something that would leave here unmasked.
        raise Unmaskable("mask", "names a kind that is not known here")
    return [known[kind] for kind in kinds]


def _check_maskable(request: pb.GenerateRequest, kinds: Collection[pb.PiiKind]) -> None:
    """Raises Unmaskable for what cannot be looked into, or not be changed."""
    if request.prompt_token_ids:
        raise Unmaskable("prompt_token_ids", "token ids cannot be masked")
    kind = request.response_format.WhichOneof("format")
    if kind in ("regex", "grammar") and find(getattr(request.response_format, kind), kinds):
        raise Unmaskable(f"response_format.{kind}", "holds what must be masked, and cannot be")


def _slots(request: pb.GenerateRequest) -> Iterator[_Slot]:
    """Every text that may leave, in the order in which values are numbered."""
    for message in request.messages:
        for part in message.content:
            if part.HasField("text"):
                yield _Slot(part, "text", _form_of(message.role, part.text))
        for call in message.tool_calls:
            yield _Slot(call, "arguments", Form.JSON)
    if request.prompt:
        yield _Slot(request, "prompt")
    for tool in request.tools:
        yield _Slot(tool, "description")
        yield _Slot(tool, "parameters_json_schema", Form.SCHEMA)
    wanted = request.response_format
    if wanted.HasField("json_schema"):
        yield _Slot(wanted, "json_schema", Form.SCHEMA)
    for entry in range(len(wanted.choice.options)):
        yield _Slot(wanted.choice, "options", entry=entry)
    if request.continuation.text:
        yield _Slot(request.continuation, "text")
    for entry in range(len(request.sampling.stop)):
        yield _Slot(request.sampling, "stop", entry=entry)


def _form_of(role: pb.Role, text: str) -> Form:
    """A tool's result is mostly JSON, from which models copy into the arguments of other calls."""
    is_json = role == pb.ROLE_TOOL and text.lstrip()[:1] in ("{", "[")
    return Form.JSON if is_json else Form.TEXT
