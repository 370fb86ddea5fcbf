"""`anabranch audit`: verifies the files of audit trails, and shows what is in them.

Needs no cluster and asks no service. The command line finds this through the entry point in
pyproject.toml.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from anabranch.cli.connection import EXIT_REFUSED
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json, print_table
from services.chassis.audit.audit_key import KeyFileError, read_public_key
from services.chassis.audit.entry import CONTENT, CONTENT_FIELD, ChainedEntry
from services.chassis.audit.head import Head, key_id, parse_head
from services.chassis.audit.reading import Wanted, entries_in, follow, verify_path
from services.chassis.audit.verify import Report
from services.chassis.encryption.envelope import Envelope
from services.chassis.encryption.errors import EncryptionError
from services.chassis.encryption.keychain import Keychain

_FOLLOW_S = 0.5
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)}, " ")


class _Moment(click.ParamType[float]):
    """A time as ISO 8601 (UTC without a zone), or as a duration before now: 30m, 2h, 7d."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        ago = re.fullmatch(r"(\d{1,6})([smhd])", value)
        if ago:
            return time.time() - int(ago[1]) * _UNITS[ago[2]]
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time such as 2026-07-01, 2026-07-01T12:00Z or 2h", param)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@click.group()
def audit() -> None:
    """Verify audit trails and read them.

    \b
    Examples:
      anabranch audit verify /var/lib/anabranch/audit --public-key audit.key.pub
      anabranch audit show /var/lib/anabranch/audit --since 24h --action router.

    Works on files; needs no cluster. A trail is a chain of hashes with signed heads:
    docs/security.md says what that shows and what it cannot.
    """


@audit.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), metavar="DIRECTORY_OR_FILE")
@click.option("--trail", metavar="ID", help="Only this trail of the directory.")
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    metavar="FILE|HEX",
    help="Whose heads are believed, from a place that the trail's host cannot write; repeatable.",
)
@click.option(
    "--head",
    "head_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Signed heads that were kept elsewhere: they show what was cut off since; repeatable.",
)
@json_option
def verify(
    path: Path,
    trail: str | None,
    public_keys: tuple[str, ...],
    head_files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Look for whatever was altered, removed, added, moved or cut off. Exit code 4 when there is
    anything.

    A FILE must hold a whole trail, as exported from a database or a collector; heads are looked
    for beside it. Without --public-key whoever signed is believed.

    \b
    Examples:
      anabranch audit verify /var/lib/anabranch/audit
      anabranch audit verify /var/lib/anabranch/audit --trail router-1 --public-key audit.key.pub
      anabranch audit verify export.jsonl --head heads-of-june.jsonl --json
    """
    keys = [_key(text) for text in public_keys]
    kept = [head for file in head_files for head in _heads(file)]
    reports = verify_path(path, trail=trail, public_keys=keys, kept=kept)
    found = any(not report.intact for report in reports)
    if as_json:
        print_json([_described(report) for report in reports])
    else:
        _print_reports(reports, pinned=bool(keys))
    if found or not reports:
        raise SystemExit(EXIT_REFUSED)


@audit.command()
@click.argument(
    "directory", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIRECTORY"
)
@click.option("--since", type=_Moment(), metavar="TIME", help="Not older: 2026-07-01, or 2h.")
@click.option("--until", type=_Moment(), metavar="TIME", help="Not newer.")
@click.option("--client", default="", metavar="ID", help="Only what this client did.")
@click.option(
    "--action", default="", metavar="NAME", help="Only this; with a dot at its end, all below it."
)
@click.option("--tenant", default="", metavar="NAME", help="Only what concerns this tenant.")
@click.option("--trail", default="", metavar="ID", help="Only this trail.")
@click.option("--follow", "follows", is_flag=True, help="Go on with what is written from now on.")
@json_option
def show(directory: Path, follows: bool, as_json: bool, **wanted: Any) -> None:
    """Print entries, the oldest first. It verifies nothing.

    \b
    Examples:
      anabranch audit show /var/lib/anabranch/audit --since 24h
      anabranch audit show /var/lib/anabranch/audit --action router. --client admin
      anabranch audit show /var/lib/anabranch/audit --follow --json | jq .entry.target
    """
    chosen = Wanted(**wanted)
    if follows:
        for chained in follow(directory, chosen, lambda: time.sleep(_FOLLOW_S)):
            click.echo(_as_line(chained) if as_json else "  ".join(_row(chained)))
        return
    found = entries_in(directory, chosen)
    if as_json:
        for chained in found:
            click.echo(_as_line(chained))
        return
    print_table(
        ("TIME", "TRAIL", "NO.", "CLIENT", "TENANT", "ACTION", "TARGET", "DONE", "DETAILS"),
        map(_row, found),
        "There is no such entry.",
    )


@audit.command()
@click.argument(
    "directory", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIRECTORY"
)
@click.argument("request_id", metavar="REQUEST_ID")
@click.option(
    "--keychain",
    "keys",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The keychain that the service which wrote the trail was given.",
)
def content(directory: Path, request_id: str, keys: Path) -> None:
    """Open the sealed prompt and answer of a request, for a tenant that has them written down.

    \b
    Example:
      anabranch audit content /var/lib/anabranch/audit 3f2a… --keychain keys.json
    """
    try:
        envelope = Envelope(Keychain.read(keys))
        sealed = [
            (chained.entry.act.tenant, chained.entry.act.details[CONTENT])
            for chained in entries_in(directory, Wanted())
            if chained.entry.act.details.get("request_id") == request_id
            and CONTENT in chained.entry.act.details
        ]
        if not sealed:
            click.secho("No content of such a request is in the trail.", err=True, fg="red")
            raise SystemExit(EXIT_REFUSED)
        for tenant, text in sealed:
            raw = base64.b64decode(str(text), validate=True)
            plain = envelope.open(raw, tenant=tenant, field=CONTENT_FIELD)
            # As JSON: what somebody wrote there must not steer the terminal.
            click.echo(json.dumps(json.loads(plain), indent=2))
    except (EncryptionError, ValueError) as refused:
        click.secho(f"It cannot be opened: {refused}", err=True, fg="red")
        raise SystemExit(EXIT_REFUSED) from None


def _key(text: str) -> bytes:
    try:
        return read_public_key(text)
    except OSError as exc:
        raise click.UsageError(f"--public-key {text}: {exc.strerror}") from exc
    except KeyFileError as exc:
        raise click.UsageError(str(exc)) from exc


def _heads(path: Path) -> list[Head]:
    try:
        return [parse_head(line) for line in path.read_bytes().splitlines(keepends=True)]
    except ValueError as exc:
        raise click.UsageError(f"{path} does not hold signed heads: {exc}") from exc


def _print_reports(reports: Iterable[Report], *, pinned: bool) -> None:
    reports = list(reports)
    print_table(
        ("TRAIL", "ENTRIES", "FROM", "TO", "SIGNED TO", "KEY", "VERDICT"),
        (
            (
                _safe(report.trail) or "-",
                str(report.entries),
                str(report.first),
                str(report.last),
                str(report.signed),
                key_id(report.key) if report.key else "-",
                "intact" if report.intact else f"{_count(report)} found",
            )
            for report in reports
        ),
        "There is no audit trail.",
    )
    for report in reports:
        for first, last in report.absent:
            click.secho(
                f"{_safe(report.trail)}: {first} to {last} are not here, as the trail itself says",
                err=True,
                dim=True,
            )
        for finding in report.findings:
            at = "" if finding.sequence is None else f" {finding.sequence}"
            click.echo(f"{_safe(report.trail)}{at}: {finding.kind}: {_safe(finding.text)}")
        if report.further:
            click.echo(f"{_safe(report.trail)}: and {report.further} more")
    if reports and not pinned:
        click.secho(
            "The heads prove nothing about who signed them without --public-key.",
            err=True,
            dim=True,
        )


def _count(report: Report) -> int:
    return len(report.findings) + report.further


def _described(report: Report) -> dict[str, Any]:
    return {
        "trail": report.trail,
        "intact": report.intact,
        "entries": report.entries,
        "first": report.first,
        "last": report.last,
        "signed": report.signed,
        "public_key": report.key.hex(),
        "absent": [list(pair) for pair in report.absent],
        "findings": [
            {"kind": str(f.kind), "sequence": f.sequence, "text": f.text} for f in report.findings
        ],
        "further_findings": report.further,
    }


def _as_line(chained: ChainedEntry) -> str:
    return chained.line().decode().removesuffix("\n")


def _row(chained: ChainedEntry) -> tuple[str, ...]:
    entry, act = chained.entry, chained.entry.act
    details = dict(act.details)
    phase = details.pop("phase", "")
    if CONTENT in details:
        details[CONTENT] = "(sealed)"
    done = "…" if phase == "begun" else "yes" if act.succeeded else "no"
    cells = (
        _written(entry.time_us),
        entry.trail,
        str(entry.sequence),
        act.client_id or "-",
        act.tenant or "-",
        act.action,
        act.target or "-",
        done,
        " ".join(f"{name}={json.dumps(value)}" for name, value in details.items()),
    )
    return tuple(map(_safe, cells))


def _written(time_us: int) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    except OverflowError:
        return str(time_us)
    return moment.isoformat(" ", "milliseconds").removesuffix("+00:00") + "Z"


def _safe(text: str) -> str:
    """A trail's texts must not steer the terminal."""
    return text.translate(_CONTROLS)
