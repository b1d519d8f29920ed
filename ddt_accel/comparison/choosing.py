"""What each method enters with: the best of the settings and grids that a cost affords, by images that nothing is
reported on."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from torch import Tensor

from ddt_accel.artifacts import checksum
from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.resample import POINTS, resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import NumericsError
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.rivals.rival import Rival, Variant
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics
from ddt_accel.spec import SamplingSpec

# What shares does so on the calibrated grid and on others, of so many times the steps that a cost affords without
# sharing, by the calibrated integrator and by this one.
MULTIPLES, INTEGRATOR = (1.3, 1.8, 2.6, 4.0), "ab2"
# It is worth a look where the encoder runs twice at least.
FEWEST = 2
# On how many images the first look is, and how many settings get a second one.
SCREENED_ON, SURVIVORS = 2, 3
# How often grids and settings take turns, and how many settings begin.
TURNS, BEGINNING = 2, 3
# Settings, and the schedule that they give.
Candidate = tuple[str, Schedule]


@dataclass(frozen=True)
class Entry:
    """What a method enters with at a cost; `promise` is its mean dB on the images that it was chosen by."""

    name: str
    source: str
    settings: str
    schedule: Schedule
    promise: float


class Chooser:
    """Chooses by how far from `ends` [B, C, H, W] schedules end.

    Costs are in terms of the calibrated trajectory unshared. With `own_grid` what shares does so on the calibrated grid
    alone, for `ends` that belong to it.
    """

    def __init__(
        self,
        backend: Backend,
        calibration: Calibration,
        costs: Costs,
        images: ImageRange,
        ends: Tensor,
        batch_size: int,
        *,
        own_grid: bool,
    ) -> None:
        self.backend, self.calibration, self.images, self.batch_size = backend, calibration, images, batch_size
        self._costs, self.unit = costs, costs.of(Schedule.full(calibration.spec))
        self._ends, self._own_grid = ends, own_grid
        self._variants: dict[tuple[str, str], list[Variant]] = {}
        self._largest_of: dict[tuple[int, float], Schedule | None] = {}
        self._seen: dict[tuple[str, int], float] = {}

    def cost(self, schedule: Schedule) -> float:
        return self._costs.of(schedule) / self.unit

    def decibels(self, schedule: Schedule, count: int | None = None) -> float:
        """The mean over the images or the first of them, −∞ where any of them leaves the finite numbers."""
        images, ends = self.images, self._ends
        if count is not None and count < images.count:
            images, ends = replace(images, stop=images.first + count), ends[:count]
        key = checksum(schedule.document()), images.count
        if key not in self._seen:
            try:
                own = sample_images(self.backend, schedule, images, self.calibration.latent_shape, self.batch_size)
                self._seen[key] = float(latent_decibels(own, ends).mean())
            except NumericsError:
                self._seen[key] = -math.inf
        return self._seen[key]

    def choose(self, rival: Rival, cost: float) -> Entry | None:
        """The best that a rival has for at most that cost, None where it has nothing as cheap.

        Grids and settings are searched in turns by a first look on few images: some settings on every grid, all of them
        on the best grid, the best of these on every grid again. The best by that are told apart on all images.
        """
        grids = [(statistics.spec, self._of(rival, statistics)) for statistics in self.grids(rival, cost)]
        if not rival.shares:
            found = [one for spec, variants in grids for one in self._affordable(variants, spec, cost)]
        else:
            found = [one for spec, variants in grids for one in self._affordable(_some(variants), spec, cost)]
            for _ in range(TURNS):
                if (best := max(found, key=self._screened, default=None)) is None:
                    break
                for spec, variants in grids:
                    settled = spec == best[1].spec
                    chosen = [one for one in variants if settled or one.settings == best[0]]
                    found += self._affordable(chosen, spec, cost)
        told_apart = sorted({checksum(one[1].document()): one for one in found}.values(), key=self._screened)
        entries = [self.entry(rival.name, rival.source, *one) for one in told_apart[-SURVIVORS:]]
        return max(filter(None, entries), key=lambda entry: entry.promise, default=None)

    def entry(self, name: str, source: str, settings: str, schedule: Schedule) -> Entry | None:
        """None where the schedule leaves the finite numbers."""
        promise = self.decibels(schedule)
        return Entry(name, source, settings, schedule, promise) if math.isfinite(promise) else None

    def _screened(self, candidate: Candidate) -> float:
        return self.decibels(candidate[1], SCREENED_ON)

    def _affordable(self, variants: list[Variant], spec: SamplingSpec, cost: float) -> list[Candidate]:
        """What each variant has of the most encoder runs that the cost affords."""
        found = []
        for variant in variants:
            key = id(variant), cost  # variants stay, see `_of`
            if key not in self._largest_of:
                self._largest_of[key] = self._largest(variant, cost, spec.num_evaluations)
            if (schedule := self._largest_of[key]) is not None:
                found.append((variant.settings, schedule))
        return found

    def _of(self, rival: Rival, statistics: Statistics) -> list[Variant]:
        key = rival.name, checksum(statistics.spec.document())
        if key not in self._variants:
            self._variants[key] = rival.variants(statistics)
        return self._variants[key]

    def grids(self, rival: Rival, cost: float) -> list[Statistics]:
        """What is known on the grids that a rival may take at a cost."""
        calibration, own = self.calibration, self.calibration.spec
        if not rival.shares or self._own_grid:
            return [calibration]
        fewest = bisect_right(range(1, own.num_steps), cost, key=lambda n: self._unshared(self._on(n, own.solver)))
        steps = {round(multiple * max(1, fewest)) for multiple in MULTIPLES}
        steps = {n for n in steps if POINTS <= n < own.num_steps} | {own.num_steps}
        solvers = dict.fromkeys((own.solver, INTEGRATOR)) if own.num_steps >= POINTS else (own.solver,)
        specs = [self._on(n, solver) for n in sorted(steps, reverse=True) for solver in solvers]
        worth_it = [spec for spec in specs if spec.num_evaluations > FEWEST and self._pays(spec, cost)]
        return [calibration if spec == own else resample(calibration, spec) for spec in worth_it]

    def _pays(self, spec: SamplingSpec, cost: float) -> bool:
        """Whether the cost affords a few runs of the encoder on a grid, and not all."""
        return self.cost(Schedule.uniform(spec, FEWEST)) <= cost < self._unshared(spec)

    def _on(self, steps: int, solver: str) -> SamplingSpec:
        own = self.calibration.spec
        return (
            own
            if (steps, solver) == (own.num_steps, own.solver)
            else own.on_grid(steps, timeshift=own.timeshift, solver=solver)
        )

    def _unshared(self, spec: SamplingSpec) -> float:
        return self.cost(Schedule.full(spec))

    def _largest(self, variant: Variant, cost: float, most: int) -> Schedule | None:
        """Of a variant's schedules of up to so many encoder runs that of the most that the cost affords."""
        best, low, high = None, 1, most
        while low <= high:
            runs = (low + high) // 2
            schedule = variant.of(runs)
            if schedule is None or self.cost(schedule) <= cost:
                best, low = schedule or best, runs + 1
            else:
                high = runs - 1
        return best


def _some(variants: list[Variant]) -> list[Variant]:
    """A few of them, from first to last."""
    last = len(variants) - 1
    return [variants[k] for k in sorted({round(part * last / (BEGINNING - 1)) for part in range(BEGINNING)}) if k >= 0]
