"""AuthService as one servicer, put together of the parts in rpcs/.

The chassis has authenticated the caller and checked the method's scopes before
any method runs; whose tenant something is, the parts check themselves.
"""

from __future__ import annotations

from anabranch.v1 import auth_pb2


class AuthServicer:
    """Every RPC of the contract, each of one of the parts. ValueError when one is missing."""

    def __init__(self, *parts: object) -> None:
        names = [m.name for m in auth_pb2.DESCRIPTOR.services_by_name["AuthService"].methods]
        for name in names:
            found = [getattr(part, name) for part in parts if hasattr(part, name)]
            if len(found) != 1:
                raise ValueError(f"{name} is implemented by {len(found)} parts")
            setattr(self, name, found[0])
