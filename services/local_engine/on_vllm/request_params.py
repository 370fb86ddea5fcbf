"""vLLM's SamplingParams for jobs: checked once for each way of sampling, copied for each job.

What a job asks for in vLLM's words is sampling.py's.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.local_engine.engine import Job, SamplingSpec
from services.local_engine.on_vllm import sampling, seeding

_KEPT = 256
"""Ways of sampling that are remembered: callers have few, and mostly the same one."""


class RequestParams:
    """Makes SamplingParams. `defaults` are the model's own values, from its generation_config.

    vLLM checks some thirty fields whenever one is made, a fifth of what a request costs before its
    first token; a copy is checked already. Not copied is what holds for one request alone: a
    seed, a form, a continuation.
    """

    def __init__(self, defaults: Mapping[str, Any], seeds: seeding.Seeding) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        self._defaults = defaults
        self._seeds = seeds
        self._new = SamplingParams
        self._form = StructuredOutputsParams
        self._always: dict[str, Any] = {"output_kind": RequestOutputKind.DELTA}
        if hasattr(SamplingParams, "skip_clone"):
            # Made anew for each job, they need not be copied deeply: that is half of what a
            # request costs.
            self._always["skip_clone"] = True
        self._known: OrderedDict[tuple[SamplingSpec, bool], Any] = OrderedDict()

    def __call__(self, job: Job, detokenize: bool) -> Any:
        """The job's; raises what vLLM does for values that it refuses."""
        spec = job.sampling
        if spec.seed is not None or spec.constraint is not None or job.continuation:
            return self._make(job, detokenize)
        if spec.thinking is not None:
            # No parameter of vLLM's, and a mapping, which no key can hold.
            spec = replace(spec, thinking=None)
        key = (spec, detokenize)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._make(job, detokenize)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        made = copy.copy(known)
        made.max_tokens = job.max_tokens
        made.min_tokens = min(spec.min_tokens, job.max_tokens)
        return made

    def _make(self, job: Job, detokenize: bool) -> Any:
        arguments = sampling.sampling_arguments(
            job, self._defaults, detokenize=detokenize, seeding=self._seeds
        )
        constraint = job.sampling.constraint
        if constraint is not None:
            form = sampling.constraint_arguments(constraint)
            arguments["structured_outputs"] = self._form(**form)
        return self._new(**self._always, **arguments)


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a bad request."""
    import vllm.exceptions

    # VLLMClientError exists since vLLM 0.30; before it, refusals were plain ValueErrors.
    client_error = getattr(vllm.exceptions, "VLLMClientError", ValueError)
    return (ValueError, TypeError, NotImplementedError, client_error)
