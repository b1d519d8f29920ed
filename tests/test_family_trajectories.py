"""Trajectories of all families beside those that their published code computed: grids, guidance, integrators, reuse."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.networks.pixnerd.config import PixNerdConfig
from ddt_accel.networks.pixnerd.network import PixNerd
from ddt_accel.networks.rae.config import COMPUTED, DiTDHConfig
from ddt_accel.networks.rae.network import DiTDH
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory

REFERENCE = Path(__file__).parent / "reference"


@dataclass(frozen=True, kw_only=True)
class Case:
    network: SplitNetwork
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def end(self, schedule: Schedule) -> Tensor:
        return self.passed(schedule)[-1]

    def passed(self, schedule: Schedule) -> list[Tensor]:
        """Where the trajectory is at the start and after every evaluation."""
        backend, noise = TorchBackend(self.network), self.tensors["noise"]
        program = compile_program(schedule)
        seen = [noise]
        with torch.inference_mode():
            trajectory = Trajectory(backend, program, noise, self.tensors["labels"])
            for k in range(len(program.evaluations)):
                trajectory.step(k)
                seen.append(trajectory.latents.clone())
        return seen


def case(name: str, network: SplitNetwork, weights: dict[str, Tensor]) -> Case:
    network.load_state_dict(weights)
    return Case(
        network=network.eval().requires_grad_(False),
        facts=json.loads((REFERENCE / name / "case.json").read_text()),
        tensors=safetensors.torch.load_file(REFERENCE / name / "tensors.safetensors"),
    )


@pytest.fixture(scope="module")
def rae() -> Case:
    facts = json.loads((REFERENCE / "rae_small" / "case.json").read_text())
    weights = torch.load(REFERENCE / "rae_small" / "DiTDH" / "stage2_model.pt", weights_only=True)
    network = DiTDH(DiTDHConfig(**facts["stage_2"]))
    return case("rae_small", network, {name: value for name, value in weights.items() if name not in COMPUTED})


@pytest.fixture(scope="module")
def pixnerd() -> Case:
    facts = json.loads((REFERENCE / "pixnerd_small" / "case.json").read_text())
    weights = torch.load(REFERENCE / "pixnerd_small" / "epoch=3-step=800.ckpt", weights_only=False)["state_dict"]
    chosen = {name.removeprefix("ema_denoiser."): value for name, value in weights.items() if "ema_denoiser." in name}
    return case("pixnerd_small", PixNerd(PixNerdConfig(**facts["config"])), chosen)


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def spec_of_rae(case: Case, **changes: Any) -> SamplingSpec:
    return SamplingSpec(
        **{"num_steps": case.facts["evaluations"], "guidance": 1.0, "timeshift": case.facts["time_dist_shift"],
           "end": case.facts["last_tau"]} | changes
    )  # fmt: skip


def guided(case: Case, name: str) -> dict[str, Any]:
    told = case.facts["guidances"][name]
    low, high = told["interval"]
    return {"guidance": told["scale"], "guidance_interval": (1 - high, 1 - low), "closed_interval": True}


def every(spec: SamplingSpec, period: int) -> Schedule:
    return Schedule(spec=spec, refresh_steps=tuple(range(0, spec.num_evaluations, period)))


def test_the_grid_ends_before_the_data(rae: Case) -> None:
    for name, steps in (("times", 10), ("times_50", 49)):
        grid = spec_of_rae(rae, num_steps=steps).grid
        assert len(grid) == steps + 1
        assert grid[0] == 0
        np.testing.assert_allclose(1 - grid, rae.tensors[name].double().numpy(), rtol=0, atol=2e-7)


def test_trajectory_to_an_end(rae: Case) -> None:
    passed = rae.passed(Schedule.full(spec_of_rae(rae)))
    for got, expected in zip(passed, rae.tensors["euler_trajectory"], strict=True):
        assert relative(got, expected) < 1e-4
    assert relative(rae.end(Schedule.full(spec_of_rae(rae, num_steps=49))), rae.tensors["euler_50"]) < 1e-4


@pytest.mark.parametrize("name", ["euler_cfg", "euler_cfg_everywhere"])
def test_closed_interval(rae: Case, name: str) -> None:
    spec = spec_of_rae(rae, **guided(rae, name))
    assert (spec.guidance_weights != 1).tolist() == rae.facts["guidances"][name].get("guided", [True] * 10)
    assert relative(rae.end(Schedule.full(spec)), rae.tensors[name]) < 1e-4
    # The first step, at t = 0 exactly, is an end of the interval.
    strict = replace(spec, closed_interval=False)
    assert strict.guidance_weights[0] == 1
    assert relative(rae.end(Schedule.full(strict)), rae.tensors[name]) > 1e-2


def test_which_steps_a_second_network_guides(rae: Case) -> None:
    for name in ("euler_autoguidance", "euler_autoguidance_part"):
        weights = spec_of_rae(rae, **guided(rae, name)).guidance_weights
        assert (weights != 1).tolist() == rae.facts["guidances"][name]["guided"]


@pytest.mark.parametrize("period", [2, 3])
def test_states_are_held_as_published(rae: Case, period: int) -> None:
    plain = every(spec_of_rae(rae), period)
    assert relative(rae.end(plain), rae.tensors[f"euler_refresh_every_{period}"]) < 1e-4
    spec = spec_of_rae(rae, **guided(rae, "euler_cfg"))
    assert relative(rae.end(every(spec, period)), rae.tensors[f"euler_cfg_refresh_every_{period}"]) < 1e-4


def spec_of_pixnerd(case: Case, **changes: Any) -> SamplingSpec:
    names = ("num_steps", "guidance", "guidance_interval", "timeshift", "last_step")
    return SamplingSpec(**{name: case.facts[name] for name in names} | changes)


def test_pixels_by_euler(pixnerd: Case) -> None:
    spec = spec_of_pixnerd(pixnerd)
    assert np.array_equal(spec.grid, pixnerd.tensors["timesteps"].double().numpy())
    assert (spec.guidance_weights != 1).tolist() == pixnerd.facts["guided"]
    passed = pixnerd.passed(Schedule.full(spec))
    for got, expected in zip(passed, pixnerd.tensors["euler_trajectory"], strict=True):
        assert relative(got, expected) < 1e-4
    unguided = pixnerd.end(Schedule.full(spec_of_pixnerd(pixnerd, guidance=1.0)))
    assert relative(unguided, pixnerd.tensors["euler_unguided"]) < 1e-4


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_pixels_by_several_steps(pixnerd: Case, order: int) -> None:
    spec = spec_of_pixnerd(pixnerd, solver=f"ab{order}")
    assert relative(pixnerd.end(Schedule.full(spec)), pixnerd.tensors[f"adams_order_{order}"]) < 1e-4


@pytest.mark.parametrize("period", [2, 3])
def test_pixels_under_held_states(pixnerd: Case, period: int) -> None:
    for name, solver in (("euler", "euler"), ("adams_order_2", "ab2")):
        schedule = every(spec_of_pixnerd(pixnerd, solver=solver), period)
        assert relative(pixnerd.end(schedule), pixnerd.tensors[f"{name}_refresh_every_{period}"]) < 1e-4
