"""Which of the measured schedules serves the user first, and whether sharing pays for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddt_accel.evaluation.benchmark import Measurement
from ddt_accel.evaluation.budgets import Target
from ddt_accel.evaluation.fidelity import Interval, interval
from ddt_accel.schedule import Schedule

# How much measured times differ from one run to the next, where a machine has other work, too.
SCATTER = 0.1
# Decibels of each image; None where it is identical to what it is compared with.
Values = Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How near every row ends to what it stands for, in dB of each image.

    To the reference solution where that was measured, else to the pictures of the unshared sampler. Latents that are no
    pictures and have no reference solution go by their mean relative error instead.
    """

    values: Mapping[str, Values]
    to_reference: bool

    def mean(self, name: str) -> float:
        return float(np.mean([math.inf if value is None else value for value in self.values[name]]))

    def gain(self, name: str, over: str) -> Interval | None:
        """How much nearer a row ends than another, paired over images; None where nothing tells them apart."""
        pairs = zip(self.values[name], self.values[over], strict=True)
        found = [a - b for a, b in pairs if a is not None and b is not None]
        return interval(found) if len(found) > 1 else None


def nearness(rows: Sequence[Measurement], limits: Mapping[str, Values]) -> Nearness:
    """By the reference solution where there is one."""
    if limits:
        return Nearness(values=limits, to_reference=True)
    if any(row.psnr_values for row in rows):
        return Nearness(values={row.name: row.psnr_values for row in rows}, to_reference=False)
    latents = {
        row.name: [-20 * math.log10(row.relative_l2.mean) if row.relative_l2 and row.relative_l2.mean > 0 else None]
        for row in rows
    }
    return Nearness(values=latents, to_reference=False)


def meets(row: Measurement, target: Target, near: Nearness, *, copying: bool = True) -> bool:
    """Whether a row was measured to reach a target.

    A PSNR is reached by the distance to the reference solution, and with `copying` by the pictures, compared with the
    unshared ones, too: who ends nearer to the former than the unshared sampler does cannot be near to both.
    """
    in_time = (target.milliseconds is None or row.seconds * 1000 <= target.milliseconds) and (
        target.speedup is None or row.speedup >= target.speedup
    )
    bound = _decibels(target)
    if bound is None:
        return in_time
    pictures = row.psnr_values if copying and row.psnr_values else [-math.inf]
    copied = float(np.mean([math.inf if value is None else value for value in pictures]))
    return in_time and max(copied, near.mean(row.name)) >= bound


def choose(
    rows: Sequence[Measurement], baseline: str, chosen: str, target: Target | None, near: Nearness, *,
    settled: bool = False,
) -> tuple[str, bool]:  # fmt: skip
    """The name of the row to begin with, and whether it meets what was asked for.

    With a target in time alone the nearest that meets it, with one in dB the fastest; where none does, the one that
    misses it least, or of those that miss a time by no more than times scatter the nearest. Without a target the
    fastest that ends at least as near to the reference solution as the baseline does, within that one's interval; where
    none does or there is no reference solution, the `chosen` one. Where that was chosen for the target, and so is
    `settled`, it stays whatever else was measured, and a target in dB is its distance to the reference solution.
    """
    if settled and target is not None and target != Target():
        mine = next(row for row in rows if row.name == chosen)
        return chosen, meets(mine, target, near, copying=not near.to_reference)
    if target is None or target == Target():
        if not near.to_reference:
            return chosen, False
        own = interval([math.inf if value is None else value for value in near.values[baseline]])
        if own is None:
            return chosen, False
        as_near = [row for row in rows if row.name != baseline and near.mean(row.name) >= own.low]
        fastest = min(as_near, key=lambda row: row.seconds, default=None)
        return (fastest.name, True) if fastest else (chosen, False)
    if _decibels(target) is not None:  # which the baseline meets by being compared with itself
        rows = [row for row in rows if row.name != baseline]
    meeting = [row for row in rows if meets(row, target, near)]
    if meeting and _decibels(target) is None:
        return max(meeting, key=lambda row: near.mean(row.name)).name, True
    if meeting:
        return min(meeting, key=lambda row: row.seconds).name, True
    if target.limits_time:
        almost = [row for row in rows if meets(row, _relaxed(target), near)]
        if almost:  # by as little as measured times scatter: what was meant for the target
            return max(almost, key=lambda row: near.mean(row.name)).name, False
        return min(rows, key=lambda row: row.seconds).name, False
    return max(rows, key=lambda row: near.mean(row.name)).name, False


def _relaxed(target: Target) -> Target:
    time, speed = target.milliseconds, target.speedup
    return dataclasses.replace(
        target, milliseconds=time and time * (1 + SCATTER), speedup=speed and speed / (1 + SCATTER)
    )


def rival(
    headline: str, paces: Mapping[str, float], schedules: Mapping[str, Schedule], near: Nearness
) -> str | None:  # fmt: skip
    """The nearest row of the other kind, with sharing or without, that takes no longer than the headline by more than
    one of its own steps; `paces` are the seconds of each row."""
    kind = schedules[headline].shares
    others = [
        name
        for name, seconds in paces.items()
        if schedules[name].shares != kind and seconds * (1 - 1 / schedules[name].spec.num_steps) <= paces[headline]
    ]
    return max(others, key=near.mean, default=None)


def as_long(other: str, headline: str, paces: Mapping[str, float], schedules: Mapping[str, Schedule]) -> bool:
    """Whether a row takes about as long as the headline, within a step of its own and the scatter of times: to be
    nearer than a row that is much faster proves nothing."""
    return paces[other] * (1 + 1 / schedules[other].spec.num_steps) >= (1 - SCATTER) * paces[headline]


def _decibels(target: Target) -> float | None:
    """The PSNR, or the error as PSNR of pixels in [−1, 1], that a target asks for."""
    bounds = [] if target.psnr is None else [target.psnr]
    if target.error is not None:
        bounds.append(-20 * math.log10(target.error / 2))
    return max(bounds, default=None)
