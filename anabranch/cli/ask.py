"""Commands that ask a model: chat, generate and count."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from anabranch.cli.answer_form import form_arguments, form_options
from anabranch.cli.connection import Connection, report
from anabranch.cli.options import (
    conversation,
    given_or_stdin,
    json_option,
    only_model,
    request_arguments,
    request_options,
)
from anabranch.cli.render import print_calls, print_json, print_receipt, print_stream
from anabranch.errors import AnabranchError
from anabranch.request import MessageLike

receipt_option = click.option(
    "--receipt/--no-receipt", default=True, help="Say on stderr where it ran and what it used."
)

CHAT_HELP = "/reset starts over, /quit or Ctrl-D ends, Ctrl-C stops an answer."


@click.command()
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Send the text as it is, without a chat template.")
@form_options
@request_options
@receipt_option
@json_option
@click.pass_obj
def generate(
    connection: Connection,
    /,
    prompt: str | None,
    raw: bool,
    receipt: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Answer one PROMPT, or what is piped in, and stream the answer to stdout.

    \b
    Examples:
      anabranch generate "Name three rivers." --max-tokens 50
      git diff | anabranch generate -s "Review this change." --residency local-only
      anabranch generate "Name three rivers." --json | jq .usage
      anabranch generate "Is the Rhine a river?" --choice yes --choice no
      anabranch generate "The weather in Bern?" --tools tools.json --tool-choice required

    A call of a tool is printed after the text, as its name and its arguments in JSON.
    """
    form = form_arguments(given)
    text = given_or_stdin(prompt)
    if raw and given["system"]:
        raise click.UsageError("--system needs a chat template; leave out --raw")
    with connection.client(as_json=as_json) as client:
        system = given["system"]
        options = request_arguments(client, **given)
        options |= form
        if raw:
            options["prompt"] = text
        else:
            options["messages"] = conversation(system, text)
        if as_json:
            print_json(client.generate(**options))
            return
        with client.stream(**options) as stream:
            print_stream(stream)
        print_calls(stream.answer)
        if receipt:
            print_receipt(stream)


@click.command()
@request_options
@receipt_option
@json_option
@click.pass_obj
def chat(connection: Connection, /, receipt: bool, as_json: bool, **given: Any) -> None:
    """Talk with a model; it remembers the conversation until /reset.

    \b
    Examples:
      anabranch chat --model qwen
      anabranch chat -s "Answer in one sentence." --temperature 0
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing and history, where Python has it
    with connection.client(as_json=as_json) as client:
        system = given["system"]
        options = request_arguments(client, **given)
        beginning: list[MessageLike] = [{"role": "system", "content": system}] if system else []
        turns = list(beginning)
        click.echo(f"{options['model']}: {CHAT_HELP}", err=True)
        while (said := _ask("" if as_json else "> ")) is not None:
            if said == "/quit":
                break
            if said == "/reset":
                turns = list(beginning)
                click.echo("Forgotten.", err=True)
                continue
            if said.startswith("/"):
                click.echo(CHAT_HELP, err=True)
                continue
            if not said:
                continue
            turns.append(said)
            options["messages"] = turns
            stream = client.stream(**options)
            try:
                with stream:
                    if as_json:
                        print_json(stream.finish())
                    else:
                        print_stream(stream)
                        if receipt:
                            print_receipt(stream)
            except KeyboardInterrupt:
                click.echo("\nstopped", err=True)
            except AnabranchError as error:
                report(error, as_json=as_json)
            if stream.text:
                turns.append(stream.answer.message)
            else:
                turns.pop()  # an unanswered question is not part of the conversation


@click.command()
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Count the text as it is, without a chat template.")
@click.option("-m", "--model", help="Model name; may be left out where only one is served.")
@click.option("-s", "--system", metavar="TEXT", help="Instructions to the model.")
@json_option
@click.pass_obj
def count(
    connection: Connection,
    /,
    prompt: str | None,
    raw: bool,
    model: str | None,
    system: str | None,
    as_json: bool,
) -> None:
    """Count the tokens that a PROMPT, or what is piped in, would take.

    \b
    Example:
      anabranch count --model qwen < report.txt
    """
    text = given_or_stdin(prompt)
    with connection.client(as_json=as_json) as client:
        name = model or only_model(client)
        if raw:
            counted = client.count_tokens(model=name, prompt=text)
        else:
            counted = client.count_tokens(model=name, messages=conversation(system, text))
        if as_json:
            print_json(counted)
            return
        limit = f" of {counted.context_length}" if counted.context_length else ""
        note = " (estimated)" if str(counted.source) == "estimated" else ""
        click.echo(f"{counted.prompt_tokens}{limit} tokens{note}")


def _ask(prompt: str) -> str | None:
    """The next line; None at the end of input or at Ctrl-C."""
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        click.echo(err=True)
        return None
