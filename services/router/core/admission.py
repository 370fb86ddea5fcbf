"""Who may join the lines of waiting requests: seats, of which each class has some for itself.

It counts seats only; who goes first is line.py's.

A class sits on its reserved seats first and then on the shared ones. A full house refuses a class
when its own seats and the shared ones are taken, so that no class can keep another one out.
"""

from __future__ import annotations

from services.router.core.policy import AdmissionRules, Objective, PriorityClass

CLASSES = tuple(PriorityClass)
"""The first one goes first."""
RANK = {klass: rank for rank, klass in enumerate(CLASSES)}


def codel_target(rules: AdmissionRules, objective: Objective) -> float:
    """Seconds that requests of an objective may stand in line without any being shed."""
    return objective.ttft / 4.0 if rules.codel_target is None else rules.codel_target


class Seats:
    """The seats of one or more lines. Classes are given by rank, their place in CLASSES."""

    __slots__ = ("_reserved", "_shared", "_shared_taken", "_taken", "_total")

    def __init__(self, rules: AdmissionRules) -> None:
        """ValueError when more is reserved than there is."""
        self._taken = [0] * len(CLASSES)
        self.set_rules(rules)

    def set_rules(self, rules: AdmissionRules) -> None:
        """Other rules from now on. Nobody loses a seat that became one too many.

        ValueError, and nothing changes, when more is reserved than there is.
        """
        reserved = [
            int(rules.classes[klass].floor * rules.max_waiting + 1e-9)
            if klass in rules.classes
            else 0
            for klass in CLASSES
        ]
        shared = rules.max_waiting - sum(reserved)
        if shared < 0 or min(reserved) < 0:
            raise ValueError(f"{reserved} of {rules.max_waiting} seats cannot be reserved")
        self._total = rules.max_waiting
        self._reserved = reserved
        self._shared = shared
        pairs = zip(self._taken, reserved, strict=True)
        self._shared_taken = sum(max(taken - own, 0) for taken, own in pairs)

    def __len__(self) -> int:
        """The seats that are taken."""
        return sum(self._taken)

    def take(self, rank: int) -> bool:
        """Takes a seat for a class; false when there is none for it."""
        taken = self._taken
        if taken[rank] >= self._reserved[rank]:
            if self._shared_taken >= self._shared:
                return False
            self._shared_taken += 1
        elif self._shared_taken > self._shared and sum(taken) >= self._total:
            return False  # after the seats became fewer
        taken[rank] += 1
        return True

    def give_back(self, rank: int) -> None:
        """A seat of a class is free again."""
        taken = self._taken
        assert taken[rank] > 0, "a seat is given back once"
        if taken[rank] > self._reserved[rank]:
            self._shared_taken -= 1
        taken[rank] -= 1
