"""How much of a tenant's requests is written to the audit trail."""

from __future__ import annotations

from enum import StrEnum


class AuditDetail(StrEnum):
    """As a token's claim names it."""

    NONE = "none"
    METADATA = "metadata"
    CONTENT = "content"
