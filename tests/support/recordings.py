"""The recorded provider streams of tests/recordings, and what a codec hears in them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import Delta, ProviderFailure
from services.cloud_proxy.config import Route, load_routes
from services.cloud_proxy.dialect_table import DIALECTS, reader_for
from services.cloud_proxy.dialects import Framing
from services.cloud_proxy.dialects.fields import broken
from services.cloud_proxy.profile_files import built_in_profiles
from services.cloud_proxy.streams import StreamGarbled, StreamTooLarge

RECORDINGS = Path(__file__).parent.parent / "recordings"
FRAMINGS = {
    ".sse": Framing.SSE,
    ".ndjson": Framing.NDJSON,
    ".eventstream": Framing.AWS_EVENT_STREAM,
}


@dataclass
class Heard:
    """What came out of a codec, joined; comparable to a recording's `expect`."""

    text: dict[str, str] = field(default_factory=dict)
    reasoning: dict[str, str] = field(default_factory=dict)
    calls: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    finish: dict[str, str] = field(default_factory=dict)
    usage: dict[str, int] | None = None
    replay: dict[str, str] = field(default_factory=dict)
    matched_stop: dict[str, str] = field(default_factory=dict)

    def take(self, deltas: Iterable[Delta]) -> None:
        """Adds output."""
        for delta in deltas:
            choice = str(delta.choice)
            if delta.text:
                self.text[choice] = self.text.get(choice, "") + delta.text
            if delta.reasoning:
                self.reasoning[choice] = self.reasoning.get(choice, "") + delta.reasoning
            for tool in delta.tools:
                calls = self.calls.setdefault(choice, [])
                if tool.id or tool.name:
                    assert tool.index == len(calls), "calls begin in the order of their index"
                    calls.append({"id": tool.id, "name": tool.name, "arguments": ""})
                calls[tool.index]["arguments"] += tool.arguments

    def document(self) -> dict[str, Any]:
        """As a recording states it: what is empty is left out."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class Recording:
    """One recorded stream and what must be heard in it."""

    name: str
    data: bytes
    framing: Framing
    route: Route
    request: pb.GenerateRequest
    shows: str
    expect: dict[str, Any] | None
    failure: dict[str, Any] | None

    def hear(self, pieces: Iterable[bytes]) -> Heard:
        """Decodes the stream from its pieces. Raises ProviderFailure."""
        return hear(self.route, self.request, self.framing, pieces)


def hear(
    route: Route, request: pb.GenerateRequest, framing: Framing, pieces: Iterable[bytes]
) -> Heard:
    """Decodes any stream. Raises ProviderFailure; what came before is in its `heard`."""
    decoder = DIALECTS[route.profile.dialect].decoder(request, route)
    reader = reader_for(framing, max_line=1 << 20, max_event=4 << 20)
    heard = Heard()
    try:
        for event in itertools.chain(
            itertools.chain.from_iterable(map(reader.feed, pieces)), _closing(reader)
        ):
            heard.take(decoder.event(event))
            if decoder.done:
                break
        ending = decoder.ending()
    except (StreamGarbled, StreamTooLarge) as unreadable:
        # As the upstream client has it.
        raise broken(str(unreadable)) from None
    except ProviderFailure as failure:
        failure.heard = heard  # type: ignore[attr-defined]
        raise
    heard.finish = {str(n): str(finish) for n, finish in ending.finishes.items()}
    heard.replay = {str(n): data.decode() for n, data in ending.replay.items()}
    heard.matched_stop = {str(n): stop for n, stop in ending.matched_stop.items()}
    if ending.usage is not None:
        names = ("prompt", "cached", "completion", "reasoning", "cache_written")
        heard.usage = {name: getattr(ending.usage, name) for name in names}
    return heard


def is_whole(found: object, expected: dict[str, Any]) -> bool:
    """Whether nothing of the answer is missing. Usage may be: it is then estimated, and said to
    be, where a dialect states it after the end."""
    if not isinstance(found, dict):
        return False
    return found == expected or {**found, "usage": None} == {**expected, "usage": None} != found


def _closing(reader: Any) -> Iterable[Any]:
    # Lazily: only once all pieces have been fed.
    yield from reader.close()


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The bytes cut at these places, each taken modulo the length."""
    points = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


def route_to(provider: str, model: str, **entry: Any) -> Route:
    """A route to a model of a built-in profile, for tests without a network.

    A provider whose routes must name an address, or what their models can do, is given one.
    """
    profile = built_in_profiles()[provider]
    entry = {"name": "m", "provider": provider, "model": model, **entry}
    if not profile.base_url:
        entry.setdefault("base_url", "https://provider.invalid")
    if profile.dialect == "anthropic":
        entry.setdefault("max_output", 8192)
    return load_routes({"models": [entry]}, "test", Path(), built_in_profiles(), {provider})["m"]


def load(path: Path) -> Recording:
    """Reads a recording by its JSON file, beside which the stream lies."""
    document = json.loads(path.read_text(encoding="utf-8"))
    (stream,) = (p for p in path.parent.glob(f"{path.stem}.*") if p.suffix in FRAMINGS)
    request = {"model": "m", **document.get("request", {})}
    return Recording(
        name=f"{path.parent.name}/{path.stem}",
        data=stream.read_bytes(),
        framing=FRAMINGS[stream.suffix],
        route=route_to(document["provider"], document["model"], **document.get("route", {})),
        request=json_format.ParseDict(request, pb.GenerateRequest()),
        shows=document["shows"],
        expect=document.get("expect"),
        failure=document.get("failure"),
    )


def all_recordings() -> list[Recording]:
    """Every recording, in the order of their names."""
    return [load(path) for path in sorted(RECORDINGS.glob("*/*.json"))]
