"""The `anabranch` command: its commands, and how it ends.

Every command is a thin use of the blocking client, or one that another installed package declares
(see extensions). Exit codes: 0 done, 1 a bug, 2 usage,
3 credentials, 4 refused or invalid, 5 unavailable for now, 130 interrupted.
"""

from __future__ import annotations

import click

from anabranch.cli.ask import chat, count, generate
from anabranch.cli.auth import auth
from anabranch.cli.cluster import backends, drain, explain, log_level, undrain
from anabranch.cli.connection import Connection
from anabranch.cli.extensions import ExtensibleGroup
from anabranch.cli.feedback import feedback
from anabranch.cli.models import models
from anabranch.cli.plan import plan
from anabranch.cli.policy import policy
from anabranch.cli.shell import completion, version

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=ExtensibleGroup, context_settings=CONTEXT)
@click.option("--target", metavar="HOST:PORT", help="The router. [default: 127.0.0.1:50051]")
@click.option("--auth-target", metavar="HOST:PORT", help="The auth service.")
@click.option("--client-id", metavar="ID", help="This client's id, for tokens from there.")
@click.option(
    "--client-secret-file", metavar="FILE", type=click.File(), help="Its secret, in a file."
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.File(),
    help="A token or API key in a file, instead of a client's id and secret.",
)
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0.001), help="Limit of each call."
)
@click.pass_context
def main(context: click.Context, /, **given: object) -> None:
    """Ask the models of an Anabranch cluster, and look after it.

    \b
    Examples:
      anabranch models
      anabranch generate "Why is the sky blue?" --residency local-only
      anabranch chat --model qwen
      anabranch backends
      anabranch auth clients list

    The options below can be given once as ANABRANCH_TARGET, ANABRANCH_AUTH_TARGET,
    ANABRANCH_CLIENT_ID, ANABRANCH_CLIENT_SECRET and ANABRANCH_TOKEN (the last two also as files:
    …_FILE). ANABRANCH_TLS_CA_FILE switches TLS on. Secrets are no options, because other users
    of a machine can read those.
    """
    context.obj = Connection.from_options(**given)


for command in (
    chat,
    generate,
    count,
    feedback,
    models,
    backends,
    drain,
    undrain,
    explain,
    log_level,
    policy,
    plan,
    auth,
    version,
    completion,
):
    main.add_command(command)

__all__ = ["main"]
