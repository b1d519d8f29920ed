"""What a report begins with, and what it says of sharing, for measurements made up so that the answer is plain."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from ddt_accel import SamplingSpec, Schedule
from ddt_accel.evaluation.benchmark import Measurement
from ddt_accel.evaluation.budgets import Target
from ddt_accel.evaluation.candidates import SHIFTS, closest, coarsest
from ddt_accel.evaluation.costs import Costs
from ddt_accel.report.headline import choose, meets, nearness, rival
from ddt_accel.report.table import TRIES, Table, steps_name
from ddt_accel.report.words import equal_time, pays, title

SPEC = SamplingSpec(num_steps=20)
FULL, SHARED = Schedule.full(SPEC), Schedule.uniform(SPEC, 5)


def row(name: str, seconds: float, steps: int = 20) -> Measurement:
    return Measurement(
        name=name, refresh_steps=(0,), num_steps=steps, num_evaluations=steps, seconds=seconds, encoder_seconds=0.6,
        decoder_seconds=0.2, forecast_seconds=0.0, speedup=1 / seconds, ideal_speedup=1.0, psnr=None, relative_l2=None,
        psnr_values=[None, None] if name == "unshared" else [30.0, 30.0],
    )  # fmt: skip


ROWS = [row("unshared", 1.0), row("near", 0.5), row("nearer", 0.4), row("fast", 0.1)]
LIMITS = {"unshared": [34.0, 36.0], "near": [34.0, 35.5], "nearer": [40.0, 42.0], "fast": [20.0, 22.0]}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, ("nearer", True)),  # the fastest of those as near as the baseline
        (Target(), ("nearer", True)),
        (Target(speedup=2), ("nearer", True)),
        (Target(speedup=5), ("fast", True)),
        (Target(milliseconds=450), ("nearer", True)),
        (Target(milliseconds=50), ("fast", False)),
        (Target(psnr=25), ("fast", True)),  # by its distance to the unshared pictures
        (Target(psnr=34), ("nearer", True)),
        (Target(psnr=50), ("nearer", False)),
        (Target(psnr=34, speedup=5), ("fast", False)),
        (Target(error=2 * 10 ** (-34 / 20)), ("nearer", True)),
    ],
)
def test_the_headline_is_what_serves_the_target(target, expected) -> None:
    assert choose(ROWS, "unshared", "near", target, nearness(ROWS, LIMITS)) == expected


def test_what_misses_a_time_by_a_little_is_what_was_meant_for_it() -> None:
    rows, limits = [*ROWS, row("faster", 0.097)], {**LIMITS, "faster": [10.0, 12.0]}
    assert choose(rows, "unshared", "near", Target(milliseconds=95), nearness(rows, limits)) == ("fast", False)
    assert choose(rows, "unshared", "near", Target(milliseconds=60), nearness(rows, limits)) == ("faster", False)


def test_without_a_reference_solution_the_headline_is_the_workspaces_schedule() -> None:
    assert choose(ROWS, "unshared", "fast", None, nearness(ROWS, {})) == ("fast", False)
    slow = {name: [10.0, 12.0] if name != "unshared" else values for name, values in LIMITS.items()}
    assert choose(ROWS, "unshared", "near", None, nearness(ROWS, slow)) == ("near", False)
    near = nearness([row("a", 1.0)], {"a": [None, 30.0]})  # identical to the reference solution
    assert near.mean("a") == math.inf
    assert meets(row("a", 1.0), Target(psnr=99), near)


@dataclass
class Told:
    """As much of a study as sentences read."""

    schedules: dict[str, Schedule]
    measurements: list[Measurement]
    limits: dict[str, list[float]]
    headline: str
    fewer: dict[str, str] = field(default_factory=dict)

    @property
    def near(self) -> Any:
        return nearness(self.measurements, self.limits)

    @property
    def paces(self) -> dict[str, float]:
        return {row.name: row.seconds for row in self.measurements}


def told(headline: str, *, steps_seconds: float, steps_db: list[float], fewer: bool = False) -> Told:
    return Told(
        schedules={"unshared": FULL, "shared": SHARED, "10 AB2 steps": Schedule.full(SamplingSpec(num_steps=10))},
        measurements=[row("unshared", 1.0), row("shared", 0.4), row("10 AB2 steps", steps_seconds, 10)],
        limits={"unshared": [34.0, 36.0, 35.0], "shared": [30.0, 32.0, 31.0], "10 AB2 steps": steps_db},
        headline=headline,
        fewer={"shared": "10 AB2 steps"} if fewer else {},
    )


@pytest.mark.parametrize(
    ("study", "word", "says"),
    [
        (told("shared", steps_seconds=0.42, steps_db=[40.0, 42.0, 41.5]), "No", "10.2 dB nearer than the headline"),
        (told("shared", steps_seconds=0.42, steps_db=[20.0, 22.0, 21.5]), "Yes", "The headline ends 9.8 dB nearer"),
        (told("shared", steps_seconds=0.42, steps_db=[31.0, 30.0, 32.0]), "No clear difference", "ends as near"),
        # More than a step slower: no proof against sharing, but proof for it.
        (told("shared", steps_seconds=0.6, steps_db=[40.0, 42.0, 41.5]), "Not known", "Nothing without sharing"),
        (told("shared", steps_seconds=0.6, steps_db=[40.0, 42.0, 41.5], fewer=True), "Not known", "takes longer"),
        (told("shared", steps_seconds=0.6, steps_db=[20.0, 22.0, 21.5], fewer=True), "Yes", "9.8 dB nearer"),
        # To be nearer than what is much faster proves nothing; to be further from it does.
        (
            told("shared", steps_seconds=0.2, steps_db=[20.0, 22.0, 21.5]),
            "Not known",
            "faster, and 9.8 dB further",
        ),
        (told("shared", steps_seconds=0.2, steps_db=[40.0, 42.0, 41.5]), "No", "take it instead"),
        (told("10 AB2 steps", steps_seconds=0.42, steps_db=[40.0, 42.0, 41.5]), "No", "The headline ends 10.2 dB"),
        (told("10 AB2 steps", steps_seconds=0.2, steps_db=[40.0, 42.0, 41.5]), "No", "Nothing with sharing"),
        (told("10 AB2 steps", steps_seconds=0.42, steps_db=[20.0, 22.0, 21.5]), "Yes", "nearer than the headline"),
    ],
)
def test_it_says_plainly_whether_sharing_pays(study, word, says) -> None:
    got, why = pays(study)
    assert (got, says in why) == (word, True), why


def test_the_title_says_what_it_gives_and_what_it_costs() -> None:
    study = told("shared", steps_seconds=0.42, steps_db=[40.0, 42.0, 41.5])
    assert title(study) == "2.5× as fast, at a cost of 4.0 dB"
    study.headline = "10 AB2 steps"
    assert title(study) == "2.4× as fast, 6.2 dB nearer to the reference solution"
    assert rival("unshared", study.paces, study.schedules, study.near) == "shared"


def test_steps_without_sharing_take_at_least_as_long() -> None:
    """Beside trying all numbers of steps, integrators and time shifts."""

    def price(grid: SamplingSpec) -> float:
        return 0.1 + grid.num_evaluations * (0.9 + 0.1 * grid.timeshift)

    def decibels(grid: SamplingSpec) -> float:
        return (
            {"euler": 1.0, "heun": 1.5, "ab2": 2.0, "ab3": 1.9}[grid.solver]
            * grid.num_steps
            / (1 + abs(grid.timeshift - 1.6))
        )

    for target in (0.5, 1.0, 7.3, 12.1, 99.0):
        for solver in ("euler", "heun", "ab2"):
            every = [SPEC.on_grid(n, timeshift=1.7, solver=solver) for n in range(1, 21)]
            enough = [grid for grid in every if price(grid) >= target] or every[-1:]
            assert coarsest(SPEC, solver, 1.7, price, target) == enough[:1]
        best = closest(SPEC, price, target, decibels)
        tried = [
            grid
            for solver in ("euler", "heun", "ab2", "ab3")
            for shift in (1.0, *(SHIFTS if solver == "ab2" else ()))
            for grid in coarsest(SPEC, solver, shift, price, target)
        ]
        if best.solver == "ab2":
            assert decibels(best) == max(map(decibels, tried))
    assert coarsest(SPEC, "euler", 1e4, price, 1.0) == []


@dataclass
class Paced:
    """A bench whose clock is known: a step takes `step` seconds, the first few times with a disturbance."""

    step: float
    disturbances: list[float]
    asked: list[int] = field(default_factory=list)

    def run(self, label: str, schedules: dict[str, Schedule], images: int, *, earlier: Any) -> Any:
        name, schedule = list(schedules.items())[1]
        self.asked.append(schedule.spec.num_steps)
        factor = self.disturbances.pop(0) if self.disturbances else 1.0
        seconds = schedule.spec.num_steps * self.step * factor
        measured = row(name, seconds, schedule.spec.num_steps)
        return (earlier.pacer, measured), {name: torch.zeros(images, 3, 4, 4)}


@pytest.mark.parametrize(
    ("step", "disturbances", "asked"),
    [
        (0.05, [], [8]),  # as predicted
        (0.04, [], [8, 9, 10]),  # faster than predicted: too few steps, then enough
        (0.08, [], [8, 7, 6]),  # slower
        (0.05, [0.7], [8, 10, 9]),  # disturbed once: not believed more than what was predicted
    ],
)
def test_the_number_of_steps_is_adjusted_until_it_takes_as_long(step, disturbances, asked) -> None:
    table = Table(
        measurements={"unshared": row("unshared", 1.0), "shared": row("shared", 0.4)},
        schedules={"unshared": FULL, "shared": SHARED},
        latents={"unshared": torch.zeros(2, 3, 4, 4), "shared": torch.zeros(2, 3, 4, 4)},
    )
    bench = Paced(step=step, disturbances=disturbances)
    grid = dataclasses.replace(SPEC, num_steps=8)
    name = table._as_slow(bench, "shared", grid, lambda spec: 0.05 * spec.num_steps, TRIES)
    assert bench.asked == asked
    found = table.measurements[name]
    assert name == steps_name(table.schedules[name].spec)
    assert 0.4 <= found.seconds <= 0.4 + 2 * step


def test_on_a_busy_machine_rows_are_compared_by_their_parts() -> None:
    """A trajectory that other work slowed down takes as long as another one of its cost."""
    costs = Costs(unit="seconds", encoder=0.04, decoder=0.01, forecast=0.0, evaluation=0.0, conditions="by the test")
    ten = Schedule.full(SamplingSpec(num_steps=10))
    schedules = {"unshared": FULL, "shared": SHARED, "10 Euler steps": ten}
    parts = {name: costs.of(schedule) for name, schedule in schedules.items()}
    rows = {name: row(name, seconds, schedules[name].spec.num_steps) for name, seconds in parts.items()}
    table = Table(measurements=rows, schedules=schedules, latents={})
    assert (table.disturbance(costs), table.paces(costs)) == (pytest.approx(0), pytest.approx(parts))
    measured = 1.2 * parts["shared"]
    rows["shared"] = row("shared", measured)
    assert table.paces(costs)["shared"] == measured
    told_of = Told(schedules=schedules, measurements=table.rows, limits={}, headline="shared")
    assert "measured to take at least as long" in equal_time(told_of)  # type: ignore[arg-type]
    rows["shared"] = row("shared", 2 * parts["shared"])
    assert table.paces(costs) == pytest.approx(parts)
