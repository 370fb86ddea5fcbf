"""Joins the Prometheus texts of several processes into one, each series marked with its worker.

Pure text work on format 0.0.4, and on OpenMetrics 1.0. It adds nothing up: sums are for the query,
which can tell the restart of one worker from a falling counter
(docs/adr/0003-workers-share-a-port.md).
"""

from __future__ import annotations

from collections.abc import Mapping

LABEL = "worker"
_END = "# EOF\n"
"""What ends a text in OpenMetrics, once."""


def merge(texts: Mapping[str, str]) -> str:
    """One text of many, by the value of the label `worker` that their series get.

    Each family appears once, described as its first text describes it, with the series of all.
    Texts in OpenMetrics make one in OpenMetrics, each series with its own worker's exemplar.
    """
    about: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    for worker, text in texts.items():
        family = ""
        described: dict[str, list[str]] = {}
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ", "# UNIT ")):
                family = line.split(" ", 3)[2]
                described.setdefault(family, []).append(line)
            elif line and not line.startswith("#"):
                # A series outside any description is a family of its own.
                name = line.partition("{")[0].partition(" ")[0]
                if not name.startswith(family) or not family:
                    family = name
                series.setdefault(family, []).append(_labelled(line, worker))
        for name, lines in described.items():
            about.setdefault(name, lines)
    out: list[str] = []
    for family in {**about, **series}:
        out += about.get(family, [])
        out += series.get(family, [])
    if any(text.endswith(_END) for text in texts.values()):
        out.append(_END.rstrip())
    return "".join(f"{line}\n" for line in out)


def _labelled(line: str, worker: str) -> str:
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        comma = "" if rest.startswith("}") else ","
        return f'{name}{{{LABEL}="{worker}"{comma}{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{{LABEL}="{worker}"}} {value}'
