"""Log lines: their shape, their ids, and that no credential survives in any part of them."""

import io
import json
import logging

import pytest
from opentelemetry.sdk.trace import TracerProvider

from services.chassis import logs
from services.chassis.settings import Secret
from services.cloud_proxy.credentials import credential_headers
from tests.support.recordings import route_to

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlLWhlcmU"


@pytest.fixture
def lines():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    # pytest's own capture would hold lines that cannot travel between its processes.
    root.handlers[:] = []
    stream = io.StringIO()
    logs.configure("anabranch-test", "info", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


def test_a_record_becomes_one_json_object(lines):
    logging.getLogger("a.b").info("served %d", 3, extra={"model": "m", "tokens": 7})
    (line,) = lines()
    assert line["message"] == "served 3"
    assert line["level"] == "info"
    assert line["logger"] == "a.b"
    assert line["service"] == "anabranch-test"
    assert (line["model"], line["tokens"]) == ("m", 7)
    assert line["ts"].endswith("Z")
    assert "request_id" not in line
    assert "trace_id" not in line


def test_ids_of_the_request_and_span_are_added(lines):
    tracer = TracerProvider().get_tracer("t")
    token = logs.request_id.set("req-1")
    try:
        with tracer.start_as_current_span("s") as span:
            logging.getLogger("x").warning("hello")
    finally:
        logs.request_id.reset(token)
    (line,) = lines()
    assert line["request_id"] == "req-1"
    assert line["trace_id"] == format(span.get_span_context().trace_id, "032x")
    assert line["span_id"] == format(span.get_span_context().span_id, "016x")


CREDENTIALS = {
    f"authorization: Bearer {JWT}": "c2lnbmF0dXJl",
    f"token was {JWT}": "c2lnbmF0dXJl",
    "bearer 0123456789abcdef": "0123456789abcdef",
    "Basic YWxhZGRpbjpvcGVuc2VzYW1l": "YWxhZGRpbjpv",
    "key=sk-proj-abcdefgh12345678": "abcdefgh12345678",
    "abk_live_abcdefgh12345678": "abcdefgh12345678",
    "(\nsk-ant-abcdefgh12345678": "abcdefgh12345678",
    "client_secret=hunter2hunter2&x=1": "hunter2",
    '{"client_secret": "hunter2hunter2"}': "hunter2",
    r"{\"api_key\":\"hunter2hunter2\"}": "hunter2",
    "x-api-key: hunter2hunter2": "hunter2",
    "postgresql://user:hunter2@db/x": "hunter2",
    "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----": "hunter2",
}


@pytest.mark.parametrize("text", CREDENTIALS)
@pytest.mark.parametrize("where", ["message", "argument", "extra", "nested", "exception"])
def test_a_credential_never_reaches_the_line(lines, text, where):
    log = logging.getLogger("x")
    match where:
        case "message":
            log.info(text)
        case "argument":
            log.info("got %s", text)
        case "extra":
            log.info("m", extra={"detail": text})
        case "nested":
            log.info("m", extra={"detail": {"a": [text]}})
        case "exception":
            try:
                raise RuntimeError(text)
            except RuntimeError:
                log.exception("failed")
    assert CREDENTIALS[text] not in json.dumps(lines())


def test_values_under_secret_names_are_hidden_whatever_they_are(lines):
    logging.getLogger("x").info("m", extra={"client_secret": "q", "d": {"password": 5}})
    logging.getLogger("x").info("m", extra={"value": Secret("hunter2")})
    first, second = lines()
    assert first["client_secret"] == "***"
    assert first["d"]["password"] == "***"
    assert second["value"] == "***"


def test_ordinary_text_is_left_alone(lines):
    text = "risk-assessment-of-large-things took 5 tokens; max_tokens=4096 task-0123456789"
    logging.getLogger("x").info(text, extra={"max_tokens": 4096, "token_count": 5})
    (line,) = lines()
    assert line["message"] == text
    assert (line["max_tokens"], line["token_count"]) == (4096, 5)


def test_a_record_that_cannot_be_formatted_is_reported_without_its_arguments(lines):
    record = logging.makeLogRecord({"msg": "%d", "args": ("hunter2",), "levelname": "INFO"})
    # Straight to our handler: the one that pytest adds raises instead.
    next(
        h for h in logging.getLogger().handlers if h.formatter.__class__ is logs.JsonFormatter
    ).handle(record)
    (line,) = lines()
    assert "could not be formatted" in line["message"]
    assert "hunter2" not in json.dumps(line)


def test_values_json_cannot_hold_become_text(lines):
    logging.getLogger("x").info("\udcff", extra={"big": 2**80, "obj": object, "s": {1}})
    (line,) = lines()
    assert line["big"] == str(2**80)
    assert line["s"] == [1]


def test_no_level_shows_what_signs_a_request_to_a_provider(lines):
    logs.set_level("debug")
    route = route_to("bedrock", "m", base_url="https://bedrock-runtime.us-east-1.amazonaws.com")
    secret = Secret("AKIAEXAMPLE:s3cr3tkeys3cr3tkey:sessiontokensessiontoken")
    headers = credential_headers(route, secret, f"{route.base_url}/model/m/converse", b"{}")
    assert headers["X-Amz-Security-Token"] == "sessiontokensessiontoken"
    signature = headers["Authorization"].rpartition("=")[2]
    shown = json.dumps(lines())
    assert "sessiontoken" not in shown
    assert signature not in shown


def test_the_level_changes_while_running_and_the_previous_is_returned(lines):
    assert logs.set_level("error") == "info"
    logging.getLogger("x").warning("unseen")
    assert logs.set_level("debug") == "error"
    logging.getLogger("x").debug("seen")
    assert [line["message"] for line in lines()] == ["seen"]
    with pytest.raises(ValueError, match="log level"):
        logs.set_level("loud")
