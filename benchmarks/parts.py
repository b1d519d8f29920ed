"""Where the time of a trajectory goes, and how near each part is to what the machine can do.

Of a guided batch: the encoder, which ends with the decoder's modulations; the decoder under cached ones; the
integrator; and what a whole trajectory takes beyond their sum, which is the host's. Besides, what it would cost to
compute the modulations at every step, and what a forecast from two states adds. Multiply-adds are counted, and the
bytes that have to move: weights and modulations; both rates stand beside those of a large product and a large copy in
the same run.

With `--family` the published networks of families beside each other, of random weights: encoder with the modulations,
decoder under cached ones, and decoder that makes them anew, in multiply-adds, bytes and time.

Usage: python benchmarks/parts.py --family ddt,rae,pixnerd [--device cuda] [--batch 1] [--backends torch] [--out FILE]
       python benchmarks/parts.py [--model cifar10|xl2-256|xl2-512] [--device cuda] [--batch 8] [--steps 50]
           [--budget 10] [--backends compiled,torch] [--seconds 10] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from setting import conditions, counted_bytes, network
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.device import device_name, supports_bf16, synchronize
from ddt_accel.networks.families import build, prepare
from ddt_accel.networks.prepared import Arithmetic
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.program import Program, compile_program
from ddt_accel.sampling.trajectory import Trajectory

FAMILIES = {
    "ddt": ("xl2-256",), "rae": ("dit-dh-xl-256", "dit-dh-xl-512"), "pixnerd": ("pixnerd-xl-256",),
    "tiny": ("tiny", "tiny-dit-dh", "tiny-pixnerd"),
}  # fmt: skip
# Runs follow one another in a trajectory; one by itself would begin with nothing in the processor's caches.
IN_A_ROW = 3


def rounds(
    calls: dict[str, Callable[[], object]], device: torch.device, within: float, *, least: int = 5
) -> dict[str, list[float]]:
    """Seconds of calls that are waited for, one after the other in turn, so that a machine that slows down slows all;
    `least` rounds or more, after two that are not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    ends = time.monotonic() + within
    while len(next(iter(taken.values()))) < 2 + least or time.monotonic() < ends:
        for name, call in calls.items():
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            taken[name].append(time.perf_counter() - started)
    return {name: values[2:] for name, values in taken.items()}


def as_run(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """As a captured trajectory runs it: on a GPU a CUDA graph of the call, else the call itself."""
    if device.type != "cuda":
        return call
    for _ in range(2):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def seconds(call: Callable[[], object], device: torch.device, within: float) -> float:
    """The median."""
    return statistics.median(rounds({"it": call}, device, within)["it"])


def machine(dtype: torch.dtype, device: torch.device, within: float, *, reduced: bool = False) -> tuple[float, float]:
    """Multiply-adds a second of a large matrix product, and bytes a second of a large copy, read and written; `reduced`
    rehearses it with small ones, which a processor without bf16 needs seconds for otherwise."""
    size, bytes_copied = (8192, 1 << 31) if device.type == "cuda" else (2048, 1 << 28)
    if reduced:
        size, bytes_copied = 64, 1 << 16
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products = size**3 / seconds(lambda: a @ b, device, within)
    block = torch.empty(bytes_copied, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    return products, 2 * block.numel() / seconds(lambda: other.copy_(block), device, within)


def transferred(model: DDT, tokens: int, rows: int, itemsize: int) -> dict[str, int]:
    """Bytes that each part has to read and write at least: its weights, and the modulations of all rows."""
    config, width = model.config, model.config.hidden_size
    blocks = sum(parameter.numel() for parameter in model.encoder_blocks[0].parameters()) - 6 * width**2
    cache = rows * tokens * config.modulation_size
    affine = width * config.modulation_size
    return {
        "encoder": itemsize * (config.num_encoder_blocks * (blocks + 6 * width**2) + affine + cache),
        "decoder": itemsize * (config.num_decoder_blocks * blocks + cache),
        "modulations": itemsize * (affine + cache),
    }


def integrator(trajectory: Trajectory, program: Program) -> None:
    """All that a trajectory does besides its networks: copying, guiding, moving on."""
    session, batch = trajectory.session, trajectory.batch
    for k, evaluation in enumerate(program.evaluations):
        session.times.fill_(evaluation.time)
        session.latents[batch:].copy_(session.latents[:batch])
        conditional, unconditional = session.velocity[:batch], session.velocity[batch:]
        torch.lerp(unconditional, conditional, evaluation.guidance, out=trajectory.velocity(k))
        trajectory.advance(k, evaluation.update)


def measure(backend: Backend, model: DDT, arguments: argparse.Namespace, dtype: torch.dtype) -> dict[str, float]:
    shape, device, batch = latent_shape_of(model), backend.device, arguments.batch
    session, rows = backend.open(batch, shape, 3), slice(0, 2 * batch)
    session.latents.normal_()
    session.times.fill_(0.5)
    session.labels.zero_()
    for slot in (0, 1):
        session.encode(slot, rows)

    def forecast() -> None:
        session.forecast(2, [(0, -0.5), (1, 1.5)], None, rows)
        for _ in range(IN_A_ROW):
            session.decode(2, rows)

    # Guided at every step, so that the trajectory is made of the very calls that are measured.
    spec = SamplingSpec(num_steps=arguments.steps, guidance=2.0, guidance_interval=(-1.0, 2.0))
    program = compile_program(Schedule.uniform(spec, arguments.budget))
    noise = draw_noise(shape, seed=0, indices=range(batch))
    labels = draw_labels(model.config.num_classes, seed=0, indices=range(batch))
    trajectory = Trajectory(backend, program, noise, labels)

    def whole() -> None:
        trajectory.start(noise, labels)
        trajectory.run()

    # What a cache of states would make the decoder compute at every step, as one product.
    width, tokens = model.config.hidden_size, model.config.num_tokens(shape)
    state = torch.randn(2 * batch, tokens, width, device=device).to(dtype)
    weight = torch.randn(model.config.modulation_size, width, device=device).to(dtype)
    calls: dict[str, Callable[[], object]] = {
        "encoder": lambda: [session.encode(0, rows) for _ in range(IN_A_ROW)],
        "decoder": lambda: [session.decode(0, rows) for _ in range(IN_A_ROW)],
        "integrator": lambda: integrator(trajectory, program),
        "trajectory": whole,
        "modulations": lambda: torch.nn.functional.linear(state, weight),
        "forecast": forecast,
    }
    whole()
    calls = {name: call if call is whole else as_run(call, device) for name, call in calls.items()}
    taken = rounds(calls, device, arguments.seconds)
    taken["encoder"] = [one / IN_A_ROW for one in taken["encoder"]]
    taken["decoder"] = [one / IN_A_ROW for one in taken["decoder"]]
    taken["integrator"] = [one / arguments.steps for one in taken["integrator"]]
    taken["forecast"] = [both / IN_A_ROW - one for both, one in zip(taken["forecast"], taken["decoder"], strict=True)]
    taken["host gaps"] = [
        whole - arguments.budget * encoder - arguments.steps * (decoder + other)
        for whole, encoder, decoder, other in zip(
            *(taken[name] for name in ("trajectory", "encoder", "decoder", "integrator")), strict=True
        )
    ]
    return {name: statistics.median(values) for name, values in taken.items()}


Row = dict[str, object]


def with_and_without(name: str, backend_name: str, arguments: argparse.Namespace) -> list[Row]:
    """Encoder, decoder with the cache and without it, of one network, in turn."""
    model, device = network(name, arguments.device), torch.device(arguments.device)
    shape, rows = latent_shape_of(model), slice(0, 2 * arguments.batch)
    compiled = backend_name == "compiled"
    cached: Backend = CompiledBackend(model) if compiled else TorchBackend(model)
    session = cached.open(arguments.batch, shape, 1)
    session.latents.normal_()
    session.times.fill_(0.5)
    session.encode(0, rows)
    if isinstance(cached, CompiledBackend):
        anew = CompiledBackend(model, cache="state").open(arguments.batch, shape, 1)
        anew.latents.normal_()
        anew.encode(0, rows)
        without: Callable[[], object] = lambda: anew.decode(0, rows)  # noqa: E731
        itemsize, prepared = getattr(torch, cached.cut.dtype).itemsize, cached._model
    else:
        with torch.inference_mode():
            state = model.encode(session.latents, session.times, session.labels)
        without = torch.inference_mode()(lambda: model.decode(session.latents, state))
        with torch.device("meta"), mock.patch.object(Tensor, "item", return_value=99.0):  # for its sizes alone
            prepared = prepare(build(model.config), shape, Arithmetic.of("fp32"))
        itemsize = 4
    calls: dict[str, Callable[[], object]] = {
        "encoder": lambda: session.encode(0, rows),
        "decoder, cached": lambda: session.decode(0, rows),
        "decoder, not cached": without,
    }
    # Published sizes leave nothing in a processor's caches, and take seconds there.
    in_a_row = 1 if device.type == "cpu" else IN_A_ROW
    calls = {part: as_run(partial(repeated, call, in_a_row), device) for part, call in calls.items()}
    taken = rounds(calls, device, arguments.seconds, least=3)
    work, moved = model.config.multiply_adds(shape), counted_bytes(prepared, rows.stop, itemsize)
    affine = sum(m.weight.numel() for m in model.modulation_maps) * itemsize
    state_bytes = itemsize * rows.stop * model.config.num_tokens(shape) * model.config.state_size
    written = itemsize * rows.stop * model.config.num_tokens(shape) * model.config.modulation_size
    counts = {
        "encoder": (work.encoder + work.modulations, moved["encoder"]),
        "decoder, cached": (work.decoder, moved["decoder"]),
        "decoder, not cached": (work.decoder + work.modulations, moved["decoder"] - written + affine + state_bytes),
    }
    return [
        {
            "network": name, "backend": cached.name, "part": part, "multiply_adds": rows.stop * counts[part][0],
            "bytes": counts[part][1], "seconds": statistics.median(values) / in_a_row,
        }
        for part, values in taken.items()
    ]  # fmt: skip


def repeated(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def families(arguments: argparse.Namespace) -> None:
    """The table of `--family`."""
    device = torch.device(arguments.device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    told = f"random weights; batch {arguments.batch}, guided; torch {torch.__version__}; {device_name(device)}{threads}"
    print(f"{told}\n\n| network | backend | part | G multiply-adds | MB | ms |\n|---|---|---|---|---|---|")
    found: list[Row] = []
    for name in [one for family in arguments.family.split(",") for one in FAMILIES[family]]:
        for backend in arguments.backends.split(","):
            for row in with_and_without(name, backend, arguments):
                found.append(row)
                work, moved, taken = (float(str(row[key])) for key in ("multiply_adds", "bytes", "seconds"))
                words = [str(row[key]) for key in ("network", "backend", "part")]
                print(f"| {' | '.join(words)} | {work / 1e9:.2f} | {moved / 1e6:.1f} | {1e3 * taken:.2f} |", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps({"conditions": told, "rows": found}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--family", help=f"some of {', '.join(FAMILIES)}, by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="8 by default, 1 with --family")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--backends", default="compiled,torch")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each backend")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    arguments.batch = arguments.batch or (1 if arguments.family else 8)
    if arguments.family:
        if unknown := sorted(set(arguments.family.split(",")) - set(FAMILIES)):
            parser.error(f"there is no family {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
        families(arguments)
        return
    device = torch.device(arguments.device)
    model = network(arguments.model, arguments.device)
    backends: dict[str, Callable[[], Backend]] = {
        "compiled": lambda: CompiledBackend(model), "torch": lambda: TorchBackend(model)
    }  # fmt: skip
    told = conditions(
        model, arguments.device, f"batch {arguments.batch}, guided at all of {arguments.steps} steps, "
        f"{arguments.budget} encoder runs, held",
    )  # fmt: skip
    print(told)
    results = []
    for name in arguments.backends.split(","):
        results.append(report(backends[name](), model, arguments, bf16=name == "compiled" and supports_bf16(device)))
        if arguments.out:
            arguments.out.write_text(json.dumps({"conditions": told, "rows": results}, indent=1) + "\n")


def report(backend: Backend, model: DDT, arguments: argparse.Namespace, *, bf16: bool) -> dict[str, object]:
    """Measures and prints one backend's table."""
    device, rows, width = backend.device, 2 * arguments.batch, model.config.hidden_size
    dtype, tokens = torch.bfloat16 if bf16 else torch.float32, model.config.num_tokens(latent_shape_of(model))
    products, copied = machine(dtype, device, arguments.seconds / 10)
    found = measure(backend, model, arguments, dtype)
    counted = counted_costs(model.config, latent_shape_of(model))
    work = {
        "encoder": rows * counted.encoder,
        "decoder": rows * counted.decoder,
        "modulations": rows * tokens * width * model.config.modulation_size,
    }
    moved = transferred(model, tokens, rows, dtype.itemsize)
    calls = {"encoder": arguments.budget, "decoder": arguments.steps, "integrator": arguments.steps, "host gaps": 1}
    kind = str(dtype).rpartition(".")[2]
    print(f"\n{backend.name}: {products / 1e12:.2f} T multiply-adds/s in {kind} products, {copied / 1e9:.0f} GB/s\n")
    print("| part | ms a call | calls | share | G multiply-adds | of the product's rate | MB | of the copy's rate |")
    print("|---|---|---|---|---|---|---|---|")
    for part in (*calls, "modulations", "forecast"):
        taken = found[part]
        share = f"{calls[part] * taken / found['trajectory']:.1%}" if part in calls else "not in it"
        line = [part, f"{1e3 * taken:.2f}", str(calls.get(part, 1)), share]
        if part in work:
            line += [f"{work[part] / 1e9:.2f}", f"{work[part] / taken / products:.0%}"]
            line += [f"{moved[part] / 1e6:.1f}", f"{moved[part] / taken / copied:.0%}"]
        else:
            line += ["–"] * 4
        print("| " + " | ".join(line) + " |")
    print(f"| trajectory | {1e3 * found['trajectory']:.1f} | 1 | 100% | – | – | – | – |", flush=True)
    return {
        "backend": backend.name, "seconds": found, "multiply_adds": work, "bytes": moved, "products_a_second": products,
        "bytes_a_second": copied,
    }  # fmt: skip


if __name__ == "__main__":
    main()
