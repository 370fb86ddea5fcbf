"""Durations, sizes and money as people write them, and back without loss.

Arithmetic is decimal and exact: a number stands for the digits that it was written with.
"""

from __future__ import annotations

import re
from decimal import Decimal

DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(us|ms|s|m|h|d)", re.ASCII)
SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(B|KB|MB|GB|KiB|MiB|GiB)", re.ASCII)

_SECONDS = {
    "d": Decimal(86_400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
}
_BYTES = {
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "B": 1,
}
_MICRO = Decimal(1_000_000)


class TooFine(ValueError):
    """A quantity with a fraction of its smallest unit."""


def seconds(written: object) -> float:
    """The seconds of a duration, "250ms" or a number. Raises ValueError when it is none."""
    if isinstance(written, str):
        found = DURATION.fullmatch(written)
        if found is None:
            raise ValueError("not a duration")
        return float(Decimal(found[1]) * _SECONDS[found[2]])
    return float(_number(written))


def write_seconds(value: float) -> str | float:
    """A duration in the largest unit in which it is a whole number; in seconds if in none, and as
    a bare number where that would take too many digits."""
    exact = Decimal(repr(float(value)))
    if not exact:
        return "0s"
    for unit, length in _SECONDS.items():
        count = exact / length
        if count == count.to_integral_value():
            return f"{int(count)}{unit}"
    written = f"{exact:f}s"
    return written if DURATION.fullmatch(written) else float(value)


def size(written: object) -> int:
    """The bytes of a size, "256KiB" or a number of bytes.

    Raises ValueError when it is none, TooFine when it is no whole number of bytes.
    """
    if isinstance(written, str):
        found = SIZE.fullmatch(written)
        if found is None:
            raise ValueError("not a size")
        return _whole(Decimal(found[1]) * _BYTES[found[2]], "bytes")
    return _whole(_number(written), "bytes")


def write_size(value: int) -> str | int:
    """A size in the largest binary unit in which it is a whole number."""
    for unit in ("GiB", "MiB", "KiB"):
        if value and value % _BYTES[unit] == 0:
            return f"{value // _BYTES[unit]}{unit}"
    return value


def microusd(usd: object) -> int:
    """The millionths of a US dollar of an amount in dollars, "12.50" or a number.

    Raises ValueError when it is no amount, TooFine when it is finer than a millionth.
    """
    if isinstance(usd, str):
        if not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", usd, re.ASCII):
            raise ValueError("not an amount")
        usd = Decimal(usd)
    return _whole(_number(usd) * _MICRO, "millionths of a dollar")


def write_usd(value: int) -> str:
    """Millionths of a US dollar as dollars, with two decimals or as many as it takes."""
    dollars, rest = divmod(value, 1_000_000)
    decimals = f"{rest:06d}".rstrip("0")
    return f"{dollars}.{decimals:0<2}"


def _number(written: object) -> Decimal:
    if isinstance(written, Decimal):
        return written
    if isinstance(written, bool) or not isinstance(written, int | float):
        raise ValueError("not a number")
    return Decimal(repr(written))


def _whole(value: Decimal, unit: str) -> int:
    if value != value.to_integral_value():
        raise TooFine(f"must be a whole number of {unit}")
    return int(value)
