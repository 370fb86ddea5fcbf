"""The services, started from what the chart gives their pods, know and serve each other.

Real services in this process, with the rendered settings, ConfigMaps and Secrets; the engine is the
simulation. Only addresses are others than in a cluster: ports of this machine, and a registry in
memory in place of DNS.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.auth import app as auth_app
from services.local_engine import app as engine_app
from services.router import app as router_app
from tests.inprocess.test_chart_smoke import smoke
from tests.support.chart import COMPONENT, changed, mount, needs_helm, pods, settings_of
from tests.support.chart import chart as chart
from tests.support.inprocess import Cluster

pytestmark = needs_helm


async def test_identities_policy_and_models_of_the_values_make_a_cluster_that_answers(
    chart: Path, tmp_path: Path
) -> None:
    objects = changed(
        chart,
        "laptop-cpu",
        engineDefaults__engine="sim",
        auth__settings={"AUDIT_RETENTION": "30d"},
        policy={"version": 1, "aliases": {"quick": [{"model": "smollm2-135m-instruct"}]}},
    )
    found = {labels[COMPONENT]: (labels, spec) for _, labels, spec in pods(objects)}
    registry = f"memory:{tmp_path}"

    def settings(component: str, **changes: Any) -> Any:
        labels, spec = found[component]
        made = settings_of(objects, labels, spec, tmp_path / component)
        here: Mapping[str, Any] = {
            "listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "health_listen": "127.0.0.1:0",
            "advertise": "",
            "service_id": component,
            "registry": registry,
            "drain_timeout": 1.0,
        }
        return replace(made, **{**here, **changes})

    async with AsyncExitStack() as stack:
        auth = await stack.enter_async_context(auth_app.running(settings("auth")))
        target = {"auth_target": auth.address}
        await stack.enter_async_context(engine_app.running(settings("engine", **target)))
        router = await stack.enter_async_context(router_app.running(settings("router", **target)))
        admin = (tmp_path / "auth/etc/anabranch/identities/admin").read_text()
        running = Cluster(tmp_path, registry, stack, auth, admin)
        running.router = router
        await running.backends_ready(1)
        mount(objects, found["tester"][1], tmp_path / "tester")
        secret = tmp_path / "tester/etc/anabranch/secrets/tester"
        status, output = await smoke(running, secret, ANABRANCH_TEST_MODEL="quick")
    assert status == 0, output
    assert "quick says: '[sim]" in output
