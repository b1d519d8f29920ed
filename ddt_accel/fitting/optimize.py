"""From a target to the best schedule here: planned, fitted, shipped and kept ones, all judged on the same images.

A time becomes a cost, in terms of the calibrated trajectory unshared, and the schedule of at most that cost that ends
closest to the reference solution is taken. A fidelity is looked for along a ladder of costs, and the cheapest schedule
that has it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ddt_accel.artifacts import checksum
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.evaluation.budgets import Target
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.judge import Judge, Plan, closest
from ddt_accel.evaluation.plan import choose_plans, fewer_steps, fewest_steps
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.search import REVISION, STEPS
from ddt_accel.schedule import Schedule
from ddt_accel.stages import OnStage

# What a trajectory takes differs by some percent from one time to the next.
SPARE = 0.97
# Costs along the ladder grow by this factor.
RUNG = 1.25


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The schedule that was chosen, and what it was chosen from: the best with sharing and without of at most `limit`,
    or the cheapest that are close enough.

    `met` is whether the target is, as far as the images tell that it was chosen on, and the costs.
    """

    best: Plan
    limit: float
    shared: Plan | None
    unshared: Plan | None
    met: bool

    @property
    def others(self) -> dict[str, Plan]:
        """The best of the other kind, by what it is called beside the one that was chosen."""
        kinds = {"best with sharing": self.shared, "best without sharing": self.unshared}
        return {
            name: plan
            for name, plan in kinds.items()
            if plan is not None and plan.schedule.shares != self.best.schedule.shares
        }


class Optimizer:
    """Chooses by the images of `judge` among plans, fits of `joint` and `known` schedules.

    With `thorough` all plans are tried and fits go down gradients; without, fits are in closed form alone. Schedules
    that were found are kept in `folder`, so that what was interrupted continues. `on_stage` is called with what comes
    next and how many steps it takes, and returns what to call after each.
    """

    def __init__(
        self, judge: Judge, joint: JointFit, *, thorough: bool, known: Sequence[Schedule], folder: Path,
        on_stage: OnStage,
    ) -> None:  # fmt: skip
        self.judge, self.joint, self.thorough, self.known = judge, joint, thorough, known
        self.folder, self.on_stage = folder, on_stage

    @property
    def least(self) -> float:
        """The cost of the fewest steps that are searched."""
        spec = self.judge.calibration.spec
        fewest = spec.on_grid(min(STEPS[0], spec.num_steps), timeshift=spec.timeshift, solver="ab2")
        return self.judge.cost(Schedule.full(fewest))

    def choose(self, target: Target) -> Choice:
        """The best schedule for one target: a time, or a fidelity to the reference solution."""
        if target.psnr is not None:
            return self._as_close(target.psnr)
        if target.milliseconds is not None:
            limit = target.milliseconds / 1000 / self.judge.unit
        elif target.speedup is not None:
            limit = 1 / target.speedup
        else:
            raise ConfigError("There is nothing to choose for; give a time, a speed-up or a fidelity.")
        cost = self._spared(limit)
        plans = self._plans(cost, thorough=self.thorough)
        best = closest(plans)
        if best is None:
            raise ConfigError(f"There is no schedule of cost {cost:.3g}; calibrate with more steps.")
        return self._chosen(best, plans, cost, met=limit >= self.least)

    def once_more(self, first: Choice, costs: Costs, seconds: float) -> Choice:
        """What to take instead of a choice that turned out too slow: the best of at most so many seconds an image, by
        the costs that were found meanwhile.

        Chosen among all that was measured, fewer steps, and one more find of the first one's kind: as little is
        searched and fitted again as can be.
        """
        self.judge.reprice(costs)
        self.joint.reprice(costs)
        limit = seconds / self.judge.unit
        cost = self._spared(limit)
        fewer_steps(self.judge, cost, self.on_stage)
        found = self._found(cost, shared=first.best.schedule.shares, gradients=self.thorough)
        if found is not None:
            self.judge.measure(found)
        plans = [plan for plan in self.judge.plans if plan.cost <= cost]
        best = closest(plans)
        return first if best is None else self._chosen(best, plans, cost, met=limit >= self.least)

    def _spared(self, limit: float) -> float:
        """The cost to search for; a little more, so that what costs just that is not lost to rounding."""
        return min(1.0, max(SPARE * limit, self.least)) * (1 + 1e-9)

    def _as_close(self, psnr: float) -> Choice:
        """The cheapest that is at least that close, beside the cheapest of the other kind that is."""
        rungs = 1 + math.ceil(math.log(1 / self.least) / math.log(RUNG)) if self.least < 1 else 1
        ladder = [max(self.least, RUNG ** (k + 1 - rungs)) * (1 + 1e-9) for k in range(rungs)]
        low, high = 0, len(ladder)  # the first rung that has it lies between
        while low < high:
            middle = (low + high) // 2
            if _cheapest(self._plans(ladder[middle], thorough=False), psnr) is None:
                low = middle + 1
            else:
                high = middle
        if self.thorough:  # what gradients add may do with less
            low = min(low, len(ladder) - 1)
            while _cheapest(self._plans(ladder[low], thorough=True), psnr) is not None and low > 0:
                low -= 1
            if _cheapest(self._plans(ladder[low], thorough=True), psnr) is None:
                low += 1
        cost = ladder[min(low, len(ladder) - 1)]
        # Rungs are far apart, and what is found at one costs about as much: fewer steps may do with less.
        plans = self._plans(cost, thorough=self.thorough) + fewest_steps(self.judge, psnr, self.on_stage)
        best = _cheapest(plans, psnr)
        if best is None:
            nearest = closest(plans)
            assert nearest is not None
            return self._chosen(nearest, plans, cost, met=False)
        return self._chosen(best, plans, cost, met=True, among=lambda own: _cheapest(own, psnr) or closest(own))

    def _chosen(
        self, best: Plan, plans: list[Plan], limit: float, *, met: bool,
        among: Callable[[list[Plan]], Plan | None] = closest,
    ) -> Choice:  # fmt: skip
        """The choice beside the best with sharing and without, as `among` takes them."""
        shared, unshared = (among([plan for plan in plans if plan.schedule.shares is kind]) for kind in (True, False))
        return Choice(best=best, limit=limit, shared=shared, unshared=unshared, met=met)

    def _plans(self, cost: float, *, thorough: bool) -> list[Plan]:
        """The best plans of at most that cost, of every kind."""
        if thorough:
            plans = choose_plans(self.judge, [cost], self.on_stage, self._fitted)[0].plans
        else:
            fewer = fewer_steps(self.judge, cost, self.on_stage)
            found = [self._found(cost, shared=shared, gradients=False) for shared in (False, True)]
            plans = [fewer] if fewer is not None else []
            plans += [self.judge.measure(schedule) for schedule in found if schedule is not None]
        kept = [schedule for schedule in self.known if self.judge.cost(schedule) <= cost]
        done = self.on_stage("measuring schedules that are there", len(kept))
        for schedule in kept:
            plans.append(self.judge.measure(schedule))
            done()
        return plans

    def _fitted(self, cost: float, shared: bool) -> Schedule | None:
        return self._found(cost, shared=shared, gradients=True)

    def _found(self, cost: float, *, shared: bool, gradients: bool) -> Schedule | None:
        """The best fit of at most that cost, as it was kept or found now."""
        joint = self.joint
        content = {
            "calibration": self.judge.calibration.sha256,
            # Not the costs themselves, which are measured again: what is found so is held against the limit.
            "costs": [self.judge.costs.unit, self.judge.backend.name],
            "cost": f"{cost:.2g}",
            "shared": shared,
            "gradients": gradients,
            "fit": asdict(joint.spec),
            "search": [REVISION, asdict(joint.search)],
        }
        path = self.folder / f"optimized-{checksum(content)[:16]}.json"
        if path.exists():
            try:
                kept = Schedule.load(path)
                if self.judge.cost(kept) <= cost / SPARE:  # costs that were measured since may differ so much
                    return kept
            except ArtifactError:
                pass  # damaged: it is made anew below
        way = joint.fitted if gradients else joint.closed
        schedule = way(cost, shared=shared)
        if schedule is not None:
            schedule.save(path)
        return schedule


def _cheapest(plans: list[Plan], psnr: float) -> Plan | None:
    """The cheapest of the plans that are as close, with all of its interval."""
    return min((plan for plan in plans if plan.interval.low >= psnr), key=lambda plan: plan.cost, default=None)


def comparable(schedule: Schedule, calibration: Calibration) -> bool:
    """Whether a schedule is for the checkpoint of a calibration, and leads where its sampler does, with no more encoder
    runs."""
    own, spec = schedule.spec, calibration.spec
    return (
        schedule.checkpoint_sha256 == calibration.checkpoint_sha256
        and schedule.guide_sha256 == calibration.guide_sha256
        and own.solver != "sde"
        and own.aim == spec.aim
        and schedule.budget <= spec.num_evaluations
    )
