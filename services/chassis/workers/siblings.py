"""The other workers of a service, as one worker sees them, and how it asks all of them.

A sibling is asked over its private socket with the caller's own credential: it checks that by
itself, and never asks further. What the answers mean together is the service's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from anabranch.v1 import errors_pb2
from services.chassis.channels import open_channel
from services.chassis.errors import Fault, Work, fault_from_rpc_error
from services.chassis.workers.assignment import grpc_socket

ANSWER_WITHIN_S = 2.0
_FAREWELL_S = 5.0


@dataclass(frozen=True, slots=True)
class Sibling:
    """A worker that can be reached. `serving`: it has begun to answer on the shared port."""

    index: int
    number: int
    serving: bool
    channel: grpc.aio.Channel


class Roster:
    """The siblings that can be reached now, by index; kept by the supervisor's messages."""

    def __init__(self, own_number: int, directory: str) -> None:
        self._own_number = own_number
        self._directory = directory
        self._siblings: dict[int, Sibling] = {}

    def __iter__(self) -> Iterator[Sibling]:
        return iter([self._siblings[index] for index in sorted(self._siblings)])

    def sibling(self, index: int, number: int | None = None) -> Sibling | None:
        """The sibling of that index; with `number`, only if it is still that very process."""
        found = self._siblings.get(index)
        return found if found is None or number in (None, found.number) else None

    def update(self, workers: Iterable[tuple[int, int, bool]]) -> list[grpc.aio.Channel]:
        """Takes the present (index, number, serving) of all; returns channels of those gone."""
        known = {sibling.number: sibling for sibling in self._siblings.values()}
        present: dict[int, Sibling] = {}
        for index, number, serving in workers:
            if number == self._own_number:
                continue
            before = known.pop(number, None)
            channel = before.channel if before else self._open(number)
            present[index] = Sibling(index, number, serving, channel)
        self._siblings = present
        return [sibling.channel for sibling in known.values()]

    async def ask_all(
        self,
        method_of: Callable[[grpc.aio.Channel], Any],
        request: Any,
        authorization: str,
        *,
        starting_too: bool = True,
    ) -> dict[int, Any | Fault]:
        """Each sibling's reply, or its refusal, by index.

        Those that are gone are left out: whatever they held went with them. `starting_too` asks
        also those that do not serve yet.
        """
        asked = [sibling for sibling in self if starting_too or sibling.serving]
        replies = await asyncio.gather(
            *(_ask(method_of(sibling.channel), request, authorization) for sibling in asked)
        )
        return {
            sibling.index: reply
            for sibling, reply in zip(asked, replies, strict=True)
            if not (isinstance(reply, Fault) and reply.code is grpc.StatusCode.UNAVAILABLE)
        }

    def connect(self, index: int, number: int) -> grpc.aio.Channel | None:
        """A connection of the caller's own to that very process, if it is there.

        For a call that lasts: on the channel that all share, calls beyond a hundred would wait.
        """
        if self.sibling(index, number) is None:
            return None
        own = (("grpc.use_local_subchannel_pool", 1),)
        return open_channel(grpc_socket(self._directory, number), options=own)

    async def close(self) -> None:
        """Closes every channel."""
        for channel in self.update(()):
            await channel.close()

    def _open(self, number: int) -> grpc.aio.Channel:
        return open_channel(grpc_socket(self._directory, number))


def willing(replies: Mapping[int, Any | Fault]) -> list[Any]:
    """The replies of those who know what is asked about.

    Raises Fault when a worker does not answer: it was not done everywhere, and should be repeated.
    """
    for index, reply in replies.items():
        if isinstance(reply, Fault) and reply.code is not grpc.StatusCode.NOT_FOUND:
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                f"worker {index} did not answer; the call may be repeated",
                work=Work.MAYBE_BILLED,
                retry_after=1.0,
            ) from reply
    return [reply for reply in replies.values() if not isinstance(reply, Fault)]


async def farewell(channel: grpc.aio.Channel) -> None:
    """Closes the channel of a worker that is gone, after what is still asked of it has failed."""
    await channel.close(_FAREWELL_S)


async def _ask(method: Any, request: Any, authorization: str) -> Any | Fault:
    try:
        return await method(
            request, timeout=ANSWER_WITHIN_S, metadata=(("authorization", authorization),)
        )
    except grpc.aio.AioRpcError as error:
        return fault_from_rpc_error(error)
