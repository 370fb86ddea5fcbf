"""Logging as one JSON object a line, with the request's and trace's ids, and credentials removed.

It configures the standard library's logging; callers keep using `logging.getLogger(__name__)` and
`extra={...}`. It neither rotates nor ships logs: the platform does.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
from opentelemetry import trace

from services.chassis.setting_values import Secret

request_id: ContextVar[str] = ContextVar("anabranch_request_id", default="")
"""The id of the request that the current task works for; empty outside requests."""

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_HIDDEN = "***"
_LONGEST = 16 * 1024  # characters of one string; a longer one is cut, not dropped
_DEEPEST = 6
# Each pattern starts where no letter or digit stands before it, so that a credential glued to
# punctuation, an escape or a line break is found as well.
_CREDENTIALS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)(?<![a-z0-9])(bearer|basic)(\s+|%20)[\w.~+/=-]{6,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{6,}(?:\.[\w-]*){0,4}"), _HIDDEN),
    # The prefixes of providers' keys (sk-…, sk_…), of our API keys and of our client secrets.
    (re.compile(r"(?<![A-Za-z0-9])(sk|abk|abs|acs)([-_])[\w-]{8,}"), rf"\1\2{_HIDDEN}"),
    (re.compile(r"(?<![A-Za-z0-9])AIza[\w-]{20,}"), _HIDDEN),
    (
        re.compile(
            r"(?i)((?:client[_-]?secret|client[_-]?assertion|api[_-]?key|password|passwd|"
            r"(?:access|refresh|id|consul)[_-]?token|authorization|x-consul-token|pepper)"
            r"""\\?["']?\s*[=:]\s*\\?["']?)(?!\s*(?:bearer|basic)\b)[^\s"'&,;)}\]\\]+"""
        ),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"), _HIDDEN),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.S),
        _HIDDEN,
    ),
)
_SECRET_NAME = re.compile(
    r"(?i)(?:.*[_.-])?(?:secret|password|passwd|authorization|api[_-]?key|token|pepper|"
    r"cookie|credentials?|private[_-]?key)"
)
# One line per scrape and per connection says nothing that metrics do not; those of hpack show every
# header, and those of botocore what it signs and with which session's token: credentials in forms
# that no pattern knows.
_CHATTY = (
    "aiohttp.access",
    "asyncio",
    "botocore",
    "consul",
    "urllib3",
    "sqlalchemy",
    "aiosqlite",
    "hpack",
    "h2",
)
# What every LogRecord carries; anything else arrived through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """`text` without anything that looks like a credential."""
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text


def configure(
    service: str, level: str, stream: TextIO = sys.stderr, *, worker: int | None = None
) -> None:
    """Sends all logging of this process to `stream`, replacing what was configured before.

    `worker` is the process's index where several of them are one service.
    Raises ValueError on an unknown level.
    """
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter(service, worker))
    root = logging.getLogger()
    root.setLevel(_number(level))
    root.handlers[:] = [handler]
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def set_level(level: str) -> str:
    """Changes the least severe level that is logged and returns the previous one.

    Raises ValueError on an unknown level.
    """
    number, previous = _number(level), current_level()
    logging.getLogger().setLevel(number)
    return previous


def current_level() -> str:
    """The least severe level that is logged; of one that is none of ours, `warning`."""
    number = logging.getLogger().level
    return next((name for name, known in LEVELS.items() if known == number), "warning")


def _number(level: str) -> int:
    if level not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}, not {level!r}")
    return LEVELS[level]


class JsonFormatter(logging.Formatter):
    """One JSON object per record: ts, level, logger, message, service, ids, extras, exception."""

    def __init__(self, service: str, worker: int | None = None) -> None:
        super().__init__()
        self._own: dict[str, Any] = {"service": service}
        if worker is not None:
            self._own["worker"] = worker

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "ts": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **self._own,
        }
        if current := request_id.get():
            line["request_id"] = _clean(current)
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = trace.format_trace_id(span.trace_id)
            line["span_id"] = trace.format_span_id(span.span_id)
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in line:
                line[str(name)] = _clean_item(str(name), value)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _text("".join(traceback.format_exception(*record.exc_info)))
        if record.stack_info:
            line["stack"] = _text(record.stack_info)
        return orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode()


class _Handler(logging.StreamHandler[TextIO]):
    """Reports a record that cannot be formatted without printing its arguments."""

    def handleError(self, record: logging.LogRecord) -> None:
        failed = sys.exc_info()[0]
        if failed is not None and issubclass(failed, OSError):
            return  # nowhere left to say it
        safe = logging.makeLogRecord(
            {
                "name": record.name,
                "levelno": record.levelno,
                "levelname": record.levelname,
                "created": record.created,
                "msg": f"a log record of {record.filename}:{record.lineno} could not be formatted",
            }
        )
        self.stream.write(self.format(safe) + self.terminator)
        self.flush()


def _clean_item(name: str, value: Any) -> Any:
    if value is not None and _SECRET_NAME.fullmatch(name):
        return _HIDDEN
    return _clean(value)


def _clean(value: Any, depth: int = 0) -> Any:
    """A JSON-ready copy of `value` without credentials; what JSON lacks becomes its text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, Secret):
        return _HIDDEN
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {
                str(k): _HIDDEN if _SECRET_NAME.fullmatch(str(k)) else _clean(v, depth + 1)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(item, depth + 1) for item in value]
    return _text(str(value))


def _text(text: str) -> str:
    # Cut only after redaction, which may need the end of a credential to see it.
    # orjson refuses lone surrogates, which arrive in undecodable input.
    text = redact(text[: 4 * _LONGEST]).encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
