"""Secrets in `anabranch auth`: shown once, where they were asked for, and nowhere else."""

from __future__ import annotations

import logging
import os
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anabranch import api_keys
from anabranch.auth_admin import AuthAdmin, ExchangedApiKey
from anabranch.cli import main
from anabranch.cli.connection import Connection
from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from tests.support.auth_administration import Service, fake_service
from tests.support.fake_auth import FakeAuth

Run = Callable[..., Result]

CREATE = ("clients", "create", "billing", "--tenant", "finance", "--scope", "generate")
ROTATE = ("clients", "rotate-secret", "billing", "--yes")
KEY = ("keys", "create", "--client", "billing")
TOKEN = ("token", "issue")


@pytest.fixture
def service() -> Iterator[Service]:
    with fake_service() as found:
        yield found


@pytest.fixture
def fake(service: Service) -> FakeAuth:
    assert service.fake is not None
    return service.fake


@pytest.fixture
def run(service: Service) -> Run:
    def run(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
        mine = service.environment if env is None else env
        return CliRunner().invoke(main, ["auth", *arguments], input=stdin, env={**clean, **mine})

    return run


def made(fake: FakeAuth) -> set[str]:
    """Every secret that there is: of clients, of keys, and tokens."""
    return {*fake.secrets.values(), *fake.whole_keys, *fake.tokens}


def everything(result: Result) -> str:
    """What a command printed, and what it failed with."""
    error = result.exc_info
    return result.output + ("".join(traceback.format_exception(*error)) if error else "")


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize("command", [CREATE, ROTATE, KEY, TOKEN])
def test_a_new_secret_is_on_stdout_once_and_not_on_stderr(
    run: Run, fake: FakeAuth, command: tuple[str, ...], as_json: tuple[str, ...]
) -> None:
    if command is not CREATE:
        fake.add_client("billing", "finance", ["generate"])
    before = made(fake)
    result = run(*command, *as_json)
    assert result.exit_code == 0
    new = [secret for secret in made(fake) - before if secret in result.stdout]
    assert len(new) == 1
    assert result.stdout.count(new[0]) == 1
    assert new[0] not in result.stderr
    assert "shown only now" in result.stderr
    assert not any(secret in result.output for secret in before)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize("command", [CREATE, ROTATE, KEY, TOKEN])
def test_a_secret_file_is_readable_by_its_owner_alone_and_nothing_is_printed(
    run: Run,
    fake: FakeAuth,
    tmp_path: Path,
    command: tuple[str, ...],
    as_json: tuple[str, ...],
) -> None:
    if command is not CREATE:
        fake.add_client("billing", "finance", ["generate"])
    file = tmp_path / "secret"
    before = os.umask(0)
    try:
        result = run(*command, "--secret-file", str(file), *as_json)
    finally:
        os.umask(before)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().strip() in made(fake)
    assert not any(secret in result.output for secret in made(fake))
    assert str(file) in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert (str(file) in result.stdout) is bool(as_json)


def test_no_other_command_shows_a_secret(
    run: Run, fake: FakeAuth, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run(*CREATE)
    key = run(*KEY).stdout.strip()
    token = run(*TOKEN).stdout.strip()
    caplog.clear()
    key_id = api_keys.public_id(key)
    commands: list[tuple[tuple[str, ...], str]] = [
        (("clients", "list"), ""),
        (("clients", "show", "billing"), ""),
        (("clients", "update", "billing", "--name", "x"), ""),
        (("keys", "list"), ""),
        (("keys", "inspect"), key),
        (("keys", "inspect"), f"{key[:-1]}!"),
        (("keys", "inspect"), f"{key} {key}"),
        (("roles", "set", "chat", "--scope", "generate"), ""),
        (("roles", "list"), ""),
        (("tenants", "set", "finance", "--audit", "none"), ""),
        (("tenants", "list"), ""),
        (("quotas", "list"), ""),
        (("rotate-signing-key",), ""),
        (("jwks",), ""),
        (("token", "introspect"), token),
        (("token", "introspect"), key),
        (("token", "introspect"), f"{token}\nx"),
        (("audit", "query"), ""),
        (("keys", "revoke", key_id, "--yes"), ""),
        (("token", "revoke", "--yes"), token),
        (("clients", "disable", "billing", "--yes"), ""),
    ]
    fault = Fault(errors_pb2.ERROR_REASON_INTERNAL, "incident 1")
    for failing in (None, fault):
        fake.fault = failing
        for arguments, stdin in commands:
            for as_json in ((), ("--json",)):
                result = run(*arguments, *as_json, stdin=stdin)
                secrets = made(fake) | {key, token}
                assert result.exit_code in (0, 1, 2, 4), result.output
                assert not any(secret in everything(result) for secret in secrets), arguments
                assert key[22:60] not in everything(result)
    assert not any(secret in caplog.text for secret in made(fake) | {key, token})


def test_a_whole_key_among_the_arguments_is_refused_without_repeating_it(run: Run) -> None:
    key = run("keys", "create", "--client", "admin").stdout.strip()
    result = run("keys", "revoke", key, "--yes")
    assert result.exit_code == 2
    assert "public id" in result.stderr
    assert key not in result.output


@pytest.mark.parametrize(
    "credential",
    ["two\nlines", "tok\u00e9n-of-mine", "token-of\x00mine", "token of mine", "x" * 100_000],
)
def test_a_credential_that_cannot_be_sent_is_refused_without_repeating_it(
    service: Service, run: Run, credential: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(credential)
    env = {"ANABRANCH_AUTH_TARGET": service.target, "ANABRANCH_TOKEN_FILE": str(file)}
    result = run("clients", "list", env=env)
    assert result.exit_code in (2, 3, 5)
    assert "mine" not in everything(result)
    assert "lines" not in everything(result)
    assert "xxxxxxxx" not in everything(result)
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("option", ["--token-file", "--client-secret-file"])
def test_a_secret_file_that_is_not_text_is_refused_without_quoting_it(
    tmp_path: Path, option: str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"secret-\xff\xfe-part")
    result = CliRunner().invoke(main, [option, str(file), "auth", "jwks"])
    assert result.exit_code == 2
    assert "is not UTF-8" in result.stderr
    assert "part" not in everything(result)


def test_a_credential_that_is_not_text_is_refused_without_quoting_it(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"secret-\xff\xfe-part")
    result = run("keys", "inspect", str(file))
    assert result.exit_code == 2
    assert "part" not in everything(result)


@pytest.mark.parametrize("command", [CREATE, KEY, TOKEN])
def test_a_secret_file_that_exists_is_not_overwritten(
    run: Run, fake: FakeAuth, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "precious"
    file.write_text("mine")
    clients = len(fake.clients)
    result = run(*command, "--secret-file", str(file))
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert file.read_text() == "mine"
    assert (len(fake.clients), len(fake.keys)) == (clients, 0), "nothing was asked for"


def test_a_rotated_secret_replaces_its_file_as_a_whole(
    run: Run, fake: FakeAuth, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    assert run(*CREATE, "--secret-file", str(file)).exit_code == 0
    file.chmod(0o644)
    assert run(*ROTATE, "--secret-file", str(file)).exit_code == 0
    assert file.read_text() == f"{fake.secrets['billing']}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("place", ["missing/secret", ".", "link", "pipe"])
def test_where_no_secret_can_be_kept_none_is_made(
    run: Run, fake: FakeAuth, tmp_path: Path, place: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    fake.add_client("billing", "finance", ["generate"])
    before = fake.secrets["billing"]
    result = run(*ROTATE, "--secret-file", str(tmp_path / place))
    assert result.exit_code == 2
    assert fake.secrets["billing"] == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_refused_call_leaves_no_file(run: Run, fake: FakeAuth, tmp_path: Path) -> None:
    result = run(*ROTATE, "--secret-file", str(tmp_path / "secret"))
    assert result.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_cannot_be_written_after_all_is_said_to_be_lost(
    run: Run, fake: FakeAuth, tmp_path: Path
) -> None:
    fake.add_client("billing", "finance", ["generate"])
    file = tmp_path / "secret"
    answer = fake.RotateClientSecret

    def rotate(request: object, caller: str) -> object:
        file.mkdir()
        return answer(request, caller)

    fake.RotateClientSecret = rotate  # type: ignore[method-assign]
    result = run(*ROTATE, "--secret-file", str(file))
    assert result.exit_code == 4
    assert "It is lost: make another one." in result.stderr
    assert fake.secrets["billing"] not in result.output
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_that_holds_a_secret_shows_it(service: Service) -> None:
    key = "abk_4k9x0q2m7c1v8b5n_" + "s3cr3t" * 7 + "s"
    key += api_keys.checksum(key)
    admin = AuthAdmin("a:1", client_id="c", client_secret="s3cr3t")
    with admin:
        assert "s3cr3t" not in repr(admin) + repr(vars(admin)["_tokens"])
    source = ExchangedApiKey(lambda: None, "a:1", key)  # type: ignore[arg-type, return-value]
    assert "s3cr3t" not in repr(source)
    assert "s3cr3t" not in repr(Connection({"client_secret": "s3cr3t", "token": key}))
