"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with what comes next and how many steps it takes; returns what to call after each.
OnStage = Callable[[str, int], Callable[[], None]]


def silent(label: str, total: int) -> Callable[[], None]:
    """For those who do not want to know."""
    return lambda: None
