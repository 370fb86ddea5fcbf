"""How much text one token of a model can stand for. Reads a tokenizer's own description.

Only where that is certain: many tokenizers drop or fold text before they split it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_SHRINKS: Mapping[str, int] = {"": 1, "NFC": 3}
"""By how much a normaliser can shorten text in UTF-8, at most; for NFC: Unicode's normalisation
FAQ, https://unicode.org/faq/normalization.html#12 (three code units of each form at most)."""


def longest_token(tokenizer: Any) -> int:
    """The most bytes of text that one token can stand for; 0 where nothing is certain.

    It is certain of byte-level BPE, which neither drops nor folds anything, unless a special token
    swallows the white space around it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return 0
    described = json.loads(backend.to_str())
    shrinks = _SHRINKS.get((described.get("normalizer") or {}).get("type", ""))
    model = described.get("model") or {}
    added = described.get("added_tokens") or []
    byte_level = any(
        part.get("type") == "ByteLevel" for part in _parts(described.get("pre_tokenizer"))
    )
    if shrinks is None or model.get("type") != "BPE" or not byte_level or model.get("unk_token"):
        return 0
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return 0
    # In byte-level vocabularies each character stands for one byte.
    longest = max(map(len, model.get("vocab") or {"": 0}), default=0)
    special = max((len(token["content"].encode()) for token in added), default=0)
    return max(longest, special) * shrinks


def _parts(pre_tokenizer: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(pre_tokenizer, dict):
        yield pre_tokenizer
        for inner in pre_tokenizer.get("pretokenizers") or ():
            yield from _parts(inner)
