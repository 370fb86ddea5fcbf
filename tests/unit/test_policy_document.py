"""Policy documents: read into exact values, refused with every fault at its path, written back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.core import policy as core
from services.router.core.policy import Algorithm, Budget, Policy, PriorityClass, Variant
from services.router.decisions import MASKABLE
from services.router.policy.check import check_file
from services.router.policy.document import Document, read, render, versioned
from services.router.policy.problems import BadPolicy, Problem
from services.router.policy.schema import schema
from services.router.policy.sections import to_document
from tests.support.policies import KINDS, policies
from tests.support.waiting import BOUND_S

ROOT = Path(__file__).resolve().parents[2]

WHOLE = """
version: 1
algorithm: weighted
objectives: {ttft: 2s, tpot: 100ms}
affinity: {enabled: false, blocks_per_backend: 100}
slow_start: 1.5s
breaker:
  {consecutive: 5, failure_share: 0.25, minimum_requests: 10, window: 1m, silence: 9, rest: 250ms,
   longest_rest: 1h}
retry: {ratio: 0.1, per_second: 2.5, attempts: 3}
hedge: {enabled: true, share: 0.01, after: 3, soonest: 500us}
overflow: {enabled: false, ttft_margin: 1.5, tpot_margin: 1.25, leave: 2, hold: 0}
admission:
  max_waiting: 10
  max_wait: 5s
  codel: {target: 500ms, interval: 2s}
  classes:
    system: {floor: 0.1, promote_after: 1s}
    interactive: {}
    batch: {floor: 0}
weights: {engine-a: 2, "10.0.0.7:50052": 0.5, zone-1: 0}
models:
  r1:
    local: deepseek-r1-distill-qwen-7b
    cloud: deepseek-v4-pro
    objectives: {ttft: 5s}
    overflow: {enabled: true, hold: 1s}
    continue_in_cloud: false
    cache: false
  qwen2.5: {}
aliases:
  chat: [{model: r1, weight: 95}, {model: qwen2.5, weight: 5}]
  solo: [{model: r1}]
tenants:
  "*": {cloud: true, cache: true, cloud_budget: {usd: "1.00"}, mask: [email]}
  search: {cloud_budget: {usd: 20.05, period: 1h}, mask: null}
  lab: {cloud: false, cloud_budget: null, mask: []}
budgets: {cloud: {microusd: 500000001, period: 30d}}
masking: [email, cn-id]
cache: {enabled: false, ttl: 2h, max_answer: 1.5MiB}
"""


def problems(text: str | bytes, defaults: Policy | None = None) -> list[Problem]:
    """Every fault of a document."""
    with pytest.raises(BadPolicy) as bad:
        read(text, defaults or Policy())
    return list(bad.value.problems)


def policy_of(text: str) -> Policy:
    return read("version: 1\n" + text, Policy()).policy


def test_every_key_is_read_into_its_value():
    policy = read(WHOLE, Policy()).policy
    assert policy.algorithm is Algorithm.WEIGHTED
    assert policy.objective == core.Objective(2.0, 0.1)
    assert policy.affinity == core.Affinity(False, 100)
    assert policy.slow_start == 1.5
    assert policy.breaker == core.BreakerRules(5, 0.25, 10, 60.0, 9.0, 0.25, 3600.0)
    assert policy.retry == core.RetryRules(0.1, 2.5, 3)
    assert policy.hedge == core.HedgeRules(True, 0.01, 3.0, 0.0005)
    assert policy.overflow == core.OverflowRules(False, 1.5, 1.25, 2.0, 0.0)
    assert policy.admission == core.AdmissionRules(
        10,
        5.0,
        0.5,
        2.0,
        {
            PriorityClass.SYSTEM: core.ClassRules(0.1, 1.0),
            PriorityClass.INTERACTIVE: core.ClassRules(0.5, 10.0),
            PriorityClass.BATCH: core.ClassRules(0.0, 10.0),
        },
    )
    assert policy.weights == {"engine-a": 2.0, "10.0.0.7:50052": 0.5, "zone-1": 0.0}
    assert policy.models == {
        "r1": core.ModelRules(
            "deepseek-r1-distill-qwen-7b",
            "deepseek-v4-pro",
            core.Objective(5.0, 0.1),
            False,
            core.OverflowRules(True, 1.5, 1.25, 2.0, 1.0),
            False,
        ),
        "qwen2.5": core.ModelRules(),
    }
    assert policy.aliases == {
        "chat": (Variant("r1", 95.0), Variant("qwen2.5", 5.0)),
        "solo": (Variant("r1", 1.0),),
    }
    assert policy.tenants == {
        "*": core.TenantRules(True, Budget(1_000_000, 86_400.0), True, frozenset({"email"})),
        "search": core.TenantRules(True, Budget(20_050_000, 3600.0), True, None),
        "lab": core.TenantRules(False, None, True, frozenset()),
    }
    assert policy.cloud_budget == Budget(500_000_001, 2_592_000.0)
    assert policy.mask == {"email", "cn-id"}
    assert policy.cache == core.CacheRules(False, 7200.0, 1_572_864)


def test_what_a_document_leaves_out_is_the_default_of_the_process():
    defaults = Policy(
        objective=core.Objective(ttft=7.0), admission=core.AdmissionRules(max_waiting=3, max_wait=4)
    )
    assert read("version: 1", defaults).policy == versioned(defaults)
    policy = read("version: 1\nobjectives: {tpot: 50ms}\nadmission: {max_wait: 9}", defaults).policy
    assert policy.objective == core.Objective(7.0, 0.05)
    assert (policy.admission.max_waiting, policy.admission.max_wait) == (3, 9.0)


def test_a_tenant_inherits_from_everybody_what_it_does_not_say():
    # A tenant that is given a cache must not thereby be given the cloud.
    policy = policy_of('tenants: {"*": {cloud: false}, search: {cache: true}}')
    assert policy.tenant("search") == core.TenantRules(cloud=False, cache=True)
    assert policy.tenant("anybody") == core.TenantRules(cloud=False)


def test_no_limit_is_written_null():
    defaults = Policy(objective=core.Objective(tpot=0.1))
    assert read("version: 1\nobjectives: {tpot: null}", defaults).policy.objective.tpot == inf
    model = read("version: 1\nmodels: {m: {objectives: {tpot: ~}}}", defaults).policy.models["m"]
    assert model.objective == core.Objective(defaults.objective.ttft, inf)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("1m", 60.0),
        ("1h", 3600.0),
        ("0.5s", 0.5),
        ("3", 3.0),
        ("0.1", 0.1),
        ("2.5e1", 25.0),
        ('"10s"', 10.0),
        ("0", 0.0),
        ("0ms", 0.0),
    ],
)
def test_durations_are_exact(written: str, seconds: float):
    assert policy_of(f"slow_start: {written}").slow_start == seconds


@pytest.mark.parametrize(
    ("written", "microusd"),
    [
        ('{usd: "12.50"}', 12_500_000),
        ("{usd: 12.50}", 12_500_000),
        ("{usd: 0.1}", 100_000),
        ('{usd: "0.000001"}', 1),
        ("{usd: 0.000001}", 1),
        ("{usd: 999999999.999999}", 999_999_999_999_999),
        ("{usd: 3}", 3_000_000),
        ("{usd: 0}", 0),
        ("{microusd: 0}", 0),
        ("{microusd: 7}", 7),
        ('{usd: "1.230000"}', 1_230_000),
    ],
)
def test_money_is_exact(written: str, microusd: int):
    assert policy_of(f"budgets: {{cloud: {written}}}").cloud_budget == Budget(microusd)


@pytest.mark.parametrize(
    ("written", "size"),
    [("1", 1), ("256KiB", 262_144), ("1MB", 1_000_000), ("0.5KiB", 512), ('"2B"', 2)],
)
def test_sizes_are_exact(written: str, size: int):
    assert policy_of(f"cache: {{max_answer: {written}}}").cache.max_answer_bytes == size


def test_names_stay_names_whatever_they_look_like():
    policy = policy_of("models: {no: {}, 12: {}, 1e3: {}, null: {}, 2024-01-01: {local: on}}")
    assert set(policy.models) == {"no", "12", "1e3", "null", "2024-01-01"}
    assert policy.models["2024-01-01"].local == "on"


def test_json_is_read_too():
    text = json.dumps({"version": 1, "algorithm": "c3", "objectives": {"ttft": 0.5}})
    assert read(text, Policy()).policy.algorithm is Algorithm.C3


def test_a_byte_order_mark_is_no_fault():
    assert read("\ufeffversion: 1".encode(), Policy()).policy == versioned(Policy())


FAULTS: list[tuple[str, list[str]]] = [
    # The document
    ("algorithm: c3", ["version"]),
    ("version: 2", ["version"]),
    ('version: "1"', ["version"]),
    ("version: true", ["version"]),
    ("", [""]),
    ("# only a comment", [""]),
    ("null", [""]),
    ("- version: 1", [""]),
    ("hello", [""]),
    ("version: 1\n---\nversion: 1", [""]),
    ("version: 1\nbudgets: {", [""]),
    ("version: 1\n\talgorithm: c3", [""]),
    ("version: 1\ntenants:\n  *: {}", [""]),
    ("version: 1\n? [a]\n: 1", [""]),
    ("version: 1\n\x00", [""]),
    # Keys
    ("version: 1\nalgoritm: c3", ["algoritm"]),
    ("version: 1\nx: 1\ny: 2", ["x", "y"]),
    ("version: 1\nversion: 1", ["version"]),
    ("version: 1\nretry: {ratio: 0.1, ratio: 0.2}", ["retry.ratio"]),
    ("version: 1\nmodels: {a: {}, b: {}, a: {cache: false}}", ["models.a"]),
    ("version: 1\n<<: {algorithm: c3}", ['["<<"]']),
    ("version: 1\nobjectives: {ttft: 1s, TTFT: 1s}", ["objectives.TTFT"]),
    ("version: 1\nmodels: {m: {locall: x}}", ["models.m.locall"]),
    # YAML that is not read
    ("version: 1\nobjectives: &o {ttft: 1s}", ["objectives"]),
    ("version: 1\nslow_start: *x", ["slow_start"]),
    ("version: 1\nslow_start: !!float 3", ["slow_start"]),
    ("version: 1\nalgorithm: !python/name:os.system c3", ["algorithm"]),
    # Types
    ("version: 1\nobjectives: 2s", ["objectives"]),
    ("version: 1\nobjectives: [2s]", ["objectives"]),
    ("version: 1\nmodels: {m: }", ["models.m"]),
    ("version: 1\naliases: {a: m}", ["aliases.a"]),
    ("version: 1\naffinity: {enabled: yes}", ["affinity.enabled"]),
    ("version: 1\naffinity: {enabled: 1}", ["affinity.enabled"]),
    ("version: 1\nretry: {attempts: 2.5}", ["retry.attempts"]),
    ("version: 1\nretry: {attempts: true}", ["retry.attempts"]),
    ('version: 1\nretry: {ratio: "0.1"}', ["retry.ratio"]),
    ("version: 1\nalgorithm: fastest", ["algorithm"]),
    ("version: 1\nalgorithm: [c3]", ["algorithm"]),
    ("version: 1\nmasking: email", ["masking"]),
    # Numbers
    ("version: 1\noverflow: {leave: .nan}", ["overflow.leave"]),
    ("version: 1\noverflow: {leave: .inf}", ["overflow.leave"]),
    ("version: 1\noverflow: {leave: 1e999}", ["overflow.leave"]),
    ("version: 1\noverflow: {leave: 0.99}", ["overflow.leave"]),
    (f"version: 1\nretry: {{attempts: {'9' * 40}}}", ["retry.attempts"]),
    ("version: 1\noverflow: {ttft_margin: -1}", ["overflow.ttft_margin"]),
    ("version: 1\noverflow: {hold: 11m}", ["overflow.hold"]),
    ("version: 1\nretry: {ratio: 1.01}", ["retry.ratio"]),
    ("version: 1\nretry: {attempts: 0}", ["retry.attempts"]),
    ("version: 1\nbreaker: {failure_share: 0}", ["breaker.failure_share"]),
    ("version: 1\nbreaker: {consecutive: 0}", ["breaker.consecutive"]),
    ("version: 1\nhedge: {after: 0.5}", ["hedge.after"]),
    ("version: 1\nadmission: {max_waiting: -1}", ["admission.max_waiting"]),
    ("version: 1\naffinity: {blocks_per_backend: 0}", ["affinity.blocks_per_backend"]),
    # Durations, sizes, money
    ("version: 1\nslow_start: -1", ["slow_start"]),
    ("version: 1\nslow_start: -1s", ["slow_start"]),
    ("version: 1\nslow_start: 10 s", ["slow_start"]),
    ("version: 1\nslow_start: 1:30", ["slow_start"]),
    ("version: 1\nslow_start: 5x", ["slow_start"]),
    ("version: 1\nslow_start: soon", ["slow_start"]),
    ('version: 1\nslow_start: "10s\\n"', ["slow_start"]),
    ("version: 1\nslow_start: 2h", ["slow_start"]),
    ("version: 1\nobjectives: {ttft: 0}", ["objectives.ttft"]),
    ("version: 1\nobjectives: {tpot: 0s}", ["objectives.tpot"]),
    ("version: 1\nadmission: {codel: {target: 0ms}}", ["admission.codel.target"]),
    ("version: 1\ncache: {ttl: 10ms}", ["cache.ttl"]),
    ("version: 1\ncache: {max_answer: 0}", ["cache.max_answer"]),
    ("version: 1\ncache: {max_answer: 0.3B}", ["cache.max_answer"]),
    ("version: 1\ncache: {max_answer: 1TiB}", ["cache.max_answer"]),
    ("version: 1\ncache: {max_answer: 65MiB}", ["cache.max_answer"]),
    ("version: 1\nbudgets: {cloud: {usd: -1}}", ["budgets.cloud.usd"]),
    ('version: 1\nbudgets: {cloud: {usd: "-0.5"}}', ["budgets.cloud.usd"]),
    ("version: 1\nbudgets: {cloud: {microusd: -1}}", ["budgets.cloud.microusd"]),
    ("version: 1\nbudgets: {cloud: {microusd: 0.5}}", ["budgets.cloud.microusd"]),
    ('version: 1\nbudgets: {cloud: {usd: "0.0000001"}}', ["budgets.cloud.usd"]),
    ("version: 1\nbudgets: {cloud: {usd: 1e-7}}", ["budgets.cloud.usd"]),
    ("version: 1\nbudgets: {cloud: {usd: $5}}", ["budgets.cloud.usd"]),
    ("version: 1\nbudgets: {cloud: {usd: 1000000001}}", ["budgets.cloud.usd"]),
    ("version: 1\nbudgets: {cloud: {period: 1d}}", ["budgets.cloud"]),
    ("version: 1\nbudgets: {cloud: {usd: 1, microusd: 1}}", ["budgets.cloud"]),
    ("version: 1\nbudgets: {cloud: 5}", ["budgets.cloud"]),
    ("version: 1\nbudgets: {cloud: {usd: 1, period: 0}}", ["budgets.cloud.period"]),
    ("version: 1\ntenants: {t: {cloud_budget: 5}}", ["tenants.t.cloud_budget"]),
    ("version: 1\ntenants: {t: {cloud_budget: {usd: x}}}", ["tenants.t.cloud_budget.usd"]),
    # Names
    ('version: 1\nmodels: {"a b": {}}', ['models["a b"]']),
    ('version: 1\nmodels: {"": {}}', ['models[""]']),
    ('version: 1\nmodels: {"a\\nb": {}}', ['models["a\\nb"]']),
    ('version: 1\nmodels: {"a\\n": {}}', ['models["a\\n"]']),
    ('version: 1\nmodels: {"../x": {}}', ['models["../x"]']),
    (f"version: 1\nmodels: {{{'m' * 257}: {{}}}}", [f'models["{"m" * 79}\\u2026"]']),
    ('version: 1\nmodels: {m: {cloud: "<script>"}}', ["models.m.cloud"]),
    ("version: 1\nmodels: {m: {local: 7}}", ["models.m.local"]),
    ("version: 1\nmodels: {qwen2.5: {local: über}}", ['models["qwen2.5"].local']),
    ('version: 1\ntenants: {"a b": {}}', ['tenants["a b"]']),
    ('version: 1\ntenants: {"**": {}}', ["tenants.**"]),
    ('version: 1\nweights: {"a b": 1, c: 1}', ['weights["a b"]']),
    ("version: 1\nmasking: [email, e-mail]", ["masking[1]"]),
    ("version: 1\nmasking: [email, email]", ["masking"]),
    ("version: 1\ntenants: {t: {mask: [iban]}}", ["tenants.t.mask[0]"]),
    # Aliases
    ("version: 1\naliases: {a: []}", ["aliases.a"]),
    ("version: 1\naliases: {a: [{weight: 1}]}", ["aliases.a[0].model"]),
    ("version: 1\naliases: {a: [{model: m, weight: -1}]}", ["aliases.a[0].weight"]),
    ("version: 1\naliases: {a: [{model: m, weight: 0}]}", ["aliases.a"]),
    ("version: 1\naliases: {a: [{model: m}, {model: m}]}", ["aliases.a[1].model"]),
    ("version: 1\naliases: {a: [{model: a}]}", ["aliases.a[0].model"]),
    (
        "version: 1\naliases: {a: [{model: b}], b: [{model: a}]}",
        ["aliases.a[0].model", "aliases.b[0].model"],
    ),
    (
        "version: 1\naliases: {a: [{model: m}, {model: b}], b: [{model: m}]}",
        ["aliases.a[1].model"],
    ),
    ("version: 1\nmodels: {a: {}}\naliases: {a: [{model: m}]}", ["aliases.a"]),
    # What belongs together
    ("version: 1\nweights: {a: 0, b: 0.0}", ["weights"]),
    ("version: 1\nweights: {a: -1}", ["weights.a"]),
    (
        "version: 1\nadmission: {classes: {system: {floor: 0.6}, interactive: {floor: 0.6}}}",
        ["admission.classes"],
    ),
    # One floor and the defaults of the others: 0.05 + 0.9 + 0.1
    ("version: 1\nadmission: {classes: {interactive: {floor: 0.9}}}", ["admission.classes"]),
    ("version: 1\nadmission: {classes: {vip: {floor: 0.1}}}", ["admission.classes.vip"]),
    ("version: 1\nbreaker: {rest: 2m}", ["breaker.longest_rest"]),
    ("version: 1\nbreaker: {rest: 10s, longest_rest: 9s}", ["breaker.longest_rest"]),
    # Everything at once, and nothing that only follows from something else
    (
        "version: 1\nalgorithm: weighted\nweights: {a: x}\nbreaker: {rest: x, longest_rest: 1s}",
        ["weights.a", "breaker.rest"],
    ),
    (
        "algorithm: x\nslow_start: x\nmodels: {m: {objectives: {ttft: x}, b: 1}, a: {}}\n"
        "aliases: {a: [{model: m}], c: [{model: a}]}\nbudgets: {cloud: {usd: x}}\ny: *z",
        [
            "version",
            "algorithm",
            "slow_start",
            "models.m.b",
            "models.m.objectives.ttft",
            "aliases.a",
            "aliases.c[0].model",
            "budgets.cloud.usd",
            "y",
            "y",
        ],
    ),
]


@pytest.mark.parametrize(("text", "paths"), FAULTS, ids=[repr(text)[:60] for text, _ in FAULTS])
def test_a_bad_document_is_refused_with_every_fault_at_its_path(text: str, paths: list[str]):
    found = problems(text)
    assert [problem.where for problem in found] == paths
    for problem in found:
        assert re.match(r"(must|is|are|has|holds|keep|makes) ", problem.text), problem
        assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\noverflw: {}", "overflw: is not known; did you mean overflow? (line 2)"),
        (
            "version: 1\n\nobjectives:\n  ttft: x",
            "objectives.ttft: must be a duration such as 250ms, 2s, 1m or 1d, or a number of "
            "seconds (line 4)",
        ),
        (
            "version: 1\nslow_start: 2h",
            "slow_start: must be at least 0s and at most 1h (line 2)",
        ),
        (
            "version: 1\nbreaker: {failure_share: 2}",
            "breaker.failure_share: must be above 0 and at most 1 (line 2)",
        ),
        (
            "version: 1\nmodels: {a: {}}\naliases: {a: [{model: m}]}",
            "aliases.a: is the name of a model too; rename one of them (line 3)",
        ),
        (
            "version: 1\naliases:\n  a: [{model: b}]\n  b: [{model: a}]",
            "aliases.a[0].model: makes a loop (a → b → a); name a model (line 3)",
        ),
        ("a: 1", "version: is required: The format of this document: 1."),
    ],
)
def test_a_fault_says_where_it_is_and_what_to_do(text: str, said: str):
    assert said in map(str, problems(text))


def test_no_value_of_a_document_is_repeated_in_a_fault():
    text = "version: 1\nalgorithm: s3cret\nslow_start: s3cret\nmodels: {m: {local: 's3cret !'}}"
    text += "\nmasking: [s3cret]\nbudgets: {cloud: {usd: s3cret}}\nweights: {a: s3cret}"
    found = problems(text)
    assert len(found) == 6
    assert "s3cret" not in "".join(map(str, found))


HOSTILE = {
    "deep": "[" * 200_000,
    "deep mappings": "{a: " * 60_000,
    "laughs": "a: &a [x,x]\n" + "".join(f"b{n}: &b{n} [*a,*a]\n" for n in range(2000)),
    "long": "version: 1\n#" + "x" * 262_144,
    "many values": "version: 1\nmasking: [" + "a," * 60_000 + "]",
    "mappings in a list of names": "version: 1\nmasking: ["
    + "".join(f"{{a{n}: 1}}," for n in range(10_000))
    + "]",
    "aliases in a ring": "version: 1\naliases: {"
    + ",".join(f"a{n}: [{{model: a{(n + 1) % 5000}}}]" for n in range(5000))
    + "}",
    "aliases that name each other": "version: 1\naliases: {"
    + ",".join(
        f"a{n}: [" + ",".join(f"{{model: a{m}}}" for m in range(20)) + "]" for n in range(200)
    )
    + "}",
    "unknown keys": "version: 1\n" + "".join(f"k{n}: 1\n" for n in range(15_000)),
    "a long number": "version: 1\nslow_start: " + "1" * 200_000,
    "a long quoted number": f'version: 1\nslow_start: "{"1" * 200_000}"',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_is_refused_soon(name: str):
    began = time.process_time()
    found = problems(HOSTILE[name])
    # Without bounds these take minutes or all memory.
    assert time.process_time() - began < BOUND_S
    assert 1 <= len(found) <= 201


def test_a_document_of_the_longest_length_is_read():
    entry = "cloud: true, cloud_budget: {usd: 5, period: 1d}"
    tenants = "".join(f"  tenant-{n}: {{{entry}}}\n" for n in range(3600))
    text = f"version: 1\ntenants:\n{tenants}"
    assert 200_000 < len(text) <= 262_144
    assert len(read(text, Policy()).policy.tenants) == 3600


@pytest.mark.parametrize("content", [b"\xff\xfe", "version: 1 # \ud800"])
def test_what_is_no_utf_8_is_refused(content: str | bytes):
    assert [p.text for p in problems(content)] == ["is not UTF-8; save it as that"]


@given(policies())
@settings(deadline=None, max_examples=150)
def test_any_policy_written_out_and_read_is_the_same(policy: Policy):
    text = render(policy, "a comment")
    # Whatever the defaults are: what is written out says everything.
    others = Policy(
        objective=core.Objective(1.0, 0.5), admission=core.AdmissionRules(1, 2.0), slow_start=1.0
    )
    document = read(text, others)
    assert document.policy == versioned(policy)
    assert document.text == text


@given(policies(), policies())
@settings(deadline=None, max_examples=50)
def test_policies_have_the_same_version_if_they_say_the_same(one: Policy, other: Policy):
    assert (versioned(one).version == versioned(other).version) is (one == other)


def test_the_version_is_of_the_content_and_not_of_its_form():
    first = read("version: 1\nobjectives: {ttft: 2s}\nslow_start: 10s # long", Policy())
    second = read('{"version": 1, "objectives": {"ttft": 2000e-3}}', Policy())
    third = read("version: 1\nobjectives: {ttft: 2001ms}", Policy())
    assert first.policy.version == second.policy.version != third.policy.version
    assert re.fullmatch(r"[0-9a-f]{12}", first.policy.version)


@given(st.text() | st.binary() | st.from_regex(r"(version: 1\n)?[a-z]+: [\[{a-z0-9:,&*!]+"))
@settings(deadline=None, max_examples=400)
def test_any_text_is_read_or_refused(content: str | bytes):
    with suppress(BadPolicy):
        assert isinstance(read(content, Policy()), Document)


def keys(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that the schema knows."""
    part = {**schema()["$defs"].get(part.get("$ref", "").removeprefix("#/$defs/"), {}), **part}
    for inner in (part.get("additionalProperties"), part.get("items"), *part.get("anyOf", ())):
        if isinstance(inner, dict):
            yield from keys(inner, path)
    for key, inner in part.get("properties", {}).items():
        yield f"{path}.{key}".lstrip("."), inner
        yield from keys(inner, f"{path}.{key}")


def test_every_key_of_the_schema_is_read_and_described():
    known = dict(keys(schema()))
    assert len(known) > 60
    assert [key for key, part in known.items() if not part.get("description")] == []
    # WHOLE names them all, and the exact values above show that each arrives.
    missing = [key for key in known if not re.search(rf"\b{key.split('.')[-1]}:", WHOLE)]
    assert missing == []


def test_every_key_of_the_schema_is_in_the_documentation():
    text = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))
    known = {key.split(".")[-1] for key, part in keys(schema())}
    assert known <= {name.split(".")[-1] for name in told}


def test_the_defaults_in_the_documentation_are_those_of_the_code():
    text = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([^`]+)` \| .* \| (.*?) ?\|$", text, re.MULTILINE))
    compared = 0
    for key, value in leaves(to_document(Policy())):
        if key in told:
            compared += 1
            written = json.dumps(value).strip('"')
            assert re.match(rf"`?{re.escape(written)}\b", told[key]), (key, written, told[key])
    assert compared >= 30


def leaves(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        elif not isinstance(value, list):
            yield path + key, value


def test_what_may_be_masked_is_what_the_router_can_have_masked():
    named = set(schema()["$defs"]["kinds"]["items"]["enum"])
    assert named == set(KINDS) == set(MASKABLE)


@pytest.mark.parametrize("path", [ROOT / "deploy/docker/policy.yaml"], ids=str)
def test_the_examples_are_good(path: Path):
    assert check_file(path) == []


def test_the_examples_in_the_documentation_are_good():
    text = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    found = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(found) >= 3
    for example in found:
        whole = example if "version:" in example else f"version: 1\n{example}"
        read(whole, Policy())
