"""What is calibrated of a network with nested widths: states of narrow encoders, and what narrow decoders do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.calibration.between import between
from ddt_accel.calibration.closed_loop import narrow_runs
from ddt_accel.errors import ConfigError
from ddt_accel.solver.forecast import centred
from ddt_accel.solver.misses import CALIBRATED, WAYS, Misses, misses_of
from ddt_accel.solver.width_statistics import WidthStatistics
from ddt_accel.spec import SamplingSpec

Array = NDArray[np.float64]

# Only in files of such a network, each with `width_` before it.
WIDTH_ARRAYS = ("gram_sum", "mean_sum", "modulation_sum", "effect_count", "effect_sum", "shared_sum")


@dataclass(frozen=True, kw_only=True, eq=False)
class WidthSums:
    """Sums over the images of a calibration, float64, of E evaluations and the W `widths`, from 1 down.

    Per image, averaged over tokens and both guidance branches, along the trajectory of the complete network:

    - `gram_sum` [E W, E W]: the inner products of the same token's states, by evaluation, then by width;
    - `mean_sum` [E, W − 1, D] and `modulation_sum` [E, W − 1, M]: the narrow encoders' states and their modulations.

    Of the images whose errors are followed, and the evaluations at which that was measured, with f_{i, v} what the
    decoder at width v and evaluation i alone adds to the final latents:

    - `effect_count` [E]: how many images, 0 elsewhere;
    - `effect_sum` [E (W − 1), E (W − 1)]: the inner products ⟨f_{i, v}, f_{j, w}⟩, averaged over the latents' values.

    Effects add up to first order, so that the mean squared error of the final latents of any assignment of decoder
    widths is the sum over pairs of its narrow evaluations.

    Of the same images `shared_sum` [B, 3] has what schedules with narrow encoders come to: see `narrow_sum`.
    """

    widths: tuple[float, ...]
    gram_sum: Array
    mean_sum: Array
    modulation_sum: Array
    effect_count: Array
    effect_sum: Array
    shared_sum: Array

    def check(self, spec: SamplingSpec, state_size: int, modulation_size: int) -> None:
        """Raises ConfigError unless the arrays are of the evaluations of `spec`, D and M."""
        e, w = spec.num_evaluations, len(self.widths)
        if w < 2 or self.widths[0] != 1 or list(self.widths) != sorted({*self.widths}, reverse=True):
            raise ConfigError(f"The calibrated widths are {list(self.widths)}; expected 1 and others below it.")
        shapes = (
            (e * w, e * w), (e, w - 1, state_size), (e, w - 1, modulation_size), (e,), (e * (w - 1), e * (w - 1)),
            (len(narrow_runs(spec)), 3),
        )  # fmt: skip
        for name, shape in zip(WIDTH_ARRAYS, shapes, strict=True):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float64:
                raise ConfigError(f"width_{name} is {array.dtype}{list(array.shape)}; expected float64 {list(shape)}.")

    def __add__(self, other: WidthSums) -> WidthSums:
        return WidthSums(
            widths=self.widths, **{name: getattr(self, name) + getattr(other, name) for name in WIDTH_ARRAYS}
        )

    def arrays(self) -> dict[str, Array]:
        """As files name them."""
        return {f"width_{name}": getattr(self, name) for name in WIDTH_ARRAYS}

    @classmethod
    def read(cls, widths: Any, arrays: Mapping[str, Array]) -> WidthSums:
        """From what a file holds."""
        return cls(widths=tuple(map(float, widths)), **{name: arrays[f"width_{name}"] for name in WIDTH_ARRAYS})

    @property
    def followed(self) -> int:
        """On how many images the effects of narrow decoders were measured."""
        return int(self.effect_count.max())

    def statistics(self, spec: SamplingSpec, mean: Array, images: int) -> WidthStatistics:
        """What the solver reads, of so many images; `mean` [E, D] is the complete encoder's."""
        e, w = spec.num_evaluations, len(self.widths)
        count = max(1, images)
        means = np.concatenate([mean[:, None], self.mean_sum / count], axis=1).reshape(e * w, -1)
        return WidthStatistics(
            widths=self.widths,
            gram=centred(self.gram_sum / count, means @ means.T).reshape(e, w, e, w),
            mean_modulations=(self.modulation_sum / count).astype(np.float32),
            effects=self._effects(spec),
            misses=self._misses(spec),
        )

    def _misses(self, spec: SamplingSpec) -> Misses:
        sums = np.zeros((len(WAYS), *self.shared_sum.shape))
        sums[WAYS.index(CALIBRATED)] = self.shared_sum
        return misses_of(narrow_runs(spec), sums)

    def _effects(self, spec: SamplingSpec) -> Array | None:
        """[E, W − 1, E, W − 1]; None where nothing was measured.

        An evaluation between measured ones has the effect on a line between theirs, never over a change of guidance,
        so that the inner products are P G Pᵀ. Where merged calibrations measured at different evaluations those count
        that all of them did.
        """
        if self.followed == 0:
            return None
        e, v = len(self.effect_count), len(self.widths) - 1
        known = np.flatnonzero(self.effect_count == self.effect_count.max())
        inner = self.effect_sum.reshape(e, v, e, v)[known][:, :, known] / self.followed
        every, guidance = np.arange(e, dtype=np.float64), spec.guidance_weights
        weights = between(every, guidance, known.astype(np.float64), guidance[known])
        effects: Array = np.einsum("ik,kvlw,jl->ivjw", weights, inner, weights, optimize=True)
        return effects
