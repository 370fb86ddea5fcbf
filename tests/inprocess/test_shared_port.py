"""A port that several processes may listen on: reserved for them."""

from __future__ import annotations

import socket

import pytest

from services.chassis.workers.shared_port import reserved


def shared_listener(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, int(port)))
    listener.listen()
    return listener


def test_a_reserved_port_is_kept_and_may_be_shared():
    with reserved("127.0.0.1:0") as address:
        assert not address.endswith(":0")
        with shared_listener(address), shared_listener(address):
            pass
        # The supervisor itself takes no connection.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))


def test_a_port_that_another_supervisor_has_is_refused():
    with (
        reserved("127.0.0.1:0") as address,
        pytest.raises(OSError, match="cannot listen on"),
        reserved(address),
    ):
        pass


def test_a_port_that_somebody_listens_on_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="cannot listen on"), reserved(f"127.0.0.1:{port}"):
            pass


@pytest.mark.parametrize("listen", ["", "host", "127.0.0.1:http"])
def test_an_address_that_is_none_is_refused(listen: str):
    with pytest.raises(ValueError, match="is not host:port"), reserved(listen):
        pass


@pytest.mark.parametrize("listen", ["0.0.0.0:0", ":0", "localhost:0"])
def test_wildcards_and_names_keep_their_form(listen: str):
    with reserved(listen) as address:
        host, _, port = address.rpartition(":")
        assert host == listen.rpartition(":")[0]
        assert int(port) > 0
