"""What was to be reached, what a record says was found, and whether it was. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.auth import plan, quotas
from bench.auth.issuance import EXCHANGE, FIRST, HASHING, REPEATED, SIGNING
from bench.auth.issuer import ALGORITHMS
from bench.dataplane.meter import percentile

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure over the rounds (or the one of the whole run) and its bound."""

    title: str
    values: tuple[float, ...]
    limit: float
    digits: int = 0
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the median keeps the bound."""
        middle = statistics.median(self.values)
        return middle >= self.limit if self.at_least else middle <= self.limit

    def row(self) -> list[str]:
        """As a row of the table."""
        sign = "≥" if self.at_least else "≤"
        bound = f"{sign} {self.limit:,.{self.digits}f}"
        verdict = "met" if self.met else "**missed**"
        return [self.title, spread(self.values, self.digits), bound, verdict]


def spread(values: Iterable[float], digits: int = 1) -> str:
    """ "median (least to greatest)", the median alone of one value, "-" without any."""
    found = sorted(values)
    if not found:
        return "-"
    middle = f"{statistics.median(found):,.{digits}f}"
    if len(found) == 1:
        return middle
    return f"{middle} ({found[0]:,.{digits}f} to {found[-1]:,.{digits}f})"


def of_rounds(record: Record, section: str, name: str, key: str) -> tuple[float, ...]:
    """A figure in each round; empty when the section was not measured."""
    return tuple(look[name][key] for look in record.get(section, ()))


def ratios(record: Record, section: str, name: str, bare: str, key: str) -> tuple[float, ...]:
    """A figure by that of its baseline, within each round."""
    pairs = zip(
        of_rounds(record, section, name, key), of_rounds(record, section, bare, key), strict=True
    )
    return tuple(mine / other for mine, other in pairs)


def delays(record: Record, database: str) -> Iterator[tuple[str, str, list[float]]]:
    """What was revoked, whom the verifier follows, and the sorted seconds until it refused."""
    for kind, by_replica in record[plan.REVOCATION][database].items():
        for followed, seconds in by_replica.items():
            yield kind, followed, sorted(seconds)


def targets(record: Record) -> list[Target]:
    """Those of the sections that were measured."""
    return [target for target in _all(record) if target.values]


def _all(record: Record) -> Iterator[Target]:
    for name, limit in (
        ("cached token", plan.CACHED_US),
        ("cached API key", plan.CACHED_US),
        *((f"new {algorithm}", plan.NEW_US) for algorithm in ALGORITHMS),
    ):
        for key, unit in (("cpu_us", "µs CPU"), ("wall_us", "µs")):
            values = of_rounds(record, plan.VERIFICATION, name, key)
            yield Target(f"{unit} to verify, {name}", values, limit, 1)
    rates = of_rounds(record, plan.ISSUANCE, REPEATED, "a_second")
    title = f"tokens a second of one core, {REPEATED}"
    yield Target(title, rates, plan.TOKENS_A_SECOND, at_least=True)
    rotated = record.get(plan.ROTATION)
    if rotated:
        title = f"failed calls of {rotated['calls']:,} during {rotated['rotations']} rotations"
        yield Target(title, (sum(rotated["failures"].values()),), 0)
    for database in record.get(plan.REVOCATION, {}):
        for kind, followed, seconds in delays(record, database):
            title = f"s until a revoked {kind} is refused, p99, {followed}, {database}"
            yield Target(title, (percentile(seconds, 99),), plan.REVOKED_P99_S, 3)
    for name, found in record.get(plan.TIMING, {}).items():
        title = f"largest \\|t\\| of refusals, {name}, {sum(found['samples']):,} samples"
        yield Target(title, (abs(found["worst_t"]),), plan.T_LIMIT, 2)
    for scene in record.get(plan.QUOTAS, {}).get("scenes", ()):
        up = scene["scene"] == quotas.WITH_REDIS
        limit = plan.OVERSHOOT_PERCENT if up else plan.OVERSHOOT_ALONE_PERCENT
        title = f"% beyond a quota, Redis: {scene['scene']}"
        yield Target(title, (scene["overshoot_percent"],), limit, 2)


def verification_rows(record: Record) -> list[list[str]]:
    """What each way of verifying costs; beside its baseline, where it has one."""
    rows = [["", "µs CPU", "µs", "÷ baseline"]]
    baselines = {f"new {algorithm}": f"bare {algorithm}" for algorithm in ALGORITHMS}
    baselines["RPC with guard"] = "RPC without guard"
    section = plan.VERIFICATION
    for name in record[section][0]:
        bare = baselines.get(name)
        share = ratios(record, section, name, bare, "cpu_us") if bare else ()
        cpu = spread(of_rounds(record, section, name, "cpu_us"))
        wall = spread(of_rounds(record, section, name, "wall_us"))
        rows.append([name, cpu, wall, spread(share, 2)])
    return rows


def issuance_rows(record: Record) -> list[list[str]]:
    """What one core issues, and the bare work in it."""
    rows = [["", "a second", "µs CPU", "p50 ms", "p99 ms", "core", "CPU ÷ baseline"]]
    baselines = {REPEATED: SIGNING, EXCHANGE: SIGNING, FIRST: HASHING}
    section = plan.ISSUANCE
    for name, figures in record[section][0].items():
        keys: Sequence[tuple[str, int]] = (
            ("a_second", 0), ("cpu_us", 0), ("p50_ms", 1), ("p99_ms", 1)
        )  # fmt: skip
        row = [
            spread(of_rounds(record, section, name, key), digits) if key in figures else "-"
            for key, digits in keys
        ]
        bare = baselines.get(name)
        share = ratios(record, section, name, bare, "cpu_us") if bare else ()
        rows.append([name, *row, _busy(record, name), spread(share, 1)])
    return rows


def _busy(record: Record, name: str) -> str:
    """The share of the core that the service had, or could use."""
    looks = [look[name] for look in record[plan.ISSUANCE]]
    if "service_cores" not in looks[0]:
        return "-"
    return f"{100 * statistics.median(look['service_cores'] for look in looks):.0f} %"


def revocation_rows(record: Record) -> list[list[str]]:
    """Seconds until a revocation holds."""
    rows = [["revoked", "verifier follows", "database", "revocations", "p50 s", "p99 s", "max s"]]
    for database in record[plan.REVOCATION]:
        for kind, followed, seconds in delays(record, database):
            figures = (percentile(seconds, 50), percentile(seconds, 99), seconds[-1])
            counted = f"{len(seconds):,}"
            rows.append([kind, followed, database, counted, *(f"{s:.3f}" for s in figures)])
    return rows


def timing_rows(record: Record) -> list[list[str]]:
    """What response times tell of what exists."""
    rows = [
        ["refused", "samples", "t of all", "largest t", "of the fastest", "p50 ms, exists",
         "p50 ms, does not", "detectable ms", "a second", "service's core"],
    ]  # fmt: skip
    for name, found in record[plan.TIMING].items():
        exists, does_not = (f"{us / 1e3:.3f}" for us in found["p50_us"])
        rows.append(
            [
                name,
                f"{sum(found['samples']):,}",
                f"{found['t']:.2f}",
                f"{found['worst_t']:.2f}",
                f"{100 * found['kept']:.1f} %",
                exists,
                does_not,
                f"{found['detectable'] / 1e3:.3f}",
                f"{found['a_second']:,.0f}",
                f"{100 * found['service_cores']:.0f} %",
            ]
        )
    return rows


def quota_rows(record: Record) -> list[list[str]]:
    """How far a quota was exceeded in each scene."""
    rows = [["Redis", "offered", "admitted", "allowed", "% beyond", "% beyond, worst window"]]
    for scene in record[plan.QUOTAS]["scenes"]:
        rows.append(
            [
                scene["scene"],
                *(f"{scene[key]:,.0f}" for key in ("offered", "admitted", "allowed")),
                f"{scene['overshoot_percent']:.2f}",
                f"{scene['worst_window_overshoot_percent']:.2f}",
            ]
        )
    return rows
