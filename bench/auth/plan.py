"""What is measured, how much of it, and the figures to reach. Values only."""

from __future__ import annotations

from dataclasses import dataclass

VERIFICATION, ISSUANCE, ROTATION = "verification", "issuance", "rotation"
REVOCATION, TIMING, QUOTAS = "revocation", "timing", "quotas"
SECTIONS = (VERIFICATION, ISSUANCE, ROTATION, REVOCATION, TIMING, QUOTAS)

CACHED_US = 60.0
NEW_US = 250.0
TOKENS_A_SECOND = 300.0
REVOKED_P99_S = 2.0
T_LIMIT = 4.5
OVERSHOOT_PERCENT = 1.0
OVERSHOOT_ALONE_PERCENT = 10.0
"""While Redis is late or away."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Seconds; counts are of one round, unless they say otherwise."""

    rounds: int = 3
    # Local verification: calls of each kind, and guarded RPCs.
    cached: int = 20_000
    new: int = 2_000
    guarded: int = 4_000
    # Tokens: clients that log in again and again, others that do once, how long, and how many
    # callers at once.
    clients: int = 20
    newcomers: int = 100
    window: float = 4.0
    in_flight: int = 16
    bare: int = 4_000
    bare_hashes: int = 40
    # Rotations of the whole run, a moment apart; callers meanwhile.
    rotations: int = 100
    publish_ahead: float = 0.3
    rotation_callers: int = 4
    # Revocations of each kind and in each database, of the whole run, and how many a second.
    revocations: int = 200
    revocations_a_second: float = 16.0
    # Response times of each class, of the whole run, and refusals at once: as many as keep the
    # service busy, or as few as it answers when they are due. Logins come one by one.
    busy_key_samples: int = 50_000
    busy_in_flight: int = 64
    calm_key_samples: int = 5_000
    calm_in_flight: int = 4
    login_samples: int = 1_000
    quota_arguments: tuple[str, ...] = ("--seconds", "8")


QUICK = Plan(
    rounds=1,
    cached=2_000,
    new=300,
    guarded=400,
    clients=4,
    newcomers=8,
    window=1.0,
    bare=300,
    bare_hashes=4,
    rotations=5,
    revocations=10,
    busy_key_samples=500,
    calm_key_samples=200,
    login_samples=100,
    quota_arguments=("--processes", "2", "--period", "1", "--seconds", "2"),
)
