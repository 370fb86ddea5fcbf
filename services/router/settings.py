"""The router's settings, read from ANABRANCH_ROUTER_* variables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.common_settings import WorkerSettings
from services.chassis.settings import Secret, SettingsError, setting
from services.router.policy.place import Place, has_key_values, parse_place

SERVICE = "anabranch-router"
PREFIX = "ANABRANCH_ROUTER_"


@dataclass(frozen=True, kw_only=True)
class Settings(WorkerSettings):
    """Everything that can be set for a router."""

    listen: str = setting("127.0.0.1:50051", help="Address and port of the gRPC server, host:port.")
    http_listen: str = setting(
        "127.0.0.1:9101",
        help="Address and port of /metrics, /livez, /readyz and /startupz, host:port.",
    )
    registry: str = setting(
        "consul://127.0.0.1:8500",
        help="Where backends are found: consul://host:port, dns:service=host:port,… (names that "
        "are resolved again and again), static:service=host:port,… or none.",
    )
    policy: str = setting(
        "none",
        help="Where the routing policy is: file:/path/of/policy.yaml, consul:key of the registry's "
        "Consul, or none: the defaults, and what the settings below say. Changes are followed.",
    )
    ttft_slo: float = setting(
        10.0,
        minimum=0.001,
        help="Time to first token within which requests without a limit of their own wait for a "
        "local slot; what is predicted to be later goes to the cloud. The policy goes before it.",
    )
    max_queue_time: float = setting(
        30.0,
        minimum=0,
        help="How long a request waits for a free slot before it is refused. The policy goes "
        "before it.",
    )
    max_waiting: int = setting(
        1000,
        minimum=0,
        help="Requests that wait at once; further ones are refused. The policy goes before it.",
    )
    default_timeout: float = setting(
        600.0, minimum=1, help="Time that a request may take when it sets none itself."
    )
    session_buffer_bytes: int = setting(
        16 * 1024 * 1024,
        minimum=64 * 1024,
        help="Output held for one session whose caller reads slowly; beyond it the session ends.",
    )
    session_resume_window: float = setting(
        30.0,
        minimum=0,
        help="How long a session whose connection was lost can be resumed; 0 ends it at once.",
    )
    max_detached_sessions: int = setting(
        1000,
        minimum=1,
        help="Sessions that wait for their callers to reconnect; beyond it the oldest ones end.",
    )
    cache_memory_bytes: int = setting(
        64 * 1024 * 1024,
        minimum=0,
        help="Answers to repeated requests held in the memory of a process, for tenants whose "
        "policy allows it.",
    )
    cache_dir: Path | None = setting(
        None,
        help="Folder for answers that outlive a restart; the workers of a machine may share it. "
        "Empty: none.",
    )
    cache_disk_bytes: int = setting(
        1024 * 1024 * 1024, minimum=0, help="Answers kept in that folder at most, in bytes."
    )
    feedback_answers: int = setting(
        50_000,
        minimum=0,
        help="Latest answers that callers can give feedback on, of this process or, in Redis, of "
        "all routers; some 250 bytes each. 0 switches feedback off.",
    )
    feedback_window: float = setting(
        24 * 3600.0,
        minimum=0,
        help="How long after an answer its caller can give feedback on it; 0 switches it off.",
    )
    redis_url: Secret | None = setting(
        None,
        help="Redis that routers share answers, feedback, quotas and cloud budgets through, "
        "such as redis://:password@host:6379/0. Empty: each process for itself.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            place = parse_place(self.policy)
        except ValueError as refused:
            raise SettingsError([f"{PREFIX}POLICY {refused}"]) from None
        if place.key and not has_key_values(self.registry):
            raise SettingsError(
                [f"{PREFIX}POLICY names a key, so {PREFIX}REGISTRY must be consul://…"]
            )

    @property
    def policy_place(self) -> Place:
        """Where the policy is."""
        return parse_place(self.policy)
