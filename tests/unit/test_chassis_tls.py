"""Certificate files: which sets are taken, which are refused, and what the settings allow."""

from __future__ import annotations

import datetime
import logging
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.chassis.common_settings import CommonSettings, WorkerSettings
from services.chassis.ports import registration
from services.chassis.settings import SettingsError, load
from services.chassis.tls import Tls, https_of
from services.chassis.tls_files import BadTlsFiles
from services.chassis.tls_files import load as load_files
from tests.support import tls
from tools import certs

SERVICE = "anabranch-engine"


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.made(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tls.made(tmp_path / "certs")


def opened(directory: Path, **changes: Any) -> Tls:
    found = Tls.open(CommonSettings(**tls.settings(directory, SERVICE, **changes)))
    assert found is not None
    return found


async def looked(found: Tls, times: int = 3) -> str:
    """The serial number in force after so many looks at the files."""
    for _ in range(times):
        await found.look()
    pem = found.present.pem.cert
    return certs.x509.load_pem_x509_certificate(pem).serial_number.to_bytes(20, "big").hex()


def on_disk(directory: Path) -> str:
    pem = (directory / f"{SERVICE}.pem").read_bytes()
    return certs.x509.load_pem_x509_certificate(pem).serial_number.to_bytes(20, "big").hex()


# Settings


def test_without_files_everything_is_plain_text():
    settings = CommonSettings()
    assert Tls.open(settings) is None
    assert https_of(settings, None) is None
    assert not settings.requires_client_certificates


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"CERT_FILE": "c"}, "belong together"),
        ({"KEY_FILE": "k"}, "belong together"),
        ({"CA_FILE": "a"}, "TLS_CA_FILE needs"),
        ({"CLIENT_AUTH": "none"}, "TLS_CLIENT_AUTH needs"),
        ({"CERT_FILE": "c", "KEY_FILE": "k", "CLIENT_AUTH": "required"}, "needs TLS_CA_FILE"),
        ({"CLIENT_AUTH": "sometimes"}, "one of required, none"),
        ({"RELOAD_PERIOD": "0"}, "at least 0.01"),
    ],
)
def test_a_combination_that_means_nothing_is_refused(given: dict[str, str], complaint: str):
    with pytest.raises(SettingsError, match=complaint):
        load(CommonSettings, "X_", {f"X_TLS_{name}": value for name, value in given.items()})


def test_the_variables_are_the_paths_themselves(issued: Path):
    variables = {
        "X_TLS_CERT_FILE": str(issued / f"{SERVICE}.pem"),
        "X_TLS_KEY_FILE": str(issued / f"{SERVICE}.key"),
        "X_TLS_CA_FILE": str(issued / "ca.pem"),
        "X_TLS_RELOAD_PERIOD": "500ms",
    }
    settings = load(CommonSettings, "X_", variables)
    assert settings.tls_key_file == issued / f"{SERVICE}.key"
    assert settings.requires_client_certificates
    found = Tls.open(settings)
    assert found is not None
    assert found.present.names == (SERVICE, "localhost")


@pytest.mark.parametrize("listen", ["nowhere", ":port", "[::1]:70000"])
def test_a_health_port_that_is_none_is_refused(listen: str):
    with pytest.raises(SettingsError, match="HEALTH_LISTEN must be host:port"):
        CommonSettings(health_listen=listen)


def test_workers_share_a_health_port_only_when_it_has_a_number():
    with pytest.raises(SettingsError, match="HEALTH_LISTEN needs a port"):
        WorkerSettings(workers=2, health_listen="0.0.0.0:0")
    assert WorkerSettings(workers=2, health_listen="0.0.0.0:50081")


def test_clients_are_asked_for_certificates_exactly_when_that_is_set(issued: Path):
    assert opened(issued).server_context().verify_mode is ssl.CERT_REQUIRED
    lenient = opened(issued, tls_client_auth="none")
    assert lenient.server_context().verify_mode is ssl.CERT_NONE
    assert opened(issued, tls_ca_file=None).server_context().verify_mode is ssl.CERT_NONE
    # Whoever is called must prove itself in any case, and never to scrapers.
    assert lenient.expecting("x").context.verify_mode is ssl.CERT_REQUIRED
    assert lenient.https.verify_mode is ssl.CERT_NONE


def test_the_http_port_can_stay_plain(issued: Path):
    settings = CommonSettings(**tls.settings(issued, SERVICE, http_tls="off"))
    assert https_of(settings, Tls.open(settings)) is None


@pytest.mark.parametrize(
    ("health", "tls_on", "told"),
    [
        ("", False, ("", False)),
        ("", True, ("", True)),
        ("0.0.0.0:50081", True, ("10.0.0.5:50081", False)),
        (":50081", False, ("10.0.0.5:50081", False)),
        ("127.0.0.1:50081", True, ("127.0.0.1:50081", False)),
    ],
)
def test_the_registry_is_told_where_and_how_to_ask_for_health(health, tls_on, told):
    settings = CommonSettings(advertise="10.0.0.5:50051")
    made = registration(
        SERVICE, "id", settings, address="0.0.0.0:1", health=health, tls=tls_on, meta={}
    )
    assert (made.health_address, made.health_tls) == told
    assert made.address == "10.0.0.5:50051"


# Sets that cannot be used


def spoiled(directory: Path, how: str) -> None:
    cert, key = directory / f"{SERVICE}.pem", directory / f"{SERVICE}.key"
    match how:
        case "another key":
            key.write_bytes((directory / "client.key").read_bytes())
        case "half a certificate":
            cert.write_bytes(cert.read_bytes()[:300])
        case "no certificate":
            cert.write_bytes(b"")
        case "half a key":
            key.write_bytes(key.read_bytes()[:100])
        case "an encrypted key":
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            secret = serialization.BestAvailableEncryption(b"secret")
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            key.write_bytes(loaded.private_bytes(pem, pkcs8, secret))
        case "no key":
            key.unlink()
        case "no authorities":
            (directory / "ca.pem").write_bytes(b"")
        case "half an authority":
            whole = (directory / "ca.pem").read_bytes()
            (directory / "ca.pem").write_bytes(whole + whole[:200])
        case "a leaf for an authority":
            (directory / "ca.pem").write_bytes(cert.read_bytes())
        case "binary authorities":
            (directory / "ca.pem").write_bytes(b"\xff\xfe")
        case "an expired certificate":
            long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
            certs.make(directory, days=1, now=long_ago)
        case _:
            raise AssertionError(how)


SPOILED = (
    ("another key", "do not belong together"),
    ("half a certificate", "holds no certificate"),
    ("no certificate", "holds no certificate"),
    ("half a key", "cannot be used"),
    ("an encrypted key", "cannot be used"),
    ("no key", "cannot be read: No such file"),
    ("no authorities", "holds no authorities"),
    ("half an authority", "holds no authorities"),
    ("a leaf for an authority", "no certificate of one"),
    ("binary authorities", "not PEM"),
    ("an expired certificate", "has expired"),
)


@pytest.mark.parametrize(("how", "complaint"), SPOILED)
def test_a_set_that_cannot_be_used_stops_the_start_and_says_why(directory, how, complaint):
    spoiled(directory, how)
    with pytest.raises(SettingsError, match=complaint) as refused:
        opened(directory)
    assert "PRIVATE" not in str(refused.value)


@pytest.mark.parametrize("how", [how for how, _ in SPOILED])
async def test_a_bad_set_is_told_once_and_the_last_good_one_is_kept(
    directory, how, caplog, tmp_path
):
    found = opened(directory)
    before, contexts = on_disk(directory), found.present
    spoiled(directory, how)
    with caplog.at_level(logging.ERROR):
        assert await looked(found, 6) == before
    assert found.present is contexts
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "last good ones stay" in told.message
    tls.replace_all(directory, by=tls.made(tmp_path / "others"))
    assert await looked(found) == on_disk(directory) != before


async def test_what_is_replaced_while_it_is_read_is_not_taken(directory, monkeypatch):
    files = tls.files(directory, SERVICE)
    original = ssl.SSLContext.load_cert_chain

    def slow(self, *args, **kwargs):
        original(self, *args, **kwargs)
        monkeypatch.undo()
        certs.make(directory)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", slow)
    with pytest.raises(BadTlsFiles, match=r"replaced while|belong together"):
        load_files(files, client_auth=True)


# Changes


async def test_a_changed_set_is_taken_at_the_second_look_that_finds_it(directory):
    found = opened(directory)
    before, contexts = on_disk(directory), found.present
    assert await looked(found) == before
    assert found.present is contexts
    certs.make(directory)
    assert await looked(found, 1) == before
    assert await looked(found, 1) == on_disk(directory) != before
    assert found.present.server is not contexts.server
    assert found.channel_credentials() is not contexts.credentials


async def test_those_who_listen_hear_whether_the_authorities_changed(directory, tmp_path):
    found = opened(directory)
    heard: list[bool] = []

    async def listener(authorities_changed: bool) -> None:
        heard.append(authorities_changed)

    found.on_renewed(listener)
    certs.make(directory)
    await looked(found)
    assert heard == [False]
    tls.replace_all(directory, by=tls.made(tmp_path / "others"))
    await looked(found)
    assert heard == [False, True]


async def test_expiry_and_reloads_are_measured(directory):
    found = opened(directory)
    reader = InMemoryMetricReader()
    found.observe(MeterProvider([reader]).get_meter("test"))
    certs.make(directory, days=30)
    await looked(found)
    spoiled(directory, "half a key")
    await looked(found)
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    points = {metric.name: metric.data.data_points for metric in scope.metrics}
    (expiry,) = points["anabranch.tls.certificate.expiry"]
    days = (expiry.value - datetime.datetime.now(datetime.UTC).timestamp()) / 86400
    assert 29 < days <= 30
    counts = {point.attributes["outcome"]: point.value for point in points["anabranch.tls.reloads"]}
    assert counts == {"ok": 1, "refused": 1}


# tools.certs


def test_a_second_run_renews_the_leaves_and_keeps_the_authority(directory):
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    certs.make(directory)
    after = {file.name: file.read_bytes() for file in directory.iterdir()}
    assert before.keys() == after.keys()
    kept = {name for name in before if before[name] == after[name]}
    assert kept == {"ca.pem", "ca.key"}


def test_keys_are_their_owners_alone(directory):
    modes = {stat.S_IMODE(file.stat().st_mode) for file in directory.glob("*.key")}
    assert modes == {0o600}
    assert len(list(directory.glob("*.key"))) == len(certs.SERVICES) + 2


@pytest.mark.parametrize("how", ["lost key", "expired"])
def test_an_authority_that_cannot_sign_is_named_and_left_alone(tmp_path, how, capsys):
    directory = tmp_path / "certs"
    decades = datetime.timedelta(days=4000 if how == "expired" else 0)
    certs.make(directory, now=datetime.datetime.now(datetime.UTC) - decades)
    if how == "lost key":
        (directory / "ca.key").unlink()
    before = (directory / "ca.pem").read_bytes()
    assert certs.main(["--directory", str(directory)]) == 1
    assert "authority" in capsys.readouterr().err
    assert (directory / "ca.pem").read_bytes() == before
