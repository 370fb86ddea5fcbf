"""A policy as text: reads it whole or refuses it with every fault, and writes one out.

text.py knows YAML, schema.py the shape, checks.py what parts mean for each other, sections.py
which key is which field. Where texts come from is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import orjson
import yaml

from services.router.core.policy import Policy
from services.router.policy import checks, schema
from services.router.policy.problems import BadPolicy, KeyPath, Problem
from services.router.policy.sections import to_document, to_policy
from services.router.policy.text import parse, plain

_VERSION_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Document:
    """A policy and the text that it was read from, comments included."""

    policy: Policy
    text: str


def read(content: str | bytes, defaults: Policy) -> Document:
    """The policy that a document describes; what it leaves out is taken from `defaults`.

    Takes up to a second for the longest documents, and may run in any thread. Raises BadPolicy
    with every fault.
    """
    tree = parse(content)
    faulty = {problem.path for problem in tree.problems}
    problems = list(tree.problems)
    for path, text in schema.faults(tree.value):
        faulty.add(path)
        problems.append(Problem(path, text, tree.line(path)))
    # The rest is checked as if what is faulty were not there, so that everything is told at once.
    sound = tree.value
    if faulty:
        sound = {} if () in faulty else _without(sound, (), {_unit(path) for path in faulty})
    policy = to_policy(sound, defaults)
    problems += [
        Problem(path, text, tree.line(path)) for path, text in checks.faults(policy, faulty)
    ]
    if problems:
        raise BadPolicy(problems)
    text = content if isinstance(content, str) else content.decode("utf-8")
    return Document(versioned(policy), text)


def versioned(policy: Policy) -> Policy:
    """The policy with its version: a hash of what it says, however that is written."""
    said = orjson.dumps(to_document(policy), option=orjson.OPT_SORT_KEYS)
    return replace(policy, version=hashlib.sha256(said).hexdigest()[:_VERSION_DIGITS])


def render(policy: Policy, comment: str = "") -> str:
    """A policy as YAML that says everything; `comment` becomes its first lines.

    Reading it gives the same policy, whatever the defaults are.
    """
    written = yaml.dump(
        to_document(policy),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=98,
    )
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + str(written)


def _without(value: Any, path: KeyPath, unsound: Collection[KeyPath]) -> Any:
    """A value without what is unsound in its mappings."""
    if not isinstance(value, dict):
        return value
    return {
        key: _without(inner, (*path, key), unsound)
        for key, inner in value.items()
        if (*path, key) not in unsound
    }


def _unit(path: KeyPath) -> KeyPath:
    """What makes no sense without the value at a path: the list it is in, or the budget."""
    for length, step in enumerate(path):
        if isinstance(step, int):
            return path[:length]
        if step == "cloud_budget" or path[:length] == ("budgets",):
            return path[: length + 1]
    return path


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that would be read back as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> Any:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style=None if _stays_text(value) else '"'
    )


def _stays_text(value: str) -> bool:
    try:
        return isinstance(plain(value), str)
    except ValueError:
        return False


_Dumper.add_representer(str, _text)
