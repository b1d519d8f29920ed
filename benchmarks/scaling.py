"""How the time of a trajectory grows with batch, steps, resolution and budget, against the model K·t_enc + N·t_dec.

Starting from one setting, one quantity is varied at a time. t_enc and t_dec are measured by themselves, in turn with
the trajectory; a ratio of 1 says that a trajectory is its networks and nothing else. Guided at all steps.

Usage: python benchmarks/scaling.py [--models cifar10 | xl2-256,xl2-512] [--device cuda] [--batches 1,2,4,8,16,32,64]
           [--steps 25,50,100,250] [--budgets 1,2,5,10,25,50] [--batch 8] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from parts import IN_A_ROW, as_run, rounds
from setting import conditions, network

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory

STEPS, BUDGET = 50, 10
Row = dict[str, float]


def row(
    backend: Backend, shape: tuple[int, int, int], setting: tuple[int, int, int], within: float, *, least: int = 5
) -> Row:
    """One setting of batch, steps and budget: seconds of a trajectory and, in turn with it, of its parts, `least`
    times or more."""
    (batch, steps, budget), device = setting, backend.device
    spec = SamplingSpec(num_steps=steps, guidance=2.0, guidance_interval=(-1.0, 2.0))
    noise = draw_noise(shape, seed=0, indices=range(batch))
    labels = draw_labels(backend.config.num_classes, seed=0, indices=range(batch))
    trajectory = Trajectory(backend, compile_program(Schedule.uniform(spec, budget)), noise, labels)
    session, rows = trajectory.session, slice(0, 2 * batch)

    def whole() -> None:
        trajectory.start(noise, labels)
        trajectory.run()

    whole()
    parts = {
        "encoder": as_run(lambda: [session.encode(0, rows) for _ in range(IN_A_ROW)], device),
        "decoder": as_run(lambda: [session.decode(0, rows) for _ in range(IN_A_ROW)], device),
    }
    taken = rounds({"seconds": whole, **parts}, device, within, least=least)
    for name in parts:
        taken[name] = [one / IN_A_ROW for one in taken[name]]
    model = [budget * e + steps * d for e, d in zip(taken["encoder"], taken["decoder"], strict=True)]
    ratio = statistics.median(whole / parts for whole, parts in zip(taken["seconds"], model, strict=True))
    return {
        "batch": batch, "steps": steps, "budget": budget, "ratio": ratio, "model": statistics.median(model),
        **{name: statistics.median(values) for name, values in taken.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="cifar10")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--steps", default="25,50,100,250")
    parser.add_argument("--budgets", default="1,2,5,10,25,50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    batches, steps, budgets = (
        [int(part) for part in text.split(",")] for text in (arguments.batches, arguments.steps, arguments.budgets)
    )
    settings = [(batch, STEPS, BUDGET) for batch in batches]
    settings += [(arguments.batch, count, max(1, count // 5)) for count in steps if count != STEPS]
    settings += [(arguments.batch, STEPS, budget) for budget in budgets if budget != BUDGET]
    found: dict[str, list[Row]] = {}
    for name in arguments.models.split(","):
        model = network(name, arguments.device)
        backend = CompiledBackend(model)
        told = conditions(model, arguments.device, backend.name, "guided at all steps, held")
        print(f"\n{told}\n\n| batch | N | K | encoder, ms | decoder, ms | ms per image | K·t_enc + N·t_dec | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        found[told] = []
        for setting in settings:
            one, (batch, count, budget) = row(backend, latent_shape_of(model), setting, arguments.seconds), setting
            found[told].append(one)
            print(
                f"| {batch} | {count} | {budget} | {1e3 * one['encoder']:.2f} | {1e3 * one['decoder']:.2f} | "
                f"{1e3 * one['seconds'] / batch:.2f} | {1e3 * one['model'] / batch:.2f} | {one['ratio']:.3f} |",
                flush=True,
            )
            if arguments.out:
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
