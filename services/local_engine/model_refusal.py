"""MODEL_REFUSED: how it is said that a model or an adapter cannot be served, and why."""

from __future__ import annotations

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work
from services.local_engine.safetensors_header import BadFile

_LONGEST_CAUSE = 500
"""Characters. A status takes little more, and cuts the end off, which says most."""


def refused(why: str) -> Fault:
    """MODEL_REFUSED; what names in a file make too long for a status is cut."""
    if len(why) > _LONGEST_CAUSE:
        half = _LONGEST_CAUSE // 2
        why = f"{why[:half]} … {why[-half:]}"
    return Fault(errors_pb2.ERROR_REASON_MODEL_REFUSED, why, work=Work.NOT_DISPATCHED)


def said(error: BadFile | OSError) -> str:
    """Why a file cannot be served, without where it lies."""
    return str(error) if isinstance(error, BadFile) else f"cannot be read: {error.strerror}"
