"""All rivals, in the order of tables."""

from __future__ import annotations

from ddt_accel.rivals import fewer_steps, taylor_seer
from ddt_accel.rivals.rival import Rival

RIVALS = (
    Rival(name="fewer steps", source="named integrators", variants=fewer_steps.variants, shares=False),
    Rival(name="TaylorSeer", source="arXiv 2503.06923", variants=taylor_seer.variants),
)
