"""What networks cost at their widths, before they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddt_accel.evaluation.costs import MULTIPLY_ADDS
from ddt_accel.networks.config import SplitConfig
from ddt_accel.networks.dynamic.widths import config_at
from ddt_accel.sampling.program import compile_program
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec


@dataclass(frozen=True, kw_only=True)
class WidthCosts:
    """What one image costs in one branch by width, the complete one first: a run of the encoder with its modulations,
    and a run of the decoder, in `unit`."""

    widths: tuple[float, ...]
    encoder: tuple[float, ...]
    decoder: tuple[float, ...]
    unit: str
    conditions: str

    def total(self, spec: SamplingSpec, runs: int) -> float:
        """Of so many complete refreshes of both branches, where anything is guided, and complete decoders."""
        guided = spec.guidance_weights != 1.0
        refresh = self.encoder[0] * (2 if guided.any() else 1)
        return runs * refresh + self.decoder[0] * (len(guided) + int(guided.sum()))

    def of(self, schedule: Schedule) -> float:
        """Of the networks' runs along a schedule; forecasts are left out, as in `total`."""
        encoder, decoder = (dict(zip(self.widths, costs, strict=True)) for costs in (self.encoder, self.decoder))
        return sum(
            decoder[one.width] * (2 if one.decode_both else 1)
            + sum(encoder[branch.width] for branch in one.branches if branch.encode)
            for one in compile_program(schedule).evaluations
        )


def counted_width_costs(config: SplitConfig, latent_shape: tuple[int, int, int], widths: Sequence[float]) -> WidthCosts:
    """Multiply-adds of the matrix products, as `counted_costs` has them of the complete network."""
    counted = [config_at(config, width).multiply_adds(latent_shape) for width in widths]
    return WidthCosts(
        widths=tuple(widths),
        encoder=tuple(one.encoder + one.modulations for one in counted),
        decoder=tuple(one.decoder for one in counted),
        unit=MULTIPLY_ADDS,
        conditions=f"counted for {config.num_tokens(latent_shape)} tokens, {config.description}",
    )
