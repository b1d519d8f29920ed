"""Which schedules a network is served by, and which of them the qualities are."""

from __future__ import annotations

from collections.abc import Callable

from ddt_accel.artifacts import checksum
from ddt_accel.collection import Named
from ddt_accel.evaluation.budgets import predicted_psnr
from ddt_accel.evaluation.costs import costs_here
from ddt_accel.networks.config import LatentShape
from ddt_accel.offering import EXACT, at_hand, original
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.serving.offer import RESERVED, Served
from ddt_accel.studio.stops import Stops
from ddt_accel.workspace import Workspace

_OWN = "schedule"  # the workspace's own, which is what nobody who asks for no quality gets


def schedules_for(
    backend: Backend, place: Workspace, given: list[Named], say: Callable[[str], None], *, model: str
) -> dict[str, Schedule]:
    """The schedules `at_hand` of a network by name, and as `exact` the original that they stand beside."""
    found = at_hand(backend, place, given, say)
    for one in found:
        if one.name in RESERVED:
            say(f"A schedule is left out: it is called {one.name}, as a quality is; rename its file.")
    found = [one for one in found if one.name not in RESERVED]
    unshared = original(place, found, given[0] if given else None, backend.checkpoint_sha256, model)
    return {**{one.name: one.schedule for one in found}, EXACT: Schedule.full(unshared)}


def served(
    schedules: dict[str, Schedule],
    backend: Backend,
    latent_shape: LatentShape,
    place: Workspace,
    say: Callable[[str], None],
) -> tuple[Served, ...]:
    """The same for clients, from the cheapest to the dearest."""
    costs = costs_here(place.costs_path, backend, latent_shape, say)
    whole = costs.of(schedules[EXACT])
    told = [
        Served(
            name=name,
            sha256=checksum(schedule.document()),
            steps=schedule.spec.num_steps,
            encoder_runs=schedule.budget,
            evaluations=schedule.spec.num_evaluations,
            guidance=schedule.spec.guidance,
            cost=costs.of(schedule) / whole,
            predicted_db=predicted_psnr(schedule),
            fitted=schedule.is_fitted,
        )
        for name, schedule in schedules.items()
    ]
    return tuple(sorted(told, key=lambda one: one.cost))


def qualities(
    schedules: dict[str, Schedule], shelf: tuple[Served, ...], stops: Stops, default: str | None
) -> dict[str, str]:
    """draft is the cheapest schedule that leads where the exact one does, high the dearest; standard is `default`, the
    workspace's own, or where the page's slider would stand at first, among these `stops`."""
    aim = schedules[EXACT].spec.aim
    ours = [one.name for one in shelf if one.name != EXACT and one.cost < 1 and schedules[one.name].spec.aim == aim]
    ours = ours or [EXACT]
    first = stops.stops[stops.first].name
    usual = default or (_OWN if _OWN in schedules else first if first in schedules else ours[-1])
    return {"draft": ours[0], "standard": usual, "high": ours[-1], "exact": EXACT}
