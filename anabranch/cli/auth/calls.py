"""What every command about the auth service does around its call: connect, page, and hint.

A failure ends the program as that of any other command does; a name that is not found is
compared with those that exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
import grpc

from anabranch.auth_admin import LARGEST_PAGE, AuthAdmin
from anabranch.cli.connection import Connection
from anabranch.errors import AnabranchError, NotFoundError, Work, error_for
from anabranch.v1 import auth_pb2 as pb

FIRST_PAGE = 100


def listed(
    auth: AuthAdmin, method: Callable[[Any], Any], request: Any, field: str, *, every_page: bool
) -> list[Any]:
    """The items of a listing RPC: its first page with a note on what follows, or every page."""
    request.page_size = LARGEST_PAGE if every_page else FIRST_PAGE
    if every_page:
        return [item for page in auth.pages(method, request) for item in getattr(page, field)]
    page = method(request)
    if page.next_page_token:
        click.echo("There are more: --all shows every one.", err=True)
    return list(getattr(page, field))


def find_client(auth: AuthAdmin, client_id: str) -> pb.ClientInfo:
    """The client of that id. Raises NotFoundError with a hint."""
    names = []
    request = pb.ListClientsRequest(page_size=LARGEST_PAGE)
    for page in auth.pages(auth.stub.ListClients, request):
        for info in page.clients:
            if info.client_id == client_id:
                return info  # type: ignore[no-any-return]
            names.append(info.client_id)
    raise not_found("client", client_id, names)


def find_role(auth: AuthAdmin, name: str) -> pb.AccessRole:
    """The role of that name. Raises NotFoundError with a hint."""
    found = {role.name: role for role in auth.stub.ListRoles(pb.ListRolesRequest()).roles}
    if name not in found:
        raise not_found("role", name, found)
    return found[name]  # type: ignore[no-any-return]


def find_tenant(auth: AuthAdmin, name: str) -> pb.Tenant | None:
    """The tenant of that name; None when nobody set it and it has no clients."""
    request = pb.ListTenantsRequest(page_size=LARGEST_PAGE)
    for page in auth.pages(auth.stub.ListTenants, request):
        for tenant in page.tenants:
            if tenant.name == name:
                return tenant  # type: ignore[no-any-return]
    return None


def not_found(kind: str, name: str, names: Iterable[str]) -> AnabranchError:
    """The error for a name that does not exist, with the one that may be meant."""
    return error_for(
        "NOT_FOUND",
        f"there is no {kind} {name}{_suggestion(name, names)}",
        grpc.StatusCode.NOT_FOUND,
        work=Work.NOT_DISPATCHED,
    )


@contextmanager
def hinting(kind: str, name: str, names: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Adds the name that may be meant to what the service says of one that it does not know."""
    try:
        yield
    except NotFoundError as error:
        # A hint is not worth another error than the one there is.
        with suppress(AnabranchError):
            error.message += _suggestion(name, names())
        raise


def client_names(auth: AuthAdmin) -> list[str]:
    """Ids of clients, for a hint: those of one page."""
    page = auth.stub.ListClients(pb.ListClientsRequest(page_size=LARGEST_PAGE))
    return [info.client_id for info in page.clients]


def key_names(auth: AuthAdmin) -> list[str]:
    """Ids of API keys, for a hint: those of one page."""
    page = auth.stub.ListApiKeys(pb.ListApiKeysRequest(page_size=LARGEST_PAGE))
    return [info.key_id for info in page.keys]


def quota_names(auth: AuthAdmin) -> list[str]:
    """Ids of quotas, for a hint: those of one page."""
    page = auth.stub.ListQuotas(pb.ListQuotasRequest(page_size=LARGEST_PAGE))
    return [quota.quota_id for quota in page.quotas]


def role_names(auth: AuthAdmin) -> list[str]:
    """Names of roles, for a hint."""
    return [role.name for role in auth.stub.ListRoles(pb.ListRolesRequest()).roles]


@contextmanager
def administrator(connection: Connection, *, as_json: bool) -> Iterator[AuthAdmin]:
    """A client of the auth service with a credential. Raises click.UsageError without one."""
    with connection.auth_admin(as_json=as_json) as auth:
        if not auth.authenticates:
            raise click.UsageError(
                "nobody says who asks: give --client-id and --client-secret-file, or --token-file, "
                "or set ANABRANCH_CLIENT_ID and ANABRANCH_CLIENT_SECRET_FILE"
            )
        yield auth


def _suggestion(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f". Did you mean {near[0]}?" if near else ""
