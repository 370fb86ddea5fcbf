"""The real auth service against a model of a page, whatever happens to it and in any order.

After every step each token that was ever issued is asked about, at the service and at another one
that follows its key set; the audit trail must tell exactly what was done.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine as StateMachine
from hypothesis.stateful import initialize, invariant, precondition, rule

from anabranch.v1 import auth_pb2 as pb
from tests.support.auth import bearer
from tests.support.auth_model import WORLD, Client, Key, Role, Token, named
from tests.support.auth_scene import BEGINNING, PUBLISH_AHEAD, answer
from tests.support.auth_watched import Watched

LIFE = 300
NOTED = ("token.issue", "key.exchange")
UNITS = {"requests": pb.QUOTA_UNIT_REQUESTS, "tokens": pb.QUOTA_UNIT_TOKENS}
_SETTLED_S = 20.0

CLIENTS = st.sampled_from(["c-one", "c-two", "c-three", "c-four", "c-five"])
# Most are of those that there are.
MOSTLY = st.sampled_from(["c-one", "c-two", "c-one", "c-two", "c-three", "c-four", "c-five"])
TENANTS = st.sampled_from(["shop", "bank"])
SCOPES = st.sets(
    st.sampled_from(["generate", "observe", "audit", "tenant-admin", "admin"]), max_size=3
)
OWN_ROLES = st.sampled_from(["r-one", "r-two"])
ROLES = st.sets(st.sampled_from(["caller", "viewer", "r-one", "r-two"]), max_size=2)
PATTERNS = st.lists(st.sampled_from(["*", "sim-*", "sim-river", "cloud-*", "cloud-b"]), max_size=2)
WHICH = st.integers(0, 1000)


class AuthService(StateMachine):
    """Each rule asks for something and says what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watched()
        self.scene, self.world = self.watch.scene, self.watch.world
        self.turn = 0

    @initialize()
    def begin(self) -> None:
        """Enough to work with, whichever rules an example leaves out."""
        for kid in self.scene.run(self.watch.published()):
            self.world.signers[kid] = BEGINNING
        self.set_role("r-one", {"observe"}, ["cloud-*"])
        self.set_quota("*", "*", "requests", "", 100, 0)
        self.create_client("c-one", "shop", {"generate"}, {"r-one"}, ["sim-*"])
        self.create_client("c-two", "shop", {"generate", "admin"}, set(), ["*"])
        for client_id, life in (("c-one", None), ("c-two", 60)):
            self.log_in(client_id, set(), 1)
            self.create_key(client_id, set(), life, [])
        for which in (0, 1):
            self.exchange_key(which, False)
            self.use_key_elsewhere(which)

    # What administrators do

    @rule(client_id=CLIENTS, tenant=TENANTS, scopes=SCOPES, roles=ROLES, models=PATTERNS)
    def create_client(
        self, client_id: str, tenant: str, scopes: set[str], roles: set[str], models: list[str]
    ) -> None:
        models = sorted(set(models))
        request = pb.CreateClientRequest(
            client_id=client_id, tenant=tenant, scopes=scopes, roles=sorted(roles), models=models
        )
        got = self.admin_asks("CreateClient", request)
        if self.unknown(roles) or not scopes | roles:
            assert got == "INVALID_REQUEST"
        elif client_id in self.world.clients:
            assert got == "ALREADY_EXISTS"
        else:
            given = any(self.world.roles[r].models for r in roles & self.world.roles.keys())
            may_ask = named(models) if models or given else frozenset(WORLD)
            self.world.clients[client_id] = Client(
                client_id,
                tenant,
                frozenset(scopes),
                frozenset(roles),
                may_ask,
                LIFE,
                [got.client_secret],
            )
            self.changed("client.create", client_id)

    @rule(client_id=MOSTLY, scopes=SCOPES, roles=st.none() | ROLES, models=st.none() | PATTERNS)
    def update_client(
        self,
        client_id: str,
        scopes: set[str],
        roles: set[str] | None,
        models: list[str] | None,
    ) -> None:
        request = pb.UpdateClientRequest(client_id=client_id, scopes=scopes)
        if roles is not None:
            request.roles.SetInParent()
            request.roles.items.extend(roles)
        if models is not None:
            request.models.SetInParent()
            request.models.items.extend(sorted(set(models)))
        got = self.admin_asks("UpdateClient", request)
        client = self.world.clients.get(client_id)
        if self.unknown(roles or set()):
            assert got == "INVALID_REQUEST"
        elif client is None:
            assert got == "NOT_FOUND"
        else:
            client.scopes = frozenset(scopes) or client.scopes
            client.roles = client.roles if roles is None else frozenset(roles)
            client.models = client.models if models is None else named(models)
            self.changed("client.update", client_id)

    @rule(client_id=MOSTLY, life=st.integers(10, 600))
    def change_life(self, client_id: str, life: int) -> None:
        request = pb.UpdateClientRequest(client_id=client_id, token_life=Duration(seconds=life))
        if self.known(client_id, self.admin_asks("UpdateClient", request)):
            self.world.clients[client_id].life = life
            self.changed("client.update", client_id)

    @precondition(lambda self: self.turn % 10 == 9)
    @rule(client_id=MOSTLY)
    def disable_client(self, client_id: str) -> None:
        request = pb.DisableClientRequest(client_id=client_id)
        if self.known(client_id, self.admin_asks("DisableClient", request)):
            self.world.clients[client_id].disabled = True
            self.changed("client.disable", client_id)

    @rule(client_id=MOSTLY)
    def rotate_secret(self, client_id: str) -> None:
        got = self.admin_asks(
            "RotateClientSecret", pb.RotateClientSecretRequest(client_id=client_id)
        )
        if self.known(client_id, got):
            self.world.clients[client_id].secrets.append(got.client_secret)
            self.changed("client.rotate-secret", client_id)

    @rule(name=OWN_ROLES, scopes=SCOPES, models=PATTERNS)
    def set_role(self, name: str, scopes: set[str], models: list[str]) -> None:
        models = sorted(set(models))
        role = pb.AccessRole(name=name, scopes=scopes, models=models)
        got = self.admin_asks("SetRole", pb.SetRoleRequest(role=role))
        if not scopes and not models:
            assert got == "INVALID_REQUEST"
        else:
            self.world.roles[name] = Role(frozenset(scopes), tuple(models))
            self.changed("role.set", name)

    @rule(name=OWN_ROLES)
    def delete_role(self, name: str) -> None:
        got = self.admin_asks("DeleteRole", pb.DeleteRoleRequest(name=name))
        if self.world.users_of(name):
            assert got == "IN_USE"
        elif name not in self.world.roles:
            assert got == "NOT_FOUND"
        else:
            del self.world.roles[name]
            self.changed("role.delete", name)

    @rule(
        tenant=TENANTS | st.just("*"),
        client_id=st.sampled_from(["", "*", "c-one", "c-two"]),
        unit=st.sampled_from(sorted(UNITS)),
        model=st.sampled_from(["", "sim-*"]),
        limit=st.integers(1, 10**15),
        burst=st.integers(0, 9),
    )
    def set_quota(
        self, tenant: str, client_id: str, unit: str, model: str, limit: int, burst: int
    ) -> None:
        quota = pb.Quota(
            tenant=tenant,
            client_id=client_id,
            unit=UNITS[unit],
            model=model,
            limit=limit,
            burst=burst,
            period=Duration(seconds=60),
        )
        got = self.admin_asks("SetQuota", pb.SetQuotaRequest(quota=quota))
        owner = self.world.clients.get(client_id)
        if client_id not in ("", "*") and tenant == "*":
            assert got == "INVALID_REQUEST"
        elif client_id not in ("", "*") and (owner is None or owner.tenant != tenant):
            assert got == "NOT_FOUND"
        else:
            self.world.quotas[unit, tenant, client_id, model] = limit, 60, burst or limit
            self.changed("quota.set", got.quota.quota_id)

    @precondition(lambda self: self.world.quotas)
    @rule(which=WHICH)
    def delete_quota(self, which: int) -> None:
        place = sorted(self.world.quotas)[which % len(self.world.quotas)]
        quota_id = "/".join(place)
        got = self.admin_asks("DeleteQuota", pb.DeleteQuotaRequest(quota_id=quota_id))
        assert got == pb.DeleteQuotaResponse()
        del self.world.quotas[place]
        self.changed("quota.delete", quota_id)

    @rule(client_id=MOSTLY, scopes=SCOPES, life=st.none() | st.integers(60, 900), models=PATTERNS)
    def create_key(
        self, client_id: str, scopes: set[str], life: int | None, models: list[str]
    ) -> None:
        models = sorted(set(models))
        request = pb.CreateApiKeyRequest(client_id=client_id, scopes=scopes, models=models)
        if life is not None:
            request.life.FromSeconds(life)
        got = self.admin_asks("CreateApiKey", request)
        if not self.known(client_id, got, refused="ACCESS_DENIED"):
            return
        client = self.world.clients[client_id]
        held = self.world.scopes_of(client)
        if scopes - held or named(models) - self.world.models_of(client):
            assert got == "ACCESS_DENIED"
            return
        self.world.keys[got.info.key_id] = Key(
            got.info.key_id,
            got.api_key,
            client_id,
            frozenset(scopes) or held,
            named(models) if models else self.world.models_of(client),
            None if life is None else self.scene.now + life,
        )
        self.changed("api-key.create", got.info.key_id)

    @precondition(lambda self: self.world.keys)
    @rule(which=WHICH)
    def revoke_key(self, which: int) -> None:
        key = self.some_key(which)
        got = self.admin_asks("RevokeApiKey", pb.RevokeApiKeyRequest(key_id=key.key_id))
        assert got == pb.RevokeApiKeyResponse()
        key.revoked = True
        self.changed("api-key.revoke", key.key_id)

    @rule(awaited=st.booleans())
    def rotate_signing_key(self, awaited: bool) -> None:
        waiting = {kid for kid, since in self.world.signers.items() if since > self.scene.now}
        got = self.admin_asks("RotateSigningKey", pb.RotateSigningKeyRequest())
        if waiting:
            assert {got.kid} == waiting
        else:
            assert got.kid not in self.world.signers
            self.world.signers[got.kid] = self.scene.now + PUBLISH_AHEAD
        self.changed("signing-key.rotate", got.kid)
        if awaited:
            self.scene.run(self.watch.all_know(got.kid))
            self.scene.now += PUBLISH_AHEAD
            self.log_in("c-one", set(), 1)

    # What everybody does

    @rule(client_id=MOSTLY, scopes=SCOPES | st.just(set()), right=st.integers(0, 3))
    def log_in(self, client_id: str, scopes: set[str], right: int) -> None:
        client = self.world.clients.get(client_id)
        secret = client.secrets[-1] if client and right else "abs_" + "0" * 43
        got = self.asks("IssueToken", client_id=client_id, client_secret=secret, scopes=scopes)
        if client is None or not right or client.disabled:
            assert got == "CREDENTIAL_REJECTED"
        elif scopes - self.world.scopes_of(client):
            assert got == "ACCESS_DENIED"
        else:
            self.watch.noted["token.issue"] += 1
            self.watch.issued(got, client, frozenset(scopes) or self.world.scopes_of(client))

    @precondition(lambda self: self.world.keys)
    @rule(which=WHICH, mistake=st.booleans())
    def exchange_key(self, which: int, mistake: bool) -> None:
        key = self.some_key(which)
        other = self.some_key(which + 1)
        # The id of one with the secret of another, under a checksum that is right or not.
        text = key.text[:20] + other.text[20:] if mistake and key is not other else key.text
        got = self.asks("ExchangeApiKey", api_key=text)
        if text != key.text or not self.world.is_good(key, self.scene.now):
            assert got == "CREDENTIAL_REJECTED"
        else:
            self.watch.noted["key.exchange"] += 1
            self.watch.issued(got, *self.watch.given_by(key))

    @precondition(lambda self: self.world.keys)
    @rule(which=WHICH)
    def use_key_elsewhere(self, which: int) -> None:
        self.watch.key_is_used_elsewhere(self.some_key(which))

    @precondition(lambda self: self.world.tokens)
    @rule(which=WHICH, by=WHICH)
    def revoke_token(self, which: int, by: int) -> None:
        token, asker = self.some_token(which), self.some_token(by)
        got = self.asks("RevokeToken", asker, token=token.text)
        live = self.watch.is_live(token)
        if not self.watch.is_live(asker):
            assert got == "CREDENTIAL_REJECTED"
        elif live and asker.client_id != token.client_id and "admin" not in asker.scopes:
            assert got == "ACCESS_DENIED"
        else:
            assert got == pb.RevokeTokenResponse()
            token.revoked = True
            if live:
                self.changed("token.revoke", token.token_id, asker.client_id)

    @precondition(lambda self: self.world.tokens)
    @rule(which=WHICH, by=WHICH)
    def introspect(self, which: int, by: int) -> None:
        token, asker = self.some_token(which), self.some_token(by)
        got = self.asks("IntrospectToken", asker, token=token.text)
        if not self.watch.is_live(asker):
            assert got == "CREDENTIAL_REJECTED"
        elif asker.client_id != token.client_id and "admin" not in asker.scopes:
            assert got == pb.IntrospectTokenResponse()
        else:
            assert got == self.watch.introspected(token)

    @rule(seconds=st.sampled_from([1, 20, 31, 61, PUBLISH_AHEAD + 1, 301, 700]))
    def time_passes(self, seconds: float) -> None:
        self.scene.now += seconds

    @precondition(lambda self: self.turn % 8 == 7)
    @rule()
    def restart(self) -> None:
        self.scene.restart()
        self.watch.held.clear()

    # What must hold after each

    @invariant()
    def every_token_is_worth_what_the_model_says(self) -> None:
        self.scene.run(self.watch.settled())

    @invariant()
    def what_is_over_opens_nothing(self) -> None:
        self.turn += 1
        past = self.watch.past()
        if past:
            self.scene.run(self.watch.is_refused(*past[self.turn % len(past)]))

    @invariant()
    def the_next_tokens_give_what_holds_now(self) -> None:
        if self.turn % 5 == 0:
            clients = sorted(self.world.clients)
            self.log_in(clients[self.turn // 5 % len(clients)], set(), 1)
            self.exchange_key(self.turn // 5, False)
            self.use_key_elsewhere(self.turn // 5)

    @invariant()
    def the_key_set_has_the_key_of_every_live_token(self) -> None:
        kids = self.scene.run(self.watch.published())
        live = {t.kid for t in self.world.tokens if self.watch.is_live(t)}
        assert live <= kids

    @invariant()
    def the_trail_tells_what_was_done(self) -> None:
        self.scene.run(self.watch.read_trail())
        assert self.watch.written == self.watch.changes

    def teardown(self) -> None:
        try:
            self.scene.run(self.watch.ends())
        finally:
            self.scene.close()

    def admin_asks(self, method: str, request: Any) -> Any:
        return self.scene.run(self.scene.as_admin(method, request))

    def asks(self, method: str, asker: Token | None = None, **fields: Any) -> Any:
        metadata = bearer(asker.text) if asker else None
        request = getattr(pb, f"{method}Request")(**fields)
        return self.scene.run(answer(getattr(self.scene.stub, method)(request, metadata=metadata)))

    def unknown(self, roles: set[str]) -> bool:
        return bool(roles - {"caller", "viewer"} - self.world.roles.keys())

    def known(self, client_id: str, got: Any, refused: str = "") -> bool:
        """Whether there is the client; the answer must say so, too."""
        there = client_id in self.world.clients
        assert (got == "NOT_FOUND") is not there
        assert not isinstance(got, str) or got in ("NOT_FOUND", refused), got
        return there

    def changed(self, action: str, target: str, by: str = "admin") -> None:
        self.watch.changes.append((action, by, target))

    def some_key(self, which: int) -> Key:
        return list(self.world.keys.values())[which % len(self.world.keys)]

    def some_token(self, which: int) -> Token:
        return self.world.tokens[which % len(self.world.tokens)]


_LONG = settings.default is not None and settings.default.max_examples > 1000
AuthService.TestCase.settings = settings(
    max_examples=1000 if _LONG else 12, stateful_step_count=80 if _LONG else 50
)
TestAuthService = AuthService.TestCase
