"""Token counts and costs where they must be guessed or computed. Pure arithmetic.

Providers keep their tokenizers to themselves, so a count made here is an estimate and is
labelled as one wherever it leaves the process.
"""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import ProviderUsage
from services.cloud_proxy.profiles import Prices

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
        -(-size // 2)
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


def cost_microusd(usage: ProviderUsage, prices: Prices) -> int:
    """What this usage costs, in millionths of a US dollar, rounded up so it is never free."""
    fresh = max(usage.prompt - usage.cached, 0)
    total = fresh * prices.input + usage.cached * prices.cached_input
    total += usage.completion * prices.output
    return -(-total // _MILLION)


def affordable_tokens(request: pb.GenerateRequest, prices: Prices, budget: int) -> int:
    """Output tokens that `budget` micro-USD still pays for after the prompt; below 1: none."""
    left = budget * _MILLION - prompt_tokens_at_most(request) * prices.input
    choices = max(request.sampling.n, 1)
    return left // (max(prices.output, 1) * choices)
