"""What others are told of where a process is."""

from __future__ import annotations

import socket

import pytest

from services.chassis.common_settings import CommonSettings
from services.chassis.ports import registration, require_address, told_address
from services.chassis.settings import SettingsError


@pytest.mark.parametrize(
    ("listen", "advertise", "told"),
    [
        ("127.0.0.1:7", "", "127.0.0.1:7"),
        ("0.0.0.0:7", "engine-0:7", "engine-0:7"),
        ("0.0.0.0:7", "", f"{socket.gethostname()}:7"),
        ("[::]:7", "", f"{socket.gethostname()}:7"),
        (":7", "", f"{socket.gethostname()}:7"),
    ],
)
def test_a_wildcard_is_told_as_the_machines_name(listen: str, advertise: str, told: str):
    settings = CommonSettings(listen=listen, advertise=advertise)
    assert told_address(settings, listen) == told
    said = registration(
        "svc", "id", settings, address=listen, health="0.0.0.0:50060", tls=False, meta={}
    )
    assert said.address == told
    assert said.health_address == f"{told.rpartition(':')[0]}:50060"


@pytest.mark.parametrize(
    ("registry", "needed"),
    [
        ("consul://127.0.0.1:8500", True),
        ("memory:x", True),
        ("none", False),
        ("dns:svc=h:1", False),
        ("static:svc=h:1", False),
    ],
)
def test_an_address_to_tell_is_needed_where_somebody_is_told(registry: str, needed: bool):
    settings = CommonSettings(listen="0.0.0.0:7", registry=registry)
    if needed:
        with pytest.raises(SettingsError, match="ADVERTISE is required"):
            require_address(settings)
    else:
        require_address(settings)
