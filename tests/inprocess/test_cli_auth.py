"""`anabranch auth` against an auth service on a real port: what commands do, print and refuse.

What only a fake can be made to do is in test_cli_auth_edges.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from anabranch import api_keys
from anabranch.cli import main
from tests.support.auth_administration import Service, real_service
from tests.support.waiting import until

Run = Callable[..., Result]


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with real_service(tmp_path_factory.mktemp("auth")) as found:
        yield found


@pytest.fixture
def run(service: Service) -> Run:
    """Runs a command as the first administrator; `env` replaces what the environment says."""

    def run(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
        mine = service.environment if env is None else env
        return CliRunner().invoke(main, ["auth", *arguments], input=stdin, env={**clean, **mine})

    return run


def said(result: Result) -> Any:
    """What a command printed as JSON."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def new_client(run: Run, client_id: str = "billing", *more: str) -> str:
    result = run("clients", "create", client_id, "-t", "finance", "-s", "generate", *more)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_created_client_can_log_in_with_the_secret_that_is_alone_on_stdout(
    service: Service, run: Run
) -> None:
    created = run("clients", "create", "billing", "--tenant", "finance", "--scope", "generate")
    assert created.exit_code == 0
    assert len(created.stdout.split()) == 1
    assert "billing of the tenant finance: shown only now" in created.stderr
    env = {
        **service.environment,
        "ANABRANCH_CLIENT_ID": "billing",
        "ANABRANCH_CLIENT_SECRET": created.stdout.strip(),
    }
    token = run("token", "issue", env=env)
    assert len(token.stdout.split()) == 1
    assert "Token for generate, good for " in token.stderr
    shown = said(run("token", "introspect", "--json", stdin=token.stdout))
    assert (shown["active"], shown["client_id"], shown["tenant"]) == (True, "billing", "finance")


def test_everything_said_of_a_new_client_is_kept(run: Run) -> None:
    run("roles", "set", "chat", "--scope", "generate")
    result = run(
        *("clients", "create", "billing", "--tenant", "finance", "--scope", "generate"),
        *("--scope", "observe", "--role", "chat", "--model", "qwen*", "--model", "llama-3"),
        *("--cidr", "10.0.0.0/8", "--token-life", "5m", "--name", "Bills", "--json"),
    )
    created = said(result)
    assert created.pop("client_secret")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", created["created_at"])
    assert created == {
        "client_id": "billing",
        "tenant": "finance",
        "display_name": "Bills",
        "scopes": ["generate", "observe"],
        "roles": ["chat"],
        "models": ["llama-3", "qwen*"],
        "allowed_cidrs": ["10.0.0.0/8"],
        "token_life": 300.0,
        "disabled": False,
        "created_at": created["created_at"],
    }
    assert said(run("clients", "show", "billing", "--json")) == created
    assert created in said(run("clients", "list", "--json"))
    table = run("clients", "list").stdout
    assert "llama-3, qwen*" in table
    assert "5m" in table


def test_an_update_changes_what_is_named_and_nothing_else(run: Run) -> None:
    new_client(run, "billing", "--cidr", "10.0.0.0/8", "--model", "qwen*", "--name", "Bills")
    before = said(run("clients", "show", "billing", "--json"))
    after = said(run("clients", "update", "billing", "--scope", "observe", "--no-cidrs", "--json"))
    assert after == {**before, "scopes": ["observe"], "allowed_cidrs": []}
    after = said(run("clients", "update", "billing", "--name", "", "--token-life", "2m", "--json"))
    assert after["display_name"] == ""
    assert after["token_life"] == 120.0
    assert after["models"] == ["qwen*"]


def test_a_disabled_client_gets_no_token(service: Service, run: Run) -> None:
    secret = new_client(run)
    assert run("clients", "disable", "billing", "--yes").stdout == "disabled: billing\n"
    assert said(run("clients", "show", "billing", "--json"))["disabled"] is True
    env = {
        **service.environment,
        "ANABRANCH_CLIENT_ID": "billing",
        "ANABRANCH_CLIENT_SECRET": secret,
    }
    refused = run("token", "issue", env=env)
    assert refused.exit_code == 3
    assert refused.stdout == ""


def test_a_rotated_secret_replaces_the_one_before(service: Service, run: Run) -> None:
    before = new_client(run)
    after = said(run("clients", "rotate-secret", "billing", "--yes", "--json"))
    assert after["client_id"] == "billing"
    mine = {**service.environment, "ANABRANCH_CLIENT_ID": "billing"}
    old = run("token", "issue", env={**mine, "ANABRANCH_CLIENT_SECRET": before})
    assert old.exit_code == 3
    new = run("token", "issue", env={**mine, "ANABRANCH_CLIENT_SECRET": after["client_secret"]})
    assert new.exit_code == 0


def test_a_key_is_created_used_listed_inspected_and_revoked(service: Service, run: Run) -> None:
    new_client(run)
    made = run("keys", "create", "--client", "billing", "--life", "90d", "--name", "export")
    key = made.stdout.strip()
    assert api_keys.is_well_formed(key)
    (listed,) = said(run("keys", "list", "--client", "billing", "--json"))
    key_id = listed["key_id"]
    assert key_id == api_keys.public_id(key)
    assert f"API key {key_id} of the client billing" in made.stderr
    assert (listed["display_name"], listed["revoked"]) == ("export", False)
    assert listed["expires_at"] > listed["created_at"]
    assert listed["last_used_at"] is None
    assert run("keys", "inspect", stdin=key).stdout == f"well formed: public id {key_id}\n"

    with_key = {"ANABRANCH_AUTH_TARGET": service.target, "ANABRANCH_TOKEN": key}
    token = run("token", "issue", env=with_key)
    assert said(run("token", "introspect", "--json", stdin=token.stdout))["client_id"] == "billing"

    assert run("keys", "revoke", key_id, "--yes").stdout == f"revoked: {key_id}\n"
    assert "revoked" in run("keys", "list").stdout
    assert run("token", "issue", env=with_key).exit_code == 3


def test_an_api_key_of_an_administrator_administers(service: Service, run: Run) -> None:
    key = run("keys", "create", "--client", service.client_id).stdout.strip()
    env = {"ANABRANCH_AUTH_TARGET": service.target, "ANABRANCH_TOKEN": key}
    assert run("clients", "list", env=env).exit_code == 0


def test_a_token_administers_until_it_is_revoked(
    service: Service, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    assert run("token", "issue", "--secret-file", str(file)).stdout == ""
    env = {"ANABRANCH_AUTH_TARGET": service.target, "ANABRANCH_TOKEN_FILE": str(file)}
    assert run("clients", "list", env=env).exit_code == 0
    assert run("token", "revoke", str(file), "--yes").stdout == "revoked\n"

    def refused() -> bool:
        result = run("clients", "list", env=env)
        assert result.exit_code == 0 or "[CREDENTIAL_REJECTED]" in result.stderr
        return result.exit_code == 3

    # Verifiers learn of it within seconds. A thread, as the command has a loop of its own.
    asyncio.run(until(lambda: asyncio.to_thread(refused)))
    assert run("token", "introspect", str(file)).stdout == "not active\n"


def test_a_token_has_the_scopes_that_were_asked_for(run: Run) -> None:
    issued = said(run("token", "issue", "--scope", "generate", "--json"))
    assert issued["scopes"] == ["generate"]
    assert issued["token_type"] == "Bearer"
    assert 0 < issued["expires_in"] <= 600
    assert set(issued) == {"access_token", "expires_in", "scopes", "token_type"}


def test_a_role_is_made_changed_in_part_and_deleted(run: Run) -> None:
    made = said(
        run("roles", "set", "chat", "-s", "generate", "-m", "qwen*", "--description", "C", "--json")
    )
    assert made == {
        "name": "chat",
        "description": "C",
        "scopes": ["generate"],
        "models": ["qwen*"],
        "built_in": False,
    }
    changed = said(run("roles", "set", "chat", "--model", "llama*", "--model", "q", "--json"))
    assert changed == {**made, "models": ["llama*", "q"]}
    assert said(run("roles", "show", "chat", "--json")) == changed
    assert said(run("roles", "set", "chat", "--no-models", "--json"))["models"] == []
    assert "built in" in run("roles", "list").stdout
    assert run("roles", "delete", "chat", "--yes").stdout == "deleted: chat\n"
    assert run("roles", "show", "chat").exit_code == 4


def test_a_role_that_is_in_use_stays(run: Run) -> None:
    run("roles", "set", "chat", "--scope", "generate")
    run("clients", "create", "billing", "--tenant", "finance", "--role", "chat")
    refused = run("roles", "delete", "chat", "--yes")
    assert refused.exit_code == 4
    assert "[IN_USE]" in refused.stderr


@pytest.mark.parametrize(
    ("given", "kept", "shown"),
    [
        (("--requests", "600", "--burst", "50"), ("requests", 600, 50), "600 requests"),
        (("--tokens", "1000000"), ("tokens", 1_000_000, 1_000_000), "1,000,000 tokens"),
        (("--cost", "12.50"), ("cost-microusd", 12_500_000, 0), "$ 12.5"),
    ],
)
def test_a_quota_is_set_listed_and_deleted(
    run: Run, given: tuple[str, ...], kept: tuple[str, int, int], shown: str
) -> None:
    command = ("quotas", "set", "--tenant", "finance", "--model", "qwen*", "--per", "1m", *given)
    assert shown in run(*command).stdout
    (quota,) = said(run("quotas", "list", "--tenant", "finance", "--json"))
    quota_id = quota.pop("quota_id")
    unit, limit, burst = kept
    assert quota == {
        "tenant": "finance",
        "client_id": "",
        "model": "qwen*",
        "unit": unit,
        "limit": limit,
        "period": 60.0,
        "burst": burst,
    }
    assert run("quotas", "delete", quota_id, "--yes").exit_code == 0
    assert run("quotas", "list").stdout == "There is no quota.\n"


def test_a_tenant_keeps_what_is_not_named(run: Run) -> None:
    first = said(run("tenants", "set", "finance", "--audit", "content", "--json"))
    assert first["cipher"] == "aes-256-gcm"
    second = said(run("tenants", "set", "finance", "--cipher", "sm4-gcm", "--json"))
    assert second == {**first, "cipher": "sm4-gcm"}
    new_client(run)
    assert said(run("tenants", "set", "finance", "--name", "Money", "--json")) == {
        "name": "finance",
        "display_name": "Money",
        "audit": "content",
        "cipher": "sm4-gcm",
        "clients": 1,
    }
    assert "sm4-gcm" in run("tenants", "list").stdout


def test_the_key_that_will_sign_is_named(run: Run) -> None:
    rotated = said(run("rotate-signing-key", "--json"))
    assert rotated["kid"]
    assert rotated["active_at"].endswith("Z")
    assert rotated["kid"] in [key["kid"] for key in said(run("jwks", "--json"))["keys"]]
    assert "signs from 2" in run("rotate-signing-key").stdout


def test_verification_keys_need_no_credential(service: Service, run: Run) -> None:
    run("clients", "create", "billing", "--tenant", "finance", "--scope", "generate")
    run("clients", "disable", "billing", "--yes")
    nobody = {"ANABRANCH_AUTH_TARGET": service.target}
    found = said(run("jwks", "--json", env=nobody))
    assert found["disabled_clients"] == 1
    assert {"issuer", "keys", "max_age", "revoked_api_keys", "revoked_tokens", "version"} < {*found}
    table = run("jwks", env=nobody)
    assert "EdDSA" in table.stdout
    assert "1 disabled clients" in table.stderr


def test_the_audit_trail_is_asked_by_who_what_and_when(run: Run) -> None:
    new_client(run, "billing")
    new_client(run, "gateway")
    run("clients", "disable", "gateway", "--yes")
    newest, *_ = said(run("audit", "query", "--since", "1h", "--tenant", "finance", "--json"))
    assert (newest["action"], newest["target"]) == ("client.disable", "gateway")
    assert newest["succeeded"] is True
    assert len(bytes.fromhex(newest["hash"])) == 32
    created = said(run("audit", "query", "--action", "client.create", "--json"))
    assert [record["target"] for record in created] == ["gateway", "billing", "admin"]
    assert said(run("audit", "query", "--client", "billing", "--json")) == []
    assert said(run("audit", "query", "--until", "2020-01-01", "--json")) == []
    limited = run("audit", "query", "--action", "client.create", "--limit", "1")
    assert "gateway" in limited.stdout
    assert "the newest 1;" in limited.stderr
    assert run("audit", "query", "--until", "2020-01-01").stdout == "No such record.\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("clients", "show", "biling"), "Did you mean billing?"),
        (("clients", "update", "biling", "--name", "x"), "Did you mean billing?"),
        (("clients", "disable", "biling", "--yes"), "Did you mean billing?"),
        (("clients", "rotate-secret", "biling", "--yes"), "Did you mean billing?"),
        (("keys", "create", "--client", "biling"), "Did you mean billing?"),
        (("roles", "show", "chta"), "Did you mean chat?"),
        (("roles", "delete", "chta", "--yes"), "Did you mean chat?"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_one_that_is_meant(
    run: Run, arguments: tuple[str, ...], hint: str
) -> None:
    new_client(run)
    run("roles", "set", "chat", "--scope", "generate")
    refused = run(*arguments)
    assert refused.exit_code == 4
    assert hint in refused.stderr
    assert "[NOT_FOUND]" in refused.stderr
    assert refused.stdout == ""
    unlike = run(*(a.replace("biling", "zzzzzz").replace("chta", "zzzzzz") for a in arguments))
    assert unlike.exit_code == 4
    assert "Did you mean" not in unlike.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("clients", "create", "admin", "-t", "finance", "-s", "generate"), "ALREADY_EXISTS"),
        (("clients", "create", "x", "-t", "finance", "-s", "generate"), "INVALID_REQUEST"),
        (("quotas", "delete", "tokens/nobody//", "--yes"), "NOT_FOUND"),
        (("keys", "revoke", "0000000000000000", "--yes"), "NOT_FOUND"),
    ],
)
def test_what_the_service_refuses_exits_4_with_its_reason_also_as_json(
    run: Run, arguments: tuple[str, ...], reason: str
) -> None:
    as_text, as_json = run(*arguments), run(*arguments, "--json")
    assert (as_text.exit_code, as_json.exit_code) == (4, 4)
    assert f"[{reason}]" in as_text.stderr
    assert json.loads(as_json.stderr)["error"]["reason"] == reason
    assert as_text.stdout == as_json.stdout == ""


def test_who_may_not_administer_is_told_so(service: Service, run: Run) -> None:
    secret = new_client(run)
    env = {
        **service.environment,
        "ANABRANCH_CLIENT_ID": "billing",
        "ANABRANCH_CLIENT_SECRET": secret,
    }
    refused = run("clients", "list", env=env)
    assert refused.exit_code == 3
    assert "[ACCESS_DENIED]" in refused.stderr
