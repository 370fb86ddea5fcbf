"""The roles that come with the service, and the scopes that there are. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SCOPES: Mapping[str, str] = {
    "generate": "ask the models that its patterns name",
    "relay": "speak for the requests of others; for services alone",
    "observe": "look at the router: backends, policy, explanations",
    "audit": "read the audit trail",
    "tenant-admin": "look after the clients and API keys of its own tenant",
    "admin": "everything",
}
"""Every scope, and what it lets do."""

KNOWN_SCOPES = frozenset(SCOPES)
ADMIN = "admin"
TENANT_ADMIN = "tenant-admin"


class BuiltIn(NamedTuple):
    """A role that cannot be changed."""

    description: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]


BUILT_IN: Mapping[str, BuiltIn] = {
    # Not `relay`: what is asked in others' names is written down under those.
    "administrator": BuiltIn(
        "Administers everything, in every tenant", tuple(sorted(KNOWN_SCOPES - {"relay"})), ("*",)
    ),
    "auditor": BuiltIn("Reads the audit trail of every tenant", ("audit",), ()),
    "caller": BuiltIn("Asks the models that its client may ask", ("generate",), ()),
    "tenant-administrator": BuiltIn(
        "Looks after the clients and API keys of its own tenant", ("generate", "tenant-admin"), ()
    ),
    "viewer": BuiltIn("Looks at the router and changes nothing", ("observe",), ()),
}
