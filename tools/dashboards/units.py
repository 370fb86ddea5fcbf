"""Numbers as a dashboard's reader sees them, by Grafana's names of units. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Callable

_SI = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def text(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit; `decimals` None chooses as many as are of use."""
    if not math.isfinite(value):
        return "–"
    if unit == "percentunit":
        return f"{_number(value * 100, decimals)} %"
    if unit == "s":
        return _seconds(value, decimals)
    if unit == "bytes":
        return _scaled(value, _BINARY, "B", decimals)
    if unit == "currencyUSD":
        return f"${value:,.{2 if decimals is None else decimals}f}"
    short = _short(value, decimals)
    if unit.startswith("suffix:"):
        return f"{short} {unit.removeprefix('suffix:').strip()}"
    return f"{short}{_AFTER.get(unit, '')}"


_AFTER = {"reqps": " req/s", "ops": " /s"}


def axis(unit: str) -> Callable[[float, int], str]:
    """For the marks of an axis."""
    return lambda value, _: text(value, unit)


def _number(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _short(value: float, decimals: int | None) -> str:
    for size, letter in _SI:
        if abs(value) >= size:
            return f"{_number(value / size, decimals)}{letter}"
    return _number(value, decimals)


def _scaled(
    value: float, sizes: tuple[tuple[int, str], ...], least: str, decimals: int | None
) -> str:
    for size, name in sizes:
        if abs(value) >= size:
            return f"{_number(value / size, decimals)} {name}"
    return f"{_number(value, decimals)} {least}"


def _seconds(value: float, decimals: int | None) -> str:
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(value) >= 2 * size:
            return f"{_number(value / size, decimals)} {name}"
    if value == 0 or abs(value) >= 1:
        return f"{_number(value, decimals)} s"
    return f"{_number(value * 1000, None)} ms"
