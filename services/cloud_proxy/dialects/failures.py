"""What refusals mean, by status and by the words of the known providers, for every dialect."""

from __future__ import annotations

import re

from services.cloud_proxy.answer import FailureKind, ProviderFailure

_TOO_LONG = re.compile(
    r"context_length|string_above_max_length|context_window|request_too_large", re.ASCII
)
# DeepSeek, vLLM, Anthropic, Gemini and Bedrock say it in words only, under a general code.
_TOO_LONG_WORDS = re.compile(
    r"maximum context length|prompt is too long|exceeds the maximum number of tokens"
    r"|input is too long|context window",
    re.ASCII | re.IGNORECASE,
)
_NO_CREDIT = re.compile(
    r"insufficient_quota|insufficient_balance|exceeded_current_quota|billing|spend_limit|Arrearage",
    re.ASCII,
)
# Zhipu says it with status 429, under a bare number.
_NO_CREDIT_WORDS = re.compile(
    r"credit balance is too low|insufficient balance|余额不足|specified api usage limits",
    re.IGNORECASE,
)
_MESSAGE_LENGTH = 300
_CODE_LENGTH = 128

_PUBLIC = {
    FailureKind.BUSY: "the provider is limiting us",
    FailureKind.FAILED: "the provider failed",
    FailureKind.REFUSED_KEY: "the provider refuses our credential",
    FailureKind.NO_CREDIT: "the provider account has no credit left",
    FailureKind.MISCONFIGURED: "the provider does not know this address or model",
}
_REFUSED = "the provider refused the request"
_CAUSES = {FailureKind.REFUSED_REQUEST: _REFUSED, FailureKind.TOO_LONG: "the prompt is too long"}


def refusal(status: int, *, message: str = "", code: str = "", field: str = "") -> ProviderFailure:
    """The failure for a response with an error status.

    Only what is wrong with the request concerns its caller. Other texts speak of our account, and
    some quote the key, so they are replaced.
    """
    message = message or _REFUSED
    code = code.strip()[:_CODE_LENGTH]
    kind = _kind(status, code, message)
    if kind not in (FailureKind.REFUSED_REQUEST, FailureKind.TOO_LONG):
        message = _PUBLIC[kind]
    return ProviderFailure(
        kind,
        printable(message),
        http_status=status,
        code=code if code.isprintable() else "",
        field=printable(field)[:_CODE_LENGTH],
        cause=_CAUSES.get(kind, ""),
    )


def in_band(*, status: int | None = None, code: str = "", busy: bool = False) -> ProviderFailure:
    """An error that came inside a response with status 200."""
    code = code[:64]
    busy = busy or status == 429 or "rate_limit" in code
    return ProviderFailure(
        FailureKind.BUSY if busy else FailureKind.FAILED,
        "the provider failed while answering",
        http_status=status,
        code=code if code.isprintable() else "",
    )


def printable(text: str) -> str:
    """A provider's words, cut and without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_MESSAGE_LENGTH])


def _kind(status: int, code: str, message: str) -> FailureKind:
    if status in (401, 403):
        return FailureKind.REFUSED_KEY
    if status == 402 or _NO_CREDIT.search(code):
        return FailureKind.NO_CREDIT
    if status in (400, 429) and _NO_CREDIT_WORDS.search(message):
        return FailureKind.NO_CREDIT
    if _TOO_LONG.search(code) or (status == 400 and _TOO_LONG_WORDS.search(message)):
        return FailureKind.TOO_LONG
    if status == 429:
        return FailureKind.BUSY
    if status in (400, 413, 422):
        return FailureKind.REFUSED_REQUEST
    if status in (408, 409, 425) or status >= 500:
        return FailureKind.FAILED
    return FailureKind.MISCONFIGURED
