r"""A text as detectors see it: full-width letters and odd dashes as ASCII, escapes as gaps.

Character for character as long as the original, so that a place in one is the same place in the
other. It finds nothing by itself.
"""

from __future__ import annotations

import re

GAP = "\n"
"""What no entity on one line holds."""

# Wide letters, digits and @, and what may stand beside a digit: other wide signs are the usual
# punctuation of Chinese, and not worth a copy of the text.
_HIDING = re.compile(
    "[\uff10-\uff19\uff20-\uff3a\uff41-\uff5a]"
    "|[0-9][\u00a0\u2000-\u200a\u2010-\u2015\u202f\u2212\u3000\uff01-\uff5e]"
    "|[\uff08\uff0b][0-9]"
)
_FOLDED: dict[int, int | str] = {
    **{wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)},
    **dict.fromkeys((0x00A0, *range(0x2000, 0x200B), 0x202F, 0x3000), " "),
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-"),
}
# Of JSON and most programming languages. "\n138…" must not read as a letter before the number.
_ESCAPE = re.compile(r"""\\[nrtbf"'\\]""")
_LONG_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{4}")


def folded(text: str) -> str:
    """The text, equally long, without what hides an entity's form."""
    if not text.isascii() and _HIDING.search(text):
        text = text.translate(_FOLDED)
    if "\\" in text:
        text = _ESCAPE.sub(GAP * 2, _LONG_ESCAPE.sub(GAP * 6, text))
    return text
