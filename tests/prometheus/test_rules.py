"""The rules for Prometheus, checked and tested with promtool.

What each alert does is in the YAML files beside this one; `promtool test rules FILE` runs one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tools.dashboards.limits import ROOT, RULES, alerts

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no promtool: run `make servers`"
)

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.yaml"))
RUNBOOK = ROOT / "docs/runbook.md"
PAGE = ROOT / "docs/observability.md"


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault_in_the_rules():
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_alerts_fire_beyond_their_thresholds_and_not_below(file):
    promtool("test", "rules", str(file))


def test_each_alert_is_seen_firing_in_one_of_the_files():
    firing = set()
    for file in FILES:
        for case in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for expected in case.get("promql_expr_test", []):
                for sample in expected.get("exp_samples", []):
                    firing |= set(re.findall(r'alertname="(\w+)"', sample["labels"]))
    assert firing == {rule["alert"] for rule in alerts()}


def test_each_alert_says_how_grave_it_is_what_it_means_and_what_to_do():
    for rule in alerts():
        name = rule["alert"]
        assert name.startswith("Anabranch")
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        words = rule["annotations"]
        assert words.keys() == {"summary", "description", "runbook_url"}, name
        assert words["runbook_url"] == f"docs/runbook.md#alert-{name.lower()}"


@pytest.mark.skipif(not RUNBOOK.exists(), reason="there is no runbook")
def test_each_alert_has_a_place_in_the_runbook():
    text = RUNBOOK.read_text(encoding="utf-8").lower()
    missing = [
        rule["alert"]
        for rule in alerts()
        if f"alert-{rule['alert'].lower()}" not in text
        and not re.search(rf"^#+ +alert[ :-]+{rule['alert'].lower()}\b", text, re.MULTILINE)
    ]
    assert not missing


def test_the_page_names_every_alert_and_no_other():
    text = PAGE.read_text(encoding="utf-8").replace("`…ExpiresTomorrow`", "")
    named = set(re.findall(r"`(Anabranch[A-Z]\w+)`", text)) | {
        "AnabranchCertificateExpiresTomorrow"
    }
    known = [rule["alert"] for rule in alerts()]
    assert named == set(known)
    assert f"{len(known)} alerts" in text


def test_an_expectation_as_the_page_records_it_is_one_that_is_missed(tmp_path):
    (example,) = re.findall(
        r"```yaml\n(# expected\.yaml.*?)```", PAGE.read_text("utf-8"), re.DOTALL
    )
    (tmp_path / "expected.yaml").write_text(example, encoding="utf-8")
    # 1970 began on a Thursday: at 9:00 UTC of its first day 50 a second are expected, at 7:30 none.
    router = 'anabranch_router_requests_total{anabranch_tier="local", outcome="ok"}'
    firing = 'ALERTS{alertname="AnabranchThroughputLow", alertstate="firing", severity="warning"}'
    case = {
        "rule_files": [str(RULES), "expected.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": router, "values": "0+60x600"}],
                "promql_expr_test": [
                    {"expr": firing, "eval_time": "7h30m", "exp_samples": []},
                    {
                        "expr": firing,
                        "eval_time": "9h",
                        "exp_samples": [{"labels": firing, "value": 1}],
                    },
                ],
            }
        ],
    }
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump(case), encoding="utf-8")
    promtool("test", "rules", str(file))
