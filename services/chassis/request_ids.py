"""Remembers the bodies of the latest request ids, to refuse an id used for another request."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from anabranch.v1 import errors_pb2, generation_pb2
from services.chassis.errors import Fault
from services.chassis.principal import Principal


class RequestIds:
    """The latest `size` ids of all clients, each with a hash of its body."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def check(self, caller: Principal, request: generation_pb2.GenerateRequest) -> None:
        """Raises Fault REQUEST_ID_REUSED."""
        asked = request
        if request.HasField("timeout"):
            # A repetition has less time left, which makes it no other request.
            asked = generation_pb2.GenerateRequest()
            asked.CopyFrom(request)
            asked.ClearField("timeout")
        body = hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()
        key = (caller.client_id, request.request_id)
        known = self._seen.setdefault(key, body)
        self._seen.move_to_end(key)
        if len(self._seen) > self._size:
            self._seen.popitem(last=False)
        if known != body:
            raise Fault(
                errors_pb2.ERROR_REASON_REQUEST_ID_REUSED,
                "this request_id was used before with another body",
                metadata={"request_id": request.request_id},
            )
