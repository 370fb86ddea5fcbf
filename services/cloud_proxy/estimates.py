"""Token counts and costs where they must be guessed or computed. Pure arithmetic.

Providers keep their tokenizers to themselves, so a count made here is an estimate and is
labelled as one wherever it leaves the process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.profiles import REFUSED, Prices

# About what byte-pair encodings of the large providers reach on English prose.
BYTES_PER_TOKEN = 4
# A message's own framing in the usual chat templates.
TOKENS_PER_MESSAGE = 4
# A mid-sized image in the providers' published rules; they vary from 85 to 1,600.
TOKENS_PER_IMAGE = 800
_MILLION = 1_000_000


def tokens_of(size: int) -> int:
    """Estimated tokens of `size` bytes of text, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def prompt_tokens(request: pb.GenerateRequest) -> int:
    """Estimated tokens of a request's prompt: messages, tools and schema."""
    if request.prompt_token_ids:
        return len(request.prompt_token_ids)
    size, images = _prompt_size(request)
    framing = TOKENS_PER_MESSAGE * max(len(request.messages), 1)
    return tokens_of(size) + TOKENS_PER_IMAGE * images + framing


def prompt_tokens_at_most(request: pb.GenerateRequest) -> int:
    """A cautious bound for budgets: byte-level encodings never need more than a token a byte,
    and on real text stay under one for two bytes."""
    size, images = _prompt_size(request)
    return (
        len(request.prompt_token_ids)
        + -(-size // 2)
        + 2 * TOKENS_PER_IMAGE * images
        + 2 * TOKENS_PER_MESSAGE * max(len(request.messages), 1)
    )


def _prompt_size(request: pb.GenerateRequest) -> tuple[int, int]:
    size = len(request.prompt.encode()) + len(request.continuation.text.encode())
    images = 0
    for message in request.messages:
        for part in message.content:
            size += len(part.text.encode())
            images += part.HasField("image")
        for call in message.tool_calls:
            size += len(call.name) + len(call.arguments.encode())
        size += sum(len(state.data) for state in message.reasoning_state)
    for tool in request.tools:
        size += len(tool.name) + len(tool.description.encode())
        size += len(tool.parameters_json_schema.encode())
    size += len(request.response_format.json_schema.encode())
    return size, images


def cut_off_usage(stated: ProviderUsage | None, received: ProviderUsage) -> ProviderUsage:
    """Usage of an answer that was cut off, from what the provider `stated` so far, if anything,
    and the estimate of what was `received`.

    Some providers state the prompt's tokens first and the output's at the end.
    """
    if stated is None:
        return received
    return replace(
        stated,
        completion=max(stated.completion, received.completion),
        reasoning=max(stated.reasoning, received.reasoning),
    )


class _Rates(NamedTuple):
    """Micro-USD per million tokens of each kind, for a whole request."""

    fresh: int
    cached: int
    written: int
    output: int

    @property
    def dearest_prompt(self) -> int:
        """Nobody knows before what the provider's cache will hold, or take."""
        return max(self.fresh, self.cached, self.written)


def _rates(prices: Prices, *, long: bool) -> _Rates:
    """What is in force for a prompt within the usual length, or beyond it."""
    written = prices.input if prices.cache_write is None else prices.cache_write
    rates = _Rates(prices.input, prices.cached_input, written, prices.output)
    beyond = prices.long_prompt
    if not long or beyond is None:
        return rates
    written = beyond.cache_write if beyond.cache_write is not None else max(beyond.input, written)
    return _Rates(beyond.input, beyond.cached_input, written, beyond.output)


def _is_long(prompt: int, prices: Prices) -> bool:
    return prices.long_prompt is not None and prompt > prices.long_prompt.over


def cost_microusd(usage: ProviderUsage, prices: Prices) -> int:
    """What this usage costs, in millionths of a US dollar, rounded up so it is never free.

    A prompt beyond the usual length makes the whole request dearer, its output too.
    """
    rates = _rates(prices, long=_is_long(usage.prompt, prices))
    total = max(usage.prompt - usage.cached - usage.cache_written, 0) * rates.fresh
    total += max(usage.cached, 0) * rates.cached
    total += max(usage.cache_written, 0) * rates.written
    total += max(usage.completion, 0) * rates.output
    return -(-total // _MILLION)


def _worst(prompt: int, prices: Prices) -> list[tuple[int, _Rates]]:
    """Tokens and rates, of which one is the dearest for a prompt of at most so many tokens.

    A prompt that may be long may also turn out not to be.
    """
    usual = _rates(prices, long=False)
    if prices.long_prompt is None or not _is_long(prompt, prices):
        return [(prompt, usual)]
    return [(prices.long_prompt.over, usual), (prompt, _rates(prices, long=True))]


def cost_at_most(request: pb.GenerateRequest, prices: Prices, output_tokens: int) -> int:
    """The most that a request may cost whose choices have up to `output_tokens` each, in
    micro-USD."""
    output = output_tokens * max(request.sampling.n, 1)
    return max(
        -(-(prompt * rates.dearest_prompt + output * rates.output) // _MILLION)
        for prompt, rates in _worst(prompt_tokens_at_most(request), prices)
    )


def affordable_tokens(request: pb.GenerateRequest, prices: Prices, budget: int) -> int:
    """Output tokens of each choice that `budget` micro-USD still pays for after the prompt, so
    that `cost_at_most` keeps within it; below 1: none."""
    choices = max(request.sampling.n, 1)
    return min(
        (budget * _MILLION - prompt * rates.dearest_prompt) // (max(rates.output, 1) * choices)
        for prompt, rates in _worst(prompt_tokens_at_most(request), prices)
    )


def output_tokens_at_most(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None = None
) -> int:
    """The most tokens that one choice may have; 0 where that is not known.

    `max_tokens` overrides the request's own. A limit that the profile leaves out of what is sent
    does not hold at the provider.
    """
    limits = [route.model.max_output, route.model.context_length]
    rule = route.model.parameters.get("max_tokens", REFUSED)
    if rule.rule == "send" and "max_tokens" not in route.profile.reasoning.ignores:
        limits.append(request.sampling.max_tokens if max_tokens is None else max_tokens)
    return min((limit for limit in limits if limit > 0), default=0)
