"""From a record to a page. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.auth import plan, targets
from bench.auth.issuance import HASH
from bench.auth.targets import Record


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines)


def target_rows(record: Record) -> list[list[str]]:
    """What was to be reached, heads first."""
    return [["target", "found", "asked", ""], *(t.row() for t in targets.targets(record))]


def page(record: Record, plot: str) -> str:
    """The whole page; `plot` is the picture's file name, empty for none."""
    return "\n".join(_lines(record, plot)) + "\n"


def _lines(record: Record, plot: str) -> Iterator[str]:
    where = record["circumstances"]["machine"]
    yield "# Authentication: what it costs, and how soon and how silently it refuses\n"
    yield "Made by `make bench-auth`; the figures are in the JSON file beside this page.\n"
    yield (
        f"{record['circumstances']['at']}, commit `{record['circumstances']['commit'][:12]}`. "
        f"{where['cores']} × {where['cpu']}, {where['memory_gib']} GiB, Linux {where['kernel']}, "
        f"load average before {where['load_average_before'][0]:.1f}.\n"
    )
    yield "Versions: " + ", ".join(f"{k} {v}" for k, v in record["versions"].items()) + ".\n"
    if record["plan"]["rounds"] == 1:
        yield "**One short round: this shows the order of things and proves nothing.**\n"
    yield markdown(target_rows(record)) + "\n"
    if plot:
        yield f"![What verifying costs, and how soon revocations hold]({plot})\n"
    for section, lines in (
        (plan.VERIFICATION, _verification),
        (plan.ISSUANCE, _issuance),
        (plan.ROTATION, _rotation),
        (plan.REVOCATION, _revocation),
        (plan.TIMING, _timing),
        (plan.QUOTAS, _quotas),
    ):
        if record.get(section):
            yield from lines(record)


def _verification(record: Record) -> Iterator[str]:
    yield "## Verifying a credential\n"
    yield markdown(targets.verification_rows(record)) + "\n"
    yield (
        f"Medians over the rounds ({record['plan']['rounds']}), the least and the greatest in "
        "brackets; ratios are taken within a round. *Cached* is a credential that the process has "
        "seen, *new* one that it has not; *bare* is `jwt.decode` of PyJWT alone, with the "
        "options that the verifier gives it, on the same tokens. The last two rows are an RPC that "
        "does nothing, 16 at once, caller and server in one process: what they differ by is the "
        "guard with a cached credential, without its line in the log.\n"
    )


def _issuance(record: Record) -> Iterator[str]:
    yield "## Tokens of one core\n"
    yield markdown(targets.issuance_rows(record)) + "\n"
    size = record["plan"]
    yield (
        "The auth service as it is started in production, with SQLite, its audit trail and its "
        f"logs, kept on one core; callers on another one, {size['in_flight']} at once, over gRPC. "
        f"*Repeated logins* are {size['clients']} clients that have logged in before: the service "
        "remembers which secret belongs to which hash. *First logins* are clients new to the "
        f"process, of which each is a hash: {HASH}. *API keys* are exchanged for tokens. The bare "
        "rows are the signature of one JWT by PyJWT and one such hash, without a service around "
        "them: the core does no more of them a second. *Core* is the share of it that the service "
        "had: below 100 %, others were in the way, or the callers too slow.\n"
    )


def _rotation(record: Record) -> Iterator[str]:
    found = record[plan.ROTATION]
    failures = ", ".join(f"{count} × {what}" for what, count in found["failures"].items())
    yield "## Rotating signing keys\n"
    yield (
        f"{found['rotations']} rotations in {found['seconds']:.0f} s, each published "
        f"{record['plan']['publish_ahead'] * 1e3:g} ms before it signs, where the service's "
        f"settings ask for two minutes; {found['keys_that_signed']} keys signed. Meanwhile "
        f"{record['plan']['rotation_callers']} callers logged in, and a verifier in another "
        f"process checked each new token and, every time, an earlier one: "
        f"{found['calls']:,} calls, of which failed: {failures or 'none'}.\n"
    )


def _revocation(record: Record) -> Iterator[str]:
    yield "## Revocations\n"
    yield markdown(targets.revocation_rows(record)) + "\n"
    yield (
        "From before the revocation is asked for until a verifier in another process refuses the "
        "credential, which it looks at every millisecond. Two replicas of auth share the database; "
        "the revocation is always asked of the first. They come at random moments, "
        f"{record['plan']['revocations_a_second']:g} a second in the mean.\n"
    )


def _timing(record: Record) -> Iterator[str]:
    yield "## What the time of a refusal tells\n"
    yield markdown(targets.timing_rows(record)) + "\n"
    yield (
        "Half of the requests name what exists, with a wrong secret; the other half what does not. "
        "They come in random order from another process, which measures the time to the refusal. "
        "Welch's t compares the two halves, over everything and over what lies below each of a "
        "hundred percentiles, as dudect does (Reparaz, Balasch and Verbauwhede, *Dude, is my code "
        f"constant time?*, DATE 2017); the largest is held against {plan.T_LIMIT:g}, the criterion "
        "of test vector leakage assessment. *Detectable* is the difference of the means that would "
        "have reached it over everything. The *busy* service has more to do than one core can, so "
        "that refusals are later than they are due; the *calm* one refuses when they are.\n"
    )


def _quotas(record: Record) -> Iterator[str]:
    load = record[plan.QUOTAS]["load"]
    yield "## Quotas that processes share\n"
    yield markdown(targets.quota_rows(record)) + "\n"
    yield (
        f"{load['processes']} processes offer {load['offered']:,.0f} requests a second together, "
        f"three times of what their quota of {load['limit']:,} in {load['period']} s allows, for "
        f"{load['seconds']:g} s.\n"
    )
