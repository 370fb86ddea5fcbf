"""Masks the inputs of an embedding, as the messages of a request are masked."""

from __future__ import annotations

from collections.abc import Collection

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.masking.request import Masker


def mask_inputs(
    masker: Masker, request: model_pb2.EmbedRequest, more: Collection[int] = ()
) -> model_pb2.EmbedRequest:
    """The request as it may leave, itself unchanged. Raises Unmaskable.

    A vector cannot be unmasked: the text that it stands for is the masked one.
    """
    texts = pb.GenerateRequest(
        messages=[
            pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
            for text in request.inputs
        ]
    )
    masked = masker.mask(texts, more)
    if masked is None:
        return request
    leaving = model_pb2.EmbedRequest()
    leaving.CopyFrom(request)
    leaving.ClearField("inputs")
    leaving.inputs.extend(message.content[0].text for message in masked.request.messages)
    return leaving
