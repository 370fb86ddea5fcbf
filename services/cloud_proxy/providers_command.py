"""`anabranch providers`: the providers that the cloud proxy knows, and checks of further ones.

Needs no cluster and asks no provider: everything comes from files. The command line finds this
through the entry point in pyproject.toml.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from anabranch.cli.connection import EXIT_REFUSED
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json
from services.cloud_proxy.config import load_routes
from services.cloud_proxy.configuration import BadConfiguration, read_yaml
from services.cloud_proxy.profile_files import built_in_profiles, load_profiles, parse_profile
from services.cloud_proxy.profiles import Profile
from services.cloud_proxy.providers_render import markdown, print_provider, print_providers
from services.cloud_proxy.providers_support import described, listed, models_of

F = TypeVar("F", bound=Callable[..., Any])
_DIRECTORY = "services.cloud_proxy.profiles_dir"
_PATH = click.Path(exists=True, path_type=Path)


def _profiles_dir(command: F) -> F:
    """Gives a command the option; on the group it holds for what comes after, too."""

    def remember(context: click.Context, _: click.Parameter, value: Path | None) -> None:
        if value is not None:
            context.meta[_DIRECTORY] = value

    return click.option(
        "--profiles-dir",
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        expose_value=False,
        callback=remember,
        help="Further profiles, as ANABRANCH_CLOUD_PROFILES_DIR; one replaces a built-in of its "
        "name.",
    )(command)


@click.group(invoke_without_command=True)
@_profiles_dir
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a table in Markdown.")
@click.pass_context
def providers(context: click.Context, /, as_json: bool, as_markdown: bool) -> None:
    """List the cloud providers that are known, or look at one, or check a profile of your own.

    \b
    Examples:
      anabranch providers
      anabranch providers show deepseek
      anabranch providers check river-ai.yaml models.yaml
      anabranch providers --profiles-dir /etc/anabranch/profiles

    A provider is a YAML file; docs/providers.md says how to add one. Needs no cluster.
    """
    if context.invoked_subcommand is not None:
        return
    known = sorted(_known(context).values(), key=lambda profile: profile.name)
    if as_json:
        print_json([listed(profile) for profile in known])
    elif as_markdown:
        click.echo(markdown(known))
    else:
        print_providers(known)


@providers.command()
@click.argument("name")
@_profiles_dir
@json_option
@click.pass_context
def show(context: click.Context, /, name: str, as_json: bool) -> None:
    """Print all that is known of the provider NAME: parameters with their ranges, what is refused,
    models, prices, and how it deviates from its dialect.

    \b
    Examples:
      anabranch providers show openai
      anabranch providers show openai --json | jq '.models[].prices'
    """
    known = _known(context)
    profile = known.get(name)
    if profile is None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise click.UsageError(f"there is no provider {name}{hint}")
    print_json(described(profile)) if as_json else print_provider(profile)


@providers.command()
@click.argument("paths", nargs=-1, required=True, type=_PATH, metavar="FILE_OR_DIR...")
@_profiles_dir
@click.pass_context
def check(context: click.Context, /, paths: tuple[Path, ...]) -> None:
    """Check profiles and routes files, and name every fault by its path. Exit code 4 when there
    is one.

    A file with a list of models is a routes file; it may use the profiles that are checked with
    it. Whether its keys are there is not checked, only the proxy has them.

    \b
    Examples:
      anabranch providers check river-ai.yaml
      anabranch providers check profiles/ models.yaml
    """
    known = dict(_known(context))
    problems: list[str] = []
    good: list[str] = []
    routes: list[tuple[Path, Any]] = []
    for path in paths:
        try:
            document = None if path.is_dir() else read_yaml(path)
            if isinstance(document, dict) and isinstance(document.get("models"), list):
                routes.append((path, document))
                continue
            found = (
                load_profiles(path) if path.is_dir() else {"": parse_profile(document, path.name)}
            )
        except BadConfiguration as bad:
            problems += bad.problems
            continue
        if not found:
            problems.append(f"{path.name}: holds no *.yaml")
        for profile in found.values():
            known[profile.name] = profile
            count = len(models_of(profile))
            models = f"{count} model{'' if count == 1 else 's'}"
            good.append(f"{path.name}: profile {profile.name}, {models}")
    for path, document in routes:
        try:
            offered = load_routes(document, path.name, path.parent, known, _AnyKey())
        except BadConfiguration as bad:
            problems += bad.problems
            continue
        good.append(f"{path.name}: routes to {', '.join(offered)}")
    for line in good:
        click.echo(f"{line}: good")
    if problems:
        _refuse(problems)


class _AnyKey(Container[str]):
    """Stands for the proxy's keys where only the rest of a file is in question."""

    def __contains__(self, name: object) -> bool:
        return True


def _known(context: click.Context) -> Mapping[str, Profile]:
    """The built-in profiles and the user's. Ends the program when the user's are bad."""
    directory: Path | None = context.meta.get(_DIRECTORY)
    if directory is None:
        return built_in_profiles()
    try:
        return {**built_in_profiles(), **load_profiles(directory)}
    except BadConfiguration as bad:
        _refuse(bad.problems)


def _refuse(problems: list[str]) -> NoReturn:
    for problem in problems:
        click.secho(problem, err=True, fg="red")
    raise SystemExit(EXIT_REFUSED)
