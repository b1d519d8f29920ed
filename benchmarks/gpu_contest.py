"""Parts of `gpu.py` that draw whole batches: trajectories, the published implementation beside ours, growth, fits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_part import Part
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule, calibrate, fit, sample
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory

ROUNDS = 2
PICTURES = 4  # that are compared with the unshared trajectory in fp32


def trajectories(part: Part) -> None:
    """Whole trajectories, as one graph and call by call, and the memory that they take."""
    backend = CompiledBackend(part.model)
    for batch in (2, 1) if part.reduced else (32, 8, 1):
        noise, labels = part.images(batch)
        for name, schedule in part.schedules.items():
            with part.trying(f"{name}, batch {batch}", needs=3):
                if part.cuda:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                trajectory = Trajectory(backend, compile_program(schedule), noise, labels)

                trajectory.run()
                for way in ("graph", "calls") if part.cuda else ("calls",):
                    run = trajectory.run if way == "graph" else trajectory._steps
                    run()
                    again = partial(started, trajectory, noise, labels, run)
                    taken = part.seconds(again, within=0.1 if part.reduced else 1.0, graph=False)
                    part.tell(f"{name}, batch {batch}, {way}", taken, "s", ms_an_image=1e3 * taken / batch)
                if part.cuda:
                    part.tell(f"{name}, batch {batch}, peak", torch.cuda.max_memory_allocated() / 1e9, "GB")
                del trajectory, run, again
    part.tell("compiling", backend.compile_seconds, "s")


def started(trajectory: Trajectory, noise: Tensor, labels: Tensor, run: Callable[[], None]) -> None:
    trajectory.start(noise, labels)
    run()


def peers(part: Part, batch: int) -> None:
    """Beside the published implementation, in turn."""
    from peers import ours, published, published_network

    small, batch = batch == 1, min(batch, 2) if part.reduced else batch
    noise, labels = part.images(batch)
    contest: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    ends: dict[str, Tensor] = {}

    def measure(name: str, turn: int) -> None:
        with part.trying(name, needs=2):
            taken = part.once(lambda: ends.update({name: contest[name](noise, labels)}))
            part.tell(f"{name}, round {turn + 1}", 1e3 * taken / batch, "ms an image")

    backend = CompiledBackend(part.model)
    for name in ("held", "unshared", "two sources"):
        draw = ours(backend, part.schedules[name])
        with part.trying(f"ours, {name}", needs=2):
            for _ in range(2):  # the second time it becomes a graph
                draw(noise, labels)
            contest[f"ours, {name}"] = draw
            measure(f"ours, {name}", 0)
    if part.clone is None:
        part.tell("published", None, reason="no clone of github.com/MCG-NJU/DDT in the checkout")
    clone = part.clone or Path()
    for way, settings in ways(small, part.reduced).items() if part.clone else ():
        with part.trying(f"published, {way}", needs=8):
            network = published_network(clone, part.model, **settings)
            few = published(network, part.model, Schedule.uniform(replace(part.spec, num_steps=3), 1), autocast=True)
            for _ in range(3 if small else 1):  # CUDA graphs want to be run more than once
                few(noise, labels)
            for sharing, name in (("unshared", "unshared"), ("its sharing", "held")):
                contest[f"published, {way}, {sharing}"] = published(
                    network, part.model, part.schedules[name], autocast=True
                )
                measure(f"published, {way}, {sharing}", 0)
    for turn in range(1, ROUNDS):
        for name in contest:
            measure(name, turn)
    with part.trying("fidelity", needs=3):
        few_noise, few_labels = noise[:PICTURES], labels[:PICTURES]
        reference = sample(part.model, part.schedules["unshared"], few_noise, few_labels).cpu()
        for name, end in ends.items():
            decibels = float(latent_decibels(end[:PICTURES], reference).mean())
            part.tell(f"{name}, to the unshared in fp32", decibels, "dB")


def ways(small: bool, reduced: bool) -> dict[str, dict[str, Any]]:
    """How the published network is run: as it is, compiled, and compiled with weights in bfloat16; under autocast."""
    mode = "reduce-overhead" if small and not reduced else None
    return {
        "eager": {},
        "compiled": {"compiled": True, "mode": mode},
        "compiled, bf16 weights": {"compiled": True, "mode": mode, "bf16": True},
    }


def scaling(part: Part) -> None:
    """How time grows with batch, steps and budget."""
    from scaling import row

    backend = CompiledBackend(part.model)
    batch, steps, budget = (2, 6, 2) if part.reduced else (8, 50, 10)
    settings = [(one, steps, budget) for one in ((2, 1) if part.reduced else (32, 1, 16, 4, 64))]
    settings += [(batch, 2 * steps, 2 * budget), (batch, steps, steps)]
    for setting in settings:
        name = "batch {}, {} steps, {} encoder runs".format(*setting)
        with part.trying(name, needs=4):
            found = row(backend, part.shape, setting, 0.1 if part.reduced else 1.0, least=3)
            part.tell(name, found["seconds"], "s", **{key: found[key] for key in ("ratio", "encoder", "decoder")})


def fitting(part: Part) -> None:
    """What it takes to calibrate one image and to fit two iterations, and with what memory."""
    from ddt_accel.fitting.fit_spec import FitSpec

    spec = SamplingSpec(num_steps=4 if part.reduced else 12, guidance=2.0)
    started = time.perf_counter()
    calibrate(part.model, spec, num_samples=1, sensitivity_samples=0)
    part.tell(f"calibrate one image, {spec.num_steps} steps", time.perf_counter() - started, "s")
    options = FitSpec(
        iterations=2, images=2, held_out=4, batch_size=2, micro_batch=1, reference_steps=8 if part.reduced else 24,
        autocast=True,
    )  # fmt: skip
    started = time.perf_counter()
    fit(part.model, Schedule.uniform(spec, 3), options)
    part.tell("fit two iterations", time.perf_counter() - started, "s")
    if part.cuda:
        part.tell("peak", torch.cuda.max_memory_allocated() / 1e9, "GB")
