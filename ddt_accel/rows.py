"""The rows that a schedule is made of, and what its numbers have to satisfy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ddt_accel.errors import ConfigError
from ddt_accel.spec import ROUNDING, SamplingSpec, is_number, is_whole

LARGEST = float(np.finfo(np.float32).max)  # of the weights

# A forecast s_k = Σ weight · s_r: pairs (refresh r ≤ k, weight). Holding the last state is ((r, 1.0),).
Forecast = tuple[tuple[int, float], ...]
# An integrator's row x_{k+1} = x_k + Σ weight · v_j: pairs (evaluation j ≤ k, weight).
Row = tuple[tuple[int, float], ...]


def is_range(images: tuple[Any, ...]) -> bool:
    """Whether it is a seed, the first of its images, and the one after the last."""
    return len(images) == 3 and all(map(is_whole, images)) and 0 <= images[0] < 2**32 and 0 <= images[1] < images[2]


def checked_steps(
    name: str,
    given: tuple[int, ...],
    forecasts: Mapping[int, Forecast],
    first: int,
    last: int,
    *,
    narrow: Collection[int] = (),
) -> tuple[int, ...]:
    """The refresh steps of a branch, which is read from evaluation `first` on.

    At `narrow` ones the state may be corrected by a forecast that draws on it. Raises ConfigError for steps and
    forecasts that cannot be run.
    """
    steps = tuple(given)
    if not steps or not all(map(is_whole, steps)):
        raise ConfigError(f"{name} is {shortened(steps)}; give whole numbers, the first of them at most {first}.")
    if not 0 <= steps[0] <= first or list(steps) != sorted(set(steps)) or steps[-1] > last:
        raise ConfigError(
            f"{name} is {shortened(steps)}; they must start at {first} or before, increase, and end at {last} or "
            "before."
        )
    known = set(steps)
    for step, row in forecasts.items():
        if step not in narrow and (not steps[0] < step <= last or step in known):
            raise ConfigError(f"There is a forecast for step {step}, which is no reuse step.")
        sources = [source for source, _ in row]
        if not 1 <= len(set(sources)) == len(row) or not known.issuperset(sources):
            raise ConfigError(
                f"The forecast of step {step} draws on {shortened(tuple(sources))}; give one or more different "
                "refresh steps."
            )
        if max(sources) > step or not all(abs(weight) <= LARGEST for _, weight in row):
            raise ConfigError(f"The forecast of step {step} draws on a later step or has no finite weights.")
    return tuple(map(int, steps))


def checked_widths(name: str, given: Mapping[int, float], steps: Sequence[int]) -> dict[int, float]:
    """The widths of networks that run narrow at some of `steps`, in their order; raises ConfigError for others."""
    if others := sorted(set(given) - set(steps)):
        raise ConfigError(f"{name} are given for the steps {shortened(tuple(others))}, at which it does not run.")
    if not all(is_number(width) and 0 < width < 1 for width in given.values()):
        raise ConfigError(f"{name} are {shortened(tuple(given.values()))}; give shares between 0 and 1.")
    return {int(step): float(given[step]) for step in sorted(given)}


def check_numbers(times: tuple[float, ...] | None, integrator: tuple[Row, ...] | None, spec: SamplingSpec) -> None:
    """Raises ConfigError unless a schedule's own times and integrator can be run."""
    count = spec.num_evaluations
    if (times is not None or integrator is not None) and spec.solver == "sde":
        raise ConfigError(
            "A stochastic sampler cannot have times or an integrator of its own; its noise depends on it."
        )
    end = float(spec.grid[-1])
    # What the network is given is float32.
    if times is not None and (
        len(times) != count
        or not all(map(is_number, times))
        or not all(0 <= a <= b <= end + ROUNDING and np.float32(b) < 1 for a, b in pairwise((0.0, *times)))
    ):
        raise ConfigError(f"times is {shortened(times)}; give {count} increasing numbers from 0 to below {end:.4g}.")
    if integrator is None:
        return
    if len(integrator) != count:
        raise ConfigError(f"The integrator has {len(integrator)} rows; give one for each of {count} evaluations.")
    for k, row in enumerate(integrator):
        read = [j for j, _ in row]
        if len(set(read)) < len(row) or not all(0 <= j <= k for j in read):
            raise ConfigError(f"Row {k} of the integrator reads the velocities {shortened(tuple(read))}.")
        if not all(abs(weight) <= LARGEST for _, weight in row):
            raise ConfigError(f"Row {k} of the integrator has weights that are not finite.")


def shortened(steps: tuple[object, ...]) -> str:
    """A list as messages show it."""
    text = repr(list(steps))
    return text if len(text) <= 60 else text[:57] + "..."
