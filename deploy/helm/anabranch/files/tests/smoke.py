"""What `helm test` runs: asks the installed services over gRPC, as a caller would.

It logs in as the client `tester`, asks auth and router for their health, lists the models, and with
ANABRANCH_TEST_MODEL set has that one say a few words. Where everything is comes from the variables
that the client library reads. It changes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anabranch import AnabranchError, Client
from anabranch.environment import client_arguments

PATIENCE = float(os.environ.get("ANABRANCH_TEST_PATIENCE", "120"))
"""Seconds within which a step must succeed: a service that was just started may need some."""


def healthy(target: str) -> str:
    """Asks for the health of the server at `target`."""
    credentials = client_arguments().get("credentials")
    options = [("grpc.enable_http_proxy", 0)]
    channel = (
        grpc.secure_channel(target, credentials, options)
        if credentials
        else grpc.insecure_channel(target, options)
    )
    with channel:
        asked = health_pb2.HealthCheckRequest()
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=10)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise RuntimeError(f"{target} takes no work")
    return f"{target} takes work"


def models() -> str:
    """Logs in and lists the models."""
    with Client.from_env() as client:
        names = [model.name for model in client.models()]
    if not names:
        raise RuntimeError("no backend offers a model yet")
    return "models: " + ", ".join(names)


def words(model: str) -> str:
    """Has a model say something."""
    with Client.from_env() as client:
        answer = client.generate(model=model, messages="Say hello.", max_tokens=16)
    return f"{model} says: {answer.text!r}"


def step(name: str, work: Callable[[], str]) -> bool:
    """Tries until it succeeds or time is up; whether it did."""
    end = time.monotonic() + PATIENCE
    print(f"  … {name}", flush=True)
    while True:
        try:
            print(f"  ✓ {work()}", flush=True)
            return True
        except (AnabranchError, grpc.RpcError, RuntimeError, ValueError, OSError) as error:
            if time.monotonic() > end:
                print(f"  ✗ {name}: {error}", flush=True)
                return False
            time.sleep(2)


def main() -> int:
    """1 when a step failed."""
    steps: list[tuple[str, Callable[[], str]]] = [
        ("health of auth", lambda: healthy(os.environ["ANABRANCH_AUTH_TARGET"])),
        ("health of the router", lambda: healthy(os.environ["ANABRANCH_TARGET"])),
        ("a token, and the list of models", models),
    ]
    model = os.environ.get("ANABRANCH_TEST_MODEL")
    if model:
        steps.append((f"a few words of {model}", lambda: words(model)))
    return 0 if all(step(name, work) for name, work in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
