"""One conformance suite over every family and every backend: a new family enters `NETWORKS`, and has it for nothing.

The oracle is the family's own network in float32, run by PyTorch; that in turn is held against the published numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from torch.utils.flop_counter import FlopCounterMode

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, export, load_model, open_backend, sample
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.networks import layers
from ddt_accel.networks.families import FAMILIES, build, config_of, prepare
from ddt_accel.networks.prepared import Arithmetic
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import run
from ddt_accel.solver.split import encoder_runs

WAVES = 16 * 64 * 6  # multiply-adds: pixels of a patch, what each is told of its place, width

# By family: settings, and latents that such a network is for.
NETWORKS = {
    "ddt": (asdict(TINY), (3, 8, 8)),
    "rae": (
        {
            "input_size": 4, "in_channels": 6, "hidden_size": [16, 24], "depth": [1, 1], "num_heads": [2, 3],
            "num_classes": 4,
        },
        (6, 4, 4),
    ),
    "pixnerd": (
        {
            "in_channels": 3, "patch_size": 4, "num_groups": 2, "hidden_size": 16, "hidden_size_x": 6, "num_blocks": 2,
            "num_cond_blocks": 1, "nerf_mlpratio": 2, "num_classes": 4,
        },
        (3, 8, 12),
    ),
}  # fmt: skip
EXPORTS = {"forecasts": {"sources": 2}}
# Relative to the size of the latents. `test_backends` has more of each backend, with one family.
TOLERANCE = {"torch": 1e-6, "torch-states": 1e-5, "onnx-forecasts": 1e-4, "compiled": 1e-4}


@pytest.fixture(scope="session", params=list(FAMILIES))
def network(request, tiny_model_path) -> SplitNetwork:
    """Of every parameter random, those that start at zero included: those of a fresh network hide what is wrong."""
    settings, _ = NETWORKS[request.param]
    if request.param == "ddt":
        return load_model(tiny_model_path)  # other modules export it, too, and what they wrote is taken
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build(config_of({"family": request.param, **settings})).eval().requires_grad_(False)
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 64
            parameter.copy_(torch.randn_like(parameter) * 0.8 / fan_in**0.5)
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm_final.weight")):
                parameter.add_(1)
    return model


@pytest.fixture(scope="session")
def shape(network) -> tuple[int, int, int]:
    return NETWORKS[network.config.family][1]


@pytest.fixture(scope="session")
def opened(network, shape, tmp_path_factory) -> Callable[[str], object]:
    """Backends by name, each made once."""
    made: dict[str, object] = {}

    def backend(name: str) -> object:
        if name not in made:
            runner, _, kind = name.partition("-")
            if runner == "torch":
                made[name] = TorchBackend(network, cache="state" if kind == "states" else "modulations")
            elif runner == "compiled":
                made[name] = CompiledBackend(network, latent_shape=shape, precision="fp32")
            else:
                folder: Path = tmp_path_factory.mktemp(f"{network.config.family}-{kind}")
                export(network, folder, format="onnx", latent_shape=shape, **EXPORTS[kind])
                made[name] = open_backend(folder)
        return made[name]

    return backend


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((got - expected).norm() <= tolerance * expected.norm())


def drawn(network: SplitNetwork, shape: tuple[int, int, int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    indices = range(count)
    return draw_noise(shape, seed=2, indices=indices), draw_labels(network.config.num_classes, seed=2, indices=indices)


def test_sizes_are_those_of_its_settings(network, shape) -> None:
    x, y = drawn(network, shape, 2)
    config, t = network.config, torch.tensor([0.2, 0.7])
    tokens = config.num_tokens(shape)
    state = network.encode(x, t, y)
    modulations = network.modulations(state)
    assert state.shape == (2, tokens, config.state_size)
    assert modulations.shape == (2, tokens, config.modulation_size)
    assert [affine.out_features for affine in network.modulation_maps] == list(config.modulation_widths)
    assert network.decode_modulated(x, modulations).shape == x.shape
    assert torch.equal(network(x, t, y), network.decode(x, state))


def test_modulations_are_affine_in_the_state(network, shape) -> None:
    """What forecasts, means and Gram matrices rest on: a forecast of modulations is that of states."""
    x, y = drawn(network, shape, 1)
    first, second = (network.encode(x, torch.tensor([t]), y) for t in (0.2, 0.9))
    of_states = network.modulations(1.7 * first - 0.6 * second)
    one, other = network.modulations(first), network.modulations(second)
    of_modulations = 1.7 * one - 0.6 * other - 0.1 * network.modulation_bias
    assert close(of_states, of_modulations, 1e-5)


def test_the_decoder_sees_time_and_label_through_the_state_alone(network, shape) -> None:
    x, y = drawn(network, shape, 3)
    t = torch.tensor([0.1, 0.5, 0.9])
    states = torch.cat([network.encode(x[k : k + 1], t[k : k + 1], y[k : k + 1]) for k in range(3)])
    assert close(network.decode(x, states), network(x, t, y), 1e-5)


@pytest.mark.parametrize("written_out", [False, True])
def test_prepared_for_inference_it_computes_the_same(network, shape, written_out: bool) -> None:
    x, y = drawn(network, shape, 3)
    t = torch.tensor([0.0, 0.4, 1.0])
    prepared = prepare(network, shape, Arithmetic.of("fp32", written_out=written_out))
    state = network.encode(x, t, y)
    assert close(prepared.encode(x, t, y), state, 1e-5)
    modulations = prepared.modulations(state)
    assert close(modulations, network.modulations(state), 1e-5)
    assert close(prepared.decode_modulated(x, modulations), network.decode(x, state), 1e-5)


@pytest.mark.parametrize("name", TOLERANCE)
def test_trajectories(network, shape, opened, name: str) -> None:
    noise, labels = drawn(network, shape, 3)
    for budget in (2, None):
        spec = SamplingSpec(num_steps=5, solver="ab2", guidance=1.6)
        schedule = Schedule.full(spec) if budget is None else Schedule.uniform(spec, budget)
        expected = sample(network, schedule, noise, labels)
        assert close(sample(opened(name), schedule, noise, labels), expected, TOLERANCE[name])


@pytest.mark.parametrize("name", TOLERANCE)
def test_forecasts(network, shape, opened, name: str) -> None:
    noise, labels = drawn(network, shape, 2)
    means = network.modulations(
        torch.randn(1, 6, network.config.state_size, generator=torch.Generator().manual_seed(0))
    )
    rows = {1: ((0, 0.8),), 4: ((2, -1.0), (3, 2.0)), 5: ((0, 0.5), (2, -1.5), (3, 2.0))}
    schedule = Schedule(
        spec=SamplingSpec(num_steps=6, guidance=1.5),
        refresh_steps=(0, 2, 3),
        forecasts=rows,
        mean_modulations=means[0].numpy().astype(np.float32),
    )
    program = compile_program(schedule)
    expected = run(TorchBackend(network), program, noise, labels)
    # Run as it is: a program for each number of states takes long to compile, and `test_backends` has all.
    with torch.compiler.set_stance("force_eager"):
        assert close(run(opened(name), program, noise, labels), expected, 2 * TOLERANCE[name])
    assert encoder_runs(schedule) == 6


def test_multiply_adds_are_those_that_pytorch_counts(network, shape, monkeypatch) -> None:
    # The counter knows products, not the kernel that attention is on a CPU.
    for module in {sys.modules[type(part).__module__] for part in network.modules()} | {layers}:
        if hasattr(module, "attend"):
            monkeypatch.setattr(module, "attend", layers.attend_written_out)
    x, y = drawn(network, shape, 1)
    t, counted = torch.tensor([0.3]), network.config.multiply_adds(shape)
    state = network.encode(x, t, y)
    modulations = network.modulations(state)
    parts = {
        "encoder": lambda: network.encode(x, t, y),
        "modulations": lambda: network.modulations(state),
        "decoder": lambda: network.decode_modulated(x, modulations),
    }
    for name, part in parts.items():
        with FlopCounterMode(display=False) as counter:
            part()
        # PixNerd multiplies what pixels are told of their places anew; prepared it keeps the result.
        assert counter.get_total_flops() / 2 - getattr(counted, name) in (0, WAVES if name == "decoder" else 0), name
