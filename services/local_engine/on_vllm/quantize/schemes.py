"""The ways to make weights smaller, and which layers they hold for. Pure: imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

MULTIPLE = 16
"""The kernels that multiply 8-bit matrices want both sides of a weight in multiples of it."""

_NOTABLE = 0.02
"""Share of all weights above which a matrix that nothing is known of may not stay as it is."""


class CannotQuantize(Exception):
    """There will be no smaller checkpoint; the text says why and what to do."""


class Scheme(Enum):
    """How weights are stored and multiplied."""

    INT8 = "int8"
    INT8_WEIGHTS = "int8-weights"
    FP8 = "fp8"

    @property
    def description(self) -> str:
        """What it does, in a line."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Scheme.INT8: "INT8 weights, a scale a channel; activations INT8, a scale a token (W8A8)",
    Scheme.INT8_WEIGHTS: "INT8 weights, a scale a channel; activations stay as they are (W8A16)",
    Scheme.FP8: "FP8 E4M3 weights, a scale a channel; activations FP8, a scale a token",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its file's header describes it."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Numbers that it holds."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True, slots=True)
class Layers:
    """The linear layers of a model by module name, and those of them and others that stay."""

    linear: tuple[str, ...]
    kept: tuple[str, ...]
    embeddings: tuple[str, ...]


def chosen_layers(tensors: Mapping[str, TensorInfo], layers: Layers) -> list[str]:
    """The layers to quantise, in order. Raises CannotQuantize for a model unlike its checkpoint.

    Everything large must be known: a mixture of experts whose experts lie in one tensor would
    otherwise come out as large as it was, and look as if it were done.
    """
    chosen = [name for name in layers.linear if name not in layers.kept]
    missing = [name for name in chosen if f"{name}.weight" not in tensors]
    if missing:
        raise CannotQuantize(
            f"the checkpoint has no {missing[0]}.weight, which its architecture has "
            f"({len(missing)} such layers): this architecture is not supported"
        )
    weights = {f"{name}.weight" for name in chosen}
    known = weights | {f"{name}.weight" for name in (*layers.kept, *layers.embeddings)}
    total = sum(info.elements for info in tensors.values())
    for name, info in sorted(tensors.items()):
        if len(info.shape) > 1 and name not in known and info.elements > _NOTABLE * total:
            share = 100 * info.elements / total
            raise CannotQuantize(
                f"{name} holds {share:.0f} % of the weights and is no linear layer of its own, as "
                "in a mixture of experts: this architecture is not supported"
            )
    for name in chosen:
        _check_shape(name, tensors[f"{name}.weight"].shape)
    if not chosen:
        raise CannotQuantize("the model has no linear layer to quantise")
    return chosen


def expected_bytes(
    tensors: Mapping[str, TensorInfo], chosen: Collection[str], width: Mapping[str, int]
) -> int:
    """Size of the checkpoint to come. `width` has the bytes of a number for dtypes that change."""
    weights = {f"{name}.weight" for name in chosen}
    size = 0
    for name, info in tensors.items():
        if name in weights:
            size += info.elements + 4 * info.shape[0]
        else:
            size += info.elements * width[info.dtype] if info.dtype in width else info.bytes
    return size


def _check_shape(name: str, shape: Sequence[int]) -> None:
    if len(shape) != 2 or any(side % MULTIPLE for side in shape):
        sides = " × ".join(map(str, shape))
        raise CannotQuantize(
            f"{name}.weight is {sides}: vLLM multiplies 8-bit matrices only where both sides are "
            f"multiples of {MULTIPLE}"
        )
