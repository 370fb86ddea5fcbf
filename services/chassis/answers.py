"""Joins the chunks of a stream into one GenerateResponse. Pure."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb


class AnswerBuilder:
    """Adds up chunks in order of arrival; `response` may be read at the end."""

    def __init__(self) -> None:
        self._response = pb.GenerateResponse()
        self._choices: dict[int, pb.GenerateResponse.Choice] = {}
        self._text: dict[int, list[str]] = {}
        self._reasoning: dict[int, list[str]] = {}

    def add(self, chunk: pb.GenerateChunk) -> None:
        """Takes the next chunk of the stream."""
        choice = self._choices.get(chunk.index)
        if choice is None:
            choice = self._choices[chunk.index] = pb.GenerateResponse.Choice(index=chunk.index)
            self._text[chunk.index] = []
            self._reasoning[chunk.index] = []
        self._text[chunk.index].append(chunk.text)
        self._reasoning[chunk.index].append(chunk.reasoning)
        choice.token_ids.extend(chunk.token_ids)
        choice.logprobs.extend(chunk.logprobs)
        choice.reasoning_state.extend(chunk.reasoning_state)
        for fragment in chunk.tool_calls:
            _join(choice, fragment)
        if chunk.finish_reason:
            choice.finish_reason = chunk.finish_reason
            choice.matched_stop = chunk.matched_stop
        if chunk.request_id:
            self._response.request_id = chunk.request_id
        if chunk.HasField("usage"):
            self._response.usage.CopyFrom(chunk.usage)
        if chunk.HasField("receipt"):
            self._response.receipt.CopyFrom(chunk.receipt)

    def response(self) -> pb.GenerateResponse:
        """The whole answer, choices ordered by index."""
        del self._response.choices[:]
        for index in sorted(self._choices):
            choice = self._choices[index]
            choice.text = "".join(self._text[index])
            choice.reasoning = "".join(self._reasoning[index])
            self._response.choices.append(choice)
        return self._response


def _join(choice: pb.GenerateResponse.Choice, fragment: pb.ToolCall) -> None:
    for call in choice.tool_calls:
        if call.index == fragment.index:
            call.arguments += fragment.arguments
            return
    choice.tool_calls.append(fragment)
