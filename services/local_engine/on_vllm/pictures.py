"""Conversations of a model that reads images, as vLLM's own renderer makes prompts of them.

Decodes images, and has vLLM place and expand them: its renderer knows each model's template,
placeholders and processor. Relies on what vLLM 0.25 to 0.33 have: `AsyncLLM.renderer` with
`render_chat_async`, `get_mm_processor` and `skip_mm_cache`. Of a vLLM without them the model reads
no images; see `renderer_of`.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from PIL import Image, ImageOps

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation, invalid
from services.local_engine.chat_turns import chat_turns
from services.local_engine.engine import Media, Picture
from services.local_engine.on_vllm.chat_format import TOOLS_OFF, ChatFormat
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer

_log = logging.getLogger(__name__)

_FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
}
_MARKS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""Under these names Hugging Face configurations keep the token that a picture's place is marked
with."""


class PictureRenderer:
    """Renders conversations of one vision model; `most_images` a request at most.

    `refusals` are what vLLM raises for a bad request. `marks` are tokens that only a picture may
    bring into a prompt: one that a caller writes would be taken for a picture that is not there.
    """

    def __init__(
        self,
        renderer: Any,
        chat: ChatFormat,
        chat_params: Callable[..., Any],
        refusals: tuple[type[Exception], ...],
        marks: Mapping[int, str],
        most_images: int,
    ) -> None:
        self._renderer = renderer
        self._chat = chat
        self._chat_params = chat_params
        self._refusals = refusals
        self._marks = marks
        self.most_images = most_images

    async def encode(
        self, request: pb.GenerateRequest, pictures: Sequence[Picture]
    ) -> tuple[list[int], Media | None]:
        """The prompt of a conversation, and what its images became; None without any.

        Raises Fault INVALID_REQUEST and UNSUPPORTED.
        """
        self._check_texts(request)
        images = await asyncio.to_thread(_decode_all, pictures) if pictures else []
        # Named by content, so that vLLM's caches find a picture again without reading it.
        parts = [
            {"type": "image_pil", "image_pil": image, "uuid": picture.digest}
            for picture, image in zip(pictures, images, strict=True)
        ]
        turns = chat_turns(
            request.messages, tools=self._chat.tools, why_not=TOOLS_OFF, pictures=iter(parts)
        )
        arguments = self._chat.arguments(request)
        params = self._chat_params(
            chat_template=arguments.pop("chat_template", None),
            chat_template_kwargs={**arguments, "add_generation_prompt": True, "tokenize": True},
        )
        try:
            # Past the cache that vLLM mirrors in its engine core: what is rendered here may never
            # get there, counted only or cancelled, and the two would then differ.
            _, (prompt,) = await self._renderer.render_chat_async(
                [turns], params, skip_mm_cache=True
            )
        except TemplateError as refused:
            raise invalid(
                [Violation("messages", f"the model's own processing refuses them: {refused}")]
            ) from refused
        except self._refusals as refused:
            # Not in its words: those of processors quote what they got, with addresses in memory.
            raise invalid(
                [Violation("messages", "the model's own processing refuses them")]
            ) from refused
        tokens = list(prompt["prompt_token_ids"])
        places = prompt["mm_placeholders"]["image"] if pictures else ()
        # Texts that are no mark each may be one together, and tools have texts, too.
        self._check_outside(tokens, [(place.offset, place.length) for place in places])
        if not pictures:
            return tokens, None
        return tokens, Media(prompt, min(place.offset for place in places))

    async def encode_text_only(
        self, request: pb.GenerateRequest, tokenizer: ChatTokenizer
    ) -> list[int]:
        """The prompt of a request without images. Raises Fault INVALID_REQUEST also for one that
        holds the mark of a picture."""
        if request.messages:
            # Templates of such models often read turns in pieces only, which the renderer knows.
            return (await self.encode(request, ()))[0]
        token_ids = await tokenizer.encode(request)
        self.check(token_ids, "prompt" if request.prompt else "prompt_token_ids")
        return token_ids

    def check(self, token_ids: Sequence[int], field: str) -> None:
        """Raises Fault INVALID_REQUEST where tokens without a picture hold the mark of one."""
        found = self._marks.keys() & set(token_ids)
        if found:
            raise invalid([Violation(field, self._refusal(self._marks[min(found)]))])

    def _check_outside(self, tokens: list[int], places: Sequence[tuple[int, int]]) -> None:
        at = 0
        for offset, length in sorted(places):
            self.check(tokens[at:offset], "messages")
            at = max(at, offset + length)
        self.check(tokens[at:], "messages")

    def _check_texts(self, request: pb.GenerateRequest) -> None:
        found = [
            Violation(f"messages[{number}].content[{place}].text", self._refusal(mark))
            for number, message in enumerate(request.messages)
            for place, part in enumerate(message.content)
            for mark in self._marks.values()
            if mark in part.text
        ]
        if found:
            raise invalid(found)

    @staticmethod
    def _refusal(mark: str) -> str:
        return f"holds {mark}, this model's mark of a picture: pictures are parts of messages"


def prompt_with(media: Media, token_ids: Sequence[int]) -> dict[str, Any]:
    """The prompt that vLLM is given: as rendered, but of these tokens.

    They begin with the rendered ones, so that its images keep their places; what follows is a
    continuation's.
    """
    return {**media.content, "prompt_token_ids": list(token_ids)}


def _decode_all(pictures: Sequence[Picture]) -> list[Image.Image]:
    return [_decode(picture) for picture in pictures]


def _decode(picture: Picture) -> Image.Image:
    """The first frame, upright, in RGB, on white where it is transparent. Raises Fault."""
    header = picture.header
    try:
        # One format, the one that its header was read as: no other decoder sees the bytes.
        with Image.open(io.BytesIO(picture.data), formats=[_FORMATS[header.media_type]]) as image:
            if image.size != (header.width, header.height):
                raise ValueError("its header says another size than the decoder finds")
            image.load()
            return _flattened(ImageOps.exif_transpose(image))
    except Exception as broken:
        # make them stumble over, struct.error and KeyError among it. Their words are not for the
        # caller: some of them name objects by their address in memory.
        raise invalid([Violation(picture.at, "cannot be decoded")]) from broken


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def renderer_of(
    llm: Any,
    model: Any,
    tokenizer: Any,
    refusals: tuple[type[Exception], ...],
    chat: ChatFormat,
) -> PictureRenderer | None:
    """The renderer of a model that reads images; None for others, and where this vLLM offers no
    way to render one's conversations. `model` is vLLM's ModelConfig."""
    if not model.is_multimodal_model:
        return None
    from vllm.renderers import ChatParams

    renderer = getattr(llm, "renderer", None)
    render = getattr(renderer, "render_chat_async", None)
    if render is None or "skip_mm_cache" not in inspect.signature(render).parameters:
        _log.warning("this vLLM offers no way to give it images: the model reads none")
        return None
    assert renderer is not None
    most = int(renderer.get_mm_processor().info.allowed_mm_limits.get("image", 0))
    if not most:
        return None
    config = model.hf_config
    ids = {getattr(config, name, None) for name in _MARKS}
    marks = {token: tokenizer.decode([token]) for token in ids if isinstance(token, int)}
    return PictureRenderer(renderer, chat, ChatParams, refusals, marks, most)
