"""Commands about the command itself: version and completion. Neither connects."""

from __future__ import annotations

import platform
from importlib import metadata

import click
import grpc
from click.shell_completion import get_completion_class

from anabranch.cli.options import json_option
from anabranch.cli.render import print_json


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions that matter in a report.

    \b
    Example:
      anabranch version --json
    """
    try:
        own = metadata.version("anabranch")
    except metadata.PackageNotFoundError:
        own = "unknown (not installed)"
    versions = {"anabranch": own, "grpcio": grpc.__version__, "python": platform.python_version()}
    if as_json:
        print_json(versions)
    else:
        click.echo(" ".join(f"{name} {value}" for name, value in versions.items()))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in a SHELL.

    \b
    Examples:
      anabranch completion bash >> ~/.bashrc
      anabranch completion zsh >> ~/.zshrc
      anabranch completion fish > ~/.config/fish/completions/anabranch.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    group = context.find_root().command
    click.echo(kind(group, {}, "anabranch", "_ANABRANCH_COMPLETE").source())
