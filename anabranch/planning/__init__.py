"""What serving a workload costs a year, in the cloud, on one's own GPUs, or on both.

`plan` sizes and prices the three; `anabranch plan` prints it.
"""

from __future__ import annotations

from anabranch.planning.sizing import plan
from anabranch.planning.values import (
    CloudPrices,
    Option,
    Plan,
    PlanningError,
    Replica,
    StepPace,
    Workload,
)

__all__ = [
    "CloudPrices",
    "Option",
    "Plan",
    "PlanningError",
    "Replica",
    "StepPace",
    "Workload",
    "plan",
]
