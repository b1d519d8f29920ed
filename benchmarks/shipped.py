"""How far from the converged trajectory the shipped fits end, beside as many even steps of AB2 as cost no more.

On images that nothing was calibrated on, fitted to or chosen on; means in dB with 95 % intervals, gains paired. The
limit and the even steps of a schedule with a final step end in it, too. Prints its conditions and a Markdown table;
writes JSON.

Usage: python benchmarks/shipped.py [--images N] [--reference-steps N] [--out FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import cache
from pathlib import Path

from numpy.typing import NDArray
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule, load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.evaluation.converged import converged
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels
from ddt_accel.networks.ddt import latent_shape_of
from ddt_accel.networks.device import processor
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import shipped_schedules
from ddt_accel.solver.split import encoder_runs

MODEL, SEED, BATCH = "cifar10", 7, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--reference-steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model = load_model(MODEL)
    backend, shape = TorchBackend(model), latent_shape_of(model)
    images = ImageRange(seed=SEED, first=0, stop=arguments.images)
    costs = counted_costs(model.config, shape)
    fine = SamplingSpec(num_steps=50, solver="ab2")
    unit = costs.of(Schedule.full(fine))

    def ends(schedule: Schedule) -> Tensor:
        return sample_images(backend, schedule, images, shape, BATCH)

    @cache
    def limit(final: float | None) -> Tensor:
        return ends(converged(dataclasses.replace(fine, last_step=final), arguments.reference_steps))

    @cache
    def even(steps: int, final: float | None) -> NDArray:
        ended = converged(dataclasses.replace(fine, last_step=final), steps)  # of second order, too
        return latent_decibels(ends(ended), limit(final))

    def shown(values: NDArray, sign: str = "") -> tuple[Interval, str]:
        found = interval(values)
        assert found is not None
        return found, f"{found.mean:{sign}.1f} ({found.low:{sign}.1f} … {found.high:{sign}.1f})"

    conditions = (
        f"{MODEL}, {arguments.images} images of seed {SEED}, dB to {arguments.reference_steps} AB2 steps; {processor()}"
    )
    print(conditions, end="\n\n")
    print("| schedule | steps | encoder runs | cost | fitted | AB2 | gain |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name in (name for name in shipped_schedules() if name.startswith(f"{MODEL}-fitted-")):
        schedule = Schedule.load(name)
        final, cost = schedule.spec.final_step, costs.of(schedule)
        # A grid with a final step takes two at least.
        steps = max(
            k for k in range(2, 50) if costs.of(Schedule.full(fine.on_grid(k, timeshift=1.0, solver="ab2"))) <= cost
        )
        fitted, plain = latent_decibels(ends(schedule), limit(final)), even(steps, final)
        (own, told), (gain, gained) = shown(fitted), shown(fitted - plain, "+")
        runs = f"{schedule.budget} + {encoder_runs(schedule) - schedule.budget}"
        print(
            f"| `{name}` | {schedule.spec.num_steps} | {runs} | {cost / unit:.3f} | {told} | {steps} steps: "
            f"{plain.mean():.1f} | {gained} |",
            flush=True,
        )
        rows.append(
            {
                "schedule": name, "cost": cost / unit, "fitted": dataclasses.asdict(own), "steps": steps,
                "ab2": float(plain.mean()), "gain": dataclasses.asdict(gain),
            }
        )  # fmt: skip
    euler = latent_decibels(ends(Schedule.full(dataclasses.replace(fine, solver="euler"))), limit(None))
    beside = {"50 AB2": shown(even(50, None)), "50 Euler": shown(euler)}
    print("\n" + "; ".join(f"{name} steps: {told}" for name, (_, told) in beside.items()))
    if arguments.out:
        unfitted = {name: dataclasses.asdict(known) for name, (known, _) in beside.items()}
        content = {"conditions": conditions, "rows": rows, "beside": unfitted}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
