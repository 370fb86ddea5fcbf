"""How vLLM's outputs reach the jobs: at its output loop's own hand, or through its public stream.

Does not import vLLM. The first spares a task and a wake-up for each request and token, but relies
on more than vLLM documents, so it is for versions that it was seen working with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

Prompt = Sequence[int] | Mapping[str, Any]
"""Token ids, or a prompt as vLLM's renderer makes them."""

Receive = Callable[[Any], None]
"""Takes a RequestOutput, or the exception that ended the request."""

Plain = Callable[[Sequence[int], str], None]
"""Takes the tokens of a step and the text that vLLM made of them, "" where it makes none."""


class Outputs(Protocol):
    """Begins requests and delivers what they bring. Entered by the task that begins them."""

    refuses_late: bool
    """Whether `receive` may get what vLLM refuses a request with; else an exception that it gets
    is the end of vLLM's output loop."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def begin(
        self,
        request_id: str,
        tokens: Prompt,
        params: Any,
        priority: int,
        receive: Receive,
        further: Mapping[str, Any],
        plain: Plain | None = None,
    ) -> None:
        """Has vLLM take a prompt; `further` are arguments of its `add_request` and `generate`.

        Outputs that are nothing but tokens, after the first, may come to `plain` instead. Raises
        what vLLM refuses it with, or `receive` gets it.
        """

    def forget(self, request_id: str) -> None:
        """The request was aborted: nothing more of it is wanted."""


class TappedOutputs:
    """A whole step in one turn: each request's collector calls the job itself.

    Relies on `add_request` returning a collector whose `put` receives each output.
    """

    refuses_late = False

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def begin(
        self,
        request_id: str,
        tokens: Prompt,
        params: Any,
        priority: int,
        receive: Receive,
        further: Mapping[str, Any],
        plain: Plain | None = None,
    ) -> None:
        """Raises what vLLM refuses the request with."""
        await self.add(request_id, tokens, params, priority, receive, further)

    async def add(
        self,
        request_id: str,
        tokens: Prompt,
        params: Any,
        priority: int,
        receive: Receive,
        further: Mapping[str, Any],
    ) -> Any:
        """As `begin`; returns the collector, which has vLLM's inner id of the request."""
        collector = await self._llm.add_request(
            request_id, _prompt(tokens), params, priority=priority, **further
        )
        early = collector.get_nowait()
        collector.put = receive
        if early is not None:
            receive(early)
        return collector

    def forget(self, request_id: str) -> None:
        """Nothing is kept here."""


class StreamedOutputs:
    """AsyncLLM.generate, as documented: a task a request, and a wake-up for each of its outputs."""

    refuses_late = True

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await self._group.__aexit__(kind, error, traceback)

    async def begin(
        self,
        request_id: str,
        tokens: Prompt,
        params: Any,
        priority: int,
        receive: Receive,
        further: Mapping[str, Any],
        plain: Plain | None = None,
    ) -> None:
        """What vLLM refuses the request with goes to `receive`."""
        stream = self._llm.generate(
            _prompt(tokens), params, request_id, priority=priority, **further
        )
        task = self._group.create_task(_pass_on(stream, receive), name=f"vllm-{request_id}")
        self._tasks[request_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request_id, None))

    def forget(self, request_id: str) -> None:
        """Ends the request's task."""
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()


async def _pass_on(stream: Any, receive: Receive) -> None:
    try:
        async for output in stream:
            receive(output)
    except Exception as error:  # noqa: BLE001 - the edge: it ends this request alone
        receive(error)


def _prompt(tokens: Prompt) -> Mapping[str, Any]:
    if isinstance(tokens, Mapping):
        return tokens
    return {"type": "token", "prompt_token_ids": list(tokens)}
