"""What solved schedules come to, measured by running them: the loop that predictions leave open.

Schedules are solved from the statistics of a batch alone and run on images of that batch, so that what is added up does
not depend on what was calibrated before or is merged later. Prediction and measurement then share their images, so that
much of what these do better than others cancels in the ratio, but not all (docs/results/sharing.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.watched import Networks, unwatched
from ddt_accel.errors import NumericsError
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.solver.misses import CALIBRATED, HELD, SPLIT, WAYS
from ddt_accel.solver.solve import Method, Statistics, solve_curve
from ddt_accel.solver.split import split
from ddt_accel.solver.widths import MOST_EVALUATIONS
from ddt_accel.solver.with_widths import solve_narrowest
from ddt_accel.spec import SamplingSpec

# The numbers of encoder runs, as shares of the evaluations.
SHARES = (0.06, 0.1, 0.16, 0.28, 0.5)
# Solving for pairs of more evaluations takes gigabytes, which a calibration must not depend on.
MAX_EVALUATIONS = 256

METHODS = {CALIBRATED: Method(), HELD: Method(forecast="hold"), SPLIT: Method(centred=False)}


def shared_runs(spec: SamplingSpec) -> list[int]:
    """The numbers of encoder runs that are measured, at least two and fewer than there are evaluations."""
    count = spec.num_evaluations
    runs = {max(2, round(share * count)) for share in SHARES} if count <= MAX_EVALUATIONS else set()
    return sorted(number for number in runs if number < count)


def no_shared_sum(spec: SamplingSpec) -> NDArray[np.float64]:
    """What stands where nothing was measured."""
    return np.zeros((len(WAYS), len(shared_runs(spec)), 3))


def shared_evaluations(spec: SamplingSpec) -> int:
    """How many evaluations of a batch `shared_sum` makes; most of them run the decoder alone."""
    trajectories = len(_ways(spec)) * len(shared_runs(spec))
    return spec.num_evaluations * (1 + trajectories) if trajectories else 0


def shared_sum(
    networks: Networks,
    statistics: Statistics,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """[W, B, 3] for `WAYS` and the numbers of `shared_runs`: the count of images, and the sums of the mean squared
    error of the latents to the unshared end: as measured, and as `statistics` predict it.

    Zeros for branches of their own where nothing is guided, where trajectories end in NaN, and everywhere without
    sensitivities. `on_evaluation` is called as often as there are evaluations of a batch.
    """
    spec = statistics.spec
    budgets = shared_runs(spec)
    total = no_shared_sum(spec)
    if images.count == 0 or not budgets:
        return total
    row = _rows(networks, spec, images, latent_shape, on_evaluation)
    for way in _ways(spec):
        curve = solve_curve(statistics, budgets[-1], METHODS[way]) if statistics.sensitivity is not None else []
        for place, budget in enumerate(budgets):
            schedule = curve[budget - 1][0] if curve else None
            if schedule is not None and way == SPLIT:
                schedule = split(statistics, schedule, METHODS[way])
            total[WAYS.index(way), place] = row(schedule)
    return total


def narrow_runs(spec: SamplingSpec) -> list[int]:
    """The numbers of narrow encoder runs that are measured: as many as of complete ones, and all."""
    count = spec.num_evaluations
    return [*shared_runs(spec), count] if 1 < count <= MOST_EVALUATIONS else []


def no_narrow_sum(spec: SamplingSpec) -> NDArray[np.float64]:
    """What stands where nothing was measured."""
    return np.zeros((len(narrow_runs(spec)), 3))


def narrow_evaluations(spec: SamplingSpec) -> int:
    """How many evaluations of a batch `narrow_sum` makes."""
    return spec.num_evaluations * (1 + len(narrow_runs(spec)))


def narrow_sum(
    model: SplitNetwork,
    statistics: Statistics,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """[B, 3] for the numbers of `narrow_runs`, as `shared_sum` has them: of schedules whose encoder runs at the
    narrowest width everywhere.

    Their decoders stay complete, whose part of a prediction has its own matrix.
    """
    spec, total = statistics.spec, no_narrow_sum(statistics.spec)
    if images.count == 0:
        return total
    row = _rows((model,), spec, images, latent_shape, on_evaluation)
    schedules = solve_narrowest(statistics, narrow_runs(spec)) if statistics.sensitivity is not None else []
    for place in range(len(total)):
        total[place] = row(schedules[place] if schedules else None)
    return total


def _rows(
    networks: Networks,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None],
) -> Callable[[Schedule | None], tuple[float, float, float]]:
    """Runs the unshared trajectory; then what a schedule's row of the sums is, zeros where there is none."""
    backend = unwatched(networks)

    def end(schedule: Schedule) -> Tensor:
        return sample_images(backend, schedule, images, latent_shape, images.count).double()

    def passed() -> None:
        for _ in range(spec.num_evaluations):
            on_evaluation()

    def row(schedule: Schedule | None) -> tuple[float, float, float]:
        try:
            if schedule is None:
                return 0.0, 0.0, 0.0
            measured = (end(schedule) - unshared).square().flatten(1).mean(1).sum().item()
        except NumericsError:  # too few runs for this network are nothing to learn from
            return 0.0, 0.0, 0.0
        finally:
            passed()
        return images.count, measured, images.count * (schedule.predicted_error or 0.0) ** 2

    unshared = end(Schedule.full(spec))
    passed()
    return row


def _ways(spec: SamplingSpec) -> list[str]:
    """Without guidance there is one branch alone."""
    guided = bool((spec.guidance_weights != 1.0).any())
    return [way for way in WAYS if guided or way != SPLIT]
