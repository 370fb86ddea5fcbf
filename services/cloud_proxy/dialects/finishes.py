"""Why answers end, in our terms: the profile's word first, then the dialect's."""

from __future__ import annotations

from collections.abc import Mapping

from services.cloud_proxy.answer import FailureKind, Finish, ProviderFailure
from services.cloud_proxy.dialects.fields import broken
from services.cloud_proxy.dialects.tool_calls import ToolCalls
from services.cloud_proxy.profiles import Profile


def finish_of(reason: object, profile: Profile, known: Mapping[str, str]) -> Finish:
    """The meaning of a provider's reason. Raises ProviderFailure for one that is a failure, or
    that nobody knows: an answer that may be incomplete is not passed off as complete."""
    name = str(reason)
    meaning = profile.finish_reasons.get(name) or known.get(name, "error")
    if meaning == "error":
        raise ProviderFailure(
            FailureKind.FAILED,
            "the provider ended the answer with a failure",
            code=name[:64] if name.isprintable() else "",
        )
    return Finish(meaning)


def settled(finish: Finish, calls: ToolCalls) -> Finish:
    """The finish once all is known: a turn with tool calls that stopped ends with them.

    Raises ProviderFailure for calls that were announced and not sent, or are not whole. Arguments
    that the length limit or a filter cut off are not checked: the finish says that they are cut.
    """
    if finish is Finish.STOP and len(calls):
        finish = Finish.TOOL_CALLS
    if finish is Finish.TOOL_CALLS:
        if not len(calls):
            raise broken("the provider announced tool calls and sent none")
        calls.check()
    return finish
