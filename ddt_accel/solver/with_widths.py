"""Where the encoder runs and how wide, and how wide the decoder is at every evaluation, within one total of costs.

Refreshes with widths have an exact program (solver/widths.py), decoders have one (solver/decoders.py), and each gives
the optima of all totals in one pass. What narrow decoders save of the total goes to the encoder; every division is
tried, so that the best of them is the best of all assignments, for errors that add up.

The programs count in whole units: a complete encoder run in one guidance branch is R of them, costs are rounded up and
savings down, so that a total is never exceeded, and R is the number that wastes least.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError
from ddt_accel.schedule import Forecast, Schedule
from ddt_accel.solver.decoders import DecoderSolution, effect_of, solve_decoders
from ddt_accel.solver.forecast import checked_gram, forecast_error, forecast_weights
from ddt_accel.solver.misses import CALIBRATED
from ddt_accel.solver.pairs import combined
from ddt_accel.solver.solve import GAMMA, Method, Statistics, schedule_with
from ddt_accel.solver.width_statistics import WidthStatistics
from ddt_accel.solver.widths import (
    MOST_EVALUATIONS,
    Refresh,
    RefreshCosts,
    WidthSolution,
    solve_widths,
    width_prices,
)

Array = NDArray[np.float64]

OBJECTIVES = ("sum", "power")
MOST_UNITS = 1000  # more make finer totals, and take time in proportion
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class WidthCertificate:
    """What a schedule with widths is the least of: `cost` is the objective's value, of `considered` assignments of
    refreshes and widths within the `total`, of which it takes `spent`, both in the unit of the costs given, and as the
    program counts them; `considered` is to the precision of a float64.

    `complete_cost` is that of the best refreshes without widths within the total, of complete decoders; None where
    none are.
    """

    cost: float
    complete_cost: float | None
    spent: float
    total: float
    considered: int


def solve_with_widths(
    calibration: Statistics,
    total: float,
    encoder_costs: Sequence[float],
    decoder_costs: Sequence[float],
    *,
    objective: str = "sum",
) -> tuple[Schedule, WidthCertificate]:
    """The schedule of least predicted cost of all that take no more than `total`.

    `encoder_costs` and `decoder_costs` [W] are those of one run in one guidance branch by width, the complete one
    first, in the unit of `total`. As they run, a refresh counts in both branches where a guided evaluation reads its
    state, an evaluation of the decoder where it is guided. Raises ConfigError where the calibration has no widths or no
    sensitivities, where costs do not fit, or where nothing is within the total.
    """
    check_objective(objective)
    widths, sensitivity = check_widths(calibration)
    gamma, evaluations = GAMMA[objective], calibration.spec.num_evaluations
    count = _Count.of(calibration, total, encoder_costs, decoder_costs)
    prices = width_prices(widths.gram, sensitivity)
    decoders = solve_decoders(decoder_prices(widths), count.savings, gamma=gamma)
    dearest = (count.encoder.alone, count.encoder.both)[count.branches - 1][0]  # complete everywhere has no error
    most = min(count.left + len(decoders) - 1, dearest * evaluations)
    encoders = solve_widths(prices, count.encoder, most, gamma=gamma) if most > 0 else []
    best: tuple[float, WidthSolution, DecoderSolution] | None = None
    considered = 0
    for saved, decoder in enumerate(decoders):
        within = min(count.left + saved, most)
        encoder = encoders[within - 1] if within > 0 else None
        if encoder is None:
            continue
        considered += encoder.considered * decoder.exactly
        value = combined(np.array([encoder.cost, decoder.cost]), gamma)
        if best is None or value < best[0]:
            best = value, encoder, decoder
    if best is None:
        least = count.fixed + min(encoder_costs) * count.branches - count.most_saved
        raise ConfigError(
            f"A total of {total:.4g} is less than any schedule costs, which is about {least:.4g} with the narrowest "
            "networks and one encoder run; give a larger one."
        )
    value, encoder, decoder = best
    schedule = schedule_with_widths(calibration, encoder.refreshes, decoder.choices, objective=objective)
    certificate = WidthCertificate(
        cost=value,
        complete_cost=_complete_cost(prices, count, min(count.left, most), gamma),
        spent=count.fixed + (encoder.spent - decoder.saved) * encoder_costs[0] / count.resolution,
        total=total,
        considered=considered,
    )
    return schedule, certificate


def _complete_cost(prices: Array, count: _Count, left: int, gamma: float) -> float | None:
    """The least that refreshes cost without widths, within so many units."""
    if left < 1:
        return None
    costs = dataclasses.replace(count.encoder, alone=count.encoder.alone[:1], both=count.encoder.both[:1])
    found = solve_widths(prices[:, :1, :, :1], costs, left, gamma=gamma)[-1]
    return None if found is None else found.cost


def solve_narrowest(calibration: Statistics, runs: Sequence[int]) -> list[Schedule]:
    """The best schedules of at most so many encoder runs, each of them at the width whose states are furthest from the
    complete ones, with complete decoders: one for each number of `runs`. Of nested widths that is the narrowest."""
    if not runs:
        return []
    widths, sensitivity = check_widths(calibration)
    every, complete = width_prices(widths.gram, sensitivity), [0] * len(sensitivity)
    at_once = np.einsum("awawa->w", every)  # where a state is foretold from the narrow one of the same step
    narrowest = int(at_once.argmax())
    prices = every[:, narrowest : narrowest + 1, :, narrowest : narrowest + 1]
    costs = RefreshCosts.everywhere([1], len(sensitivity))
    solutions = solve_widths(prices, costs, max(runs), gamma=GAMMA["sum"])
    found = [[step for step, _ in one.refreshes] for count in runs if (one := solutions[count - 1]) is not None]
    return [schedule_with_widths(calibration, [(step, narrowest) for step in steps], complete) for steps in found]


def schedule_with_widths(
    calibration: Statistics, refreshes: Sequence[Refresh], decoders: Sequence[int], *, objective: str = "sum"
) -> Schedule:
    """The schedule of given refreshes, each a step and the index of its width, and of the decoder's width at every
    evaluation: the best forecasts for them, and what it is predicted to cost.

    Without a narrow refresh it is `solve`'s of these steps, but for the decoders.
    """
    widths, sensitivity = check_widths(calibration)
    method, gamma = Method(objective=objective), GAMMA[objective]
    steps = tuple(step for step, _ in refreshes)
    schedule = schedule_with(calibration, steps, method)
    encoder_cost, encoder_error = schedule.predicted_cost or 0.0, schedule.predicted_error or 0.0
    if narrow := [refresh for refresh in refreshes if refresh[1]]:
        forecasts, errors = _forecasts(widths, refreshes)
        segments = np.add.reduceat(sensitivity * errors, steps)
        encoder_cost = combined(segments, gamma)
        encoder_error = combined(segments, GAMMA["power"])
        of_narrow = combined(segments[[width > 0 for _, width in refreshes]], GAMMA["power"])
        share = (of_narrow / encoder_error) ** 2 if encoder_error else 0.0
        encoder_error *= _missed(calibration, len(steps), share)
        schedule = dataclasses.replace(
            schedule,
            forecasts=forecasts,
            encoder_widths={step: widths.widths[width] for step, width in narrow},
            mean_modulations=calibration.mean_modulations,
            narrow_mean_modulations=np.stack([widths.mean_modulations[step, width - 1] for step, width in narrow]),
        )
    chosen = {step: width for step, width in enumerate(decoders) if width}
    alone = decoder_prices(widths)[list(chosen), list(chosen.values())]
    effect = 0.0 if widths.effects is None else effect_of(widths.effects, chosen)
    return dataclasses.replace(
        schedule,
        decoder_widths={step: widths.widths[width] for step, width in chosen.items()},
        predicted_cost=combined(np.array([encoder_cost, *alone]), gamma) if chosen else encoder_cost,
        predicted_error=math.hypot(encoder_error, effect) if chosen else encoder_error,
    )


def _missed(calibration: Statistics, runs: int, narrow: float) -> float:
    """What an error predicted for so many encoder runs is to be multiplied by, where a share of its square comes from
    `narrow` ones.

    The errors of narrow states point the same way from refresh to refresh, more than those of forecasts do, which is
    measured where all are narrow; in between the logarithm of the ratio goes with the share.
    """
    widths, _ = check_widths(calibration)
    of_narrow, of_complete = (one.of(CALIBRATED, runs) for one in (widths.misses, calibration.misses))
    return math.exp(narrow * math.log(of_narrow) + (1 - narrow) * math.log(of_complete))


def decoder_prices(widths: WidthStatistics) -> Array:
    """[E, W]: the root-mean-square error that a decoder of this width at this evaluation alone makes."""
    count = len(widths.gram)
    if widths.effects is None:
        return np.zeros((count, 1))
    of_each = widths.effects.reshape(count * (len(widths.widths) - 1), -1).diagonal()
    return np.pad(np.sqrt(np.maximum(of_each, 0.0)).reshape(count, -1), ((0, 0), (1, 0)))


@dataclass(frozen=True, kw_only=True)
class _Count:
    """Costs in whole units: of a refresh by width, what decoders save by evaluation and width, and what is left for the
    encoder where they save nothing, below 0 where they have to.

    In the unit given: `fixed` is what complete decoders take, `most_saved` what decoders can save; `branches` is 2
    where anything is guided.
    """

    encoder: RefreshCosts
    savings: NDArray[np.intp]
    left: int
    resolution: int
    fixed: float
    most_saved: float
    branches: int

    @classmethod
    def of(
        cls, calibration: Statistics, total: float, encoder_costs: Sequence[float], decoder_costs: Sequence[float]
    ) -> _Count:
        widths, _ = check_widths(calibration)
        known = len(widths.widths)
        costs = np.array([*encoder_costs, *decoder_costs], dtype=np.float64)
        usable = np.isfinite([*costs, total]).all() and (costs > 0).all()
        if len(encoder_costs) != known or len(decoder_costs) != known or not usable:
            raise ConfigError(
                f"The costs are {list(encoder_costs)} and {list(decoder_costs)}, of a total of {total:g}; give finite "
                f"ones above 0, for encoder and decoder one for each of the widths {list(widths.widths)}."
            )
        guided = calibration.spec.guidance_weights != 1.0
        branches = 2 if guided.any() else 1
        runs = np.where(guided, 2.0, 1.0)
        fixed = float(runs.sum() * decoder_costs[0])
        # In complete encoder runs. A narrow network that costs more than the complete one saves nothing.
        narrower = decoder_costs[0] - np.array(decoder_costs if widths.effects is not None else decoder_costs[:1])
        savings = np.maximum(0.0, runs[:, None] * narrower) / encoder_costs[0]
        encoder = np.array(encoder_costs) / encoder_costs[0]
        left = (total - fixed) / encoder_costs[0]
        most_saved = float(savings.max(axis=1).sum())
        refreshes = min((left + most_saved) / branches, float(len(guided)))
        resolution = _resolution(branches * encoder, savings, refreshes, branches)
        alone, both = (tuple(int(cost) for cost in _up(k * encoder * resolution)) for k in (1, 2))
        return cls(
            encoder=RefreshCosts(alone=alone, both=both, guided=guided),
            savings=_down(savings * resolution).astype(np.intp),
            left=int(_down(np.array(left * resolution))),
            resolution=resolution,
            fixed=fixed,
            most_saved=most_saved * encoder_costs[0],
            branches=branches,
        )


def _resolution(refresh: Array, savings: Array, refreshes: float, branches: int) -> int:
    """R: the units of a complete run that waste least by rounding, where about so many `refreshes` are had, each of up
    to so many `branches` and by width of so many complete runs."""
    several = max(refreshes, 1.0)

    def waste(units: int) -> float:
        on_encoder = (_up(refresh * units) / units - refresh).max() * several
        on_decoders = (savings - _down(savings * units) / units).max(axis=1).sum()
        return round(float(on_encoder + on_decoders), 9)

    return min(range(1, max(1, math.floor(MOST_UNITS / (branches * several))) + 1), key=waste)


def _up(values: Array) -> Array:
    return np.ceil(values * (1 - ROUNDING))


def _down(values: Array) -> Array:
    return np.floor(values + ROUNDING * np.maximum(1.0, np.abs(values)))


def _forecasts(widths: WidthStatistics, refreshes: Sequence[Refresh]) -> tuple[dict[int, Forecast], Array]:
    """The weights at every reuse step and narrow refresh, and the errors [E] of the state that they leave."""
    evaluations, count = widths.gram.shape[:2]
    gram = checked_gram(widths.gram.reshape(evaluations * count, evaluations * count))
    times = np.empty(0)  # which forecasts of least error do not look at
    rows: dict[int, Forecast] = {}
    errors = np.zeros(evaluations)
    at = dict(refreshes)
    for step in range(evaluations):
        if at.get(step) == 0:
            continue
        drawn = [refresh for refresh in refreshes if refresh[0] <= step][-2:]
        places = [source * count + width for source, width in drawn]
        weights = forecast_weights("calibrated", gram, times, places, step * count)
        errors[step] = forecast_error(gram, places, weights, step * count)
        rows[step] = tuple((source, float(weight)) for (source, _), weight in zip(drawn, weights, strict=True))
    return rows, errors


def check_objective(objective: str) -> None:
    """Raises ConfigError for one that schedules with widths are not solved for."""
    if objective not in OBJECTIVES:
        raise ConfigError(f"The objective is {objective!r}; with widths choose one of {', '.join(OBJECTIVES)}.")


def check_widths(calibration: Statistics) -> tuple[WidthStatistics, Array]:
    """The statistics of widths and the sensitivities; raises ConfigError where there are none, or too many."""
    widths, sensitivity = calibration.widths, calibration.sensitivity
    if widths is None:
        cause = (
            "a second network guides"
            if calibration.guide
            else "its network was trained at one, or it was made before widths were measured"
        )
        raise ConfigError(
            f"The calibration has no narrow widths: {cause}. Calibrate a checkpoint by itself that was trained with "
            "`ddt-accel train --from CHECKPOINT --dynamic nested`."
        )
    if sensitivity is None:
        raise ConfigError(
            "The calibration has no sensitivities, which widths need; calibrate with at least one sensitivity sample "
            "(--sensitivity-samples)."
        )
    if len(sensitivity) < 2:
        raise ConfigError("Widths are solved for two evaluations or more, and there is one; take more steps (--steps).")
    if len(sensitivity) > MOST_EVALUATIONS:
        raise ConfigError(
            f"Widths are solved for up to {MOST_EVALUATIONS} evaluations, and there are {len(sensitivity)}; take fewer "
            "steps (--steps)."
        )
    return widths, sensitivity
