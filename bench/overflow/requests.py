"""A trace's items as requests, and the exact answer that each must get from either tier. Pure.

The prompt says which look and which item it is, so that no cache of an earlier look knows its
beginning; it carries a mark where it must not leave, which the provider simulator counts; and it
tells that simulator how many words to answer, so that an answer is as long in either tier.
"""

from __future__ import annotations

from random import Random

from anabranch.v1 import generation_pb2 as pb
from bench.overflow.plan import MODEL
from bench.overflow.trace import Item
from services.local_engine.simulation import tokenizer as sim_tokenizer
from services.local_engine.simulation.engine import SimEngine
from services.local_engine.simulation.model import answer_seed, natural_length, token_at
from tools.provider_simulator.answers import reply

PRIVATE = "[stays inside]"
"""In every prompt that must not leave."""

TIMEOUT_S = 20.0
"""What a request may take; a private one may wait for most of it."""

ENDLESS = 10_000_000
"""Mean length that the sim engines are given, so that it is max_tokens that ends an answer."""

_FRAME = len("user: \nassistant:")


def prompt(look: str, item: Item) -> str:
    """What the request says: of about as many tokens as the item asks for."""
    mark = f" {PRIVATE}" if item.private else ""
    head = f"{look}/{item.number}{mark} words={item.output}"
    words = max(item.prompt - len(head) - _FRAME, 0)
    # The same words in every run; nothing secret hangs on them.
    random = Random(head)  # noqa: S311
    first, count = sim_tokenizer.FIRST_WORD, sim_tokenizer.WORDS
    return head + "".join(sim_tokenizer.word(first + random.randrange(count)) for _ in range(words))


def request(look: str, item: Item) -> pb.GenerateRequest:
    """The request of an item, but for its residency."""
    made = pb.GenerateRequest(
        model=MODEL,
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=prompt(look, item))])],
        sampling=pb.Sampling(max_tokens=item.output),
    )
    made.timeout.FromNanoseconds(int(TIMEOUT_S * 1e9))
    return made


def residing(residency: pb.Residency) -> bytes:
    """What a serialised request needs at its end to have this residency."""
    return pb.GenerateRequest(routing=pb.Routing(residency=residency)).SerializeToString()


async def local_answer(asked: pb.GenerateRequest) -> list[int]:
    """The tokens of an undisturbed answer of a sim engine."""
    tokens = await SimEngine().encode(asked)
    seed = answer_seed(tokens)
    if natural_length(seed, ENDLESS) < asked.sampling.max_tokens:
        raise ValueError("an answer would end by itself")
    return [token_at(seed, position) for position in range(asked.sampling.max_tokens)]


def cloud_answer(asked: pb.GenerateRequest) -> str:
    """The text of an undisturbed answer of the provider simulator."""
    content = "".join(part.text for part in asked.messages[0].content)
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": asked.sampling.max_tokens,
    }
    return "".join(reply(body).answers[0].text)
