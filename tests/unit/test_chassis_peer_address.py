"""Where a call comes from: spellings of peers, and how far a forwarded header is believed."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import Fault
from services.chassis.origin import SIBLINGS_CALLER, Origin, sibling_metadata
from services.chassis.peer_address import caller_address, networks_of, peer_address
from services.chassis.principal import NOWHERE, Address, Principal, is_within

PROXIES = networks_of(["10.0.0.0/8", "2001:db8::/32"])
PROXY = ipaddress.ip_address("10.0.0.1")
STRANGER = ipaddress.ip_address("203.0.113.9")


class Call:
    """As much of a call's context as its origin is found from."""

    def __init__(self, peer: str, *metadata: tuple[str, str | bytes]) -> None:
        self._peer = peer
        self._metadata = metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:4711", "192.0.2.1"),
        ("ipv6:[2001:db8::1]:4711", "2001:db8::1"),
        ("ipv6:%5B2001:db8::1%5D:4711", "2001:db8::1"),
        ("ipv6:[::ffff:192.0.2.1]:4711", "192.0.2.1"),
        ("ipv6:[fe80::1%25eth0]:4711", "fe80::1"),
        ("ipv6:[fe80::1%eth0]:4711", "fe80::1"),
    ],
)
def test_a_peer_is_read_in_every_spelling(peer: str, address: str) -> None:
    assert peer_address(peer) == ipaddress.ip_address(address)


@pytest.mark.parametrize(
    "peer",
    ["", "unix:", "unix:/run/x", "unix-abstract:x", "vsock:1:2", "ipv4:", "ipv4::0", "ipv4:x:1",
     "ipv4:192.0.2.1", "ipv6:[::1", "10.0.0.1:1", "ipv4:010.0.0.1:1", "ipv4:1:1"],
)  # fmt: skip
def test_what_is_no_address_is_nowhere(peer: str) -> None:
    assert peer_address(peer) == NOWHERE


@given(st.text(max_size=60))
def test_no_text_is_more_than_nowhere_or_an_address(text: str) -> None:
    for peer in (text, f"ipv4:{text}", f"ipv6:{text}:1"):
        assert isinstance(peer_address(peer), ipaddress.IPv4Address | ipaddress.IPv6Address)
    found = caller_address(PROXY, [text], PROXIES)
    assert isinstance(found, ipaddress.IPv4Address | ipaddress.IPv6Address)


@given(st.lists(st.text(max_size=30), max_size=5))
def test_nothing_is_believed_of_who_is_no_trusted_proxy(said: list[str]) -> None:
    assert caller_address(STRANGER, said, PROXIES) == STRANGER
    assert caller_address(PROXY, said, ()) == PROXY


@given(st.lists(st.ip_addresses().map(str), max_size=5), st.ip_addresses())
def test_what_a_caller_says_before_its_proxy_changes_nothing(
    made_up: list[str], real: Address
) -> None:
    """Whatever is left of what the trusted proxy wrote: the class of all such spoofing."""
    alone = caller_address(PROXY, [str(real)], PROXIES)
    if is_within(alone, PROXIES):
        return
    assert caller_address(PROXY, [", ".join([*made_up, str(real)])], PROXIES) == alone
    assert caller_address(PROXY, [*made_up, str(real)], PROXIES) == alone


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ([], "10.0.0.1"),
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9:80"], "203.0.113.9"),
        (["[2001:db9::1]:80"], "2001:db9::1"),
        (["2001:db9::1"], "2001:db9::1"),
        (["203.0.113.9, 10.0.0.2", "10.0.0.3"], "203.0.113.9"),
        (["8.8.8.8, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
    ],
)
def test_the_caller_is_the_last_that_is_no_trusted_proxy(said: list[str], address: str) -> None:
    assert caller_address(PROXY, said, PROXIES) == ipaddress.ip_address(address)


@pytest.mark.parametrize(
    "said", ["", " ", ",", "unknown", "_x", "for=8.8.8.8", "8.8.8.8 8.8.8.8", "203.0.113.9,"]
)
def test_what_cannot_be_read_is_nowhere_and_not_looked_past(said: str) -> None:
    """Not even with a good address to the left: that one is the caller's own word."""
    assert caller_address(PROXY, [said], PROXIES) == NOWHERE
    assert caller_address(PROXY, ["203.0.113.9", said], PROXIES) == NOWHERE


def test_a_header_of_any_length_is_read_no_further_than_it_is_believed() -> None:
    endless = ", ".join(["8.8.8.8"] + ["10.0.0.2"] * 100_000)
    assert caller_address(PROXY, [endless], PROXIES) == ipaddress.ip_address("10.0.0.2")


def test_nothing_is_within_networks_that_is_nowhere() -> None:
    everything = networks_of(["0.0.0.0/0", "::/0", "100::/64"])
    assert not is_within(NOWHERE, everything)
    assert is_within(STRANGER, everything)
    assert not is_within(STRANGER, ())


@pytest.mark.parametrize("text", ["10.0.0.1/8", "", "*", "::ffff:10.0.0.0/104", "fe80::%eth0/64"])
def test_what_would_never_match_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="is not a network"):
        networks_of([text])


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::1"])
def test_a_sibling_hears_where_its_caller_is(address: str) -> None:
    found = ipaddress.ip_address(address)
    assert Origin(siblings=True).of(Call("unix:", *sibling_metadata(found))) == found


def test_a_sibling_that_speaks_for_itself_is_nowhere_in_particular() -> None:
    assert sibling_metadata(None) == ()
    assert Origin(siblings=True).of(Call("unix:")) is None


def test_a_caller_cannot_pass_for_a_sibling() -> None:
    """The header that siblings believe is any other header on the public port."""
    said = (SIBLINGS_CALLER, "ipv4:10.1.1.1:0")
    for origin in (Origin(), Origin(PROXIES)):
        assert origin.of(Call("ipv4:203.0.113.9:1", said)) == STRANGER


def principal(*networks: str) -> Principal:
    return Principal("c", "t", frozenset(), 0.0, "j", networks=networks_of(networks))


def test_a_principal_without_networks_calls_from_everywhere() -> None:
    for address in (STRANGER, NOWHERE, None):
        principal().check_address(address)


def test_a_principal_with_networks_calls_from_there_alone() -> None:
    principal("203.0.113.0/24").check_address(STRANGER)
    for address in (PROXY, NOWHERE, ipaddress.ip_address("::ffff:203.0.113.9")):
        with pytest.raises(Fault):
            principal("203.0.113.0/24").check_address(address)
