"""Random numbers by position: Philox 4x32-10 in PyTorch's integers, and Gumbel noise from it.

A counter-based generator keeps no state: a number is a function of its key and counter, so it is
the same wherever and whenever it is drawn. Bits are alike on every device. What is drawn with
the noise is position_seeds.py's.

Philox: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as
1, 2, 3", SC11, 2011. Words of 32 bits lie in 64-bit integers, whose products wrap: the low and
the high word of a product are cut out of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

ROUNDS = 10
WORD = 0xFFFFFFFF

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_DOMAIN = 0x616E6272
"""The counter's last word: no other use of the same key draws the same numbers."""


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    keys: Sequence[tuple[int, int]],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Four words of 32 bits for each counter: int64 of shape [rows, columns, 4].

    The counter's words are int64 tensors that broadcast to [rows, columns], values below 2**32;
    `keys` holds the two words of each row's key.
    """
    rows = len(keys)
    schedule = torch.tensor(
        [
            [[(word + n * step) & WORD for word, step in zip(key, _KEY_STEPS, strict=True)]]
            for n in range(ROUNDS)
            for key in keys
        ],
        dtype=torch.int64,
    )
    # [rounds, 2, rows, 1]: each round's two words for the rows
    bumps = schedule.view(ROUNDS, rows, 2).permute(0, 2, 1).unsqueeze(-1).to(device)
    multipliers = torch.tensor(_MULTIPLIERS, dtype=torch.int64).view(2, 1, 1).to(device)
    shape = torch.broadcast_shapes(*(word.shape for word in counter))
    shape = (rows, shape[-1])
    c0, c1, c2, c3 = (word.expand(shape) for word in counter)
    even, odd = torch.stack((c0, c2)), torch.stack((c1, c3))
    for number in range(ROUNDS):
        products = even * multipliers
        high = (products >> 32).bitwise_and_(WORD)
        low = products.bitwise_and_(WORD)
        even = high.flip(0).bitwise_xor_(odd).bitwise_xor_(bumps[number])
        odd = low.flip(0)
    return torch.stack((even[0], odd[0], even[1], odd[1]), dim=-1)


def exponentials(
    keys: Sequence[tuple[int, int]],
    positions: Sequence[int],
    choices: Sequence[int],
    size: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Independent draws of the unit exponential distribution, float32 of shape [rows, size].

    Column `j` of a row depends on its key, position, choice and `j` alone: a longer row begins
    with a shorter one's numbers. Small values, which decide who wins an exponential race, have
    all 32 bits of resolution.
    """
    blocks = torch.arange((size + 3) // 4, dtype=torch.int64, device=device).view(1, -1)
    rows = torch.tensor([positions, choices], dtype=torch.int64).bitwise_and_(WORD).to(device)
    domain = torch.full((1, 1), _DOMAIN, dtype=torch.int64, device=device)
    words = philox((blocks, rows[0].view(-1, 1), rows[1].view(-1, 1), domain), keys, device)
    return _exponential(words.view(len(keys), -1)[:, :size])


def exponentials_of(
    columns: torch.Tensor, key: tuple[int, int], position: int, choice: int
) -> torch.Tensor:
    """The same draws for some columns of one row, float32: those whose numbers `columns` holds."""
    fixed = [
        torch.tensor([[word & WORD]], dtype=torch.int64, device=columns.device)
        for word in (position, choice, _DOMAIN)
    ]
    blocks = (columns >> 2).view(1, -1)
    words = philox((blocks, fixed[0], fixed[1], fixed[2]), [key], columns.device)[0]
    return _exponential(words.gather(1, (columns & 3).unsqueeze(1)).squeeze(1))


def _exponential(words: torch.Tensor) -> torch.Tensor:
    # Midpoints of 2**32 intervals of (0, 1). The last ones would round to 1 and never end.
    uniform = words.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()
