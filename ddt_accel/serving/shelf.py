"""Which schedules a network is served by, and which of them the qualities are."""

from __future__ import annotations

from collections.abc import Callable

from ddt_accel.artifacts import checksum
from ddt_accel.backends.sample import check_checkpoint
from ddt_accel.collection import Named, folder_for, shipped_for
from ddt_accel.evaluation.budgets import predicted_psnr
from ddt_accel.evaluation.costs import counted_of, kept_costs
from ddt_accel.networks.config import LatentShape
from ddt_accel.networks.recipes import published_recipe
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.serving.offer import Served
from ddt_accel.spec import SamplingSpec
from ddt_accel.workspace import Workspace

EXACT = "exact"
_OWN = "schedule"  # the workspace's own, which is what nobody who asks for no quality gets


def schedules_for(
    backend: Backend, place: Workspace, given: list[Named], say: Callable[[str], None], *, model: str
) -> dict[str, Schedule]:
    """The schedules of a network by name: those that were `given`, those of the workspace, or where it has none the
    shipped ones; and as `exact` the sampler without sharing.

    What is damaged is left out and said. Raises MismatchError for a given one of another network.
    """
    guide = None if backend.guide is None else backend.guide.checkpoint_sha256
    kept, damaged = folder_for(place.folder, backend.checkpoint_sha256, guide)
    for sentence in damaged:
        say(f"A schedule is left out: {sentence}")
    for one in given:
        check_checkpoint(one.schedule, backend)
    found = [*given, *(kept or shipped_for(backend.checkpoint_sha256, guide))]
    named = {one.name: one.schedule for one in reversed(found)}
    ordered = {one.name: named[one.name] for one in found}
    unshared = _unshared(place, list(ordered.values()), backend.checkpoint_sha256, model)
    return {**ordered, EXACT: Schedule.full(unshared)}


def _unshared(place: Workspace, schedules: list[Schedule], checkpoint_sha256: str | None, model: str) -> SamplingSpec:
    """The calibrated sampler, else that of the first schedule which is not fitted, else as the network was published,
    else the usual one."""
    if place.calibration_path.exists():
        calibration = place.calibration()
        if calibration.checkpoint_sha256 == checkpoint_sha256:
            return calibration.spec
    for schedule in schedules:
        if not schedule.is_fitted:
            return schedule.spec
    recipe = published_recipe(model)
    return SamplingSpec() if recipe is None else recipe.spec({})


def served(
    schedules: dict[str, Schedule],
    backend: Backend,
    latent_shape: LatentShape,
    place: Workspace,
    say: Callable[[str], None],
) -> tuple[Served, ...]:
    """The same for clients, from the cheapest to the dearest."""
    guide = None if backend.guide is None else backend.guide.checkpoint_sha256
    costs = kept_costs(place.costs_path, backend.checkpoint_sha256 or "", say, guide_sha256=guide)
    costs = costs or counted_of(backend, latent_shape)
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


def qualities(schedules: dict[str, Schedule], shelf: tuple[Served, ...], default: str | None) -> dict[str, str]:
    """draft is the cheapest schedule that leads where the exact one does, high the dearest; standard is `default`, the
    workspace's own, or halfway."""
    aim = schedules[EXACT].spec.aim
    ours = [one.name for one in shelf if one.name != EXACT and one.cost < 1 and schedules[one.name].spec.aim == aim]
    ours = ours or [EXACT]
    usual = default or (_OWN if _OWN in schedules else ours[len(ours) // 2])
    return {"draft": ours[0], "standard": usual, "high": ours[-1], "exact": EXACT}
