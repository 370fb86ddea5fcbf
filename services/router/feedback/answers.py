"""Which answers may be judged, by whom, and what is known of them: values, and the role that
keeps them.

Pure. No text of an answer is here, nor anything else of its request than its id.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault

Answered: TypeAlias = tuple[str, str, str]
"""By whom a request was answered: the model as the request named it, the tier as in labels, and the
backend's id. A plain tuple, since one is made for every request, and of those that are kept the
garbage collector lets go of plain ones alone.
"""


class Judgement(NamedTuple):
    """What a caller says of an answer; None where it says nothing."""

    rating: int | None = None
    completed: bool | None = None

    def contradicts(self, known: Judgement) -> bool:
        """Whether it says something else than what is known."""
        return any(
            before is not None and now is not None and before != now
            for before, now in zip(known, self, strict=True)
        )

    def beyond(self, known: Judgement) -> Judgement:
        """What it says that is not known yet."""
        return Judgement(
            self.rating if known.rating is None else None,
            self.completed if known.completed is None else None,
        )

    def joined(self, known: Judgement) -> Judgement:
        """Both together, where it does not contradict."""
        return Judgement(
            self.rating if known.rating is None else known.rating,
            self.completed if known.completed is None else known.completed,
        )


class Judged(NamedTuple):
    """The answer that was judged, and what was new about it, which is to be counted."""

    answered: Answered
    new: Judgement


class Answers(Protocol):
    """Remembers a bounded number of answers for a bounded time, and each one's judgement.

    `shared`: what one process remembers all know, so that none need ask another.
    """

    @property
    def shared(self) -> bool: ...

    def remember(self, client_id: str, request_id: str, answered: Answered) -> None:
        """An answer was given. Called for each of them: it takes a microsecond and never fails."""

    async def judge(self, client_id: str, request_id: str, judgement: Judgement) -> Judged:
        """Records what is new in it. Raises Fault: see `unknown` and `judged_otherwise`."""


def unknown() -> Fault:
    """One text whether it is another client's, too old, or was never there."""
    return Fault(
        errors_pb2.ERROR_REASON_NOT_FOUND,
        "no answer to this client with that request_id is remembered here",
    )


def judged_otherwise() -> Fault:
    """The first word counts."""
    return Fault(
        errors_pb2.ERROR_REASON_ALREADY_EXISTS,
        "the answer was judged otherwise before; nothing has been changed",
    )
