"""The settings that every service has. Meanings and bounds only: nothing is opened here.

How variables become values is settings.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.chassis.peer_address import networks_of
from services.chassis.principal import Network
from services.chassis.settings import Secret, SettingsError, setting


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every service's settings inherit; each overrides `listen` and `http_listen`."""

    listen: str = setting(
        "127.0.0.1:0", help="Address and port of the gRPC server, host:port; port 0 takes any."
    )
    http_listen: str = setting(
        "127.0.0.1:0",
        help="Address and port of /metrics, /livez, /readyz and /startupz, host:port.",
    )
    advertise: str = setting(
        "",
        help="The host:port told to others through the registry. "
        "Empty: the bound address. Needed when listening on every interface.",
    )
    service_id: str = setting(
        "", help="Unique name of this process in the registry. Empty: service name, host and port."
    )
    zone: str = setting("", help="Where this process runs; neighbours in the same zone are nearer.")
    registry: str = setting(
        "none",
        help="How processes find each other: consul://host:port?dc=name&tls=true (of Consul "
        "Enterprise also ns=name&partition=name), or "
        "dns:service=host:port,service=host:port;…?refresh=2s (each address of each name is a "
        "process of that service; family=ipv4 or ipv6 takes only those), or "
        "static:service=host:port,service=host:port;… , or none.",
    )
    registry_weight: int = setting(
        1,
        minimum=1,
        maximum=65535,
        help="This process's share beside others of its service, for whoever goes by the "
        "registry's weights: routers whose policy says so, and Consul's own DNS.",
    )
    registry_token: Secret | None = setting(None, help="The registry's access token.")
    registry_stale_for: float = setting(
        3600.0, minimum=0, help="How long the last known set is used while the registry is down."
    )
    auth_target: str = setting(
        "", help="host:port of the auth service. Empty: anabranch-auth from the registry."
    )
    issuer: str = setting(
        "https://auth.anabranch.internal", help="The only accepted `iss` of access tokens."
    )
    audience: str = setting("anabranch", help="The only accepted `aud` of access tokens.")
    trusted_proxies: tuple[str, ...] = setting(
        (),
        help="Networks of proxies in front of this process, such as 10.0.0.0/8: their "
        "x-forwarded-for is believed where credentials are bound to addresses. Empty: nobody's is.",
    )
    client_id: str = setting("", help="This service's own identity, for calls to other services.")
    client_secret: Secret | None = setting(None, help="The secret that belongs to the client id.")
    tls_cert_file: Path | None = setting(
        None,
        help="PEM certificate chain of this service, leaf first; its alternative names hold the "
        "service's name. Switches TLS on, for every gRPC port and for calls to other services. "
        "Changed files are taken up while running.",
    )
    tls_key_file: Path | None = setting(None, help="The certificate's private key, PEM.")
    tls_ca_file: Path | None = setting(
        None,
        help="PEM certificates of the authorities that other services' certificates must come "
        "from. Empty: the machine's.",
    )
    tls_client_auth: Literal["required", "none"] | None = setting(
        None,
        help="Whether who connects to the gRPC port must show a certificate of TLS_CA_FILE's. "
        "Empty: required when there is a TLS_CA_FILE.",
    )
    tls_reload_period: float = setting(
        2.0,
        minimum=0.01,
        maximum=3600,
        help="How often the certificate files are looked at; a change is taken up at the second "
        "look that finds it.",
    )
    http_tls: Literal["auto", "off"] = setting(
        "auto",
        help="auto: the HTTP port speaks HTTPS, without client certificates, when TLS is on. "
        "off: it stays plaintext.",
    )
    health_listen: str = setting(
        "",
        help="Address of a further gRPC port, host:port, that is plaintext and answers only "
        "grpc.health.v1, for probes that have no certificate. Empty: none.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", help="The least severe level that is logged."
    )
    otlp_endpoint: str = setting(
        "", help="Base URL of an OTLP/HTTP collector for traces and metrics. Empty: none."
    )
    trace_sample_ratio: float = setting(
        1.0,
        minimum=0,
        maximum=1,
        help="Share of requests that are traced, of those whose caller has not decided it. "
        "Without an OTLP endpoint none is.",
    )
    trace_callers_per_second: float = setting(
        100.0,
        minimum=0,
        help="Requests a second, of each process, that are traced because their caller has decided "
        "so; further ones are not. Services that relay are not counted. 0: no caller decides.",
    )
    encryption_keys_file: Path | None = setting(
        None,
        help="A keychain, as JSON or YAML: answers that are kept beyond memory, and prompts and "
        "answers in the audit trail, are encrypted with a data key for each tenant. The same for "
        "all that share a store. Empty: answers are kept readable, prompts not at all.",
    )
    # What is written to the audit trail, and where: audit/.
    audit_dir: Path | None = setting(
        None, help="Directory of the audit trail's files, made when missing. Empty: no files."
    )
    audit_key_file: Path | None = setting(
        None,
        help="PEM file of the Ed25519 key that signs the audit trail, made when missing. "
        "Empty: audit.key beside the trail.",
    )
    audit_retention: float = setting(
        400 * 86_400.0,
        minimum=86_400,
        help="How long entries of the audit trail are kept: in files, and in the database of the "
        "auth service.",
    )
    audit_otlp: bool = setting(
        False, help="Whether the audit trail also goes to the collector at the OTLP endpoint."
    )
    audit_spool: int = setting(
        10_000,
        minimum=100,
        maximum=1_000_000,
        help="Audit entries that wait in memory while they cannot be written; with more, requests "
        "to models are refused.",
    )
    drain_timeout: float = setting(
        30.0, minimum=0, help="How long open requests may take to finish at shutdown."
    )
    max_concurrent_rpcs: int = setting(
        1000, minimum=1, help="Calls served at once; further ones are refused at once."
    )
    max_message_bytes: int = setting(
        4 * 1024 * 1024, minimum=64 * 1024, help="The largest gRPC message accepted, in bytes."
    )

    def __post_init__(self) -> None:
        problems = []
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            problems.append("TLS_CERT_FILE and TLS_KEY_FILE belong together: set both or neither")
        if self.tls_cert_file is None and self.tls_ca_file is not None:
            problems.append("TLS_CA_FILE needs TLS_CERT_FILE and TLS_KEY_FILE")
        if self.tls_client_auth is not None and self.tls_cert_file is None:
            problems.append("TLS_CLIENT_AUTH needs TLS_CERT_FILE and TLS_KEY_FILE")
        elif self.tls_client_auth == "required" and self.tls_ca_file is None:
            problems.append("TLS_CLIENT_AUTH=required needs TLS_CA_FILE: whose certificates count")
        if self.health_listen:
            port = self.health_listen.rpartition(":")[2]
            if ":" not in self.health_listen or not port.isdecimal() or int(port) > 65535:
                problems.append(f"HEALTH_LISTEN must be host:port, not {self.health_listen!r}")
        if problems:
            raise SettingsError(problems)

    @property
    def requires_client_certificates(self) -> bool:
        """Whether who connects to the gRPC port must show a certificate."""
        return self.tls_ca_file is not None and self.tls_client_auth != "none"

    @property
    def proxy_networks(self) -> tuple[Network, ...]:
        """`trusted_proxies` as networks. Raises SettingsError."""
        try:
            return networks_of(self.trusted_proxies)
        except ValueError as refused:
            raise SettingsError([f"trusted_proxies: {refused}"]) from None


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(CommonSettings):
    """What the settings of a service inherit that may run as several processes."""

    workers: int = setting(
        1,
        minimum=1,
        maximum=256,
        help="Processes that share the port, each an event loop of its own; 1 needs no supervisor. "
        "Limits of one process, such as concurrent RPCs, count for each.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers > 1 and self.health_listen.endswith(":0"):
            raise SettingsError(["HEALTH_LISTEN needs a port that the WORKERS can share, not 0"])
