"""What the parts of a trajectory take here, measured before any schedule is there."""

from __future__ import annotations

from dataclasses import replace

from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.costs import Costs, counted_costs, measured_costs
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

# The trajectories that are timed: their steps, and how many batches of them.
STEPS, ROUNDS = 8, 2


def timed_costs(
    backend: Backend, spec: SamplingSpec, latent_shape: tuple[int, int, int], batch_size: int, conditions: str
) -> Costs:
    """Seconds an image, from short trajectories of batches of `batch_size`, of the sampler of `spec` and of one that
    forecasts from two states."""
    short = replace(spec, num_steps=min(STEPS, spec.num_steps))
    full = replace(Schedule.full(short), checkpoint_sha256=backend.checkpoint_sha256)
    forecasts = dict.fromkeys(range(2, short.num_evaluations), ((1, 1.5), (0, -0.5)))
    shared = replace(full, refresh_steps=full.refresh_steps[:2], forecasts=forecasts)
    (unshared, forecasting), _ = measure(
        backend,
        {"unshared": full, "forecasting": shared},
        latent_shape=latent_shape,
        num_images=ROUNDS * batch_size,
        seed=0,
        batch_size=batch_size,
    )
    counted = counted_costs(backend.config, latent_shape)
    return measured_costs(unshared, short, forecasting, shared, conditions, counted)
