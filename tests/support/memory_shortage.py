"""A logits processor for tests that has vLLM's steps run out of memory while a marked request is
among them: the error is PyTorch's own, raised where a device would raise it.

Loaded into vLLM's engine core by its fully qualified name, `SHORTAGE`.
"""

from __future__ import annotations

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

SHORTAGE = "tests.support.memory_shortage:MemoryShortage"
IN_FORWARD, IN_SAMPLING, ON_THE_CPU = 4242, 4243, 4244
"""Tokens that mark a prompt by being its first."""

_MESSAGE = "CUDA out of memory. Tried to allocate 20.00 GiB."
_CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:132] . DefaultCPUAllocator: can't allocate memory"


class MemoryShortage(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, vllm_config, device, is_pin_memory):
        self.marks: dict[int, int] = {}
        forward = GPUModelRunner._model_forward

        def short_forward(runner, *args, **kwargs):
            marks = self.marks.values()
            result = forward(runner, *args, **kwargs)
            if IN_FORWARD in marks:
                raise torch.OutOfMemoryError(_MESSAGE)
            if ON_THE_CPU in marks:
                raise RuntimeError(_CPU_MESSAGE)
            return result

        GPUModelRunner._model_forward = short_forward

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.marks.pop(index, None)
        for index, _, prompt, _ in batch_update.added:
            self._place(index, prompt[0] if prompt else None)
        for source, target, direction in batch_update.moved:
            moved, replaced = self.marks.pop(source, None), self.marks.pop(target, None)
            self._place(target, moved)
            if direction == MoveDirectionality.SWAP:
                self._place(source, replaced)

    def apply(self, logits):
        if IN_SAMPLING in self.marks.values():
            raise torch.OutOfMemoryError(_MESSAGE)
        return logits

    def _place(self, index: int, mark: int | None) -> None:
        self.marks.pop(index, None)
        if mark is not None:
            self.marks[index] = mark
