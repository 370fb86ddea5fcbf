"""Turns one answer into GenerateChunks for its outlet: masked values restored, pieces numbered.

Providers do not number tokens, so `first_token` counts the pieces of output delivered before, per
choice, starting after the continuation's token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.model_handler import Outlet
from services.cloud_proxy.answer import Delta
from services.cloud_proxy.gathering import Gathering
from services.cloud_proxy.masking.restoring import Restorer


class ChunkWriter:
    """Writes one answer. It ends once, with `close` or `fail`; what comes later is dropped."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        request_id: str,
        restorer: Restorer | None,
        outlet: Outlet,
        gathering: Gathering,
    ) -> None:
        self.choices = max(request.sampling.n, 1)
        self.ended = False
        self._request_id = request_id
        self._restorer = restorer
        self._outlet = outlet
        self._start = len(request.continuation.token_ids)
        self._pieces = [0] * self.choices
        reasoning = request.reasoning
        self._show_reasoning = reasoning.include if reasoning.HasField("include") else True
        self._greeted = False
        self._gathering = gathering
        self._waiting: list[Delta] = []

    @property
    def delivered(self) -> int:
        """Pieces that the caller has been sent, or is about to be."""
        return sum(self._pieces) + len(self._waiting)

    def shows(self, delta: Delta) -> bool:
        """Whether the caller sees anything of it."""
        return bool(delta.text or delta.tools or (delta.reasoning and self._show_reasoning))

    def write(self, delta: Delta) -> None:
        """New output."""
        self._tell(self._restorer.restored(delta) if self._restorer is not None else delta)

    def close(
        self,
        finishes: Mapping[int, pb.FinishReason],
        complete: Callable[[int, pb.GenerateChunk, bool], None],
    ) -> None:
        """The last chunk of each choice; `complete(choice, chunk, last)` may add to it."""
        if self._restorer is not None:
            for number in range(self.choices):
                self._tell(self._restorer.rest(number))
        self._flush()
        remaining = len(finishes)
        for number, finish in sorted(finishes.items()):
            remaining -= 1
            chunk = pb.GenerateChunk(
                index=number,
                first_token=self._start + self._pieces[number],
                finish_reason=finish,
            )
            complete(number, chunk, not remaining)
            self._send(chunk, last=not remaining, tokens=0)
        self.ended = True

    def fail(self, fault: Fault) -> None:
        """Ends with an error."""
        self._flush()
        self.ended = True
        self._outlet.fail(fault)

    def _tell(self, delta: Delta) -> None:
        if self.ended or not self.shows(delta):
            return
        if self._waiting:
            self._waiting.append(delta)
        elif self._greeted and self._gathering.worth:
            self._waiting.append(delta)
            self._gathering.later(self._flush)
        else:
            self._emit(delta, 1)

    def _flush(self) -> None:
        """Sends what waits; texts that follow each other as one."""
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:
            self._emit(waiting[0], 1)
            return
        joined, pieces = None, 0
        for delta in waiting:
            if joined is None:
                joined, pieces = delta, 1
            elif delta.choice == joined.choice and not (delta.tools or joined.tools):
                text, reasoning = joined.text + delta.text, joined.reasoning + delta.reasoning
                joined, pieces = Delta(delta.choice, text, reasoning), pieces + 1
            else:
                self._emit(joined, pieces)
                joined, pieces = delta, 1
        if joined is not None:
            self._emit(joined, pieces)

    def _emit(self, delta: Delta, pieces: int) -> None:
        if self.ended:
            return
        choice = delta.choice
        chunk = pb.GenerateChunk(
            index=choice,
            first_token=self._start + self._pieces[choice],
            text=delta.text,
            reasoning=delta.reasoning if self._show_reasoning else "",
        )
        for tool in delta.tools:
            chunk.tool_calls.add(
                index=tool.index, id=tool.id, name=tool.name, arguments=tool.arguments
            )
        self._pieces[choice] += pieces
        self._send(chunk, last=False, tokens=pieces)

    def _send(self, chunk: pb.GenerateChunk, *, last: bool, tokens: int) -> None:
        if not self._greeted:
            self._greeted = True
            chunk.request_id = self._request_id
        self._outlet.chunk(chunk.SerializeToString(), last=last, tokens=tokens)
