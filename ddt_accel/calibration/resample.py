"""Statistics for another grid than the calibrated one.

States depend smoothly on time, so the state at a time between two evaluations is close to a polynomial through its
neighbours', `s(t) ≈ Σ_k P[t, k] s_k`. Means are then `P μ` and inner products `P G Pᵀ`, which is a Gram matrix again.
An error of the state acts on the latents through the length of its step, so that sensitivities are interpolated per
unit of time, as are the effects of narrow decoders. How far predictions miss depends on the stretches of time between
refreshes, so that it stays as it is for the same number of encoder runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ddt_accel.calibration.between import between, interpolated
from ddt_accel.calibration.statistics import Array, Calibration, mean_gram
from ddt_accel.errors import MismatchError
from ddt_accel.solver.misses import Misses
from ddt_accel.solver.solve import GuideMeans
from ddt_accel.solver.width_statistics import WidthStatistics
from ddt_accel.spec import SamplingSpec

POINTS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """What the solver reads of a calibration, interpolated to the times of another `spec`."""

    spec: SamplingSpec
    similarity: Array
    gram: Array
    branch_grams: Array
    means: list[Array]  # of each network
    mean_modulations: NDArray[np.float32]
    modulation_bias: NDArray[np.float32]
    guide: GuideMeans | None
    sensitivity: Array | None
    widths: WidthStatistics | None
    misses: Misses
    checkpoint_sha256: str
    sha256: str

    @property
    def mean(self) -> Array:
        return self.means[0]

    @property
    def mean_gram(self) -> Array:
        return mean_gram(self.means)


def resample(calibration: Calibration, spec: SamplingSpec) -> Resampled:
    """The statistics at the times of `spec`, which may differ in steps, solver, time shift, last step and end.

    Raises MismatchError where guidance differs, which moves the trajectory itself, or where fewer than four calibrated
    evaluations leave nothing to interpolate.
    """
    own = calibration.spec
    if not own.guides_as(spec):
        raise MismatchError(
            f"The calibration is for guidance {own.guided}, not {spec.guided}; guidance moves the trajectory: "
            "calibrate for it."
        )
    if own.num_steps < POINTS:
        raise MismatchError(f"A calibration of {own.num_steps} steps cannot be interpolated; it takes {POINTS}.")
    # Evaluations of a two-stage solver share their times; the later of each pair lies on the trajectory.
    _, last = np.unique(own.times[::-1], return_index=True)
    kept = len(own.times) - 1 - last
    weights = interpolation(own.times[kept], spec.times)
    similarity = weights @ calibration.similarity[np.ix_(kept, kept)] @ weights.T
    scale = np.sqrt(similarity.diagonal())
    sensitivity = calibration.sensitivity
    if sensitivity is not None:
        rate, guidance = np.log(sensitivity / _lengths(own))[kept], own.guidance_weights[kept]
        log_rate = interpolated(spec.times, spec.guidance_weights, own.times[kept], guidance, rate)
        sensitivity = np.exp(log_rate) * _lengths(spec)
    guide = calibration.guide

    def modulations(known: NDArray[np.float32]) -> NDArray[np.float32]:
        return (weights @ known[kept].astype(np.float64)).astype(np.float32)

    return Resampled(
        spec=spec,
        similarity=similarity / np.outer(scale, scale),
        gram=weights @ calibration.gram[np.ix_(kept, kept)] @ weights.T,
        branch_grams=weights @ calibration.branch_grams[:, kept][:, :, kept] @ weights.T,
        means=[weights @ mean[kept] for mean in calibration.means],
        mean_modulations=modulations(calibration.mean_modulations),
        modulation_bias=calibration.modulation_bias,
        guide=guide and replace(guide, mean_modulations=modulations(guide.mean_modulations)),
        sensitivity=sensitivity,
        widths=calibration.widths and _at_widths(calibration.widths, own, spec, kept, weights),
        misses=calibration.misses,
        checkpoint_sha256=calibration.checkpoint_sha256,
        sha256=calibration.sha256,
    )


def _at_widths(
    widths: WidthStatistics, own: SamplingSpec, spec: SamplingSpec, kept: NDArray[np.intp], weights: Array
) -> WidthStatistics:
    """Of narrow networks: states as those of the complete one, and the effects of decoders per unit of time."""

    def both(inner: Array, factors: Array) -> Array:
        found: Array = np.einsum("ik,kvlw,jl->ivjw", factors, inner[kept][:, :, kept], factors, optimize=True)
        return found

    effects = widths.effects
    if effects is not None:
        rates = between(spec.times, spec.guidance_weights, own.times[kept], own.guidance_weights[kept])
        effects = both(effects, _lengths(spec)[:, None] * rates / _lengths(own)[kept])
    modulations = np.einsum("ik,kvm->ivm", weights, widths.mean_modulations[kept].astype(np.float64))
    return replace(
        widths,
        gram=both(widths.gram, weights),
        mean_modulations=modulations.astype(np.float32),
        effects=effects,
    )


def interpolation(known: Array, wanted: Array) -> Array:
    """P [wanted, known]: the weights of the Lagrange polynomials through the four nearest known times."""
    weights = np.zeros((len(wanted), len(known)))
    for row, time in zip(weights, wanted, strict=True):
        first = int(np.clip(np.searchsorted(known, time) - POINTS // 2, 0, len(known) - POINTS))
        nodes = known[first : first + POINTS]
        for k, node in enumerate(nodes):
            others = np.delete(nodes, k)
            row[first + k] = np.prod((time - others) / (node - others))
    return weights


def _lengths(spec: SamplingSpec) -> Array:
    """How far the velocity of every evaluation carries, [E]: a step of the grid, or half of one with two stages."""
    lengths: Array = np.diff(spec.grid)
    if spec.solver == "heun" and spec.end is not None:
        return np.repeat(lengths / 2, 2)
    if spec.solver == "heun":
        # The last step is an Euler step.
        return np.append(np.repeat(lengths[:-1] / 2, 2), lengths[-1])
    return lengths
