"""What authenticates requests: each scheme's headers, AWS's signature as its own SDK makes it."""

from __future__ import annotations

import datetime
import json

import botocore.auth
import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from services.chassis.settings import Secret
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.credentials import credential_headers, without_secret
from services.cloud_proxy.dialects.requests import path_for
from tests.support.recordings import route_to

MODEL = "amazon.nova-pro-v1:0"
NOW = datetime.datetime(2026, 11, 30, 12, 0, 0)


class Headers(dict):  # type: ignore[type-arg]
    """What botocore expects of a response's headers."""


def signed_by_botocore(url: str, region: str, body: dict, token: str | None) -> dict[str, str]:
    """The headers of the same request, made by the official client. Nothing is sent."""
    session = botocore.session.Session()
    session.set_credentials("AKIDEXAMPLE", "wJalr/XUtnFEMI+K7MDENG=", token)
    client = session.create_client(
        "bedrock-runtime",
        region_name=region,
        endpoint_url=url,
        config=Config(retries={"max_attempts": 0}),
    )
    seen: dict[str, str] = {}

    def catch(request, **_):
        seen.update(
            {
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in request.headers.items()
            }
        )
        seen["url"], seen["body"] = request.url, request.body
        return AWSResponse(request.url, 400, {}, None)

    client.meta.events.register("before-send.bedrock-runtime.Converse", catch)
    with pytest.raises(Exception):  # noqa: B017, PT011 - its answer is none
        client.converse(modelId=MODEL, **body)
    return seen


@pytest.mark.parametrize("token", [None, "a/session+token=="])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_signature_is_that_of_the_official_client(monkeypatch, region, token):
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: NOW)
    base = f"https://bedrock-runtime.{region}.amazonaws.com"
    body = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}
    theirs = signed_by_botocore(base, region, body, token)
    route = route_to("bedrock", MODEL, base_url=base)
    url = base + path_for(route.profile.paths.chat, route)
    assert url == theirs["url"]
    text = "AKIDEXAMPLE:wJalr/XUtnFEMI+K7MDENG=" + (f":{token}" if token else "")
    ours = credential_headers(route, Secret(text), url, theirs["body"])
    assert ours["X-Amz-Date"] == theirs["X-Amz-Date"]
    assert ours.get("X-Amz-Security-Token") == theirs.get("X-Amz-Security-Token") == token
    assert f"/{region}/bedrock/aws4_request" in ours["Authorization"]
    assert ours["Authorization"] == theirs["Authorization"]


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bedrock-runtime.eu-west-3.amazonaws.com", "eu-west-3"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("bedrock-runtime.ap-southeast-2.api.aws", "ap-southeast-2"),
        ("vpce-0a1b-c2d3.bedrock-runtime.us-west-2.vpce.amazonaws.com", "us-west-2"),
        ("127.0.0.1", "us-east-1"),
    ],
)
def test_region_is_that_of_the_host(host, region):
    route = route_to("bedrock", MODEL)
    secret = Secret("AKIDEXAMPLE:secret-of-it")
    signed = credential_headers(route, secret, f"https://{host}/model/m/converse", b"{}")
    assert f"/{region}/bedrock/aws4_request" in signed["Authorization"]


@pytest.mark.parametrize("text", ["AKIDEXAMPLE", ":secret", "AKIDEXAMPLE:", ""])
def test_key_that_is_no_aws_key_is_refused_without_being_quoted(text):
    route = route_to("bedrock", MODEL)
    with pytest.raises(ProviderFailure) as caught:
        credential_headers(route, Secret(text), "https://h/x", b"{}")
    assert caught.value.kind is FailureKind.REFUSED_KEY
    assert not text or text not in caught.value.message


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("deepseek", "deepseek-v4-flash", {"Authorization": "Bearer sk-1"}),
        ("anthropic", "claude-x", {"x-api-key": "sk-1"}),
        ("azure-openai", "gpt", {"api-key": "sk-1"}),
        ("bedrock-api-key", MODEL, {"Authorization": "Bearer sk-1"}),
        ("ollama", "llama", {}),
    ],
)
def test_other_schemes_are_one_header(provider, model, expected):
    route = route_to(provider, model)
    assert credential_headers(route, Secret("sk-1"), "https://h/x", b"") == expected
    assert credential_headers(route, None, "https://h/x", b"") == {}


def test_no_telling_part_of_a_key_is_left_in_a_providers_words():
    secret = Secret("AKIDEXAMPLE:wJalr/XUtnFEMI:tok")
    said = json.dumps({"message": "AKIDEXAMPLE with wJalr/XUtnFEMI and tok is unknown"}).encode()
    left = without_secret(said, secret)
    assert b"AKIDEXAMPLE" not in left
    assert b"XUtnFEMI" not in left
    assert b"tok" in left
