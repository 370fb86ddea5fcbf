"""The contracts hold together: relay and session agree, every RPC says who may call it."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from anabranch.v1 import (
    admin_pb2,
    auth_pb2,
    errors_pb2,
    generation_pb2,
    model_pb2,
    operations_pb2,
    relay_pb2,
    session_pb2,
)
from services.chassis.access import RULES, access_of
from services.chassis.errors import Fault, to_status

PAIRS = [
    (session_pb2.SessionRequest, relay_pb2.RelaySessionRequest),
    (session_pb2.SessionRequestFrame, relay_pb2.RelaySessionRequestFrame),
    (session_pb2.SessionResponse, relay_pb2.RelaySessionResponse),
    (session_pb2.SessionResponseFrame, relay_pb2.RelaySessionResponseFrame),
]


@pytest.mark.parametrize(("session", "relay"), PAIRS)
def test_relay_mirrors_session_field_by_field(session, relay):
    ours = {f.number: f for f in session.DESCRIPTOR.fields}
    theirs = {f.number: f for f in relay.DESCRIPTOR.fields}
    assert ours.keys() == theirs.keys()
    for number, field in ours.items():
        mirror = theirs[number]
        assert field.name == mirror.name
        assert field.is_repeated == mirror.is_repeated
        if field.type != mirror.type:
            # The only difference allowed: a message that the relay leaves undecoded.
            assert field.type == FieldDescriptor.TYPE_MESSAGE
            assert mirror.type == FieldDescriptor.TYPE_BYTES


def test_a_chunk_survives_the_relay_view_unchanged():
    chunk = generation_pb2.GenerateChunk(text="é", token_ids=[1, 2], first_token=7)
    sent = session_pb2.SessionResponse(
        frames=[session_pb2.SessionResponseFrame(stream=3, chunk=chunk, last=True, tokens=2)]
    )
    relayed = relay_pb2.RelaySessionResponse.FromString(sent.SerializeToString())
    assert generation_pb2.GenerateChunk.FromString(relayed.frames[0].chunk) == chunk
    assert session_pb2.SessionResponse.FromString(relayed.SerializeToString()) == sent


def test_every_rpc_says_who_may_call_it():
    for file in (model_pb2, auth_pb2, admin_pb2, operations_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"/{service.full_name}/{method.name}" in RULES


def test_an_unknown_rpc_is_closed_and_health_is_open():
    assert access_of("/anabranch.v1.ModelService/Unheard") is None
    assert access_of("/grpc.health.v1.Health/Check").public


def test_admin_rpcs_need_the_admin_scope():
    for method in admin_pb2.DESCRIPTOR.services_by_name["RouterAdminService"].methods:
        rule = RULES[f"/anabranch.v1.RouterAdminService/{method.name}"]
        assert not rule.public
        looks = method.name in ("ListBackends", "ExplainRoute", "GetPolicy")
        assert rule.any_scope == ({"admin", "observe"} if looks else {"admin"})


def test_what_names_a_model_is_bound_to_the_callers_models():
    for file in (model_pb2, auth_pb2, admin_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                unbound = ("ListModels", "Feedback")  # the latter is about an answer
                asks = service.name == "ModelService" and method.name not in unbound
                rule = RULES[f"/{service.full_name}/{method.name}"]
                assert rule.model_bound is asks, method.full_name


@pytest.mark.parametrize("reason", errors_pb2.ErrorReason.values()[1:])
def test_every_reason_has_a_status_of_its_own_kind(reason):
    fault = Fault(reason, "x")
    status = to_status(fault)
    assert status.code not in (0, 2), "neither OK nor UNKNOWN ever leaves a service"
    assert len(status.details) == 1
