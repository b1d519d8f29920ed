"""Parts of `gpu.py` that take networks apart: encoder and decoder, and what they would cost otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from earlier import join_wide
from gpu_part import Part
from setting import counted_bytes
from torch import Tensor
from torch.nn import functional as F

from ddt_accel import draw_labels, draw_noise
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.networks import DecoderNetwork, EncoderNetwork
from ddt_accel.backends.tensors import Cut
from ddt_accel.networks.prepared_layers import PreparedBlock
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory

KERNELS = 30


def pieces(part: Part) -> None:
    """Encoder, decoder and what they would cost otherwise, at batch 32."""
    part.load_compiled()
    batch, within = (2, 0.1) if part.reduced else (32, 1.0)
    backend, before = CompiledBackend(part.model), CompiledBackend(part.model)
    join_wide(before._model)
    timed(part, backend, batch, within, drawn=(2,))
    steps: dict[str, Callable[[], None]] = {
        "kernels": lambda: largest_kernels(part, backend, batch),
        "block by block": lambda: block_by_block(part, BlockByBlock(part.model), batch, within, "block by block"),
        "regions": lambda: block_by_block(part, Regions(part.model), batch, within, "with blocks as regions"),
        "three sources": lambda: timed(part, backend, batch, within, drawn=(3,)),
        "joined wide": lambda: timed(part, before, batch, within, ", rotated halves joined in fp32"),
        "states": lambda: timed(part, CompiledBackend(part.model, cache="state"), batch, within, ", states cached"),
        "one program": lambda: encoder_with_modulations(part, backend, batch, within),
        "one tensor a slot": lambda: one_tensor_a_slot(part, backend, 3 * batch, within),
    }
    for name, step in steps.items():
        with part.trying(name, needs=5):
            step()
    part.keep_compiled()


def timed(
    part: Part, backend: CompiledBackend, batch: int, within: float, otherwise: str = "", drawn: tuple[int, ...] = ()
) -> None:
    """Encoder and decoder of guided batches, with multiply-adds and bytes that have to move."""
    rows, shape = slice(0, 2 * batch), backend.latent_shape
    session = backend.open(batch, shape, max(1, *drawn, 1))
    session.latents.normal_()
    session.times.fill_(0.5)
    for slot in range(len(session.slots)):
        session.encode(slot, rows)
    session.decode(0, rows)
    one, dtype = backend.config.multiply_adds(shape), getattr(torch, backend.cut.dtype)
    moved = counted_bytes(backend._model, 2 * batch, dtype.itemsize)
    kept = backend.cut.cache == "modulations"
    work = {
        "encoder": one.encoder + kept * one.modulations,
        "decoder": one.decoder + (not kept) * one.modulations,
    }

    def told(name: str, call: Callable[[], object], network: str, sources: int = 1) -> None:
        taken = part.seconds(call, within=within)
        size = moved[network] + (sources - 1) * moved["cache"]
        details = {"multiply_adds": 2 * batch * work[network], **({"bytes": size} if kept else {})}
        part.tell(f"{name}{otherwise}", 1e3 * taken, "ms", batch=batch, **details)

    told("encoder", lambda: session.encode(0, rows), "encoder")
    told("decoder, held", lambda: session.decode(0, rows), "decoder")
    for sources in drawn:
        session.forecast(3, [(s, 1 / sources) for s in range(sources)], None, rows)
        session.decode(3, rows)
        told(f"decoder, {sources} sources", lambda: session.decode(3, rows), "decoder", sources)


def block_by_block(part: Part, backend: CompiledBackend, batch: int, within: float, way: str) -> None:
    """What compiling a block once, for all, costs and saves."""
    started = time.perf_counter()
    timed(part, backend, batch, within, f", compiled {way}")
    part.tell(f"compiled {way}, all of it", time.perf_counter() - started, "s")


class BlockByBlock(CompiledBackend):
    """Between the blocks nothing is fused."""

    def _network(self, network: str, sources: int) -> Callable[..., None]:
        if not self._compiled:
            for module in self._model.modules():
                if isinstance(module, PreparedBlock):
                    module.compile(dynamic=False)
        cut = replace(self.cut, sources=sources)
        module: Any = EncoderNetwork(self._model, cut) if network == "encoder" else DecoderNetwork(self._model, cut)

        @torch.inference_mode()
        def write(output: Tensor, *inputs: Tensor) -> None:
            output.copy_(module(*inputs))

        return self._compiled.setdefault((network, sources), write)


class Regions(CompiledBackend):
    """One program, in which all blocks are calls of one region (from PyTorch 2.8 on)."""

    @cached_property
    def _region(self) -> Callable[..., Tensor]:
        region: Callable[..., Tensor] = torch.compiler.nested_compile_region(PreparedBlock.forward)
        return region

    def _network(self, network: str, sources: int) -> Callable[..., None]:
        write, usual = super()._network(network, sources), PreparedBlock.forward

        def with_regions(*given: Tensor) -> None:
            PreparedBlock.forward = self._region  # type: ignore[assignment, method-assign]
            try:
                write(*given)
            finally:
                PreparedBlock.forward = usual  # type: ignore[method-assign]

        return with_regions


def encoder_with_modulations(part: Part, backend: CompiledBackend, batch: int, within: float) -> None:
    """The modulations written by the compiled program and copied into their slot, as it was; and their product."""
    config, dtype = backend.config, getattr(torch, backend.cut.dtype)
    tokens = config.num_tokens(backend.latent_shape)
    session = backend.open(batch, backend.latent_shape, 1)
    given = [session.latents, session.times, session.labels]
    whole = torch.compile(EncoderNetwork(backend._model, Cut(precision=backend.cut.precision)))
    slot = torch.empty(2 * batch, tokens, config.modulation_size, dtype=dtype, device=part.device)

    @torch.inference_mode()
    def encode() -> None:
        slot.copy_(whole(*given))

    part.tell("encoder, modulations in the program", 1e3 * part.seconds(encode, within=within), "ms", batch=batch)
    state = torch.randn(2 * batch * tokens, config.state_size, device=part.device).to(dtype)
    weight = torch.randn(config.modulation_size, config.state_size, device=part.device).to(dtype)
    taken = part.seconds(lambda: F.linear(state, weight), within=within)
    part.tell("modulations as one product", 1e3 * taken, "ms", batch=batch)


def one_tensor_a_slot(part: Part, backend: CompiledBackend, batch: int, within: float) -> None:
    """The decoder where a slot is a tensor of over 2³¹ elements, as it was, and where it is one a block."""
    rows, config = slice(0, 2 * batch), backend.config
    timed(part, backend, batch, within, f", batch {batch}")
    tokens, dtype = config.num_tokens(backend.latent_shape), getattr(torch, backend.cut.dtype)
    latents = torch.randn(rows.stop, *backend.latent_shape, device=part.device)
    slot = torch.zeros(rows.stop, tokens, config.modulation_size, dtype=dtype, device=part.device)
    velocity = torch.empty_like(latents)
    whole = torch.compile(DecoderNetwork(backend._model, Cut(precision=backend.cut.precision)))

    @torch.inference_mode()
    def decode() -> None:
        velocity.copy_(whole(latents, slot))

    taken = part.seconds(decode, within=within)
    part.tell(f"decoder, held, one tensor a slot, batch {batch}", 1e3 * taken, "ms", batch=batch)


def largest_kernels(part: Part, backend: CompiledBackend, batch: int) -> None:
    """Of one encoder and one decoder run."""
    from torch.profiler import ProfilerActivity, profile

    rows = slice(0, 2 * batch)
    session = backend.open(batch, backend.latent_shape, 1)
    session.encode(0, rows)
    session.decode(0, rows)
    with profile(activities=[ProfilerActivity.CUDA if part.cuda else ProfilerActivity.CPU]) as seen:
        session.encode(0, rows)
        session.decode(0, rows)
        if part.cuda:
            torch.cuda.synchronize()

    def taken(one: Any) -> float:
        return float(one.self_device_time_total if part.cuda else one.self_cpu_time_total)

    for one in sorted(seen.key_averages(), key=taken, reverse=True)[:KERNELS]:
        part.tell(f"kernel {one.key[:80]}", taken(one) / 1e3, "ms", calls=one.count)


def family(part: Part, name: str) -> None:
    """Of another family: encoder, decoder with the cache and without, and trajectories."""
    batch, within = (2, 0.1) if part.reduced else (32, 1.0)
    model = part.network(name)
    shape, backend = latent_shape_of(model), CompiledBackend(model)
    timed(part, backend, batch, within, drawn=(2,))
    noise = draw_noise(shape, seed=0, indices=range(batch))
    labels = draw_labels(model.config.num_classes, seed=0, indices=range(batch))
    for way, schedule in part.schedules.items():
        with part.trying(way, needs=5):
            trajectory = Trajectory(backend, compile_program(schedule), noise, labels)

            def whole(trajectory: Trajectory = trajectory) -> None:
                trajectory.start(noise, labels)
                trajectory.run()

            whole()
            whole()  # on a GPU it becomes a graph
            taken = part.seconds(whole, within=within, graph=False)
            part.tell(f"{way}, batch {batch}", taken, "s", ms_an_image=1e3 * taken / batch)
            del trajectory, whole
    with part.trying("states", needs=40):
        timed(part, CompiledBackend(model, cache="state"), batch, within, ", without the cache")
