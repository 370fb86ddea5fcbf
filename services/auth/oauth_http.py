"""The OAuth endpoints over HTTP: RFC 6749 (token), 7009, 7662, 8414 and the JWK Set.

Error bodies are those of the RFCs. Every decision is made in login.py and grants.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from aiohttp import web

from anabranch.api_keys import looks_like_key
from anabranch.v1 import errors_pb2
from services.auth.core.clients import scope_problems
from services.auth.core.roles import KNOWN_SCOPES
from services.auth.forms import Form, OAuthError, read_form
from services.auth.grants import Grants
from services.auth.keyset import StoredKeySet
from services.auth.login import Login
from services.auth.login_metrics import CLIENT_SECRET, Logins
from services.chassis.errors import Fault
from services.chassis.peer_address import FORWARDED_FOR, caller_address, peer_address
from services.chassis.principal import Network

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FormHandler = Callable[[Form], Awaitable[Mapping[str, object] | None]]

_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_CHALLENGE = 'Basic realm="anabranch"'
_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]


class Routes(Protocol):
    """Where the endpoints are hung: the HTTP side of the chassis."""

    def add_get(self, path: str, handler: Handler) -> object: ...

    def add_post(self, path: str, handler: Handler) -> object: ...


class OAuthEndpoints:
    """The five routes of this issuer."""

    def __init__(
        self,
        login: Login,
        grants: Grants,
        keyset: StoredKeySet,
        *,
        issuer: str,
        audience: str,
        jwks_cache: int,
        logins: Logins,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        """`jwks_cache`: seconds for which the JWK Set may be cached. `trusted_proxies` are
        believed about where a request comes from."""
        self._trusted_proxies = trusted_proxies
        self._logins = logins
        self._login = login
        self._grants = grants
        self._keyset = keyset
        self._issuer = issuer
        self._audience = audience
        self._jwks_cache = jwks_cache

    def hang(self, routes: Routes) -> None:
        routes.add_get("/.well-known/jwks.json", self.jwks)
        routes.add_get("/.well-known/oauth-authorization-server", self.metadata)
        routes.add_post("/oauth/token", self._form_endpoint(self.token, denied="invalid_scope"))
        routes.add_post("/oauth/revoke", self._form_endpoint(self.revoke))
        routes.add_post("/oauth/introspect", self._form_endpoint(self.introspect))

    async def jwks(self, request: web.Request) -> web.Response:
        try:
            found = await self._keyset.fetch()
        except Fault as fault:
            return _refusal(_error_of(fault), fault.retry_after)
        return web.Response(
            text=found.jwks_json,
            content_type="application/jwk-set+json",
            headers={"Cache-Control": f"public, max-age={self._jwks_cache}"},
        )

    async def metadata(self, request: web.Request) -> web.Response:
        """RFC 8414; addresses hang on the issuer, which is what the world calls us."""
        base = self._issuer.rstrip("/")
        return web.json_response(
            {
                "issuer": self._issuer,
                "token_endpoint": f"{base}/oauth/token",
                "revocation_endpoint": f"{base}/oauth/revoke",
                "introspection_endpoint": f"{base}/oauth/introspect",
                "jwks_uri": f"{base}/.well-known/jwks.json",
                "grant_types_supported": ["client_credentials"],
                "response_types_supported": [],
                "scopes_supported": sorted(KNOWN_SCOPES),
                "token_endpoint_auth_methods_supported": _AUTH_METHODS,
                "revocation_endpoint_auth_methods_supported": _AUTH_METHODS,
                "introspection_endpoint_auth_methods_supported": _AUTH_METHODS,
            },
            headers={"Cache-Control": "public, max-age=300"},
        )

    async def token(self, form: Form) -> Mapping[str, object]:
        grant_type = form.required("grant_type")
        if grant_type != "client_credentials":
            raise OAuthError("unsupported_grant_type", "only client_credentials is supported")
        scopes = form.fields.get("scope", "").split()
        problems = scope_problems("scope", scopes)
        with self._logins.counted(CLIENT_SECRET):
            client = await self._login.client(
                form.client_id, form.client_secret, peer=form.peer, problems=problems
            )
            issued = self._grants.issue_at_login(client, scopes, peer=form.peer)
        return {
            "access_token": issued.access_token,
            "token_type": "Bearer",
            "expires_in": issued.life,
            "scope": " ".join(issued.scopes),
        }

    async def revoke(self, form: Form) -> None:
        token = form.required("token")
        client = await self._login.client(form.client_id, form.client_secret, peer=form.peer)
        if looks_like_key(token):
            raise OAuthError("unsupported_token_type", "an API key is ended by RevokeApiKey")
        await self._grants.revoke(token, self._grants.caller(client, form.peer))

    async def introspect(self, form: Form) -> Mapping[str, object]:
        token = form.required("token")
        client = await self._login.client(form.client_id, form.client_secret, peer=form.peer)
        live = await self._grants.live(token, self._grants.caller(client, form.peer))
        if live is None:
            return {"active": False}
        principal = live.principal
        return {
            "active": True,
            "scope": " ".join(sorted(principal.scopes)),
            "client_id": principal.client_id,
            "sub": principal.client_id,
            "tenant": principal.tenant,
            "token_type": "Bearer",
            "exp": int(principal.expires_at),
            "iat": live.issued_at,
            "iss": self._issuer,
            "aud": self._audience,
            "jti": principal.token_id,
        }

    def _form_endpoint(
        self, answer: FormHandler, *, denied: str = "unauthorized_client"
    ) -> Handler:
        """Reads the form, answers, and turns what is raised into the RFC's error body.

        `denied` is the endpoint's error for what the client is not allowed.
        """

        async def handle(request: web.Request) -> web.Response:
            try:
                form = await read_form(request)
                body = await answer(replace(form, peer=self._peer(request)))
            except OAuthError as error:
                return _refusal(error)
            except Fault as fault:
                return _refusal(_error_of(fault, denied), fault.retry_after)
            text = json.dumps(body) if body is not None else ""
            return web.Response(text=text, content_type="application/json", headers=_NO_STORE)

        return handle

    def _peer(self, request: web.Request) -> str:
        """Where the request comes from: its connection, or what a trusted proxy says."""
        host = request.remote or ""
        peer = peer_address(f"ipv6:[{host}]:0" if ":" in host else f"ipv4:{host}:0")
        forwarded = request.headers.getall(FORWARDED_FOR, [])
        return str(caller_address(peer, forwarded, self._trusted_proxies))


def _error_of(fault: Fault, denied: str = "unauthorized_client") -> OAuthError:
    """The RFC 6749 error of a domain fault; the worst of several violations decides."""
    reason = fault.reason
    if reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
        return OAuthError("invalid_client", fault.message, 401)
    if reason == errors_pb2.ERROR_REASON_INVALID_REQUEST:
        if any(v.field in ("client_id", "client_secret") for v in fault.violations):
            return OAuthError("invalid_client", fault.message, 401)
        return OAuthError("invalid_scope", fault.message)
    if reason == errors_pb2.ERROR_REASON_ACCESS_DENIED:
        return OAuthError(denied, fault.message)
    if reason in (errors_pb2.ERROR_REASON_QUOTA_EXCEEDED, errors_pb2.ERROR_REASON_OVERLOADED):
        return OAuthError("temporarily_unavailable", fault.message, 429)
    if reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE:
        return OAuthError("temporarily_unavailable", fault.message, 503)
    return OAuthError("server_error", fault.message, 500)


def _refusal(error: OAuthError, retry_after: float | None = None) -> web.Response:
    headers = dict(_NO_STORE)
    if error.status == 401:
        headers["WWW-Authenticate"] = _CHALLENGE
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return web.json_response(
        {"error": error.code, "error_description": error.description},
        status=error.status,
        headers=headers,
    )
