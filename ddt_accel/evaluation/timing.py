"""What the parts of a trajectory take here: measured before any schedule is there, and then with one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.costs import Costs, NarrowCosts, counted_of, implied_costs, measured_costs
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage

# The short trajectories that are timed: their steps; and how many batches of any.
STEPS, ROUNDS = 8, 2


def timed_costs(
    backend: Backend, spec: SamplingSpec, latent_shape: tuple[int, int, int], batch_size: int, conditions: str
) -> Costs:
    """Seconds an image, from short trajectories of batches of `batch_size`, of the sampler of `spec`, of one that
    forecasts from two states, and of one at each narrower width of the networks."""
    short = replace(spec, num_steps=min(STEPS, spec.num_steps))
    full = full_on(backend, short)
    forecasts = dict.fromkeys(range(2, short.num_evaluations), ((1, 1.5), (0, -0.5)))
    shared = replace(full, refresh_steps=full.refresh_steps[:2], forecasts=forecasts)
    every = range(short.num_evaluations)
    narrow = {
        f"width {width:g}": replace(
            full, encoder_widths=dict.fromkeys(every, width), decoder_widths=dict.fromkeys(every, width)
        )
        for width in backend.widths[1:]
    }
    (unshared, forecasting, *others), _ = measure(
        backend,
        {"unshared": full, "forecasting": shared, **narrow},
        latent_shape=latent_shape,
        num_images=ROUNDS * batch_size,
        seed=0,
        batch_size=batch_size,
    )
    counted = counted_of(backend, latent_shape)
    costs = measured_costs(unshared, short, forecasting, shared, conditions, counted)
    return replace(
        costs,
        narrow=tuple(
            NarrowCosts(
                width=width,
                encoder=costs.encoder * one.encoder_seconds / unshared.encoder_seconds,
                decoder=costs.decoder * one.decoder_seconds / unshared.decoder_seconds,
            )
            for width, one in zip(backend.widths[1:], others, strict=True)
        ),
    )


def full_on(backend: Backend, spec: SamplingSpec) -> Schedule:
    """The unshared trajectory of a spec, for these very networks."""
    guide = backend.guide.checkpoint_sha256 if backend.guide is not None else None
    return replace(Schedule.full(spec), checkpoint_sha256=backend.checkpoint_sha256, guide_sha256=guide)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Seconds an image along whole trajectories, unshared and of a schedule, and the costs that they imply."""

    unshared: float
    seconds: float
    costs: Costs


def whole_costs(
    backend: Backend,
    spec: SamplingSpec,
    schedule: Schedule,
    latent_shape: tuple[int, int, int],
    batch_size: int,
    conditions: str,
    on_stage: OnStage,
) -> Whole:
    """What the unshared sampler of `spec` and a schedule take, side by side in batches of `batch_size`.

    Along a whole trajectory parts are dearer than along a short one: other states lie in the caches, and an integrator
    of many rows reads more.
    """
    full = full_on(backend, spec)
    (unshared, own), _ = measure(
        backend,
        {"unshared": full, "chosen": schedule},
        latent_shape=latent_shape,
        num_images=ROUNDS * batch_size,
        seed=0,
        batch_size=batch_size,
        on_run=on_stage("timing whole trajectories", 2 * ROUNDS),
    )
    counted = counted_of(backend, latent_shape)
    costs = implied_costs(unshared, spec, own, schedule, conditions, counted)
    return Whole(unshared=unshared.seconds, seconds=own.seconds, costs=costs)
