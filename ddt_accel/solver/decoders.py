"""Which evaluations run the decoder narrow: a choice of width at each, solved exactly for every total of savings.

A width w at evaluation i saves `savings[i, w]` and costs `prices[i, w]`, the root-mean-square error that it alone makes
in the final latents. The errors of evaluations add up as those of segments do (solver/pairs.py),

    cost = (Σ_i price[i, w_i]^γ)^{1/γ},        D_i(s) = min_w D_{i−1}(s − saving[i, w]) + price[i, w]^γ.

What is predicted of the chosen ones in the end is their whole quadratic form, `effect_of`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DecoderSolution:
    """The widths of least cost, one index an evaluation, what they save, and how many assignments save exactly the
    least that was asked for."""

    choices: tuple[int, ...]
    cost: float
    saved: int
    exactly: int


def solve_decoders(prices: Array, savings: NDArray[np.intp], *, gamma: float) -> list[DecoderSolution]:
    """The optima of those that save at least 0, 1, … units, up to the most that can be saved.

    `prices` and `savings` [N, W] are 0 at the complete width, which comes first; `gamma` is finite. O(N W S) time for S
    units. Raises ConfigError for what does not fit.
    """
    if prices.shape != savings.shape or prices.ndim != 2 or savings.min() < 0 or savings[:, 0].any():
        raise ConfigError(
            f"Prices and savings of decoders are {list(prices.shape)} and {list(savings.shape)}; give [N, W] for both, "
            "savings of at least 0, none at the complete width."
        )
    if not np.isfinite(prices).all():
        raise ConfigError("The effect of a narrow decoder is not finite; calibrate anew.")
    most = int(savings.max(axis=1).sum())
    least = np.full(most + 1, np.inf)
    least[0] = 0.0
    ways = [1] + [0] * most
    chosen = []
    for row, saved in zip(prices**gamma, savings.tolist(), strict=True):
        arriving = np.full((len(row), most + 1), np.inf)
        for w, saving in enumerate(saved):
            arriving[w, saving:] = least[: most + 1 - saving] + row[w]
        chosen.append(arriving.argmin(axis=0))
        least = arriving.min(axis=0)
        ways = [sum(ways[s - saving] for saving in saved if saving <= s) for s in range(most + 1)]
    found = []
    best = most
    for s in range(most, -1, -1):
        best = s if least[s] <= least[best] else best
        choices = _trace(chosen, savings, best)
        found.append(
            DecoderSolution(choices=choices, cost=float(least[best] ** (1 / gamma)), saved=best, exactly=ways[s])
        )
    return found[::-1]


def effect_of(effects: Array, choices: Mapping[int, int]) -> float:
    """The root-mean-square error of the final latents where decoders run narrow: evaluation → index of the width.

    `effects` [N, W − 1, N, W − 1] are the inner products of each one's alone; to first order they add up.
    """
    steps, widths = list(choices), [width - 1 for width in choices.values()]
    inner = effects[np.ix_(steps, range(effects.shape[1]), steps, range(effects.shape[1]))]
    place = range(len(steps))
    pairs = [inner[i, widths[i], j, widths[j]] for i, j in itertools.product(place, place)]
    return float(np.sqrt(max(0.0, sum(pairs))))


def _trace(chosen: Sequence[NDArray[np.intp]], savings: NDArray[np.intp], s: int) -> tuple[int, ...]:
    choices = []
    for choice, saved in zip(reversed(chosen), reversed(savings.tolist()), strict=True):
        choices.append(int(choice[s]))
        s -= saved[choices[-1]]
    return tuple(reversed(choices))
