"""Clients, on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import grpc

from anabranch.v1 import auth_pb2 as pb
from services.auth.authority import authority_of
from services.auth.checks import model_problems, network_problems, role_problems
from services.auth.core.clients import (
    Problem,
    display_name_problems,
    life_problems,
    name_problems,
    scope_problems,
)
from services.auth.directory import Changes, Directory, NewClient
from services.auth.login import refuse
from services.auth.records import Client
from services.auth.rpcs.wire import (
    act,
    duration,
    nanoseconds,
    page_of,
    page_token,
    timestamp,
    whole_seconds,
)
from services.auth.rule_records import Role
from services.auth.rulebook import Rulebook
from services.chassis.principal import current_principal

Context: TypeAlias = grpc.aio.ServicerContext


class ClientRpcs:
    """CreateClient, ListClients, UpdateClient, DisableClient and RotateClientSecret."""

    def __init__(self, directory: Directory, rulebook: Rulebook, *, token_life: int) -> None:
        """`token_life` in seconds: what a client without a life of its own is shown with."""
        self._directory = directory
        self._rulebook = rulebook
        self._token_life = token_life

    async def CreateClient(
        self, request: pb.CreateClientRequest, context: Context
    ) -> pb.CreateClientResponse:
        problems = name_problems("client_id", request.client_id) if request.client_id else []
        problems += name_problems("tenant", request.tenant)
        problems += display_name_problems("display_name", request.display_name)
        problems += scope_problems("scopes", request.scopes)
        if not request.scopes and not request.roles:
            problems.append(Problem("scopes", "must name at least one scope, or a role"))
        life = _life(request, problems)
        problems += role_problems("roles", request.roles, await self._roles())
        problems += model_problems("models", request.models)
        problems += network_problems("allowed_cidrs", request.allowed_cidrs)
        refuse(problems)
        new = NewClient(
            request.client_id,
            request.tenant,
            request.display_name,
            tuple(request.scopes),
            life,
            tuple(request.roles),
            tuple(request.models),
            tuple(request.allowed_cidrs),
        )
        client, secret = await self._directory.create(
            new,
            authority_of(current_principal()),
            act(
                "client.create",
                request.client_id,
                scopes=request.scopes,
                roles=request.roles,
                models=request.models,
                networks=request.allowed_cidrs,
            ),
        )
        return pb.CreateClientResponse(client=self._info(client), client_secret=secret)

    async def ListClients(
        self, request: pb.ListClientsRequest, context: Context
    ) -> pb.ListClientsResponse:
        problems: list[Problem] = []
        after, size = page_of(request.page_size, request.page_token, problems)
        refuse(problems)
        authority = authority_of(current_principal())
        clients, more = await self._directory.page(after, size, authority)
        return pb.ListClientsResponse(
            clients=[self._info(client) for client in clients],
            next_page_token=page_token(clients[-1].client_id) if more else "",
        )

    async def UpdateClient(
        self, request: pb.UpdateClientRequest, context: Context
    ) -> pb.UpdateClientResponse:
        problems = name_problems("client_id", request.client_id)
        problems += display_name_problems("display_name", request.display_name)
        problems += scope_problems("scopes", request.scopes)
        life = _life(request, problems)
        problems += role_problems("roles", request.roles.items, await self._roles())
        problems += model_problems("models", request.models.items)
        problems += network_problems("allowed_cidrs", request.allowed_cidrs.items)
        refuse(problems)

        def given(name: str) -> tuple[str, ...] | None:
            return tuple(getattr(request, name).items) if request.HasField(name) else None

        changes = Changes(
            display_name=request.display_name if request.HasField("display_name") else None,
            scopes=tuple(request.scopes) or None,
            roles=given("roles"),
            models=given("models"),
            networks=given("allowed_cidrs"),
            token_life=life,
        )
        client = await self._directory.change(
            request.client_id,
            changes,
            authority_of(current_principal()),
            act(
                "client.update",
                request.client_id,
                scopes=request.scopes,
                roles=request.roles.items,
                models=request.models.items,
                networks=request.allowed_cidrs.items,
            ),
        )
        return pb.UpdateClientResponse(client=self._info(client))

    async def DisableClient(
        self, request: pb.DisableClientRequest, context: Context
    ) -> pb.DisableClientResponse:
        refuse(name_problems("client_id", request.client_id))
        await self._directory.disable(
            request.client_id,
            authority_of(current_principal()),
            act("client.disable", request.client_id),
        )
        return pb.DisableClientResponse()

    async def RotateClientSecret(
        self, request: pb.RotateClientSecretRequest, context: Context
    ) -> pb.RotateClientSecretResponse:
        refuse(name_problems("client_id", request.client_id))
        secret = await self._directory.replace_secret(
            request.client_id,
            authority_of(current_principal()),
            act("client.rotate-secret", request.client_id),
        )
        return pb.RotateClientSecretResponse(client_secret=secret)

    async def _roles(self) -> Mapping[str, Role]:
        """The roles of this moment, those that another replica has just made too."""
        await self._rulebook.refresh()
        return self._rulebook.now.roles

    def _info(self, client: Client) -> pb.ClientInfo:
        return pb.ClientInfo(
            client_id=client.client_id,
            tenant=client.tenant,
            display_name=client.display_name,
            scopes=client.scopes,
            token_life=duration(client.token_life or self._token_life),
            disabled=client.disabled,
            created_at=timestamp(client.created_at),
            roles=client.roles,
            models=client.models,
            allowed_cidrs=client.networks,
        )


def _life(
    request: pb.CreateClientRequest | pb.UpdateClientRequest, problems: list[Problem]
) -> int | None:
    """The token life that was asked for, in seconds; its problems join the others."""
    if not request.HasField("token_life"):
        return None
    problems += life_problems("token_life", nanoseconds(request.token_life))
    return whole_seconds(request.token_life)
