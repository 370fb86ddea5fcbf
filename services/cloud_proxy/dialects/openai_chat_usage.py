"""Usage in OpenAI's chat completions: where the providers of that format state it, and how.

Counts only; when it is read is for the answer's decoder.
"""

from __future__ import annotations

from typing import Any

from services.cloud_proxy.answer import ProviderUsage
from services.cloud_proxy.dialects.fields import count_of, object_of
from services.cloud_proxy.profiles import Profile


def usage_in(document: dict[str, Any], profile: Profile) -> ProviderUsage | None:
    """The usage that a chunk, a whole answer or a choice states; None when it states none."""
    stated = document.get("usage")
    if not isinstance(stated, dict):
        # Groq's own place, where it stands without being asked for.
        stated = object_of(document.get("x_groq")).get("usage")
    return _read(stated, profile) if isinstance(stated, dict) else None


def _read(stated: dict[str, Any], profile: Profile) -> ProviderUsage | None:
    """Usage in any of the known spellings; None when a count is missing."""
    prompt = count_of(stated.get("prompt_tokens"))
    completion = count_of(stated.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    prompt_details = object_of(stated.get("prompt_tokens_details"))
    cached = count_of(prompt_details.get("cached_tokens"))
    if cached is None:
        # DeepSeek's name, then Moonshot's.
        cached = count_of(stated.get("prompt_cache_hit_tokens"))
    if cached is None:
        cached = count_of(stated.get("cached_tokens"))
    details = object_of(stated.get("completion_tokens_details"))
    reasoning = count_of(details.get("reasoning_tokens"))
    if reasoning is None:
        # SGLang's place.
        reasoning = count_of(stated.get("reasoning_tokens")) or 0
    if profile.usage.reasoning == "added":
        completion = count_of(completion + reasoning) or 0
    cached = min(cached or 0, prompt)
    # OpenRouter's name; part of the prompt and not of what was read from the cache.
    written = count_of(prompt_details.get("cache_write_tokens")) or 0
    return ProviderUsage(
        prompt, cached, completion, min(reasoning, completion), min(written, prompt - cached)
    )
