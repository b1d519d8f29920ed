"""A trajectory that gradients flow through, to the scalars that make it.

The same program as `sampling.trajectory` runs, without buffers that are written over. Activations are computed again in
the backward pass, evaluation by evaluation, so that memory is that of one evaluation, a latent and a velocity for each
step, and the modulations of each refresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddt_accel.fitting.scalars import Scalars
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.program import null_label

Network = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """What a trajectory has passed: its end [B, C, H, W], the velocity of every evaluation, as large, and the
    modulations [B, tokens, M] of every refresh, by branch (0 conditional, 1 unconditional) and evaluation."""

    end: Tensor
    velocities: list[Tensor]
    modulations: dict[tuple[int, int], Tensor]


def fitted_trajectory(
    model: SplitNetwork, scalars: Scalars, noise: Tensor, labels: Tensor, *, autocast: bool = False
) -> Passed:
    """The trajectory of the present numbers from `noise` [B, C, H, W] for `labels` [B]; float32.

    With `autocast` the networks multiply in bfloat16.
    """

    def run(network: Network, *arguments: Tensor) -> Tensor:
        def cast(*inputs: Tensor) -> Tensor:
            with torch.autocast(noise.device.type, torch.bfloat16, enabled=autocast):
                return network(*inputs)

        result: Tensor = checkpoint(cast, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result

    times, weights, forecasts = scalars.times.float(), scalars.weights.float(), scalars.forecasts.float()
    guided = any(evaluation.unconditional is not None for evaluation in scalars.program.evaluations)
    null = torch.full_like(labels, null_label(model.config)) if guided else labels
    x = noise
    velocities: list[Tensor] = []
    states: dict[tuple[int, int], Tensor] = {}

    def encoded(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model.modulations(model.encode(x, t, y))

    for k, evaluation in enumerate(scalars.program.evaluations):
        encoding = [side for side, branch in enumerate(evaluation.branches) if branch.encode]
        if encoding:
            asked = torch.cat([(labels, null)[side] for side in encoding])
            parts = run(encoded, x.repeat(len(encoding), 1, 1, 1), times[k].expand(len(asked)), asked)
            states.update({(side, k): part for side, part in zip(encoding, parts.chunk(len(encoding)), strict=True)})
        sides = range(2 if evaluation.decode_both else 1)
        drawn = [[r for r, _ in evaluation.branches[side].forecast] for side in sides]
        rows = [forecasts[min(side, len(forecasts) - 1), k] for side in sides]

        def decoded(x: Tensor, *inputs: Tensor, drawn: list[list[int]] = drawn, k: int = k) -> Tensor:
            rows, kept = inputs[: len(drawn)], list(inputs[len(drawn) :])
            forecast = torch.cat([_forecast(scalars, k, row, own, kept) for row, own in zip(rows, drawn, strict=True)])
            return model.decode_modulated(x.repeat(len(drawn), 1, 1, 1), forecast)

        kept = [states[side, r] for side in sides for r in drawn[side]]
        branches = run(decoded, x, *rows, *kept).float().chunk(len(sides))
        v = torch.lerp(branches[1], branches[0], evaluation.guidance) if evaluation.decode_both else branches[0]
        velocities.append(v)
        x = x + torch.einsum("j,jbchw->bchw", weights[k, : k + 1], torch.stack(velocities))
    return Passed(end=x, velocities=velocities, modulations=states)


def _forecast(scalars: Scalars, k: int, row: Tensor, drawn: list[int], kept: list[Tensor]) -> Tensor:
    """The modulations of evaluation k from the first of `kept`, which are taken off the list."""
    sources = [kept.pop(0) for _ in drawn]
    if drawn == [k]:
        return sources[0]
    forecast = torch.stack([row[r] * source for r, source in zip(drawn, sources, strict=True)]).sum(0)
    if scalars.means is not None:
        chosen = row[drawn].to(scalars.means)
        forecast = forecast + (scalars.means[k] - chosen @ scalars.means[drawn])
    return forecast
