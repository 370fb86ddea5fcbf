"""The command that says how good an answer was."""

from __future__ import annotations

import click

from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json


@click.command()
@click.argument("request_id")
@click.option("--rating", type=click.IntRange(1, 5), help="1 (not at all satisfying) to 5 (fully).")
@click.option(
    "--completed/--not-completed",
    default=None,
    help="Whether it did what it was asked for.",
)
@json_option
@click.pass_obj
def feedback(
    connection: Connection,
    /,
    request_id: str,
    rating: int | None,
    completed: bool | None,
    as_json: bool,
) -> None:
    """Say how good the answer with this REQUEST_ID was.

    `generate` and `chat` print the id at the end of their receipt, and --json as request_id. The
    router knows an answer for a day, and only to the client that it was given to.

    \b
    Examples:
      anabranch feedback req-9f3c2a1b5d7e4f608192a3b4c5d6e7f8 --rating 4 --completed
      anabranch feedback req-9f3c2a1b5d7e4f608192a3b4c5d6e7f8 --not-completed --json
    """
    if rating is None and completed is None:
        raise click.UsageError("say something: --rating, --completed or --not-completed")
    with connection.client(as_json=as_json) as client:
        client.feedback(request_id, rating=rating, completed=completed)
        if as_json:
            print_json({"request_id": request_id, "rating": rating, "completed": completed})
        else:
            click.echo("recorded")
