"""The cloud proxy's settings, and the configuration files that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anabranch.v1 import generation_pb2 as pb
from services.chassis.common_settings import CommonSettings
from services.chassis.settings import Secret, SettingsError, setting
from services.cloud_proxy.budget_rules import UNLIMITED, BudgetRules, read_budgets
from services.cloud_proxy.config import Route, read_routes
from services.cloud_proxy.configuration import BadConfiguration
from services.cloud_proxy.key_sources import BadKeys, parse_keys
from services.cloud_proxy.keys import AccountKey
from services.cloud_proxy.masking import KINDS
from services.cloud_proxy.profile_files import built_in_profiles, load_profiles
from services.cloud_proxy.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """ANABRANCH_CLOUD_*. The files are checked here too, so a bad one stops the start."""

    listen: str = setting("127.0.0.1:50053", help="Address and port of the gRPC server.")
    http_listen: str = setting(
        "127.0.0.1:9103", help="Address and port of /metrics, /livez, /readyz and /startupz."
    )
    models_file: Path = setting(
        help="YAML file of the models offered: name, provider, model, and where needed base_url, "
        "api_key or api_key_file, context_length, capabilities and prices."
    )
    profiles_dir: Path | None = setting(
        None, help="Directory of further provider profiles; one replaces a built-in of its name."
    )
    api_keys: Secret | None = setting(
        None,
        help="Provider keys as name=key entries, separated by commas, spaces or line ends. A route "
        "uses the name in its api_key, else its provider's. A repeated name makes a pool of keys; "
        "those of one quota, as name@quota=key, share their limits.",
    )
    keys_dir: Path | None = setting(
        None,
        help="Directory with a file of keys for each name, one key a line, or quota and key. "
        "Changed files are taken up while the proxy runs.",
    )
    keys_poll_interval: float = setting(
        5.0, minimum=0.05, help="How often files of keys are looked at for changes."
    )
    budgets_file: Path | None = setting(
        None,
        help="YAML file of what may be spent: all, providers, tenants, default_tenant, each budget "
        "with usd or microusd, and a period. What is not covered is refused. Empty: no limits.",
    )
    redis_url: Secret | None = setting(
        None,
        help="Redis that cloud proxies share budgets and callers' quotas through, such as "
        "redis://:password@host:6379/0. Empty: each process may spend all of them.",
    )
    max_in_flight: int = setting(
        1024, minimum=1, help="Requests at providers at once; further ones are refused at once."
    )
    connect_timeout: float = setting(5.0, minimum=0.05, help="To connect to a provider.")
    first_token_timeout: float = setting(
        60.0, minimum=0.05, help="From a request's start to its first output."
    )
    inter_token_timeout: float = setting(
        30.0, minimum=0.05, help="From one piece of output to the next; keep-alives do not count."
    )
    total_timeout: float = setting(600.0, minimum=0.05, help="For one attempt as a whole.")
    gather: float = setting(
        0.004,
        minimum=0,
        maximum=0.1,
        help="How long output waits for that of other requests, to leave in one message with it. "
        "The first of an answer and the last never do.",
    )
    attempts: int = setting(
        3, minimum=1, maximum=10, help="Attempts in all, before the first output only."
    )
    longest_retry_wait: float = setting(
        2.0, minimum=0, help="A provider that asks to wait longer fails the request instead."
    )
    max_response_bytes: int = setting(
        64 << 20, minimum=1 << 16, help="The largest response of a provider, in bytes."
    )
    max_line_bytes: int = setting(
        1 << 20, minimum=1 << 12, help="The longest line or event of a stream, in bytes."
    )
    image_hosts: tuple[str, ...] = setting(
        (), help="Hosts whose https image addresses are passed on. Empty: none, only image bytes."
    )
    mask: tuple[str, ...] = setting(
        tuple(KINDS),
        choices=(*KINDS, "none"),
        help="What is masked in prompts before they leave, and restored in answers: a list of "
        "kinds, or none. A router may ask for more in a request, never for less.",
    )
    https_proxy: Secret | None = setting(
        None,
        help="HTTP proxy through which providers are asked, as http://[user:password@]host:port. "
        "Where it is not set, HTTPS_PROXY is taken.",
    )
    no_proxy: str = setting(
        "", help="Hosts asked without the proxy, in the form of NO_PROXY, which is its default."
    )
    warm: bool = setting(
        True, help="Whether a connection to each provider is opened at start, asking nothing."
    )
    ca_file: Path | None = setting(
        None, help="PEM file of the certificate authorities to trust instead of the system's."
    )

    @classmethod
    def with_proxies(cls, prefix: str, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment with the proxies that it names for every program as this one's own."""
        filled = dict(environ)
        for name in ("HTTPS_PROXY", "NO_PROXY"):
            found = environ.get(name.lower()) or environ.get(name)
            if found and prefix + name + "_FILE" not in environ:
                filled.setdefault(prefix + name, found)
        return filled

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if not self.mask or ("none" in self.mask and len(self.mask) > 1):
            # What is left empty by mistake must not switch it off.
            problems.append("ANABRANCH_CLOUD_MASK must be a list of kinds, or none alone")
        for read in (self.routes, self.budgets):
            try:
                read()
            except BadConfiguration as bad:
                problems += [p for p in bad.problems if p not in problems]
        if problems:
            raise SettingsError(problems)

    def masked_kinds(self) -> frozenset[pb.PiiKind]:
        """What is masked whoever asks."""
        return frozenset(KINDS[name] for name in self.mask if name != "none")

    def routes(self) -> dict[str, Route]:
        """The models offered, by name. Reads the files. Raises BadConfiguration."""
        return read_routes(self.models_file, self._profiles(), self.keys(), self.keys_dir)

    def keys(self) -> dict[str, tuple[AccountKey, ...]]:
        """The keys that are in the settings themselves, by name. Raises BadConfiguration."""
        try:
            return parse_keys(self.api_keys.reveal()) if self.api_keys else {}
        except BadKeys as bad:
            raise BadConfiguration([f"api_keys: {problem}" for problem in bad.problems]) from None

    def budgets(self) -> BudgetRules:
        """What may be spent. Reads the files. Raises BadConfiguration."""
        if self.budgets_file is None:
            return UNLIMITED
        return read_budgets(self.budgets_file, self._profiles())

    def _profiles(self) -> dict[str, Profile]:
        profiles = dict(built_in_profiles())
        if self.profiles_dir:
            profiles.update(load_profiles(self.profiles_dir))
        return profiles
