"""`anabranch auth` where things go wrong: connections, questions, many pages, hostile names."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from anabranch.auth_admin import AuthAdmin
from anabranch.cli import main
from anabranch.errors import AuthenticationError
from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from tests.support.auth_administration import Service, fake_service
from tests.support.fake_auth import FakeAuth, now
from tests.support.waiting import BOUND_S

Run = Callable[..., Result]


@pytest.fixture
def service() -> Iterator[Service]:
    with fake_service() as found:
        yield found


@pytest.fixture
def fake(service: Service) -> FakeAuth:
    assert service.fake is not None
    return service.fake


def invoke(*arguments: str, env: dict[str, str], stdin: str = "") -> Result:
    clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
    return CliRunner().invoke(main, arguments, input=stdin, env={**clean, **env})


@pytest.fixture
def run(service: Service) -> Run:
    def run(*arguments: str, stdin: str = "") -> Result:
        return invoke("auth", *arguments, env=service.environment, stdin=stdin)

    return run


def terminal_run(service: Service, *arguments: str, answer: bytes) -> tuple[int, str, str]:
    """Runs a command whose stdin and stderr are a terminal: exit code, stdout, the terminal.

    The answer is typed when the question is there.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "anabranch.cli", "auth", *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, **service.environment, "TERM": "xterm"},
    )
    os.close(theirs)
    seen, answered, end = b"", False, time.monotonic() + BOUND_S
    try:
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    seen += os.read(ours, 4096)
                except OSError:  # the other side is gone
                    break
            if not answered and re.search(rb"(\[y/N\]|token|API key): ", seen):
                os.write(ours, answer)
                answered = True
        assert process.stdout is not None
        stdout = process.stdout.read().decode()
        return process.wait(BOUND_S), stdout, seen.decode()
    finally:
        process.kill()
        process.wait(BOUND_S)
        os.close(ours)


DESTRUCTIVE = [
    ("clients", "disable", "admin"),
    ("clients", "rotate-secret", "admin"),
    ("keys", "revoke", "0000000000000000"),
    ("roles", "delete", "administrator"),
    ("quotas", "delete", "q"),
    ("token", "revoke", "-"),
]


@pytest.mark.parametrize("command", DESTRUCTIVE)
def test_what_destroys_asks_and_does_nothing_where_nobody_can_answer(
    run: Run, fake: FakeAuth, command: tuple[str, ...]
) -> None:
    fake.fault = Fault(errors_pb2.ERROR_REASON_INTERNAL, "it must not be called")
    secrets = dict(fake.secrets)
    refused = run(*command, stdin="token-x")
    assert refused.exit_code == 2
    assert "repeat it with --yes" in refused.stderr
    assert refused.stdout == ""
    assert not fake.clients["admin"].disabled
    assert fake.secrets == secrets


@pytest.mark.parametrize(
    ("answer", "code", "disabled"), [(b"y\n", 0, True), (b"n\n", 4, False), (b"\n", 4, False)]
)
def test_a_person_is_asked_on_the_terminal(
    service: Service, fake: FakeAuth, answer: bytes, code: int, disabled: bool
) -> None:
    fake.add_client("billing", "finance", ["generate"])
    ended, stdout, seen = terminal_run(service, "clients", "disable", "billing", answer=answer)
    assert (ended, fake.clients["billing"].disabled) == (code, disabled)
    assert "Every request of the client billing will be refused." in seen
    assert stdout == ("disabled: billing\n" if disabled else "")
    assert disabled or "Nothing was changed." in seen


def test_ctrl_c_at_the_question_changes_nothing_and_exits_130(
    service: Service, fake: FakeAuth
) -> None:
    # End of input, which click treats as it does Ctrl-C: without a controlling terminal no key
    # makes a signal.
    ended, _, seen = terminal_run(service, "clients", "disable", "admin", answer=b"\x04")
    assert ended == 130
    assert "interrupted" in seen
    assert not fake.clients["admin"].disabled


def test_a_credential_that_is_typed_is_not_echoed(service: Service, fake: FakeAuth) -> None:
    fake.tokens["token-typed"] = ("admin", ["admin"])
    ended, stdout, seen = terminal_run(service, "token", "introspect", answer=b"token-typed\n")
    assert ended == 0
    assert "admin" in stdout
    assert "token-typed" not in seen + stdout


def test_without_an_auth_target_the_error_says_how_to_give_one() -> None:
    result = invoke("auth", "clients", "list", env={"ANABRANCH_TOKEN": "t"})
    assert result.exit_code == 2
    assert "--auth-target HOST:PORT, or set ANABRANCH_AUTH_TARGET" in result.stderr


def test_without_a_credential_the_error_says_how_to_give_one(service: Service) -> None:
    result = invoke("auth", "clients", "list", env={"ANABRANCH_AUTH_TARGET": service.target})
    assert result.exit_code == 2
    assert "--client-secret-file" in result.stderr


def test_options_before_the_group_win_over_the_environment(
    service: Service, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{service.client_secret}\n")
    options = ("--auth-target", service.target, "--client-id", "admin")
    result = invoke(
        *options,
        *("--client-secret-file", str(secret), "auth", "clients", "list"),
        env={"ANABRANCH_AUTH_TARGET": "127.0.0.1:1", "ANABRANCH_TOKEN": "other"},
    )
    assert result.exit_code == 0, result.output


def test_a_token_file_goes_with_the_auth_target_of_the_environment(
    service: Service, fake: FakeAuth, tmp_path: Path
) -> None:
    fake.tokens["token-file"] = ("admin", ["admin"])
    file = tmp_path / "token"
    file.write_text("token-file\n")
    env = {"ANABRANCH_AUTH_TARGET": service.target, "ANABRANCH_CLIENT_ID": "other"}
    assert invoke("--token-file", str(file), "auth", "roles", "list", env=env).exit_code == 0


def test_a_service_that_cannot_be_reached_exits_5() -> None:
    env = {"ANABRANCH_AUTH_TARGET": "127.0.0.1:1", "ANABRANCH_TOKEN": "t"}
    result = invoke("auth", "clients", "list", env=env)
    assert result.exit_code == 5
    assert "cannot reach 127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    ("reason", "code"),
    [("INTERNAL", 1), ("ACCESS_DENIED", 3), ("DEPENDENCY_UNAVAILABLE", 5), ("QUOTA_EXCEEDED", 4)],
)
def test_a_fault_of_the_service_decides_the_exit_code(
    run: Run, fake: FakeAuth, reason: str, code: int
) -> None:
    fake.fault = Fault(errors_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}"), "said so")
    result = run("clients", "list", "--json")
    assert result.exit_code == code
    assert (
        json.loads(result.stderr)["error"] | {"reason": reason, "message": "said so"}
        == (json.loads(result.stderr)["error"])
    )


def test_a_token_that_died_early_is_replaced_once(service: Service, fake: FakeAuth) -> None:
    with AuthAdmin(service.target, client_id="admin", client_secret=service.client_secret) as auth:
        fake.refuse_next = True
        made = auth.stub.CreateClient(
            pb.CreateClientRequest(client_id="billing", tenant="finance", scopes=["generate"])
        )
        assert made.client.client_id == "billing"
        key = auth.stub.CreateApiKey(pb.CreateApiKeyRequest(client_id="admin")).api_key
    assert len(fake.tokens) == 2
    with AuthAdmin(service.target, token=key) as auth:
        fake.refuse_next = True
        assert auth.stub.ListRoles(pb.ListRolesRequest()).roles
    assert len(fake.tokens) == 4, "an exchanged key is as good as a secret"
    with AuthAdmin(service.target, token="fixed") as auth, pytest.raises(AuthenticationError):
        auth.stub.ListRoles(pb.ListRolesRequest())


def test_a_damaged_api_key_is_refused_before_it_is_sent(run: Run, service: Service) -> None:
    key = run("keys", "create", "--client", "admin").stdout.strip()
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    env = {"ANABRANCH_AUTH_TARGET": service.target, "ANABRANCH_TOKEN": wrong}
    result = invoke("auth", "clients", "list", env=env)
    assert result.exit_code == 2
    assert "checksum is wrong" in result.stderr
    assert wrong[22:40] not in result.output
    seen = run("keys", "inspect", stdin=wrong)
    assert (seen.exit_code, json.loads(run("keys", "inspect", "--json", stdin=wrong).stdout)) == (
        4,
        {"well_formed": False, "key_id": None, "fault": seen.stdout[9:].strip()},
    )


def test_pages_are_read_to_the_end_when_asked(run: Run, fake: FakeAuth) -> None:
    for number in range(250):
        fake.add_client(f"client-{number:03}", f"tenant-{number:03}", ["generate"])
    some = run("clients", "list", "--json")
    assert len(json.loads(some.stdout)) == 100
    assert "--all" in some.stderr
    fake.largest_page = 100
    every = run("clients", "list", "--all", "--json")
    names = [client["client_id"] for client in json.loads(every.stdout)]
    assert len(names) == 251
    assert names == sorted(set(names))
    assert every.stderr == ""
    assert json.loads(run("clients", "show", "client-249", "--json").stdout)["client_id"]
    kept = run("tenants", "set", "tenant-249", "--name", "last", "--json")
    assert json.loads(kept.stdout)["clients"] == 1


def test_the_audit_trail_is_paged_up_to_the_limit(run: Run, fake: FakeAuth) -> None:
    for number in range(120):
        fake.record("admin", "client.update", f"client-{number}", "finance")
    fake.largest_page = 50
    found = json.loads(run("audit", "query", "--limit", "110", "--json").stdout)
    assert [record["sequence"] for record in found] == list(range(120, 10, -1))
    exact = run("audit", "query", "--limit", "120")
    assert "more" not in exact.stderr


def test_names_that_others_gave_do_not_steer_the_terminal(run: Run, fake: FakeAuth) -> None:
    evil = "\x1b[2J\x9b31m[red]x\u202e\nfine"
    fake.add_client("billing", "finance", ["generate"], display_name=evil)
    fake.record("admin", "client.update", "billing", "finance", name=evil)
    for command in (("clients", "list"), ("audit", "query")):
        table = run(*command).stdout
        assert "[red]x" in table
        assert not set("\x1b\x9b\u202e") & set(table)
    # Programs get what was said.
    shown = json.loads(run("clients", "show", "billing", "--json").stdout)
    assert shown["display_name"] == evil


def test_verification_keys_show_their_age_where_the_service_tells_it(run: Run) -> None:
    first, second = run("jwks").stdout.splitlines()[1:]
    assert first.split() == ["first", "EdDSA", "Ed25519", "-"]
    assert second.split() == ["next", "EdDSA", "-", "2h"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": [1]}', '{"keys": 5}', "\x00"])
def test_an_answer_that_is_no_key_set_is_no_traceback(
    run: Run, fake: FakeAuth, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(fake, "GetJwks", lambda request, caller: pb.GetJwksResponse(jwks_json=text))
    result = run("jwks")
    assert result.exit_code == 1
    assert "JWK Set" in result.stderr
    assert "Traceback" not in result.output


def test_a_key_beyond_its_life_is_shown_as_expired(run: Run, fake: FakeAuth) -> None:
    run("keys", "create", "--client", "admin", "--life", "1h")
    (info,) = fake.keys.values()
    assert "active" in run("keys", "list").stdout
    info.expires_at.CopyFrom(now(-1))
    assert "expired" in run("keys", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("clientz", "list"), "Did you mean 'clients'"),
        (("clients", "lits"), "list"),
        (("clients", "create", "x1x", "--tenant", "t1t"), "--scope or --role"),
        (("clients", "create", "x1x", "-t", "t1t", "-s", "genrate"), "Did you mean 'generate'"),
        (("clients", "update", "x1x"), "say what to change"),
        (("clients", "update", "x1x", "--role", "r", "--no-roles"), "--role or --no-roles"),
        (("roles", "set", "chat"), "say what it gives"),
        (("roles", "set", "chat", "-s", "generate", "--no-scopes"), "none of it"),
        (("quotas", "set", "-t", "x", "--per", "1m"), "exactly one of"),
        (("quotas", "set", "-t", "x", "--per", "1m", "--requests", "0"), "--requests"),
        (("quotas", "set", "-t", "x", "--per", "1m", "--tokens", str(2**63)), "--tokens"),
        (("quotas", "set", "-t", "x", "--per", "1m", "--tokens", "many"), "whole number"),
        (("quotas", "set", "-t", "x", "--per", "5", "--requests", "1"), "write 90s"),
        (
            ("quotas", "set", "-t", "x", "--per", "1m", "--requests", "1", "--tokens", "1"),
            "exactly one of",
        ),
        (
            ("quotas", "set", "-t", "x", "--per", "1m", "--cost", "1", "--burst", "1"),
            "money has none",
        ),
        (("tenants", "set", "x1x"), "say what to set"),
        (("tenants", "set", "x1x", "--audit", "metadta"), "Did you mean 'metadata'?"),
        (("tenants", "set", "x1x", "--cipher", "des"), "sm4-gcm"),
        (("audit", "query", "--since", "yesterday"), "ISO 8601"),
        (("audit", "query", "--since", "1h", "--until", "2h"), "nothing is in between"),
        (("keys", "inspect"), "give a API key in a file"),
        (("token", "introspect"), "give a token in a file"),
    ],
)
def test_usage_errors_exit_2_and_say_what_is_wrong(
    run: Run, arguments: tuple[str, ...], text: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stdout == ""


def test_tls_is_spoken_when_roots_are_given(tmp_path: Path) -> None:
    key, certificate = self_signed()
    roots = tmp_path / "ca.pem"
    roots.write_bytes(certificate)
    with fake_service(grpc.ssl_server_credentials([(key, certificate)])) as service:
        env = {**service.environment, "ANABRANCH_TLS_CA_FILE": str(roots)}
        assert invoke("auth", "clients", "list", env=env).exit_code == 0
        assert invoke("auth", "clients", "list", env=service.environment).exit_code == 5


def self_signed() -> tuple[bytes, bytes]:
    """A private key and a certificate for 127.0.0.1, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    moment = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - datetime.timedelta(hours=1))
        .not_valid_after(moment + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )
