"""Does it pay to run a network narrow, beside sharing its encoder? What every way reaches at the same cost.

Networks that were fine-tuned from one checkpoint, beside it: at nested widths; with routers; complete and as long, the
control; and one narrow width alone. Each is sampled in fewer steps, shared, and fitted, those with several widths also
narrow throughout, or as their routers choose, at widths that are solved for, and those fitted. All are chosen on some
images and reported on others, in dB to the limit of the same checkpoint's complete network, for fine-tuned weights lead
elsewhere; a narrow checkpoint's limit is its own. What all have in common is the Fréchet distance to real pictures
(`--data`, extra `fid`), with 95 % intervals of its difference to the first way, in pairs. Costs are counted multiply-
adds, of 50 unshared steps of the checkpoint; milliseconds are of compiled networks, batch by batch in turn. Before,
what a width takes of the complete networks' time, and a trajectory with widths of the sum of its parts. What is done is
kept in `--folder`.

Usage: python benchmarks/dynamic.py [--nested RUN] [--routed RUN] [--base cifar10] [--control RUN] [--narrow RUN]
           [--cost C …] [--images N] [--iterations N] [--data PICTURES] [--pictures N] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.artifacts import checksum
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.resample import resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.candidates import INTEGRATORS, SHIFTS, finest, with_widths
from ddt_accel.evaluation.costs import Costs, counted_of
from ddt_accel.evaluation.fidelity import Interval, interval, to_uint8
from ddt_accel.evaluation.judge import Judge, Plan
from ddt_accel.evaluation.timing import timed_costs
from ddt_accel.fitting.fit import Fitter
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.search import QUICK
from ddt_accel.networks.device import processor
from ddt_accel.networks.dynamic.slicing import narrowable
from ddt_accel.networks.dynamic.widths import widths_by_quarter
from ddt_accel.networks.routes import QUARTERS
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.solve import Statistics, solve_curve

SPEC = SamplingSpec(num_steps=50, solver="ab2")
GRIDS = (6, 8, 10, 12, 14, 17, 20, 25, 30, 40, 50)
SEED, BATCH, TIMED, ROUNDS = 12, 16, 16, 4
FITTED_FROM = 2  # the best of the schedules with widths are fitted


class Contestant:
    """A network, its statistics, and its limits on the images to choose on and on those to report on."""

    def __init__(self, name: str, checkpoint: str, images: int, samples: int, folder: Path, unit: float | None) -> None:
        self.name, self.folder = name, folder
        self.model: SplitNetwork = load_model(checkpoint)
        self.shape = latent_shape_of(self.model)
        assert self.model.source is not None
        kept = folder / f"calibration-{self.model.source.sha256[:12]}-{samples}.safetensors"
        if not kept.exists():
            calibrate(self.model, SPEC, num_samples=samples, batch_size=BATCH).save(kept)
        self.calibration = Calibration.load(kept)
        self.backend = CompiledBackend(self.model, precision="fp32")
        self.costs: Costs = counted_of(self.backend, self.shape)
        self.unit = unit or self.costs.of(Schedule.full(SPEC))
        self.choosing, self.reporting = (
            Judge(
                self.backend, self.calibration, self.costs, ImageRange(seed=SEED, first=first, stop=first + images),
                BATCH, cache=folder,
            )
            for first in (0, images)
        )  # fmt: skip

    def cost(self, schedule: Schedule) -> float:
        """In terms of the checkpoint that all began with."""
        return self.costs.of(schedule) / self.unit

    def best(self, schedules: list[Schedule], cost: float, count: int = 1) -> list[Plan]:
        """Those that end closest, of what is affordable."""
        plans = [self.choosing.measure(one) for one in schedules if self.cost(one) <= cost * (1 + 1e-9)]
        return sorted(plans, key=lambda plan: -plan.mean)[:count]

    def fewer(self, cost: float, width_at: Callable[[float], float] = lambda time: 1.0) -> list[Schedule]:
        """The best integrator and shift at the most steps that a cost affords, networks at the width of the time."""

        def unshared(spec: SamplingSpec) -> Schedule:
            every = range(spec.num_evaluations)
            widths = {k: width for k in every if (width := width_at(float(spec.times[k]))) < 1}
            return replace(Schedule.full(spec), encoder_widths=widths, decoder_widths=widths)

        def price(spec: SamplingSpec) -> float:
            return self.cost(unshared(spec))

        def decibels(spec: SamplingSpec) -> float:
            return self.choosing.measure(unshared(spec)).mean

        unshifted = [grid for solver in INTEGRATORS for grid in finest(SPEC, solver, 1.0, price, cost)]
        if not unshifted:
            return []
        best = max(unshifted, key=decibels)
        shifted = [grid for shift in SHIFTS for grid in finest(SPEC, best.solver, shift, price, cost)]
        return [unshared(max([best, *shifted], key=decibels))]

    def fitted(self, schedule: Schedule, fit: FitSpec) -> Schedule:
        """From a schedule as it is, or from what an earlier run of this script has made of it."""
        state = self.folder / f"state-{checksum(schedule.document())[:12]}.safetensors"
        return Fitter(self.model, schedule, fit, state_path=state, cache=self.folder).run().schedule

    def throughout(self) -> dict[str, Callable[[float], float]]:
        """The ways to run narrow without sharing: as routers choose, else at each width."""
        config = narrowable(self.model.config)
        if config.block_routes:
            chosen = widths_by_quarter(config)
            return {"as routed": lambda time: chosen[min(int(QUARTERS * time), QUARTERS - 1)]}
        return {f"width {width:g} throughout": lambda time, width=width: width for width in self.backend.widths[1:]}

    def grids(self) -> list[Statistics]:
        return [resample(self.calibration, SPEC.on_grid(n, timeshift=1.0, solver="ab2")) for n in GRIDS]

    def shared(self, cost: float) -> list[Schedule]:
        """The default of every grid, of the most encoder runs that a cost affords."""
        found = []
        for statistics in self.grids():
            curve = [one for one, _ in solve_curve(statistics, statistics.spec.num_evaluations)]
            found += [one for one in curve if self.cost(one) <= cost][-1:]
        return found

    def widths(self, cost: float) -> list[Schedule]:
        """Those with widths, of every grid."""
        every = [with_widths(statistics, self.costs, cost * self.unit) for statistics in self.grids()]
        return [schedule for schedule in every if schedule is not None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """A way to sample at a cost: whose network, how, and the plan on the images that are reported on."""

    network: Contestant
    way: str
    plan: Plan

    @property
    def name(self) -> str:
        return f"{self.network.name}, {self.way}"


def ways_at(contestants: list[Contestant], cost: float, fit: FitSpec | None) -> list[Way]:
    found: list[Way] = []

    def add(network: Contestant, way: str, plans: list[Plan]) -> None:
        if plans:
            found.append(Way(network=network, way=way, plan=network.reporting.measure(plans[0].schedule)))
            print(f"cost {cost:g}: {found[-1].name}: {found[-1].plan.mean:.1f} dB", flush=True)

    for one in contestants:
        nested = len(one.backend.widths) > 1
        add(one, "fewer steps", one.best(one.fewer(cost), cost))
        add(one, "shared", one.best(one.shared(cost), cost))
        if fit is not None:
            joint = JointFit(
                one.model, one.calibration, one.costs, fit, backend=one.backend, search=QUICK, folder=one.folder
            )
            relative = cost * one.unit / one.costs.of(Schedule.full(SPEC))  # a fit's cost is its own network's
            add(
                one,
                "fitted",
                one.best([schedule for schedule in [joint.fitted(relative, shared=True)] if schedule], cost),
            )
        if nested:
            for name, width_at in one.throughout().items():
                add(one, f"{name}, fewer steps", one.best(one.fewer(cost, width_at), cost))
            with_widths = one.best(one.widths(cost), cost, FITTED_FROM)
            add(one, "shared with widths", with_widths)
            if fit is not None:
                fitted = [one.fitted(plan.schedule, fit) for plan in with_widths]
                add(one, "fitted with widths", one.best(fitted, cost))
    return found


def milliseconds(ways: list[Way]) -> list[float]:
    """An image of every way, by compiled networks in the fastest precision, all in turn."""
    backends = {id(one.network): CompiledBackend(one.network.model) for one in ways}
    taken = np.zeros((ROUNDS, len(ways)))
    for turn in range(ROUNDS):
        for place in np.roll(np.arange(len(ways)), turn):
            one = ways[place]
            (measured,), _ = measure(
                backends[id(one.network)], {one.name: one.plan.schedule},
                latent_shape=one.network.shape, num_images=TIMED, seed=SEED, batch_size=BATCH,
            )  # fmt: skip
            taken[turn, place] = 1000 * measured.seconds
    return [float(one) for one in np.median(taken, axis=0)]


def parts(nested: Contestant, cost: float) -> dict[str, float]:
    """What a width takes of the complete networks' time, and a trajectory with widths of the sum of its parts."""
    backend = CompiledBackend(nested.model)
    costs = timed_costs(backend, SPEC, nested.shape, BATCH, "here")
    found = {}
    for one in costs.narrow:
        found[f"encoder at width {one.width:g}"] = one.encoder / costs.encoder
        found[f"decoder at width {one.width:g}"] = one.decoder / costs.decoder
    (plan,) = nested.best(nested.widths(cost), cost)
    (measured,), _ = measure(
        backend, {"with widths": plan.schedule},
        latent_shape=nested.shape, num_images=ROUNDS * TIMED, seed=SEED, batch_size=BATCH,
    )  # fmt: skip
    together = measured.encoder_seconds + measured.decoder_seconds + measured.forecast_seconds
    found["a trajectory with widths, of its parts"] = measured.seconds / together
    return found


def distances(ways: list[Way], data: Path, count: int, folder: Path) -> list[tuple[float, Interval | None]]:
    """Fréchet distances to real pictures, and the difference to the first way's with its 95 % interval."""
    from distribution import features

    from ddt_accel.distribution.bootstrap import influences, paired_difference
    from ddt_accel.distribution.frechet import frechet_distance, gaussian_of
    from ddt_accel.training.images import load_images

    pictures = load_images(data, size=ways[0].network.shape[1], split="test")
    chosen = np.random.default_rng(0).permutation(len(pictures.images))[:count]
    real = features(folder, "real", pictures.sha256, lambda start, stop: pictures.images[chosen[start:stop]], count)
    found = []
    for one in ways:
        backend = CompiledBackend(one.network.model)

        def drawn(start: int, stop: int, one: Way = one, backend: CompiledBackend = backend) -> NDArray[np.uint8]:
            images = ImageRange(seed=SEED + 1, first=start, stop=stop)
            return to_uint8(sample_images(backend, one.plan.schedule, images, one.network.shape, 25))

        identity = [backend.checkpoint_sha256, backend.name, one.plan.schedule.document(), SEED + 1]
        found.append(features(folder, one.name, identity, drawn, count))
    gaussian = gaussian_of(real)
    pulls = [influences(one, gaussian, real) for one in found]
    beside = [None, *(paired_difference(pull, pulls[0]) for pull in pulls[1:])]
    return [
        (
            float(frechet_distance(gaussian_of(one), gaussian)),
            less and Interval(mean=less.value, low=less.low, high=less.high),
        )
        for one, less in zip(found, beside, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="cifar10")
    parser.add_argument("--nested", help="fine-tuned from it with --dynamic nested")
    parser.add_argument("--routed", help="the same with --dynamic routers")
    parser.add_argument("--control", help="fine-tuned from it as it is, as long")
    parser.add_argument("--narrow", help="one width of the nested one, fine-tuned as long")
    parser.add_argument("--cost", type=float, nargs="+", default=[0.12, 0.18])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--samples", type=int, default=64, help="trajectories to calibrate on")
    parser.add_argument("--iterations", type=int, default=40, help="gradient steps of a fit; 0 leaves fits out")
    parser.add_argument("--data", type=Path, help="real pictures, as `ddt-accel train` takes them")
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path("ddt-accel-run/dynamic"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    named = {
        "base": arguments.base, "control": arguments.control, "static narrow": arguments.narrow,
        "routed": arguments.routed, "nested": arguments.nested,
    }  # fmt: skip
    if arguments.nested is None and arguments.routed is None:
        parser.error("give a network with several widths: --nested or --routed")
    contestants: list[Contestant] = []
    for name, checkpoint in named.items():
        if checkpoint is not None:
            unit = contestants[0].unit if contestants else None
            contestants.append(
                Contestant(name, checkpoint, arguments.images, arguments.samples, arguments.folder, unit)
            )
    conditions = (
        f"{arguments.base}: {contestants[0].model.config.description}; {arguments.images} images of seed {SEED}; costs "
        f"in counted multiply-adds of {SPEC.num_steps} steps of {SPEC.solver} with CFG {SPEC.guided}; {processor()}"
    )
    print(conditions, flush=True)
    several = len(contestants[-1].backend.widths) > 1  # routers may have left all on
    taken_by_width = parts(contestants[-1], max(arguments.cost)) if several else {}
    for name, share in taken_by_width.items():
        print(f"{name}: {share:.2f}", flush=True)
    fit = FitSpec(iterations=arguments.iterations) if arguments.iterations else None
    rows = []
    for cost in arguments.cost:
        ways = ways_at(contestants, cost, fit)
        taken = milliseconds(ways)
        far = distances(ways, arguments.data, arguments.pictures, arguments.folder) if arguments.data else None
        print(f"\n| way, cost {cost:g} | schedule | cost | dB to its limit | ms | to real pictures | less the first |")
        print("|---|---|---|---|---|---|---|")
        for place, one in enumerate(ways):
            plan, schedule = one.plan, one.plan.schedule
            schedule.save(arguments.folder / f"{cost:g}-{one.name.replace(' ', '-').replace(',', '')}.json")
            distance, less = far[place] if far else (None, None)
            rows.append({
                "target": cost, "network": one.network.name, "way": one.way, "schedule": plan.name,
                "cost": one.network.cost(schedule), "encoder_runs": schedule.budget,
                "encoder_widths": list(schedule.encoder_widths.values()),
                "decoder_widths": list(schedule.decoder_widths.values()), "db": plan.fidelity.tolist(),
                "ms": taken[place], "frechet": distance, "less": less and [less.low, less.high],
            })  # fmt: skip
            cells = [
                one.name,
                plan.name,
                f"{rows[-1]['cost']:.3f}",
                _shown(interval(plan.fidelity)),
                f"{taken[place]:.1f}",
            ]
            cells += ["–" if distance is None else f"{distance:.1f}", _shown(less, "+")]
            print(f"| {' | '.join(cells)} |", flush=True)
        if arguments.out:
            told = {
                "conditions": conditions,
                "parts": taken_by_width,
                "pictures": arguments.pictures if arguments.data else 0,
                "rows": rows,
            }
            arguments.out.write_text(json.dumps(told, indent=1) + "\n")


def _shown(found: Interval | None, sign: str = "") -> str:
    return "–" if found is None else f"{found.mean:{sign}.1f} ({found.low:{sign}.1f} … {found.high:{sign}.1f})"


if __name__ == "__main__":
    main()
