"""Commands about models: what can be asked for, and what one engine serves, while it runs."""

from __future__ import annotations

import json
from typing import Any

import click
from google.protobuf.json_format import MessageToDict

from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option
from anabranch.cli.render import print_json, print_models, print_table
from anabranch.v1 import model_admin_pb2 as pb

_DRAIN = click.option(
    "--drain",
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    default=60.0,
    show_default=True,
    help="How long running requests may go on; what is cut off goes on elsewhere.",
)
_PHASES = {
    pb.LoadModelResponse.PHASE_CHECKING: "checking",
    pb.LoadModelResponse.PHASE_LOADING: "loading",
    pb.LoadModelResponse.PHASE_SERVING: "serving",
    pb.LoadModelResponse.PHASE_DRAINING: "draining",
    pb.LoadModelResponse.PHASE_DONE: "done",
}


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, /, as_json: bool) -> None:
    """List the models that can be asked for, and where they are served; or change what one engine
    serves.

    The commands below go to one engine, which --target names, and need the scope admin. The engine
    loads only from where ANABRANCH_ENGINE_MODEL_SOURCES allows. Routers follow within a second.

    \b
    Examples:
      anabranch models --json | jq -r '.[].name'
      anabranch --target engine-7:50052 models list
      anabranch --target engine-7:50052 models load qwen /models/qwen-v2
      anabranch --target engine-7:50052 models load-adapter qwen support /models/lora/support
    """
    if context.invoked_subcommand is not None:
        return
    connection: Connection = context.obj
    with connection.client(as_json=as_json) as client:
        found = client.models()
        print_json(found) if as_json else print_models(found)


@models.command("list")
@json_option
@click.pass_obj
def list_served(connection: Connection, /, as_json: bool) -> None:
    """List what the engine at --target serves, with adapters and what sleeps.

    \b
    Example, at the engine that ANABRANCH_TARGET names:
      anabranch models list
    """
    with connection.model_admin(as_json=as_json) as engine:
        _show(engine.served(), as_json)


@models.command()
@click.argument("name")
@click.argument("source")
@click.option("--alias", "aliases", metavar="NAME", multiple=True, help="One more name for it.")
@click.option(
    "--memory-share",
    metavar="SHARE",
    type=click.FloatRange(0.01, 1.0),
    help="Share of each GPU's memory that it may use, beside what is loaded there.",
)
@click.option("--max-model-len", metavar="TOKENS", type=click.IntRange(1), help="Context length.")
@click.option("--max-num-seqs", metavar="N", type=click.IntRange(1), help="Requests at once.")
@click.option("--dtype", metavar="TYPE", default="", help="auto, float32, bfloat16 or float16.")
@click.option("--quantization", metavar="METHOD", default="", help="By vLLM's name.")
@click.option("--tool-parser", metavar="NAME", default="", help="Of tool calls, by vLLM's name.")
@click.option(
    "--reasoning-parser", metavar="NAME", default="", help="Of reasoning, by vLLM's name."
)
@click.option("--vllm-args", metavar="JSON", default="", help="Further arguments of vLLM.")
@click.option("--cpu-kv-cache-gib", metavar="GIB", type=click.IntRange(1), help="On a CPU.")
@click.option(
    "--max-adapters", metavar="N", type=click.IntRange(0), help="LoRA adapters it may have."
)
@_DRAIN
@json_option
@click.pass_obj
def load(
    connection: Connection,
    /,
    name: str,
    source: str,
    aliases: tuple[str, ...],
    memory_share: float | None,
    drain: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Load the model at SOURCE, a directory on the engine's machine or a hub name, as NAME.

    A NAME that is served is swapped without losing a stream: the new model loads beside the old
    one, takes its requests over, and the old one finishes what it has. Where it does not fit beside
    it, nothing changes. Ctrl-C before "serving" cancels the load.

    \b
    Examples, at the engine that ANABRANCH_TARGET names:
      anabranch models load qwen /models/qwen-v2
      anabranch models load small /models/small --memory-share 0.2
    """
    given = {key: value for key, value in options.items() if value not in (None, "")}
    if memory_share is not None:
        given["gpu_memory_utilization"] = memory_share
    request = pb.LoadModelRequest(
        name=name, source=source, aliases=aliases, options=pb.LoadOptions(**given)
    )
    request.drain_timeout.FromNanoseconds(round(drain * 1e9))
    with connection.model_admin(as_json=as_json) as engine:
        for step in engine.load(request):
            _progress(step, as_json)


@models.command()
@click.argument("name")
@click.option(
    "--allow-last", is_flag=True, help="Also the last one: the process is not ready then."
)
@_DRAIN
@json_option
@click.pass_obj
def unload(
    connection: Connection, /, name: str, allow_last: bool, drain: float, as_json: bool
) -> None:
    """Take the model NAME and its adapters out of service, and free its memory.

    \b
    Example, at the engine that ANABRANCH_TARGET names:
      anabranch models unload qwen --drain 120
    """
    request = pb.UnloadModelRequest(name=name, allow_last=allow_last)
    request.drain_timeout.FromNanoseconds(round(drain * 1e9))
    with connection.model_admin(as_json=as_json) as engine:
        _gone(name, engine.unload(request).cut_off, as_json)


@models.command("load-adapter")
@click.argument("base")
@click.argument("name")
@click.argument("source")
@_DRAIN
@json_option
@click.pass_obj
def load_adapter(
    connection: Connection, /, base: str, name: str, source: str, drain: float, as_json: bool
) -> None:
    """Load the LoRA adapter at SOURCE for the model BASE; requests ask for BASE:NAME.

    The engine must have been started with ANABRANCH_ENGINE_MAX_ADAPTERS above 0.

    \b
    Example, at the engine that ANABRANCH_TARGET names:
      anabranch models load-adapter qwen support /models/lora/support
    """
    request = pb.LoadAdapterRequest(base=base, name=name, source=source)
    request.drain_timeout.FromNanoseconds(round(drain * 1e9))
    with connection.model_admin(as_json=as_json) as engine:
        _show([engine.load_adapter(request).model], as_json)


@models.command("unload-adapter")
@click.argument("base")
@click.argument("name")
@_DRAIN
@json_option
@click.pass_obj
def unload_adapter(
    connection: Connection, /, base: str, name: str, drain: float, as_json: bool
) -> None:
    """Take the adapter BASE:NAME out of service.

    \b
    Example, at the engine that ANABRANCH_TARGET names:
      anabranch models unload-adapter qwen support
    """
    request = pb.UnloadAdapterRequest(base=base, name=name)
    request.drain_timeout.FromNanoseconds(round(drain * 1e9))
    with connection.model_admin(as_json=as_json) as engine:
        _gone(f"{base}:{name}", engine.unload_adapter(request).cut_off, as_json)


@models.command()
@click.argument("name")
@click.option(
    "--level",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="1 keeps the weights in the machine's memory, 2 discards them.",
)
@_DRAIN
@json_option
@click.pass_obj
def sleep(connection: Connection, /, name: str, level: int, drain: float, as_json: bool) -> None:
    """Free the GPU's memory that the model NAME holds, until `wake`.

    The engine must have been started with ANABRANCH_ENGINE_SLEEP_MODE=true, on a GPU.

    \b
    Example, at the engine that ANABRANCH_TARGET names:
      anabranch models sleep qwen
    """
    request = pb.SleepRequest(name=name, level=level)
    request.drain_timeout.FromNanoseconds(round(drain * 1e9))
    with connection.model_admin(as_json=as_json) as engine:
        _show([engine.sleep(request).model], as_json)


@models.command()
@click.argument("name")
@json_option
@click.pass_obj
def wake(connection: Connection, /, name: str, as_json: bool) -> None:
    """Bring the sleeping model NAME back.

    \b
    Example, at the engine that ANABRANCH_TARGET names:
      anabranch models wake qwen
    """
    with connection.model_admin(as_json=as_json) as engine:
        _show([engine.wake(pb.WakeRequest(name=name)).model], as_json)


def _progress(step: pb.LoadModelResponse, as_json: bool) -> None:
    """One line for each message; the table of what is served at the end."""
    if as_json:
        click.echo(json.dumps(MessageToDict(step, preserving_proto_field_name=True)))
        return
    seconds = step.elapsed.ToNanoseconds() / 1e9
    note = step.detail
    if step.in_flight:
        note = f"{step.in_flight} requests still run on the model before"
    if step.cut_off:
        note = f"{step.cut_off} requests were cut off, and go on elsewhere"
    phase = _PHASES.get(step.phase, "working")
    click.echo(f"{seconds:7.1f} s  {phase:9} {note}".rstrip(), err=True)
    if step.HasField("model"):
        _show([step.model], False)


def _show(served: list[pb.ServedModel], as_json: bool) -> None:
    if as_json:
        rows = [MessageToDict(one, preserving_proto_field_name=True) for one in served]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print_table(
        ("MODEL", "STATE", "RUNNING", "CONTEXT", "WEIGHTS", "FROM", "ALIASES"),
        (
            (
                one.model.name,
                _state(one),
                str(one.in_flight),
                str(one.model.context_length or "?"),
                one.model.served_model,
                "an operator" if one.loaded_at_run_time else "settings",
                ", ".join(one.model.aliases),
            )
            for one in served
        ),
        "This engine serves no model.",
    )


def _state(one: pb.ServedModel) -> str:
    state = pb.ServedState.Name(one.state).removeprefix("SERVED_STATE_").lower()
    return f"{state} (level {one.sleep_level})" if one.sleep_level else state


def _gone(name: str, cut_off: int, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "cut_off": cut_off})
    else:
        click.echo(f"{name} is out of service; requests cut off: {cut_off}")
