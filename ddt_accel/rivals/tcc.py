"""TCC: what is known of states, estimated once more along the shared trajectory (arXiv 2605.24870); a reconstruction.

Of the paper an outline was read, and no code: refreshes stay where they are, and the statistics by which a cached state
is corrected are estimated in order, under the history that earlier corrections have changed. Here a forecast from the
last one or two states is corrected: at each reuse step k the encoder is run where the shared trajectory really is, and

    ŝ_k = μ_k + Σ_r w_r (s_r − μ_r),    w = argmin E‖s_k − ŝ_k‖²,

with means μ along that trajectory too. It is for the state; `fitting.aligned` is for the latent that becomes of it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ddt_accel.calibration.watched import Networks, unwatched, watched
from ddt_accel.rivals.rival import Variant, evenly, forecasting
from ddt_accel.rivals.taylor_seer import taylor_weights
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise
from ddt_accel.sampling.program import compile_program, reweighted
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.solver.forecast import RIDGE
from ddt_accel.solver.solve import Statistics

ORDERS, FIRST = (0, 1), (1, 3)


def variants(statistics: Statistics) -> list[Variant]:
    """Before anything is estimated: the last state held, or the line through the last two."""
    return [
        Variant(settings=f"{order + 1} {'states' if order else 'state'}, {first} first",
                of=partial(_before, statistics, order, first))
        for order in ORDERS
        for first in FIRST
    ]  # fmt: skip


def _before(statistics: Statistics, order: int, first: int, runs: int) -> Schedule:
    steps = evenly(statistics.spec.num_evaluations, runs, first=first)
    return forecasting(statistics, steps, partial(taylor_weights, order))


def consistent(networks: Networks, schedule: Schedule, images: ImageRange, shape: tuple[int, int, int]) -> Schedule:
    """The schedule with means and weights estimated along its own trajectories of some images, in one pass."""
    seen: list[list[Tensor]] = [[] for _ in networks]
    backend, _, unconditional = watched(networks, lambda side, state: seen[side].append(state))
    noise = draw_noise(shape, seed=images.seed, indices=range(images.first, images.stop))
    labels = draw_labels(networks[0].config.num_classes, seed=images.seed, indices=range(images.first, images.stop))
    every = compile_program(Schedule.full(schedule.spec), encode_unconditional=unconditional)
    truth, program = Trajectory(backend, every, noise, labels), compile_program(schedule)
    shared = Trajectory(unwatched(networks), program, noise, labels)
    states: dict[int, list[Tensor]] = {}
    means = [np.zeros((len(program.evaluations), one.config.modulation_size), np.float32) for one in networks]
    for k, evaluation in enumerate(program.evaluations):
        for one in seen:
            one.clear()
        truth.latents.copy_(shared.latents)
        truth.evaluate(k)
        centred = []
        for side, (network, found) in enumerate(zip(networks, seen, strict=True)):
            state = torch.cat(found)
            mean = state.mean((0, 1), keepdim=True)
            means[side][k] = network.modulations(mean).float().flatten().cpu().numpy()
            centred.append(state - mean)
        schedule = replace(
            schedule,
            mean_modulations=means[0].copy(),
            guide_mean_modulations=means[1].copy() if len(means) == 2 else None,
        )
        if evaluation.conditional.encode:
            states[k] = centred
        else:
            drawn = [r for r, _ in schedule.forecast_at(k)]
            row = tuple(zip(drawn, _weights([states[r] for r in drawn], centred), strict=True))
            schedule = replace(schedule, forecasts={**schedule.forecasts, k: row})
        shared.evaluate(k, reweighted(schedule, evaluation, k))
        shared.advance(k, evaluation.update)
    return replace(schedule, forecast="trajectory-consistent", fitted_on=images.joined(schedule.fitted_on))


def _weights(sources: list[list[Tensor]], target: list[Tensor]) -> list[float]:
    """The least-squares weights of the sources' states, over both networks where there are two."""
    rows = torch.stack([torch.cat([part.flatten() for part in one]) for one in sources]).double()
    gram = rows @ rows.T
    right = rows @ torch.cat([part.flatten() for part in target]).double()
    ridge = torch.diag(RIDGE * gram.diagonal() + 1e-30)
    weights: list[float] = torch.linalg.solve(gram + ridge, right).tolist()
    return weights
