"""Does sharing pay where the decoder is nearly free? What each way reaches at the same cost, on a network of a family.

At every cost: fewer steps without sharing, of the best of several integrators at the best of several time shifts;
evenly spread refreshes, and those of the published program, both held; the default, solved and forecast; and fitted
schedules without sharing and with it. dB to the reference solution with 95 % intervals, on images that nothing was
calibrated on, fitted to or chosen on. Costs are counted multiply-adds, in terms of the calibrated trajectory unshared;
beside them stand milliseconds an image, measured in turns by the compiled networks and by ONNX Runtime, since
multiplying is not all that takes time. Prints its conditions and a Markdown table; writes JSON.

Usage: python benchmarks/families.py [--model NAME] [--cost C …] [--images N] [--iterations N] [--keep FOLDER]
           [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from ddt_accel import SamplingSpec, Schedule, calibrate, export, load_model, open_backend
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.fidelity import Interval
from ddt_accel.evaluation.judge import Judge, Plan, gain
from ddt_accel.evaluation.plan import make_plans
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.search import QUICK
from ddt_accel.networks.device import processor
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.solve import solve_curve
from ddt_accel.stages import silent

# Of 50 steps of second order: what anyone would sample by.
SPEC = SamplingSpec(num_steps=50, solver="ab2")
COSTS = (0.08, 0.12, 0.16, 0.2, 0.3)
SEED, BATCH, TIMED = 12, 16, 32
WAYS = ("fewer steps", "uniform, held", "published, held", "default", "fitted, unshared", "fitted, shared")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--cost", type=float, nargs="+", default=list(COSTS))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--samples", type=int, default=64, help="Trajectories to calibrate on.")
    parser.add_argument("--iterations", type=int, help="Gradient steps of a fit.")
    parser.add_argument("--keep", type=Path, help="Folder for fitted schedules, and for fits that go on when killed.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    # Compiled, since by PyTorch as it is a PixNerd's decoder takes longer, 2.6 times at XL; in fp32, as judges are.
    backend, shape = CompiledBackend(model, precision="fp32"), latent_shape_of(model)
    costs = counted_costs(model.config, shape)
    calibration = calibrate(model, SPEC, num_samples=arguments.samples, batch_size=BATCH)
    spec = FitSpec() if arguments.iterations is None else FitSpec(iterations=arguments.iterations)
    joint = JointFit(model, calibration, costs, spec, backend=backend, search=QUICK, folder=arguments.keep)

    def fitted(cost: float, shared: bool) -> Schedule | None:
        schedule = joint.fitted(cost=cost, shared=shared)
        if schedule is not None and arguments.keep is not None:
            schedule.save(arguments.keep / f"fitted-{schedule.budget}of{schedule.spec.num_steps}.json")
        return schedule

    rows = make_plans(
        backend,
        calibration,
        costs,
        arguments.cost,
        latent_shape=shape,
        num_images=arguments.images,
        seed=SEED,
        batch_size=BATCH,
        on_stage=silent,
        fitted=fitted,
    )
    # The images that `make_plans` reports on, for what it has no row of.
    reporting = ImageRange(seed=SEED, first=arguments.images, stop=2 * arguments.images)
    judge = Judge(backend, calibration, costs, reporting, BATCH)
    solved = [schedule for schedule, _ in solve_curve(calibration, SPEC.num_evaluations)]
    uniform = [Schedule.uniform(SPEC, budget) for budget in range(1, SPEC.num_evaluations + 1)]
    found: dict[float, dict[str, Plan | None]] = {}
    for row in rows:
        found[row.cost] = {
            "fewer steps": row.unshared,
            "uniform, held": _dearest(judge, uniform, row.cost),
            "published, held": row.published,
            "default": _dearest(judge, solved, row.cost),
            "fitted, unshared": row.fitted_unshared,
            "fitted, shared": row.fitted_shared,
        }
    times = _milliseconds(arguments.model, found)
    conditions = (
        f"{arguments.model}: {model.config.description}; {arguments.images} images of seed {SEED}; costs in counted "
        f"multiply-adds of {SPEC.num_steps} steps of {SPEC.solver} with CFG {SPEC.guided}; {processor()}"
    )
    print(conditions, end="\n\n")
    print("| cost | way | schedule | dB to the reference solution | over fewer steps | ms, compiled | ms, ONNX |")
    print("|---|---|---|---|---|---|---|")
    for cost, ways in found.items():
        for way in WAYS:
            if (plan := ways[way]) is not None:
                over = gain(plan, ways["fewer steps"])
                cells = [f"{plan.cost:.3f}", way, plan.name, _shown(plan.interval), _shown(over, "+") if over else "–"]
                cells += [f"{times[kind][cost, way]:.1f}" for kind in ("compiled", "onnx")]
                print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.out:
        _write(arguments.out, conditions, found, times)


def _dearest(judge: Judge, schedules: list[Schedule], cost: float) -> Plan | None:
    """The schedule of the most encoder runs that a cost affords."""
    affordable = [schedule for schedule in schedules if judge.cost(schedule) <= cost]
    return judge.measure(affordable[-1]) if affordable else None


def _milliseconds(model: str, found: dict[float, dict[str, Plan | None]]) -> dict[str, dict[tuple[float, str], float]]:
    """An image of every plan, all of a kind of backend measured in turns."""
    plans = {(cost, way): plan for cost, ways in found.items() for way, plan in ways.items() if plan is not None}
    network = load_model(model)
    shape = latent_shape_of(network)
    with tempfile.TemporaryDirectory() as folder:
        export(network, folder, format="onnx", sources=2)
        backends: dict[str, Backend] = {"compiled": CompiledBackend(network), "onnx": open_backend(folder)}
        taken = {}
        for kind, backend in backends.items():
            schedules = {f"{cost} {way}": plan.schedule for (cost, way), plan in plans.items()}
            measured, _ = measure(backend, schedules, latent_shape=shape, num_images=TIMED, seed=SEED, batch_size=BATCH)
            taken[kind] = dict(zip(plans, (1000 * one.seconds for one in measured), strict=True))
    return taken


def _shown(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.1f} ({interval.low:{sign}.1f} … {interval.high:{sign}.1f})"


def _write(
    path: Path, conditions: str, found: dict[float, dict[str, Plan | None]],
    times: dict[str, dict[tuple[float, str], float]],
) -> None:  # fmt: skip
    rows = [
        {
            "target": cost, "cost": plan.cost, "way": way, "schedule": plan.name, "encoder_runs": plan.schedule.budget,
            "db": plan.fidelity.tolist(), "ms": {kind: taken[cost, way] for kind, taken in times.items()},
        }
        for cost, ways in found.items()
        for way, plan in ways.items()
        if plan is not None
    ]  # fmt: skip
    path.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
