"""How far from the converged trajectory the shipped fits end, beside as many steps of AB2 as cost no more.

On images that nothing was calibrated on, fitted to or chosen on; means in dB with 95 % intervals, gains paired. Those
steps are even ones, and those at the time shift that is best on these very images. The limit and the steps beside a
schedule with a final step end in it, too. Prints its conditions and a Markdown table; writes JSON.

Usage: python benchmarks/shipped.py [--model NAME] [--images N] [--reference-steps N] [--out FILE]
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
from ddt_accel.evaluation.candidates import finest
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels
from ddt_accel.networks.device import processor
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged, second_order
from ddt_accel.schedule import shipped_schedules
from ddt_accel.solver.split import encoder_runs

SEED, BATCH = 11, 16
SHIFTS = (1.0, 1.25, 1.5, 1.7, 2.0, 2.4, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10", help="An embedded model.")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--reference-steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model = load_model(arguments.model)
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
    def plain(grid: SamplingSpec) -> NDArray:
        return latent_decibels(ends(second_order(grid)), limit(grid.final_step))

    def price(grid: SamplingSpec) -> float:
        return costs.of(second_order(grid))

    def shown(values: NDArray, sign: str = "") -> tuple[Interval, str]:
        found = interval(values)
        assert found is not None
        return found, f"{found.mean:{sign}.1f} ({found.low:{sign}.1f} … {found.high:{sign}.1f})"

    conditions = (
        f"{arguments.model}, {arguments.images} images of seed {SEED}, dB to {arguments.reference_steps} AB2 steps; "
        f"{processor()}"
    )
    print(conditions, end="\n\n")
    print("| schedule | steps | encoder runs | cost | fitted | AB2, even | gain | AB2, shifted | gain |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    loaded = {
        name: Schedule.load(name) for name in shipped_schedules() if name.startswith(f"{arguments.model}-fitted-")
    }
    for name, schedule in sorted(loaded.items(), key=lambda item: costs.of(item[1])):
        final, cost = schedule.spec.final_step, costs.of(schedule)
        fitted = latent_decibels(ends(schedule), limit(final))
        own_end = dataclasses.replace(fine, last_step=final)
        grids = [grid for shift in SHIFTS for grid in finest(own_end, "ab2", shift, price, cost)]
        beside = {"even": grids[0], "shifted": max(grids, key=lambda grid: plain(grid).mean())}
        own, told = shown(fitted)
        runs = f"{schedule.budget} + {encoder_runs(schedule) - schedule.budget}"
        cells = [f"`{name}`", schedule.spec.num_steps, runs, f"{cost / unit:.3f}", told]
        row: dict[str, object] = {"schedule": name, "cost": cost / unit, "fitted": dataclasses.asdict(own)}
        for way, grid in beside.items():
            gain, gained = shown(fitted - plain(grid), "+")
            shift = f" shift {grid.timeshift:g}," if way == "shifted" else ""
            cells += [f"{grid.num_steps} steps,{shift} {plain(grid).mean():.1f}", gained]
            row[way] = {
                "steps": grid.num_steps, "timeshift": grid.timeshift, "db": float(plain(grid).mean()),
                "gain": dataclasses.asdict(gain),
            }  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if final is None:
            row["gain_over_50_even"] = dataclasses.asdict(shown(fitted - plain(fine))[0])
        rows.append(row)
    euler = latent_decibels(ends(Schedule.full(dataclasses.replace(fine, solver="euler"))), limit(None))
    known = {"50 AB2": shown(plain(fine)), "50 Euler": shown(euler)}
    print("\n" + "; ".join(f"{name} steps: {told}" for name, (_, told) in known.items()))
    if arguments.out:
        unfitted = {name: dataclasses.asdict(found) for name, (found, _) in known.items()}
        content = {"conditions": conditions, "rows": rows, "beside": unfitted}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
