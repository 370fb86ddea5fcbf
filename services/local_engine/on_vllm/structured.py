"""What vLLM and xgrammar are told so that a form is judged as it will be compiled.

vLLM's engine core keeps to one grammar backend, that of its first constrained request, whatever
later requests were checked against ("auto" checks with several). So there is one, xgrammar, and
what it cannot do is refused. See vllm/v1/structured_output/__init__.py, grammar_init.
"""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger(__name__)

BACKEND = "xgrammar"


def structured_arguments(*, compact: bool) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs. `compact`: JSON without white space."""
    from vllm.config import StructuredOutputsConfig

    config = StructuredOutputsConfig(backend=BACKEND, disable_any_whitespace=compact)
    return {"structured_outputs_config": config}


def serialised_tokenizer(tokenizer: Any, vocabulary: int) -> str:
    """The tokenizer as xgrammar writes it down, for the process that judges forms.

    Empty where xgrammar cannot read this tokenizer: the engine then offers no forms.
    """
    import xgrammar

    try:
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary)
        return str(info.serialize_json())
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        _log.warning(
            "this model's tokenizer is none that grammars can be compiled for: "
            "requests with a response_format are refused",
            extra={"cause": f"{type(error).__name__}: {error}"},
        )
        return ""
