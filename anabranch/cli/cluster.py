"""Commands that look at the cluster and steer it: backends, drain, explain, log-level."""

from __future__ import annotations

from typing import Any

import click

from anabranch.cli.connection import Connection
from anabranch.cli.options import (
    conversation,
    given_or_stdin,
    json_option,
    request_arguments,
    request_options,
)
from anabranch.cli.render import print_backends, print_explanation, print_json


@click.command()
@json_option
@click.pass_obj
def backends(connection: Connection, /, as_json: bool) -> None:
    """List the backends behind the router, their health and their load.

    Needs the scope admin.

    \b
    Example:
      anabranch backends
    """
    with connection.client(as_json=as_json) as client:
        found = client.backends()
        print_json(found) if as_json else print_backends(found)


@click.command()
@click.argument("backend_id")
@json_option
@click.pass_obj
def drain(connection: Connection, /, backend_id: str, as_json: bool) -> None:
    """Stop new work for a backend; what runs there finishes.

    Needs the scope admin. The router forgets it when it restarts.

    \b
    Example:
      anabranch drain engine-gpu7-50052
    """
    with connection.client(as_json=as_json) as client:
        backend = client.drain(backend_id)
        print_json(backend) if as_json else print_backends([backend])


@click.command()
@click.argument("backend_id")
@json_option
@click.pass_obj
def undrain(connection: Connection, /, backend_id: str, as_json: bool) -> None:
    """Give new work to a drained backend again.

    Needs the scope admin.

    \b
    Example:
      anabranch undrain engine-gpu7-50052
    """
    with connection.client(as_json=as_json) as client:
        backend = client.undrain(backend_id)
        print_json(backend) if as_json else print_backends([backend])


@click.command()
@click.argument("prompt", required=False)
@request_options
@json_option
@click.pass_obj
def explain(connection: Connection, /, prompt: str | None, as_json: bool, **given: Any) -> None:
    """Say what the router would do with a PROMPT now, without running it.

    Needs the scope admin.

    \b
    Example:
      anabranch explain "Why is the sky blue?" --residency cloud-first
    """
    text = given_or_stdin(prompt)
    with connection.client(as_json=as_json) as client:
        system = given["system"]
        options = request_arguments(client, **given)
        options["messages"] = conversation(system, text)
        found = client.explain(**options)
        print_json(found) if as_json else print_explanation(found)


@click.command("log-level")
@click.argument("level", required=False, type=click.Choice(["debug", "info", "warning", "error"]))
@json_option
@click.pass_obj
def log_level(connection: Connection, /, level: str | None, as_json: bool) -> None:
    """Show how much the process at --target logs, or change it to LEVEL until it restarts.

    Needs the scope admin; to look at it observe is enough. Every process has one: routers, engines,
    cloud proxies and auth. A change reaches all workers of a router, but no other replica.

    \b
    Examples:
      anabranch log-level
      anabranch --target engine-7:50052 log-level debug
    """
    with connection.client(as_json=as_json) as client:
        if level is None:
            level = client.log_level()
            print_json({"level": level}) if as_json else click.echo(level)
            return
        previous = client.set_log_level(level)
        if as_json:
            print_json({"level": level, "previous_level": previous})
        else:
            click.echo(f"{level}, before: {previous}")
