"""What each process of a demonstration cluster is started with: program, settings, probe.

Values only; nothing is started or opened here. The settings' meanings are in each service's
settings.py (`python -m services.router --help`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tools.cluster.ports import HOST, free_port
from tools.cluster.process import ProcessSpec

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL_PATH = ROOT / ".models/smollm2-135m-instruct"
MODEL = "smollm2-135m-instruct"
"""What callers call the small real model."""

SIM_MODEL = "sim-river"
"""What callers call the simulated engine's model, which is none."""

PROVIDER_KEY = "simulator-key"
"""The provider simulator's key: worth nothing, and handled as if it were a real one."""


class EngineKind(StrEnum):
    """vLLM with a real model, or the simulated engine of tests."""

    VLLM = "vllm"
    SIM = "sim"


@dataclass(frozen=True)
class EngineSpec:
    """One engine process. `settings` adds to or overrides ANABRANCH_ENGINE_*, without prefix."""

    name: str = "engine-1"
    kind: EngineKind = EngineKind.VLLM
    model: str = MODEL
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ports:
    """Where the named processes listen: (gRPC, HTTP) each; Consul's HTTP port alone."""

    consul: int = 8500
    router: tuple[int, int] = (50051, 9101)
    engine: tuple[int, int] = (50052, 9102)
    cloud: tuple[int, int] = (50053, 9103)
    auth: tuple[int, int] = (50054, 9104)
    provider: int = 8400

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody uses now."""
        pairs = [(free_port(), free_port()) for _ in range(4)]
        return cls(free_port(), pairs[0], pairs[1], pairs[2], pairs[3], free_port())

    def numbers(self) -> dict[str, int]:
        """Each port with the name of who needs it."""
        named = {"consul": self.consul, "provider": self.provider}
        for name in ("router", "engine", "cloud", "auth"):
            pair: tuple[int, int] = getattr(self, name)
            named[name], named[f"{name} (http)"] = pair
        return named


def at(port: int) -> str:
    """host:port of a port of this machine."""
    return f"{HOST}:{port}"


@dataclass(frozen=True)
class Recipes:
    """The processes of one cluster: where it keeps its files, and which ports it uses."""

    run_dir: Path
    ports: Ports
    consul_binary: str
    consul_version: tuple[int, ...]
    log_level: str = "info"
    router_workers: int = 1
    router_settings: Mapping[str, str] = field(default_factory=dict)
    others_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def registry(self) -> str:
        """The registry's address as the services' setting has it."""
        return f"consul://{at(self.ports.consul)}"

    def consul(self) -> ProcessSpec:
        """A one-node Consul that keeps nothing."""
        ports = {"http": self.ports.consul, "dns": -1, "grpc": -1}
        ports |= {name: free_port() for name in ("server", "serf_lan", "serf_wan")}
        if self.consul_version >= (1, 14):
            ports["grpc_tls"] = -1
        extra = json.dumps({"ports": ports, "log_json": True, "disable_update_check": True})
        return ProcessSpec(
            name="consul",
            argv=(
                *(self.consul_binary, "agent", "-dev", "-node", "anabranch"),
                *("-bind", HOST, "-client", HOST, "-hcl", extra),
            ),
            probe="consul",
            address=at(self.ports.consul),
        )

    def auth(self) -> ProcessSpec:
        """The auth service with an SQLite file of its own."""
        return self._service(
            "auth",
            "services.auth",
            "ANABRANCH_AUTH_",
            self.ports.auth,
            {
                "DATA_DIR": str(self.run_dir / "auth"),
                "BOOTSTRAP_SECRET_FILE": str(self.run_dir / "secrets/admin"),
            },
        )

    def provider(self) -> ProcessSpec:
        """The provider simulator: an OpenAI-compatible provider that is no model."""
        return ProcessSpec(
            name="provider-simulator",
            argv=(
                *(sys.executable, "-m", "tools.provider_simulator"),
                *("--listen", at(self.ports.provider), "--token-delay", "0.02"),
            ),
            env=_python(),
            probe="http",
            address=at(self.ports.provider),
        )

    def cloud(self) -> ProcessSpec:
        """The cloud proxy, with the file that `write_offer` leaves."""
        return self._service(
            "cloud",
            "services.cloud_proxy",
            "ANABRANCH_CLOUD_",
            self.ports.cloud,
            {"MODELS_FILE": str(self.run_dir / "models.yaml")},
        )

    def router(self) -> ProcessSpec:
        """The router, under the identity `router`."""
        return self._service(
            "router",
            "services.router",
            "ANABRANCH_ROUTER_",
            self.ports.router,
            {
                "CLIENT_ID": "router",
                "CLIENT_SECRET_FILE": str(self.run_dir / "secrets/router"),
                "WORKERS": str(self.router_workers),
                **self.router_settings,
            },
        )

    def engine(self, engine: EngineSpec, ports: tuple[int, int]) -> ProcessSpec:
        """One engine."""
        settings = {"ENGINE": engine.kind.value, "SERVED_MODEL_NAME": engine.model}
        if engine.kind is EngineKind.VLLM:
            settings |= {"MODEL": str(MODEL_PATH)}
        return self._service(
            engine.name,
            "services.local_engine",
            "ANABRANCH_ENGINE_",
            ports,
            settings | dict(engine.settings),
            start_timeout=240.0 if engine.kind is EngineKind.VLLM else 120.0,
        )

    def write_offer(self, models: tuple[str, ...]) -> None:
        """The cloud proxy's offer: the local models' names, from the provider simulator."""
        key = self.run_dir / "secrets/provider"
        key.write_text(PROVIDER_KEY + "\n", encoding="ascii")
        key.chmod(0o600)
        routes = [
            {
                "name": model,
                "provider": "simulator",
                "model": "sim-chat",
                "base_url": f"http://{at(self.ports.provider)}",
                "api_key_file": str(key),
            }
            for model in models
        ]
        # JSON is YAML.
        (self.run_dir / "models.yaml").write_text(
            json.dumps({"models": routes}, indent=2) + "\n", encoding="utf-8"
        )

    def _service(
        self,
        name: str,
        module: str,
        prefix: str,
        ports: tuple[int, int],
        settings: Mapping[str, str],
        start_timeout: float = 120.0,
    ) -> ProcessSpec:
        common = {
            "LISTEN": at(ports[0]),
            "HTTP_LISTEN": at(ports[1]),
            "SERVICE_ID": name,
            "REGISTRY": self.registry,
            "LOG_LEVEL": self.log_level,
            "DRAIN_TIMEOUT": "30",
        }
        merged = common | dict(settings) | dict(self.others_settings.get(name, {}))
        return ProcessSpec(
            name=name,
            argv=(sys.executable, "-m", module),
            env=_python() | {prefix + key: value for key, value in merged.items()},
            probe="grpc",
            address=at(ports[0]),
            http=at(ports[1]),
            start_timeout=start_timeout,
            # Beyond the streams: vLLM takes some 10 s to end its own processes.
            drain=float(merged["DRAIN_TIMEOUT"]) + 20.0,
        )


def _python() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
