"""A trajectory that gradients flow through, to the scalars that make it.

The same program as `sampling.trajectory` runs, without buffers that are written over. Activations are computed again in
the backward pass, evaluation by evaluation, so that memory is that of one evaluation, a latent and a velocity for each
step, and the modulations of each refresh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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
    model: SplitNetwork,
    scalars: Scalars,
    noise: Tensor,
    labels: Tensor,
    *,
    autocast: bool = False,
    guide: SplitNetwork | None = None,
    narrow: Mapping[float, SplitNetwork] | None = None,
) -> Passed:
    """The trajectory of the present numbers from `noise` [B, C, H, W] for `labels` [B]; float32.

    The unconditional branch is that of the `guide`, where one is given, under the same labels. `narrow` are the
    networks at the widths that the schedule runs. With `autocast` the networks multiply in bfloat16.
    """

    def run(network: Network, *arguments: Tensor) -> Tensor:
        def cast(*inputs: Tensor) -> Tensor:
            with torch.autocast(noise.device.type, torch.bfloat16, enabled=autocast):
                return network(*inputs)

        result: Tensor = checkpoint(cast, *arguments, use_reentrant=False, preserve_rng_state=False)
        return result

    times, weights, forecasts = scalars.times.float(), scalars.weights.float(), scalars.forecasts.float()
    guided = any(evaluation.unconditional is not None for evaluation in scalars.program.evaluations)
    null = torch.full_like(labels, null_label(model.config)) if guided and guide is None else labels
    at = {1.0: model, **(narrow or {})}
    x = noise
    velocities: list[Tensor] = []
    states: dict[tuple[int, int], Tensor] = {}

    def apart(sides: Sequence[int]) -> list[Sequence[int]]:
        """The branches that one call of a network is for."""
        return [sides] if guide is None and sides else [[side] for side in sides]

    def network_of(side: int, width: float) -> SplitNetwork:
        return guide if side == 1 and guide is not None else at[width]

    def encoded(network: SplitNetwork, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return network.modulations(network.encode(x, t, y))

    for k, evaluation in enumerate(scalars.program.evaluations):
        for encoding in apart([side for side, branch in enumerate(evaluation.branches) if branch.encode]):
            asked = torch.cat([(labels, null)[side] for side in encoding])
            network = partial(encoded, network_of(encoding[-1], evaluation.branches[encoding[-1]].width))
            parts = run(network, x.repeat(len(encoding), 1, 1, 1), times[k].expand(len(asked)), asked)
            states.update({(side, k): part for side, part in zip(encoding, parts.chunk(len(encoding)), strict=True)})
        # A state that was made here is used as it is unless it is corrected.
        drawn = [[r for r, _ in branch.forecast] for branch in evaluation.branches]
        new = [branch.encode and not branch.corrected for branch in evaluation.branches]
        rows = [forecasts[min(side, len(forecasts) - 1), k] for side in (0, 1)]

        def decoded(
            sides: Sequence[int],
            x: Tensor,
            *inputs: Tensor,
            drawn: list[list[int]] = drawn,
            new: list[bool] = new,
            k: int = k,
            width: float = evaluation.width,
        ) -> Tensor:
            rows, kept = inputs[: len(sides)], list(inputs[len(sides) :])
            forecast = [
                kept.pop(0) if new[side] else _forecast(scalars, k, row, drawn[side], kept, side)
                for row, side in zip(rows, sides, strict=True)
            ]
            network = network_of(sides[-1], width)
            return network.decode_modulated(x.repeat(len(sides), 1, 1, 1), torch.cat(forecast))

        branches: list[Tensor] = []
        for sides in apart([0, 1] if evaluation.decode_both else [0]):
            kept = [states[side, r] for side in sides for r in drawn[side]]
            given = [rows[side] for side in sides]
            branches += run(partial(decoded, sides), x, *given, *kept).float().chunk(len(sides))
        v = torch.lerp(branches[1], branches[0], evaluation.guidance) if evaluation.decode_both else branches[0]
        velocities.append(v)
        x = x + torch.einsum("j,jbchw->bchw", weights[k, : k + 1], torch.stack(velocities))
    return Passed(end=x, velocities=velocities, modulations=states)


def _forecast(scalars: Scalars, k: int, row: Tensor, drawn: list[int], kept: list[Tensor], side: int) -> Tensor:
    """The modulations of evaluation k from the first of `kept`, which are taken off the list.

    In float32 as a sampler forecasts, whatever the states are in: a weight times bfloat16 would be rounded to it.
    """
    sources = [kept.pop(0) for _ in drawn]
    forecast = torch.stack([row[r] * source.float() for r, source in zip(drawn, sources, strict=True)]).sum(0)
    if (means := scalars.means_of(side)) is not None:
        chosen, of_sources = row[drawn].to(means), scalars.source_means_of(side)[drawn]
        forecast = forecast + (means[k] - (chosen[:, None] * of_sources).sum(0))  # autocast knows sums, not products
    return forecast
