"""The role of whatever brings a router its policy, and what all kinds say of a failed update."""

from __future__ import annotations

from typing import Protocol

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work
from services.router.policy.document import Document


class PolicySource(Protocol):
    """Brings documents into a store, and takes an operator's."""

    async def start(self) -> None:
        """Puts the first document in force; after Host.start, before anything is decided.

        Raises SettingsError with every fault when it is a bad one and no sibling has a better.
        """

    async def follow(self) -> None:
        """Keeps the store in step until cancelled. A bad document changes nothing."""

    async def write(self, document: Document, expected_version: str) -> None:
        """Puts an operator's document in force, and returns when it is.

        Raises Fault when `expected_version` is given and is not in force, or when it cannot be
        said whether the document is.
        """


def version_mismatch(present: str, expected: str) -> Fault:
    """The policy is another than the operator thought."""
    return Fault(
        errors_pb2.ERROR_REASON_VERSION_MISMATCH,
        f"the policy in force has the version {present}, not {expected}",
        metadata={"version": present},
    )


def not_settled(why: str) -> Fault:
    """It is not known whether an update is in force; repeating it does no harm."""
    return Fault(
        errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        f"{why}; the update may be repeated",
        work=Work.MAYBE_BILLED,
        retry_after=1.0,
    )
