"""Finds keys and tokens whose form gives them away, our own among them.

A form is looked for by its fixed beginning. Passwords without one are not found, but for those in
an address (scheme://user:password@host).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.masking import LONGEST

_LONGEST = LONGEST[pb.PII_KIND_SECRET]


class _Form(NamedTuple):
    """`begin` is searched for; `whole` is matched there, and its group 1, if it has one, is the
    secret. `anywhere`: also within a word."""

    begin: str
    whole: re.Pattern[str]
    anywhere: bool = False


def _form(begin: str, rest: str, *, anywhere: bool = False) -> _Form:
    return _Form(begin, re.compile(re.escape(begin) + rest), anywhere)


_FORMS = (
    # OpenAI, Anthropic, DeepSeek, Moonshot and others; then Stripe. Without a digit: only words.
    _form("sk-", r"(?=[A-Za-z_-]{0,100}+[0-9])[A-Za-z0-9_-]{16,255}"),
    _form("sk_", r"(?=[A-Za-z_]{0,100}+[0-9])[A-Za-z0-9_]{16,255}"),
    _form("rk_", r"(?=[A-Za-z_]{0,100}+[0-9])[A-Za-z0-9_]{16,255}"),
    _form("whsec_", r"[A-Za-z0-9+/=]{16,255}"),
    # Ours: client secrets and API keys.
    _form("abs_", r"[A-Za-z0-9_-]{32,255}"),
    _form("abk_", r"[A-Za-z0-9_-]{16,255}"),
    # Amazon, Alibaba, Tencent, Google
    *(_form(p, r"[A-Z0-9]{16}(?![A-Za-z0-9])") for p in ("AKIA", "ASIA", "ABIA", "ACCA")),
    *(
        _form(name, r"""["']?\s{0,8}[:=]\s{0,8}["']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])""",
              anywhere=True)
        for name in ("secret_access_key", "SECRET_ACCESS_KEY", "SecretAccessKey")
    ),
    _form("LTAI", r"[A-Za-z0-9]{12,30}"),
    _form("AKID", r"[A-Za-z0-9]{32}"),
    _form("AIza", r"[A-Za-z0-9_-]{35}"),
    _form("GOCSPX-", r"[A-Za-z0-9_-]{20,64}"),
    _form("ya29.", r"[A-Za-z0-9_-]{20,255}"),
    # GitHub, GitLab, Slack, Hugging Face, npm, PyPI, SendGrid, Groq, xAI
    *(_form(f"gh{kind}_", r"[A-Za-z0-9]{36,255}") for kind in "pousr"),
    _form("github_pat_", r"[A-Za-z0-9_]{22,255}"),
    _form("glpat-", r"[A-Za-z0-9_-]{20,255}"),
    _form("xox", r"[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,255}"),
    _form("xapp-", r"[A-Za-z0-9-]{16,255}"),
    _form("hooks.slack.com/services/", r"[A-Za-z0-9/]{20,120}"),
    _form("hf_", r"[A-Za-z0-9]{30,64}"),
    _form("npm_", r"[A-Za-z0-9]{36}"),
    _form("pypi-", r"[A-Za-z0-9_-]{50,255}"),
    _form("SG.", r"[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
    _form("gsk_", r"[A-Za-z0-9]{32,128}"),
    _form("xai-", r"[A-Za-z0-9]{32,128}"),
    # The password of an address. No brackets: a placeholder is none.
    _form("://", r"""[^\s/@:"'\[\]<>{}]{0,64}:([^\s/@"'\[\]<>{}]{1,128})@""", anywhere=True),
)  # fmt: skip

# Most texts hold few of these characters, so few of the forms need to be searched for.
_BY_MARK = {
    mark: [form for form in _FORMS if (re.search("[_:-]", form.begin) or [""])[0] == mark]
    for mark in ("_", "-", ":", "")
}

# Signed and encrypted tokens: three or five parts, the first of them a JSON object.
_JWT_BEGIN = "eyJ"
_JWT = re.compile(
    r"eyJ[A-Za-z0-9_-]{10,16000}\.[A-Za-z0-9_-]{2,16000}(?:\.[A-Za-z0-9_-]{0,10000}){0,3}"
)
_JWT_PART = re.compile(r"[A-Za-z0-9_-]*")

_PEM_BEGIN = "-----BEGIN "
_PEM_HEAD = re.compile(r"-----BEGIN (?:[A-Z0-9]{2,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = "-----END "
_PEM_FOOT = re.compile(r"-----END [A-Z0-9 ]{0,64}-----")
# Of a block that is cut off: its lines, but not the words that follow.
_PEM_LINES = re.compile(r"(?:\s{0,4}+[A-Za-z0-9+/=]{24,}+)*+")


def find(text: str) -> Iterator[tuple[int, int]]:
    """See Detector; here one may also lie within another."""
    for mark, forms in _BY_MARK.items():
        if mark in text:
            for form in forms:
                yield from _of_form(text, form)
    yield from _jwts(text)
    yield from _private_keys(text)


def _of_form(text: str, form: _Form) -> Iterator[tuple[int, int]]:
    at = text.find(form.begin)
    while at >= 0:
        after = at + len(form.begin)
        if form.anywhere or at == 0 or not _is_alnum(text[at - 1]):
            found = form.whole.match(text, at)
            if found:
                after = found.end()
                yield found.span(found.lastindex or 0)
        at = text.find(form.begin, after)


def _jwts(text: str) -> Iterator[tuple[int, int]]:
    at = text.find(_JWT_BEGIN)
    while at >= 0:
        found = _JWT.match(text, at)
        if found:
            after = found.end()
            yield at, after
        else:
            # What begins later in this part ends where it ends, so it is none either.
            part = _JWT_PART.match(text, at)
            after = part.end() if part else at + 1
        at = text.find(_JWT_BEGIN, after)


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    at = text.find(_PEM_BEGIN)
    foot = -1
    while at >= 0:
        head = _PEM_HEAD.match(text, at)
        after = at + len(_PEM_BEGIN)
        if head:
            if foot < head.end():
                # Searched once: what is not there is not there for later blocks either.
                foot = text.find(_PEM_END, head.end())
                foot = len(text) if foot < 0 else foot
            after = _key_end(text, head, foot)
            yield at, after
        at = text.find(_PEM_BEGIN, after)


def _key_end(text: str, head: re.Match[str], foot: int) -> int:
    last = head.start() + _LONGEST
    found = _PEM_FOOT.match(text, foot, last)
    if found:
        return found.end()
    lines = _PEM_LINES.match(text, head.end(), last)
    return lines.end() if lines else head.end()


def _is_alnum(character: str) -> bool:
    return character.isascii() and character.isalnum()
