"""What images a request may hold: everything that can be said before one is fetched or decoded.

Pure. What is left to find out is whether the pixels are there: the decoder's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation
from services.local_engine.images.addresses import Place, is_allowed
from services.local_engine.images.header import MEDIA_TYPES, ImageHeader, read_header

MOST_SIDE = 16_384
"""Pixels of a side; what makes one longer is no picture that a model could read."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bytes and pixels are of all images of a request together but for `bytes_each`."""

    bytes_each: int = 8 * 1024 * 1024
    bytes_all: int = 16 * 1024 * 1024
    pixels_all: int = 40_000_000
    places: tuple[Place, ...] = ()


def has_images(request: pb.GenerateRequest) -> bool:
    """Whether any turn holds an image."""
    for message in request.messages:
        for part in message.content:
            if part.HasField("image"):
                return True
    return False


def images_of(request: pb.GenerateRequest) -> Iterator[tuple[str, pb.Message, pb.Image]]:
    """Each image with its field's path and the turn that it is in, in order."""
    for number, message in enumerate(request.messages):
        for place, part in enumerate(message.content):
            if part.HasField("image"):
                yield f"messages[{number}].content[{place}].image", message, part.image


def violations_of(
    request: pb.GenerateRequest, limits: ImageLimits, most_images: int
) -> list[Violation]:
    """Every fault of a request's images that shows without fetching or decoding one."""
    found: list[Violation] = []
    headers: list[ImageHeader] = []
    count = size = 0
    for at, message, image in images_of(request):
        count += 1
        size += len(image.data)
        if message.role != pb.ROLE_USER:
            found.append(Violation(at, "is not in a user's turn, where the model reads images"))
        if image.media_type not in MEDIA_TYPES:
            found.append(Violation(f"{at}.media_type", f"must be one of {', '.join(MEDIA_TYPES)}"))
        elif image.WhichOneof("source") == "uri":
            if not is_allowed(image.uri, limits.places):
                found.append(Violation(f"{at}.uri", "is not on this service's list of addresses"))
        elif len(image.data) > limits.bytes_each:
            found.append(Violation(f"{at}.data", f"is larger than {limits.bytes_each} bytes"))
        else:
            header = checked_header(image.data, image.media_type, f"{at}.data", found)
            if header is not None:
                headers.append(header)
    if count > most_images:
        found.append(Violation("messages", f"hold {count} images: at most {most_images} may be"))
    if size > limits.bytes_all:
        found.append(Violation("messages", f"hold images of more than {limits.bytes_all} bytes"))
    return found + too_many_pixels(headers, limits)


def checked_header(
    data: bytes, media_type: str, at: str, found: list[Violation]
) -> ImageHeader | None:
    """What the image at `at` says of itself; None, and one more `found`, where that is wrong."""
    try:
        header = read_header(data)
    except ValueError as wrong:
        found.append(Violation(at, str(wrong)))
        return None
    if header.media_type != media_type:
        found.append(Violation(at, f"is {header.media_type}, not {media_type} as it is said to be"))
        return None
    sides = (header.width, header.height)
    if not 0 < min(sides) <= max(sides) <= MOST_SIDE:
        wrong_size = f"is {header.width} x {header.height} pixels: sides have 1 to {MOST_SIDE}"
        found.append(Violation(at, wrong_size))
        return None
    return header


def too_many_pixels(headers: Sequence[ImageHeader], limits: ImageLimits) -> list[Violation]:
    """What is wrong with so many images of such sizes: nothing or one thing."""
    pixels = sum(header.width * header.height for header in headers)
    if pixels <= limits.pixels_all:
        return []
    return [
        Violation("messages", f"hold images of {pixels} pixels: at most {limits.pixels_all} may be")
    ]
