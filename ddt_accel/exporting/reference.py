"""What an export has to compute: points of a trajectory, and the velocities that PyTorch in float32 finds there.

Latents on a trajectory are what a network sees in use; on noise alone a broken export may pass. Each point has the
refreshes that its forecast draws on, so that encoder, cache, forecast and decoder are checked as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.noise import draw_labels, draw_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

POINTS, SEED = 4, 0
# The points lie at these steps of so many, with the refreshes of their forecasts before them.
STEPS, AT = 8, (3, 4, 6, 7)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """P points: `latents` [P, C, H, W] at `times` [P] with `labels` [P]; the refreshes that they draw on, latents
    [S, P, C, H, W] at times [S, P], with `weights` [P, S] and `constant` [P, M]; `caches` [S, P, L, ·], in float32, of
    the refreshes, and the `velocity` [P, C, H, W]."""

    latents: Tensor
    times: Tensor
    labels: Tensor
    refresh_latents: Tensor
    refresh_times: Tensor
    weights: Tensor
    constant: Tensor
    caches: Tensor
    velocity: Tensor


@torch.inference_mode()
def reference_points(model: SplitNetwork, latent_shape: tuple[int, int, int], *, sources: int, cache: str) -> Reference:
    """Points of unguided trajectories of `model`, which is in float32 on the CPU.

    Where the decoder makes forecasts, from `sources` of 1 or more, all points but the last have weights that leave out
    none of them, and a constant; at the last the last refresh is used as it is, as always with 0 sources.
    """
    spec = SamplingSpec(num_steps=STEPS, solver="ab2", guidance=1.0)
    labels = draw_labels(model.config.num_classes, seed=SEED, indices=range(POINTS))
    noise = draw_noise(latent_shape, seed=SEED, indices=range(POINTS))
    trajectory = Trajectory(TorchBackend(model), compile_program(Schedule.full(spec)), noise, labels)
    passed = []
    for k in range(STEPS):
        passed.append(trajectory.latents.clone())
        trajectory.step(k)
    way, count = torch.stack(passed), max(1, sources)
    grid = torch.from_numpy(spec.times).float()

    def at(steps: list[int]) -> tuple[Tensor, Tensor]:
        return torch.stack([way[step, p] for p, step in enumerate(steps)]), grid[steps]

    latents, times = at(list(AT))
    refreshes = [at([max(0, step - count + s) for step in AT]) for s in range(count)]
    weights = torch.zeros(POINTS, count)
    weights[:, -1] = 1.0
    constant = torch.zeros(POINTS, model.config.modulation_size)
    states = [model.encode(x, t, labels) for x, t in refreshes]
    modulations = torch.stack([model.modulations(state) for state in states])
    if sources > 0:
        weights[:-1] = torch.tensor([0.6, -0.9, 1.4])[-sources:]
        drawn = torch.randn(POINTS - 1, constant.shape[1], generator=torch.Generator().manual_seed(SEED))
        constant[:-1] = 0.5 * modulations.std() * drawn  # large enough to be missed
    forecast = torch.einsum("ps,splm->plm", weights, modulations) + constant[:, None]
    return Reference(
        latents=latents,
        times=times,
        labels=labels,
        refresh_latents=torch.stack([x for x, _ in refreshes]),
        refresh_times=torch.stack([t for _, t in refreshes]),
        weights=weights,
        constant=constant,
        caches=modulations if cache == "modulations" else torch.stack(states),
        velocity=model.decode_modulated(latents, forecast),
    )
