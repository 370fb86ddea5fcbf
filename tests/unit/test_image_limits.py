"""What images a request may hold, and from where: all that is said before one is decoded."""

from __future__ import annotations

import contextlib
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.local_engine.images.addresses import Place, is_allowed, may_connect, parse_networks
from services.local_engine.images.header import (
    MEDIA_TYPES,
    MOST_MARKERS,
    ImageHeader,
    read_header,
)
from services.local_engine.images.limits import ImageLimits, has_images, violations_of
from tests.support.pictures import (
    FORMATS,
    animated,
    encoded,
    linked,
    part,
    png_that_says,
    user,
)

LIMITS = ImageLimits(bytes_each=10_000, bytes_all=12_000, pixels_all=1_000_000)


def asked(*parts: pb.ContentPart | str, role: pb.Role = pb.ROLE_USER) -> pb.GenerateRequest:
    message = user(*parts)
    message.role = role
    return pb.GenerateRequest(messages=[message])


def wrong(request: pb.GenerateRequest, most: int = 4) -> list[str]:
    """The fields that are found fault with."""
    return [violation.field for violation in violations_of(request, LIMITS, most)]


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize("size", [(1, 1), (100, 60), (3000, 17)])
def test_every_format_s_header_tells_the_size_that_a_decoder_finds(media_type, size):
    assert read_header(encoded(media_type=media_type, size=size)) == ImageHeader(media_type, *size)


@pytest.mark.parametrize(
    ("media_type", "how"),
    [
        ("image/jpeg", {"progressive": True}),
        ("image/jpeg", {"exif": b"Exif\0\0" + b"\0" * 3000}),
        ("image/webp", {"lossless": True}),
        ("image/webp", {"exif": b"Exif\0\0" + b"\0" * 30}),  # the extended form
    ],
)
def test_the_kinds_of_a_format_are_all_read(media_type, how):
    assert read_header(encoded(media_type=media_type, **how)) == ImageHeader(media_type, 100, 60)


@pytest.mark.parametrize("media_type", ["image/gif", "image/webp"])
def test_of_an_animation_the_canvas_is_told(media_type):
    data = animated("red", "blue", media_type=media_type)
    assert read_header(data) == ImageHeader(media_type, 100, 60)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"RIFF\0\0\0\0WEBPXXXX" + b"\0" * 20,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xe0\0\0",
        b"\xff\xd8\xff\xe0\0\x02junk",
        encoded(media_type="image/jpeg").replace(b"\xff\xda", b"\xff\xda" * 101),
    ],
)
def test_what_is_no_image_is_refused_by_its_header(data):
    with pytest.raises(ValueError, match=r"\w"):
        read_header(data)


@given(st.sampled_from(list(FORMATS)), st.integers(0, 60), st.binary(max_size=40))
def test_no_bytes_bring_the_header_s_reader_down(media_type, kept, tail):
    with contextlib.suppress(ValueError):
        read_header(encoded(media_type=media_type)[:kept] + tail)


JPEG = encoded(media_type="image/jpeg")
FOUR_MIB = 4 * 1024 * 1024


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:2] + b"\xff" * FOUR_MIB,
        JPEG[:2] + b"\xff" * FOUR_MIB + JPEG[2:],
        JPEG[:2] + b"\xff\xd0" * (FOUR_MIB // 2) + JPEG[2:],
        JPEG[:2] + b"\xff\xe0\0\x02" * (FOUR_MIB // 4) + JPEG[2:],
        JPEG[:2] + b"\xff\xff\xff\xe0\0\x02" * (FOUR_MIB // 6) + JPEG[2:],
    ],
    ids=["fill", "fill before", "bare markers", "empty segments", "filled segments"],
)
def test_a_large_hostile_jpeg_is_judged_in_a_bounded_number_of_steps(data):
    assert lines_run(data) < 20 * MOST_MARKERS


def test_a_jpeg_may_have_as_many_markers_as_a_long_profile_and_fill_bytes():
    profile = b"\xff\xff\xe2\0\x04ab" * (MOST_MARKERS - 20)
    told = read_header(JPEG[:2] + profile + JPEG[2:])
    assert told == ImageHeader("image/jpeg", 100, 60)


def lines_run(data: bytes) -> int:
    """The lines of Python that reading a header takes, whatever comes of it."""
    count = 0

    def step(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        with contextlib.suppress(ValueError):
            read_header(data)
    finally:
        sys.settrace(before)
    return count


def test_all_that_is_wrong_with_a_request_s_images_is_listed_at_once():
    request = asked(
        part(encoded(), "image/svg+xml"),
        part(encoded(), "image/jpeg"),
        part(b"GIF89a"),
        part(encoded() + b"\0" * 10_000),
        linked("https://images.example.org/a.png"),
    )
    at = "messages[0].content[{}].image.{}".format
    assert wrong(request) == [
        at(0, "media_type"),
        *(at(place, "data") for place in (1, 2, 3)),
        at(4, "uri"),
        "messages",
    ]


def test_images_of_more_bytes_together_than_allowed_are_refused():
    padded = encoded() + b"\0" * 8_000
    assert wrong(asked(part(padded))) == []
    assert wrong(asked(part(padded), part(padded))) == ["messages"]


@pytest.mark.parametrize("size", [(1001, 1000), (60_000, 60_000), (0, 5), (16_385, 1)])
def test_a_picture_that_says_to_be_too_large_is_refused_before_it_is_decoded(size):
    assert wrong(asked(part(png_that_says(*size))))


def test_pictures_are_limited_in_pixels_together():
    half = png_that_says(1000, 600)
    assert wrong(asked(part(half))) == []
    assert wrong(asked(part(half), part(half))) == ["messages"]


def test_pictures_are_limited_in_number():
    picture = part(encoded())
    assert wrong(asked(picture, picture), most=2) == []
    assert wrong(asked(picture, picture, picture), most=2) == ["messages"]


@pytest.mark.parametrize("role", [pb.ROLE_SYSTEM, pb.ROLE_ASSISTANT])
def test_only_a_user_shows_pictures(role):
    assert wrong(asked(part(encoded()), role=role)) == ["messages[0].content[0].image"]


def test_requests_are_told_apart_by_whether_they_hold_images():
    assert has_images(asked("what is", part(encoded())))
    assert not has_images(asked("what is"))
    assert not has_images(pb.GenerateRequest(prompt="what is"))


PLACES = tuple(
    map(Place.parse, ("images.example.org", "*.cdn.example", "https://store.example:8443/public/"))
)


@pytest.mark.parametrize(
    "uri",
    [
        "https://images.example.org/a/b.png?size=3",
        "https://images.example.org:443/a.png",
        "https://images.example.org",
        "https://a.b.cdn.example/x",
        "https://store.example:8443/public/x%20y.png",
        "https://images.example.org/a.png?X-Amz-Credential=A%2F20260101%2Feu;b",
    ],
)
def test_an_address_on_the_list_is_allowed(uri):
    assert is_allowed(uri, PLACES)


@pytest.mark.parametrize(
    "uri",
    [
        "http://images.example.org/a.png",
        "https://images.example.org.evil.example/a.png",
        "https://evil.example/images.example.org",
        "https://user@images.example.org/a.png",
        "https://user:pw@images.example.org/a.png",
        "https://images.example.org@evil.example/",
        "https://images.example.org:8080/a.png",
        "https://images.example.org:/a.png",
        "https://images.example.org:0443/a.png",
        "https://images.example.org:99999/a.png",
        "https://images.example.org./a.png",
        "https://Images.Example.org/a.png",
        "https://images.example.org/a b.png",
        "https://images.example.org/a.png#x",
        "https://images.example.org\\@evil.example/",
        "https://images.example.org/\n",
        "https://images.example.org/é.png",
        "https://ìmages.example.org/a.png",
        "https://cdn.example/x",
        "https://evilcdn.example/x",
        "https://store.example/public/x",
        "https://store.example:8443/private/x",
        "https://store.example:8443/publicity/x",
        "https://store.example:8443/public/../private/x",
        "https://store.example:8443/public/%2e%2e/private/x",
        "https://store.example:8443/public/%2E./private/x",
        "https://store.example:8443/public/..%2fprivate/x",
        "https://store.example:8443/public/x;y=1/z",
        "https://store.example:8443/public/x%3by",
        "https://store.example:8443/public/x%252e%252e",
        "https://store.example:8443/public/x%3Fy",
        "https://store.example:8443/public/x%23y",
        "https://store.example:8443/public/x%5cy",
        "https://store.example:8443/public/x%00y",
        "https://store.example:8443/public/x%0d%0ay",
        "https://store.example:8443/public/x%1Fy",
        "https://store.example:8443/public/x%7fy",
        "https://store.example:8443/public/x%y",
        "https://store.example:8443/public/x?y=%0d%0az",
        "https://images.example.org/" + "a" * 3000,
        "file:///etc/passwd",
        "https:images.example.org/a.png",
        "https://[::1]/a.png",
    ],
)
def test_an_address_that_is_not_on_the_list_or_oddly_spelled_is_refused(uri):
    assert not is_allowed(uri, PLACES)


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "127.0.0.1", "[::1]", "host:", "host:0", "host:99999", "ho st", "a@b", "1"],
)
def test_a_list_with_something_that_is_no_host_is_refused(text):
    with pytest.raises(ValueError, match="which is no host"):
        Place.parse(text)


@pytest.mark.parametrize(
    "number",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1"),
        *("255.255.255.255", "198.18.0.1", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0"),
        *("fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
        *("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00:1::", "no number", ""),
        # Forms that hold an IPv4 address, public or not, and what is no global unicast.
        *("::ffff:93.184.216.34", "64:ff9b::5db8:d822", "2002:5db8:d822::1", "::93.184.216.34"),
        *("2001:0:5db8:d822::1", "2001:db8::1", "3fff::1", "4000::1", "5f00::1", "1000::1"),
        *("fec0::1", "100::1", "2606:2800:220:1::5efe:7f00:1", "a000::1"),
    ],
)
def test_no_address_inside_is_connected_to(number):
    assert not may_connect(number, ())


@pytest.mark.parametrize("number", ["93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001::5"])
def test_public_addresses_are(number):
    assert may_connect(number, ())


def test_a_private_network_that_is_named_may_be_connected_to_and_no_other():
    named = parse_networks(["10.20.0.0/16", "fd12::/64"])
    assert may_connect("10.20.3.4", named)
    assert not may_connect("::ffff:10.20.3.4", named)
    assert may_connect("fd12::7", named)
    assert not may_connect("10.21.3.4", named)
    assert not may_connect("127.0.0.1", named)
    translated = parse_networks(["64:ff9b::/96"])
    assert may_connect("64:ff9b::5db8:d822", translated)
    assert not may_connect("64:ff9b::a9fe:a9fe", translated)
    with pytest.raises(ValueError, match="which is no network"):
        parse_networks(["10.20.0.0/99"])
