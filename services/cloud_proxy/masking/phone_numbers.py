"""Finds telephone numbers: international ones, and national ones in the forms that give them away.

Digits alone are only taken for a number where they are a Chinese mobile's, or where a word such as
"tel" stands before them: all else may be an order, a year or an amount. Where a number belongs to
is not looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A run is read on as far as it goes, so that no text is looked at again and again.
_RUN = re.compile(r"[+(0-9][0-9 ().+/-]{6,}")

_FORMS = re.compile(
    r"""(?<![0-9$€£¥\#])(?<!(?<![0-9])0\.)  # an amount, an order's number, a fraction
    (?:
      # E.164, first in the two shapes that say where they end
      (?<![A-Za-z)]) (?: \+|00(?=86[ -]?1|1[ -]) ) (?:
          86[ -]?1[3-9][0-9](?:[ -]?[0-9]{4}){2}
        | 1[ .-]?\(?[2-9][0-9]{2}\)?[ .-]?[2-9][0-9]{2}[ .-]?[0-9]{4} )
    | (?<![A-Za-z)]) \+[1-9](?:[ ./()-]{0,2}[0-9]){7,14}
    | 00[1-9][0-9]{0,2}[ -]\(?[0-9]{1,4}\)?(?:[ /-]?[0-9]){5,9}
      # Chinese mobile
    | (?:86[ -]?|0)?1[3-9][0-9](?:[ -]?[0-9]{4}){2}
      # Chinese landline, with an extension
    | (?:\(0[1-9][0-9]{1,2}\)[ -]?|0[1-9][0-9]{1,2}-)[2-9][0-9]{6,7}(?:-[0-9]{1,6})?
      # North America
    | (?<![0-9]\.)(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[ .-][0-9]{4}
      # a trunk 0, an area and a number, whole or in groups
    | (?P<trunk> 0[1-9][0-9]{1,3}[ /-] (?:
          [0-9]{5,8} | [0-9]{3,4}[ -][0-9]{3,4} | [0-9]{2,3}(?:[ -][0-9]{2}){2,3} ) )
    | 0[1-9]-[0-9]{4}-[0-9]{4}
      # five pairs
    | (?<![0-9][ .-])0[1-9](?:[ .-][0-9]{2}){4}(?![ .-][0-9])
    )
    (?![0-9A-Za-z_])(?!\.[0-9])""",
    re.VERBOSE,
)
# With the 0. Opening hours have fewer and more.
_TRUNK_DIGITS = range(9, 12)
_ANY = re.compile(r"[+(]{0,2}[0-9](?:[ ./()-]{0,2}[0-9]){6,14}(?![0-9A-Za-z_])")

_BEFORE = 40
_NAMED = re.compile(
    r"""(?: (?<![A-Za-z])(?: (?:tele)?phone | tel | mobile | fax | whatsapp )
        | 电话 | 手机 | 座机 | 传真 | 联系方式 | 致电 | 拨打 )
    (?: [\s_]?(?:number|no\.?|nr\.?|is) | 号码? | [是为] ){0,2} [\s:：="',._-]{0,4} \Z""",
    re.VERBOSE | re.IGNORECASE,
)
# SN138…, ORD-138…: an identifier.
_IDENTIFIER = re.compile(r"(?:[A-Za-z_]|[A-Z]{2}[-/])\Z")


def find(text: str) -> Iterator[tuple[int, int]]:
    """See Detector."""
    for run in _RUN.finditer(text):
        start, stop = run.span()
        # What follows a number matters too.
        until = min(stop + 1, len(text))
        found = False
        for form in _FORMS.finditer(text, start, until):
            if _is_number(text, form):
                found = True
                yield form.span()
        digits = None if found else _ANY.match(text, start, until)
        if digits and _is_named(text, start):
            yield digits.span()


def _is_number(text: str, form: re.Match[str]) -> bool:
    """Whether what has the form is long enough, and no part of something else."""
    if form["trunk"] and sum(map(str.isdigit, form["trunk"])) not in _TRUNK_DIGITS:
        return False
    start = form.start()
    before = text[max(start - 3, 0) : start]
    return not _IDENTIFIER.search(before) or _is_named(text, start)


def _is_named(text: str, start: int) -> bool:
    """Whether a word before it says that a telephone number comes."""
    return _NAMED.search(text[max(start - _BEFORE, 0) : start]) is not None
