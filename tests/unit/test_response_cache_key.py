"""Two requests share a kept answer exactly when nothing that decides the answer differs."""

import pytest
from google.protobuf import descriptor as descriptors
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.router.response_cache.key import KEY_BYTES, Circumstances, answer_key

HERE = Circumstances("shop", "river", "river-local", "river-cloud")
IRRELEVANT = {
    *("request_id", "labels", "timeout", "model"),
    *("routing.priority", "routing.ttft_slo", "routing.max_cost_microusd"),
    "routing.affinity_key",
}
"""What the key does not depend on; the model is in it as it was resolved."""

texts = st.sampled_from(["", "a", "b", "ab"])
scalars = {
    "max_tokens": st.integers(1, 3),
    "temperature": st.sampled_from([0.0, 1.0]),
    "top_k": st.integers(-1, 1),
    "seed": st.integers(0, 1),
    "n": st.just(1),
    "logprobs": st.integers(0, 1),
}
samplings = st.fixed_dictionaries({}, optional=scalars).map(lambda f: pb.Sampling(**f))
messages = st.builds(
    lambda role, parts, call: pb.Message(
        role=role, content=[pb.ContentPart(text=part) for part in parts], tool_call_id=call
    ),
    st.sampled_from([pb.ROLE_USER, pb.ROLE_ASSISTANT]),
    st.lists(texts, max_size=2),
    texts,
)
routings = st.builds(
    pb.Routing,
    residency=st.sampled_from(list(pb.Residency.values())),
    priority=st.sampled_from(list(pb.Priority.values())),
    affinity_key=texts,
)
requests = st.builds(
    lambda optional, **fields: pb.GenerateRequest(**fields, **optional),
    st.fixed_dictionaries(
        {},
        optional={
            "sampling": samplings,
            "routing": routings,
            "tool_choice": st.builds(pb.ToolChoice, name=texts),
            "response_format": st.builds(pb.ResponseFormat, regex=texts),
            "reasoning": st.builds(pb.Reasoning, include=st.booleans()),
            "continuation": st.builds(pb.Continuation, text=texts),
        },
    ),
    messages=st.lists(messages, max_size=2),
    prompt=texts,
    prompt_token_ids=st.lists(st.integers(0, 2), max_size=2),
    tools=st.lists(st.builds(pb.Tool, name=texts, description=texts), max_size=2),
    request_id=texts,
    labels=st.dictionaries(texts, texts, max_size=2),
)
circumstances = st.builds(
    Circumstances,
    tenant=texts,
    model=texts,
    local=texts,
    cloud=texts,
    leaves=st.booleans(),
    masked=st.frozensets(st.sampled_from(["email", "phone"])),
)


def content(request: pb.GenerateRequest) -> pb.GenerateRequest:
    """What of a request decides its answer, by another way than the key's."""
    kept = pb.GenerateRequest()
    kept.CopyFrom(request)
    for field in ("model", "request_id", "labels", "timeout", "routing"):
        kept.ClearField(field)
    kept.routing.residency = request.routing.residency or pb.RESIDENCY_LOCAL_FIRST
    return kept


@given(requests, requests, circumstances, circumstances)
def test_keys_are_equal_exactly_when_content_and_circumstances_are(one, other, here, there):
    same = content(one) == content(other) and here == there
    assert (answer_key(one, here) == answer_key(other, there)) == same


@given(requests, circumstances, st.text(), st.integers(1, 100), texts)
def test_what_does_not_change_the_answer_does_not_change_the_key(request, here, text, number, key):
    other = pb.GenerateRequest()
    other.CopyFrom(request)
    other.request_id = text
    other.labels["project"] = text
    other.timeout.seconds = number
    other.routing.priority = pb.PRIORITY_BATCH
    other.routing.ttft_slo.seconds = number
    other.routing.max_cost_microusd = number
    other.routing.affinity_key = key
    assert answer_key(other, here) == answer_key(request, here)
    digest, tenant, _ = answer_key(request, here)
    assert len(digest) == KEY_BYTES
    assert tenant == here.tenant


def paths(
    message: descriptors.Descriptor, prefix: str = ""
) -> dict[str, descriptors.FieldDescriptor]:
    """Every field of a request, and of what it holds once."""
    found = {}
    for field in message.fields:
        nested = field.message_type
        if nested is not None and not field.is_repeated and nested.file == message.file:
            found |= paths(nested, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = field
    return found


FIELDS = paths(pb.GenerateRequest.DESCRIPTOR)


def with_field(path: str) -> pb.GenerateRequest:
    """A request in which only this field has a value that is not its default."""
    request = pb.GenerateRequest()
    *parents, name = path.split(".")
    target = request
    for parent in parents:
        target = getattr(target, parent)
    target.SetInParent() if parents else None
    field = FIELDS[path]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(target, name)["k"] = "v"
    elif field.is_repeated and field.message_type is not None:
        getattr(target, name).add()
    elif field.is_repeated:
        getattr(target, name).append("x" if field.type == field.TYPE_STRING else 3)
    elif field.message_type is not None:
        getattr(target, name).SetInParent()
        if field.message_type.name == "Duration":
            getattr(target, name).seconds = 3
    elif field.type == field.TYPE_STRING:
        setattr(target, name, "x")
    elif field.type == field.TYPE_ENUM:
        setattr(target, name, field.enum_type.values[2].number)
    elif field.type == field.TYPE_BOOL:
        setattr(target, name, True)
    else:
        setattr(target, name, 1)
    return request


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_every_field_of_the_contract_is_known_to_matter_or_not(path):
    usual = answer_key(pb.GenerateRequest(), HERE)
    matters = answer_key(with_field(path), HERE).digest != usual.digest
    assert matters == (path not in IRRELEVANT)


def test_a_field_of_a_newer_version_matters():
    newer = pb.GenerateRequest.FromString(b"\x92\x03\x01x")  # field 50
    assert answer_key(newer, HERE) != answer_key(pb.GenerateRequest(), HERE)


def test_the_request_is_left_as_it_was():
    request = pb.GenerateRequest(model="m", request_id="r", labels={"k": "v"})
    before = request.SerializeToString(deterministic=True)
    answer_key(request, HERE)
    assert request.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "changed",
    [
        HERE._replace(tenant="other"),
        HERE._replace(model="sea"),
        HERE._replace(local="river-2"),
        HERE._replace(cloud="river-2"),
        HERE._replace(leaves=False),
        HERE._replace(weights="river-v2"),
        HERE._replace(masked=frozenset({"email"})),
        # Where one name ends and the next begins matters.
        HERE._replace(tenant="shopriver", model=""),
    ],
)
def test_other_circumstances_are_another_key(changed):
    request = pb.GenerateRequest(prompt="p")
    assert answer_key(request, changed).digest != answer_key(request, HERE).digest


def test_a_private_request_never_shares_with_one_that_may_leave():
    keys = {
        answer_key(pb.GenerateRequest(routing=pb.Routing(residency=residency)), HERE)
        for residency in pb.Residency.values()
    }
    assert len(keys) == 4  # unspecified means local first
