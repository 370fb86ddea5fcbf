"""Requests with the same content under way: one is sent to a backend, all get what it brings.

A flight is the outlet of that one request. It knows neither tiers nor keys; who may join, and
what becomes of the answer, is cache.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from anabranch.v1 import generation_pb2 as pb
from services.chassis.coalescing import coalesce_chunks
from services.chassis.errors import Fault
from services.chassis.model_handler import Cancel
from services.router.response_cache.entry import Entry
from services.router.response_cache.key import AnswerKey
from services.router.response_cache.participant import Participant

_IN_FLIGHT = pb.CACHE_SOURCE_IN_FLIGHT
_JOIN_AT = 64


class Follower(Protocol):
    """Who hears of the end of flights."""

    def closed(self, flight: Flight) -> None:
        """Nobody may join any more."""

    def answered(self, flight: Flight, last: pb.GenerateChunk, shared_by: int) -> None:
        """A backend's answer is complete; `shared_by` others got it too."""

    def start_again(self, flight: Flight, participants: Sequence[Participant]) -> None:
        """It failed before it had brought anything, and these were not the reason."""


class Flight:
    """One request on its way, and those who wait for its answer, first of them its owner.

    The owner's request is the one that runs; when its caller leaves, the next one inherits it.
    `longest` bytes of the answer are kept for those who join later; of a longer one nothing is,
    and nobody joins. `deadline` is that of the request itself; each caller's own is kept by
    whoever opened the caller's outlet.
    """

    __slots__ = (
        *("_cancel", "_cancelled", "_follower", "_id_field", "_kept", "_longest"),
        *("_participants", "_size", "_starter", "deadline", "key", "over", "started", "tokens"),
    )

    def __init__(
        self,
        key: AnswerKey,
        owner: Participant,
        follower: Follower,
        *,
        longest: int,
        deadline: float,
    ) -> None:
        self.key = key
        self.deadline = deadline
        self.over = False
        self.started = False
        self.tokens = 0
        self._follower = follower
        self._participants = [owner]
        self._starter: Participant | None = None
        self._id_field = b""
        self._longest = longest
        self._cancel: Cancel | None = None
        self._cancelled = False
        self._kept: list[bytes] | None = []
        self._size = 0
        owner.flight = self

    @property
    def owner(self) -> Participant:
        """Whose request it is."""
        return self._participants[0]

    @property
    def participants(self) -> Sequence[Participant]:
        """All who wait for its answer."""
        return self._participants

    @property
    def chunks(self) -> Sequence[bytes] | None:
        """The answer so far; None once it is too long to be kept."""
        return self._kept

    def send(self) -> None:
        """Sends the owner's request to a backend. Raises what that raises, and is not over then."""
        starter = self._starter = self.owner
        request_id = starter.context.request_id
        self._id_field = pb.GenerateChunk(request_id=request_id).SerializeToString()
        context = replace(starter.context, deadline=self.deadline)
        cancel = starter.start(starter.request, context, self)
        if not self.over:
            self._cancel = cancel

    def keep_nothing(self) -> None:
        """Nobody joins any more, and the answer is not kept."""
        self._kept = None
        self._follower.closed(self)

    def dissolve(self) -> None:
        """It is not sent after all. Its owner, who is alone in it, is told so by others."""
        self._close()
        self.owner.flight = None

    def takes(self, other: Participant) -> bool:
        """Whether a request can be answered by this flight, not closed, as well as by its own."""
        if other.context.deadline > self.deadline:
            return False
        return self.started or not other.haste.exceeds(self.owner.haste)

    def join(self, other: Participant) -> None:
        """Lets a request take part: it gets what there is at once, and the rest as it comes."""
        other.flight = self
        self._participants.append(other)
        if not self._kept:
            return
        # Joined for good: the next one who comes gets them as quickly.
        self._kept = coalesce_chunks(self._kept)
        self._size = sum(map(len, self._kept))
        tokens = self.tokens
        for raw in self._kept:
            other.chunk(raw, tokens, named_otherwise=True)
            tokens = 0

    def leave(self, participant: Participant) -> None:
        """A caller wants no more; once nobody does, the request is cancelled."""
        if self.over or self._cancelled or participant.over:
            return
        is_owner = participant is self.owner
        source = pb.CACHE_SOURCE_UNSPECIFIED if is_owner else _IN_FLIGHT
        if len(self._participants) > 1:
            self._participants.remove(participant)
            if participant is self._starter:
                self._starter = None
            participant.end_cancelled(self.tokens, source)
        elif self._cancel is None:
            self._close()
            participant.end_cancelled(self.tokens, source)
        else:
            # Its end comes from the backend, with what it used.
            self._cancelled = True
            self._follower.closed(self)
            self._cancel()

    def answer(self, entry: Entry, source: pb.CacheSource) -> None:
        """A kept answer was found after all."""
        self._close()
        for participant in self._participants:
            participant.take(entry, source)

    # Outlet

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        """Part of the answer; see Outlet."""
        if self.over:
            return
        self.tokens += tokens
        if last:
            self._end(raw, tokens)
            return
        self.started = True
        self._keep(raw)
        participants = self._participants
        if len(participants) == 1:
            only = participants[0]
            named = only is not self._starter and self._id_field in raw
            only.chunk(raw, tokens, named_otherwise=named)
            return
        # The first chunk of each backend that has the request says whose it was.
        named = self._id_field in raw
        for participant in tuple(participants):
            otherwise = named and participant is not self._starter
            participant.chunk(raw, tokens, named_otherwise=otherwise)

    def fail(self, fault: Fault) -> None:
        """The request failed; see Outlet. The others try again, once, if they have got nothing."""
        if self.over:
            return
        self._close()
        owner, *others = self._participants
        owner.fail(fault)
        again: list[Participant] = []
        for other in others:
            if self.started or other.restarted:
                other.fail(fault)
            else:
                other.restarted = True
                other.flight = None
                again.append(other)
        if again:
            self._follower.start_again(self, again)

    def _end(self, raw: bytes, tokens: int) -> None:
        self._close()
        last = pb.GenerateChunk.FromString(raw)
        owner, *others = self._participants
        if owner is self._starter:
            owner.relay_last(raw, tokens)
        else:
            owner.inherit_last(last, tokens)
        if others:
            shared = pb.GenerateChunk()
            shared.CopyFrom(last)
            shared.ClearField("receipt")
            shared.ClearField("request_id")
            bare = shared.SerializeToString()
            for other in others:
                other.share_last(bare, tokens, _IN_FLIGHT, last.receipt)
        self._follower.answered(self, last, len(others))

    def _keep(self, raw: bytes) -> None:
        if self._kept is None:
            return
        self._kept.append(raw)
        self._size += len(raw)
        if self._size <= self._longest and len(self._kept) < _JOIN_AT:
            return
        # One large chunk takes much less than many small ones, and joining them all at the end of a
        # long answer would keep the loop from other things for milliseconds.
        self._kept = coalesce_chunks(self._kept)
        self._size = sum(map(len, self._kept))
        if self._size > self._longest or len(self._kept) >= _JOIN_AT:
            self.keep_nothing()  # too long, or nothing that can be joined

    def _close(self) -> None:
        self.over = True
        self._cancel = None
        self._follower.closed(self)
