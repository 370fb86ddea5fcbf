"""Lengths of prompts and answers as published traces have them: percentiles, and nothing else.

Azure's traces are those of 2023 (conversation and code), Mooncake's that of FAST'25. Lengths are
in tokens.
"""

from __future__ import annotations

AT = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.9)
"""The percentiles of every row below."""

CONVERSATION_INPUT = (
    *(29, 181, 207, 387, 403, 703, 1020, 1071, 1130, 1315),
    *(2734, 4083, 4142, 6179),
)
CONVERSATION_OUTPUT = (16, 41, 54, 77, 91, 103, 129, 177, 384, 400, 424, 451, 601, 954)

CODE_INPUT = (17, 75, 147, 385, 770, 1075, 1469, 1909, 2433, 3192, 5187, 7303, 7436, 7437)
CODE_OUTPUT = (6, 6, 7, 8, 9, 11, 13, 16, 20, 29, 55, 90, 251, 825)

MOONCAKE_INPUT = (
    *(894, 901, 964, 1662, 3263, 4993, 6909, 9570, 13196, 17869),
    *(27367, 39550, 85400, 121300),
)
MOONCAKE_OUTPUT = (3, 10, 24, 100, 213, 291, 350, 399, 447, 504, 597, 698, 1118, 2000)

BAND_EDGES = (500, 1000, 1300, 3000)
"""Tokens of input that part Azure conversation's bands of output; a fifth lies above."""

BAND_AT = (25, 50, 75, 95)
BAND_OUTPUT = (
    (83, 98, 134, 217),
    (94, 383, 411, 475),
    (393, 405, 427, 553),
    (74, 107, 157, 240),
    (42, 57, 84, 154),
)
"""Percentiles of the output in each band of input."""

BAND_ENDS = ((1, 16.0, None), (5, 0.5, 0), (99, 1.2, 3), (99.9, 1.9, 3))
"""What is not published of them, so chosen that all bands together match CONVERSATION_OUTPUT:
percentile, and a factor of the band's value of that number (None: tokens)."""

MOONCAKE_BLOCK = 512
"""Tokens of a block of Mooncake's trace, by which it tells prefixes that are alike."""

MOONCAKE_HIT = 0.366
"""Which share of blocks a cache without end would hold already."""

CONVERSATION_CV = 1.09
CODE_CV = 13.2
"""Coefficients of variation of the times between arrivals."""

MINUTE_PEAK = 1.52
"""Conversation's busiest minute over its mean one."""
