"""Runs the images together, read-only and without privileges, and asks them for an answer.

Auth with SQLite, the provider simulator, the cloud proxy and the router, on free ports of this
machine. The answer is the simulator's, and labelled so. It builds nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.cluster.ports import free_port
from tools.cluster.recipes import at
from tools.images.engine import Engine, EngineError

WAIT = 240.0
"""Seconds that a container may take to be healthy."""

PREFIX = "anabranch-check-"
MODEL = "smollm2-135m-instruct"
_SECRETS = "/var/lib/anabranch/secrets"


@dataclass
class ImageCluster:
    """The containers of one check; `names` maps a target to its image."""

    engine: Engine
    names: Mapping[str, str]
    say: Callable[[str], None]
    grpc: dict[str, int] = field(default_factory=dict)
    http: dict[str, int] = field(default_factory=dict)

    def run(self, folder: Path) -> str:
        """Starts everything, asks once, stops everything, and returns the answer.

        `folder` is for files that containers read. Raises EngineError.
        """
        provider = free_port()
        # JSON is YAML.
        (folder / "models.yaml").write_text(json.dumps({"models": [_route(provider)]}))
        try:
            self._start(
                "auth",
                "AUTH",
                {
                    "DATA_DIR": f"{_SECRETS}/auth",
                    "BOOTSTRAP_SECRET_FILE": f"{_SECRETS}/admin",
                },
            )
            self.engine.once(
                self.names["tools"],
                *("-m", "tools.identities", "--auth", at(self.grpc["auth"])),
                *("--secrets", _SECRETS),
                options=("--entrypoint", "python", *self._volumes()),
            )
            self.say("identities are made")
            self._launch(
                "provider-simulator",
                "tools",
                ("-m", "tools.provider_simulator", "--listen", at(provider)),
                ("--entrypoint", "python", "--no-healthcheck"),
            )
            self._start(
                "cloud-proxy",
                "CLOUD",
                {
                    "MODELS_FILE": f"{folder}/models.yaml",
                    "API_KEYS": "simulator=simulator-key",
                },
                str(folder),
            )
            self._start(
                "router",
                "ROUTER",
                {
                    "CLIENT_ID": "router",
                    "CLIENT_SECRET_FILE": f"{_SECRETS}/router",
                    "REGISTRY": f"static:anabranch-cloud={at(self.grpc['cloud-proxy'])}",
                },
            )
            return self._ask()
        finally:
            self._clear()

    def stop(self, target: str) -> None:
        """Raises EngineError unless it drains and ends with status 0."""
        status = self.engine.stop(PREFIX + target, 60)
        if status != 0:
            raise EngineError(f"{target} ended with status {status}")

    def _ask(self) -> str:
        environment = {
            "ANABRANCH_TARGET": at(self.grpc["router"]),
            "ANABRANCH_AUTH_TARGET": at(self.grpc["auth"]),
            "ANABRANCH_CLIENT_ID": "demo",
            "ANABRANCH_CLIENT_SECRET_FILE": f"{_SECRETS}/demo",
        }
        answer = self.engine.once(
            self.names["tools"],
            *("generate", "hello", "--model", MODEL),
            options=(*_variables(environment), *self._volumes()),
        )
        for target in ("router", "cloud-proxy", "auth"):
            self.stop(target)
            self.say(f"{target} drained and ended")
        return answer.strip()

    def _start(self, target: str, room: str, settings: Mapping[str, str], folder: str = "") -> None:
        self.grpc[target], self.http[target], health = free_port(), free_port(), free_port()
        merged = {
            "LISTEN": at(self.grpc[target]),
            "HTTP_LISTEN": at(self.http[target]),
            "HEALTH_LISTEN": at(health),
        }
        if target != "auth":
            merged["AUTH_TARGET"] = at(self.grpc["auth"])
        environment = {
            f"ANABRANCH_{room}_{key}": value for key, value in (merged | dict(settings)).items()
        }
        environment["READYZ"] = f"http://{at(self.http[target])}/readyz"
        mounted = ("--volume", f"{folder}:{folder}:ro") if folder else ()
        self._launch(target, target, (), (*_variables(environment), *mounted, *self._volumes()))
        until = time.monotonic() + WAIT
        while not self.engine.is_healthy(PREFIX + target):
            if not self.engine.running(PREFIX + target) or time.monotonic() > until:
                raise EngineError(f"{target} is not healthy:\n{self.engine.logs(PREFIX + target)}")
            time.sleep(0.5)
        self.say(f"{target} is healthy")

    def _launch(
        self, name: str, target: str, command: Sequence[str], options: Sequence[str]
    ) -> None:
        self.engine.start(PREFIX + name, self.names[target], *command, options=options)

    def _volumes(self) -> tuple[str, ...]:
        return ("--volume", f"{PREFIX}secrets:{_SECRETS}")

    def _clear(self) -> None:
        for name in ("router", "cloud-proxy", "provider-simulator", "auth"):
            self.engine.remove(PREFIX + name)
        self.engine.remove_volumes([f"{PREFIX}secrets"])


def _route(provider: int) -> dict[str, str]:
    """What the proxy offers: the local model's name, from the simulator on this port."""
    return {
        "name": MODEL,
        "provider": "simulator",
        "model": "sim-chat",
        "base_url": f"http://{at(provider)}",
    }


def _variables(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for key, value in values.items() for word in ("--env", f"{key}={value}"))
