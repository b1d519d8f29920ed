"""Seconds per image beside what a user would run instead: the published implementation, shared or not, and fewer steps.

The same weights, the same noise, the same sampling, one batch after the other through all contestants in turn, in one
process. The published implementation is run as it is from a clone of github.com/MCG-NJU/DDT: its own network and its
own sampler, given the refresh steps that its dynamic program finds from our calibration (its own needs a GPU), eager
and with `--compile` under torch.compile: as in its own evaluation under bf16 autocast where the hardware has it, on a
CPU in fp32, too. Ours are the compiled backend, in bf16 where the hardware has it, and on a CPU ONNX Runtime in fp32;
fewer steps are as many as the default schedule's multiply-adds pay for. Also prints how much of our time the measured
parts leave unexplained, of calls that are waited for one by one.

Usage: python benchmarks/peers.py --published CLONE [--model NAME] [--device cuda] [--batch 8] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from setting import conditions, network
from torch import Tensor
from torch.utils._pytree import tree_map

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, export, open_backend, sample
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.evaluation.benchmark import Clock, TimedBackend
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.fidelity import latent_decibels, psnr, to_images
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.device import supports_bf16, synchronize
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.solver.solve import PUBLISHED, solve_curve

SEED = 1
WARM_UP = 2  # rounds, in the second of which trajectories become CUDA graphs
Sampler = Callable[[Tensor, Tensor], Tensor]


def published_network(
    clone: Path, model: DDT, *, compiled: bool = False, mode: str | None = None, bf16: bool = False
) -> Any:
    """Its network with our weights, in bfloat16 where asked for; compiled by `mode` of torch.compile."""
    sys.path.insert(0, str(clone))
    from src.models.denoiser import decoupled_improved_dit

    device = model.final_layer.linear.weight.device
    network: Any = decoupled_improved_dit.DDT(**model.config.essence).to(device).eval()
    network.load_state_dict(model.state_dict())
    network = network.to(torch.bfloat16 if bf16 else torch.float32)
    if not compiled:
        return network
    network = torch.compile(network, mode=mode)
    if mode != "reduce-overhead":
        return network

    def kept(*given: Any, **named: Any) -> Any:  # a CUDA graph writes over what it gave before
        return tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, network(*given, **named))

    return kept


def published(network: Any, model: DDT, schedule: Schedule, *, autocast: bool) -> Sampler:
    """Its sampler with the schedule's refresh steps."""
    from src.diffusion.base.guidance import simple_guidance_fn
    from src.diffusion.flow_matching.scheduling import LinearScheduler
    from src.diffusion.stateful_flow_matching.sharing_sampling import EulerSampler

    config, spec, device = model.config, schedule.spec, model.final_layer.linear.weight.device
    sampler = EulerSampler(
        scheduler=LinearScheduler(), guidance_fn=simple_guidance_fn, num_steps=spec.num_steps, guidance=spec.guidance,
        guidance_interval_min=spec.guidance_interval[0], guidance_interval_max=spec.guidance_interval[1],
        timeshift=spec.timeshift, last_step=spec.last_step, state_refresh_rate=spec.num_steps / (schedule.budget + 0.5),
    )  # fmt: skip
    sampler.recompute_timesteps = list(schedule.refresh_steps)

    @torch.inference_mode()
    def draw(noise: Tensor, labels: Tensor) -> Tensor:
        null = torch.full_like(labels, config.num_classes)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            drawn: Tensor = sampler(network, noise.to(device), labels.to(device), null.to(device))
        return drawn.float().cpu()

    return draw


def ours(backend: Backend, schedule: Schedule) -> Sampler:
    program, kept = compile_program(schedule), list[Trajectory]()

    def draw(noise: Tensor, labels: Tensor) -> Tensor:
        if kept:
            kept[0].start(noise, labels)
        else:
            kept.append(Trajectory(backend, program, noise, labels))
        kept[0].run()
        return kept[0].end().cpu()

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="a clone of github.com/MCG-NJU/DDT")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--engines", type=Path, help="a folder of TensorRT engines, to take part on a GPU")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model = network(arguments.model, arguments.device)
    shape, spec = latent_shape_of(model), SamplingSpec(num_steps=arguments.steps)
    calibration = calibrate(model, spec, num_samples=8)
    full = Schedule.full(spec)
    held = solve_curve(calibration, arguments.budget, PUBLISHED)[-1][0]
    solved = solve_curve(calibration, arguments.budget)[-1][0]
    on_gpu = arguments.device != "cpu"
    backends: dict[str, Backend] = {"compiled": CompiledBackend(model)}
    if arguments.engines:
        backends["TensorRT"] = open_backend(arguments.engines)
    if not on_gpu:
        folder = tempfile.TemporaryDirectory()
        export(model, folder.name)
        backends["ONNX Runtime"] = open_backend(folder.name)
    contestants: dict[str, Sampler] = {}
    bf16 = supports_bf16(torch.device(arguments.device))
    ways = [*([] if on_gpu else [("fp32", False)]), *([("bf16 autocast", False)] if bf16 else [])]
    ways += [("bf16 autocast" if bf16 else "fp32", True)] if arguments.compile else []
    for precision, compiled in ways:
        theirs = published_network(arguments.published, model, compiled=compiled)
        for name, schedule in (("unshared", full), ("its sharing", held)):
            contestants[f"published, {'compiled' if compiled else 'eager'}, {precision}, {name}"] = published(
                theirs, model, schedule, autocast=precision != "fp32"
            )
    first = next(iter(contestants))
    costs = counted_costs(model.config, shape)
    fewer = [Schedule.full(replace(spec, num_steps=steps)) for steps in range(1, arguments.steps)]
    fewer = [one for one in fewer if costs.of(one) <= costs.of(solved)] or fewer[:1]
    timed: dict[str, tuple[Sampler, Clock]] = {}  # apart from the contest: keeping time takes time on a GPU
    for backend_name, backend in backends.items():
        for name, schedule in {
            "unshared": full,
            f"{fewer[-1].budget} steps, unshared": fewer[-1],
            "its refresh steps, held": held,
            "default": solved,
        }.items():
            contestant = f"ours, {backend_name}, {name}"
            contestants[contestant] = ours(backend, schedule)
            clock = Clock()
            timed[contestant] = (ours(TimedBackend(backend, clock), schedule), clock)

    gaps: dict[str, list[float]] = {name: [] for name in timed}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    decibels: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(WARM_UP + arguments.rounds):
        images = range(turn * arguments.batch, (turn + 1) * arguments.batch)
        noise = draw_noise(shape, seed=SEED, indices=images)
        labels = draw_labels(model.config.num_classes, seed=SEED, indices=images)
        ends: dict[str, Tensor] = {}
        order = list(contestants)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            synchronize(torch.device(arguments.device))
            started = time.perf_counter()
            ends[name] = contestants[name](noise, labels)
            if turn >= WARM_UP:
                seconds[name].append((time.perf_counter() - started) / arguments.batch)
        if turn < WARM_UP:
            if turn == 0:
                for draw, _ in timed.values():
                    draw(noise, labels)
            continue
        for name, (draw, clock) in timed.items():
            before = clock.encoder_seconds + clock.decoder_seconds + clock.forecast_seconds
            started = time.perf_counter()
            draw(noise, labels)
            whole = time.perf_counter() - started
            gaps[name].append(
                whole / (clock.encoder_seconds + clock.decoder_seconds + clock.forecast_seconds - before) - 1
            )
        if on_gpu and turn > WARM_UP:  # where float32 takes long
            continue
        reference = sample(model, full, noise, labels).cpu()
        for name, end in ends.items():
            values = psnr(to_images(end), to_images(reference)) if shape[0] == 3 else latent_decibels(end, reference)
            decibels[name] += np.minimum(values, 99.0).tolist()

    base = float(np.mean(seconds[first]))
    told = conditions(
        model, arguments.device, f"{arguments.steps} steps, {arguments.budget} encoder runs",
        f"guidance {spec.guidance:g} on {spec.guidance_interval}", f"batch {arguments.batch}",
        f"{arguments.rounds} rounds",
    )  # fmt: skip
    print(told, end="\n\n")
    print("| contestant | ms per image | × the first | dB to unshared fp32 | not in its parts |\n|---|---|---|---|---|")
    rows = []
    for name, taken in seconds.items():
        mean = float(np.mean(taken))
        gap = float(np.median(gaps[name])) if name in gaps else None
        row = {"contestant": name, "seconds": taken, "speedup": base / mean, "psnr": float(np.mean(decibels[name])),
               "gap": gap}  # fmt: skip
        rows.append(row)
        unexplained = f"{gap:.1%}" if gap is not None else "–"
        print(f"| {name} | {1e3 * mean:.1f} | {base / mean:.2f} | {row['psnr']:.1f} | {unexplained} |")
    if arguments.out:
        arguments.out.write_text(json.dumps({"conditions": told, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
