"""`solve --widths` from end to end: what it says, writes and refuses, and that predictions hold when schedules run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_widths import random_network

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample, solve
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.comparison import compare as comparing
from ddt_accel.comparison.contest import Field
from ddt_accel.comparison.ours import WIDTHS as WITH_WIDTHS
from ddt_accel.evaluation import candidates, plan
from ddt_accel.evaluation.candidates import with_widths
from ddt_accel.evaluation.costs import counted_of
from ddt_accel.evaluation.judge import Judge
from ddt_accel.evaluation.plan import choose_plans
from ddt_accel.networks.saving import save_network
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.decoders import effect_of
from ddt_accel.solver.solve import solve_curve
from ddt_accel.solver.with_widths import schedule_with_widths, solve_with_widths
from ddt_accel.stages import silent

SHAPE, WIDTHS = (3, 8, 8), (1.0, 0.75, 0.5)
SPEC = SamplingSpec(num_steps=12, guidance=1.5, guidance_interval=(0.3, 0.9))


def nested_network() -> SplitNetwork:
    """One whose narrow widths are nearly as good: what they leave out counts little."""
    network = random_network("ddt")
    with torch.no_grad():
        for block in network.blocks:
            block.mlp.w2.weight[:, 43:] *= 0.05
            block.attn.proj.weight[:, 16:] *= 0.05
    return network


@pytest.fixture(scope="module")
def network() -> SplitNetwork:
    return nested_network()


@pytest.fixture(scope="module")
def calibration(network) -> Calibration:
    return calibrate(network, SPEC, num_samples=4, batch_size=4, sensitivity_samples=4)


def measured(network: SplitNetwork, schedule: Schedule, *, seed: int = 0, count: int = 4) -> float:
    """The root-mean-square error of the final latents to the unshared complete trajectory."""
    indices = range(count)
    noise, labels = draw_noise(SHAPE, seed=seed, indices=indices), draw_labels(5, seed=seed, indices=indices)
    ends = [sample(network, one, noise, labels).double() for one in (schedule, Schedule.full(SPEC))]
    return (ends[0] - ends[1]).square().mean().sqrt().item()


@pytest.mark.parametrize("budget", [2, 4, 6])
def test_solved_schedules_end_where_they_are_predicted(network, calibration, budget: int) -> None:
    costs = counted_of(TorchBackend(network), SHAPE)
    each = [costs.at(width) for width in WIDTHS]
    complete = solve(calibration, budget)
    total = costs.of(complete, networks_alone=True)
    schedule, _ = solve_with_widths(calibration, total, [one.encoder for one in each], [one.decoder for one in each])
    assert schedule.encoder_widths
    for seed, factor in ((0, 1.35), (7, 1.7)):  # the images it was calibrated on, and others
        error = measured(network, schedule, seed=seed)
        assert schedule.predicted_error / factor < error < schedule.predicted_error * factor
    # Whether that is closer than what the same cost buys without widths is predicted, too.
    gains = measured(network, complete) / measured(network, schedule)
    assert complete.predicted_error / schedule.predicted_error == pytest.approx(gains, rel=0.25)
    assert (complete.predicted_error > schedule.predicted_error) == (gains > 1) == (budget < 6)
    assert costs.of(schedule, networks_alone=True) <= total


@pytest.mark.parametrize("decoders", [{0: 1}, {3: 2, 4: 2, 5: 2}, dict.fromkeys(range(12), 1), {0: 2, 11: 1}])
def test_one_matrix_prices_every_assignment_of_decoder_widths(network, calibration, decoders: dict[int, int]) -> None:
    """To first order in effects that are small here: a few hundredths of the latents."""
    schedule = schedule_with_widths(calibration, [(k, 0) for k in range(12)], [decoders.get(k, 0) for k in range(12)])
    assert schedule.predicted_error == effect_of(calibration.widths.effects, decoders)
    assert measured(network, schedule) == pytest.approx(schedule.predicted_error, rel=0.02)


def test_what_a_cost_affords_includes_forecasts(network, calibration, tiny_model_path) -> None:
    costs = counted_of(TorchBackend(network), SHAPE)
    full = costs.of(Schedule.full(SPEC))
    dearest = dataclasses.replace(costs, forecast=costs.decoder / 10)  # as where memory is slow
    for prices in (costs, dearest):
        for share in np.linspace(0.25, 0.9, 14):
            total = share * prices.of(Schedule.full(SPEC))
            schedule = with_widths(calibration, prices, total)
            assert schedule.has_widths or share > 0.5
            assert prices.of(schedule) <= total
            # What is left is less than a narrow run of either network, but for forecasts that others would take.
            assert prices.of(schedule) > (0.97 if prices is costs else 0.9) * total, share
    assert with_widths(calibration, costs, 0.01 * full) is None
    assert with_widths(calibration, costs, full).budget == SPEC.num_steps  # to the last bit of the cost
    # Here, where narrow networks are nearly as good, up to half of the encoder runs buy less than widths do.
    for complete, _ in solve_curve(calibration, 6):
        found = with_widths(calibration, costs, costs.of(complete) * (1 + 1e-9))
        assert found.predicted_cost < complete.predicted_cost
    plain = load_model(tiny_model_path)
    of_plain = calibrate(plain, SPEC, num_samples=2, batch_size=2, sensitivity_samples=1)
    assert with_widths(of_plain, counted_of(TorchBackend(plain), SHAPE), full) is None


def test_plans_and_comparisons_try_widths(network, calibration, tmp_path, monkeypatch) -> None:
    for name, few in (("INTEGRATORS", ("ab2",)), ("SHIFTS", ())):
        monkeypatch.setattr(plan, name, few)
    monkeypatch.setattr(candidates, "STEPS", (8, 12))
    backend = TorchBackend(network)
    costs = counted_of(backend, SHAPE)
    judge = Judge(backend, calibration, costs, ImageRange(seed=3, first=0, stop=2), 2)
    (row,) = choose_plans(judge, [0.4], silent)
    narrow = [one for one in judge.plans if one.schedule.has_widths]
    assert narrow
    assert max(one.mean for one in narrow) <= row.shared.mean
    field = Field(
        backend=backend, calibration=calibration, costs=costs, num_images=2, seed=5, batch_size=2, aim="reference"
    )
    monkeypatch.setattr(comparing, "_closed", lambda *_: None)  # which searches for long
    (contest,) = comparing.compare(field, [0.4], [], [], tmp_path)
    entered = next(one for one in contest.rows if one.entry.name == WITH_WIDTHS)
    assert entered.entry.schedule.has_widths
    assert entered.cost <= 0.4


def test_costs_are_of_what_runs(network) -> None:
    costs = counted_of(TorchBackend(network), SHAPE)
    guided = int((SPEC.guidance_weights != 1).sum())
    assert 0 < guided < 12
    schedule = Schedule(spec=SPEC, refresh_steps=(0, 6), encoder_widths={6: 0.5}, decoder_widths={6: 0.75, 11: 0.5})
    assert SPEC.guidance_weights[6] != 1 == SPEC.guidance_weights[11]
    expected = 2 * costs.encoder + 2 * costs.at(0.5).encoder
    expected += (10 + guided - 1) * costs.decoder + 2 * costs.at(0.75).decoder + costs.at(0.5).decoder
    assert costs.of(schedule, networks_alone=True) == pytest.approx(expected)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, network, calibration):
    """The model, and its calibration as `calibrate` would leave it."""
    from ddt_accel.workspace import Workspace

    folder = tmp_path_factory.mktemp("widths")
    save_network(network, folder / "nested.safetensors")
    loaded = Workspace(folder).load_model({"source": str(folder / "nested.safetensors")})
    calibrate(loaded, SPEC, num_samples=4, batch_size=4, sensitivity_samples=4).save(folder / "calibration.safetensors")
    return folder


def test_it_says_what_runs_narrow_and_what_else_the_cost_buys(cli, workspace) -> None:
    said = cli("solve", "--widths", "--budget", 4, "-w", workspace)
    assert said.code == 0, said.err
    schedule = Schedule.load(workspace / "schedule.json")
    assert schedule.encoder_widths
    encoder, decoder, *rest = said.out.splitlines()
    symbols = {1.0: "●", 0.75: "◐", 0.5: "○"}
    runs = {step: symbols[schedule.encoder_widths.get(step, 1.0)] for step in schedule.refresh_steps}
    assert encoder == "".join(runs.get(k, "·") for k in range(12)) + "  encoder"
    decoders = "".join(symbols[schedule.decoder_widths.get(k, 1.0)] for k in range(12))
    assert decoder == f"{decoders}  decoder; ● width 1, ◐ width 0.75, ○ width 0.5"
    text = "\n".join(rest)
    for part in (
        f"The encoder runs at {schedule.budget} of 12 steps",
        "Its networks take ",
        "% of what those of the best for 4 encoder runs without widths take. By multiply-adds (counted for 16 tokens",
        "Predicted: ",
        "; 4 encoder runs without widths: ",
        "It should end ",
        "Next: ddt-accel bench",
    ):
        assert part in text, text
    found = json.loads(cli("solve", "--widths", "-k", 4, "-w", workspace, "--json").out)
    assert found["cost"] <= found["total"]
    assert found["predicted_error"] == schedule.predicted_error < found["without_widths"]["predicted_error"]
    assert found["encoder_widths"] == {str(step): width for step, width in schedule.encoder_widths.items()}
    told = cli("inspect", workspace / "schedule.json").out
    assert "encoder widths  0." in told
    told = cli("inspect", workspace / "calibration.safetensors").out
    assert "widths  1, 0.75, 0.5; effects of narrow decoders from 4 samples" in told


def test_the_schedule_with_widths_is_written_even_where_it_loses_or_has_none(cli, workspace, tmp_path) -> None:
    said = cli("solve", "--widths", "-k", 12, "-w", workspace, "--out", tmp_path / "all.json")
    assert "all widths came out complete" in said.out
    assert Schedule.load(tmp_path / "all.json").refresh_steps == tuple(range(12))
    assert f"--schedule {tmp_path / 'all.json'}" in said.out


def test_coarser_grids_are_solved_for(cli, workspace, tmp_path) -> None:
    said = cli("solve", "--widths", "-k", 3, "--steps", 8, "-w", workspace, "--out", tmp_path / "eight.json")
    assert said.code == 0, said.err
    schedule = Schedule.load(tmp_path / "eight.json")
    assert schedule.spec.num_steps == 8
    assert schedule.has_widths
    noise, labels = draw_noise(SHAPE, seed=3, indices=range(2)), draw_labels(5, seed=3, indices=range(2))
    model = load_model(workspace / "nested.safetensors")
    assert torch.isfinite(sample(model, schedule, noise, labels)).all()


def test_calibrate_says_that_it_measures_them(cli, workspace, tmp_path) -> None:
    said = cli(
        "calibrate", "--model", workspace / "nested.safetensors", "--steps", 4, "--samples", 2,
        "--sensitivity-samples", 1, "-w", tmp_path,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "The network has the widths 1, 0.75, 0.5, all of which are measured." in said.err
    assert "ddt-accel solve --widths --budget 1" in said.out


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--pareto"], "--pareto"),
        (["--split", "--align"], "--split, --align"),
        (["--refine"], "--refine"),
        (["--target-speedup", 2], "a target"),
        (["--forecast", "hold"], "--forecast, --sources or --uncentred"),
        (["--uncentred"], "--forecast, --sources or --uncentred"),
    ],
)
def test_options_that_do_not_go_with_it(cli, workspace, options, wrong) -> None:
    said = cli("solve", "--widths", *options, "-w", workspace)
    assert said.code != 0
    assert f"--widths solves for one budget and calibrated forecasts; give it without {wrong}." in said.err


@pytest.mark.parametrize(("option", "value", "wrong"), [("--objective", "minimax", "with widths choose one of sum"),
                                                        ("--budget", 0, "The budget (--budget) is 0"),
                                                        ("--budget", 13, "at most 12 times")])  # fmt: skip
def test_what_it_cannot_solve_for_is_a_sentence(cli, workspace, option, value, wrong) -> None:
    said = cli("solve", "--widths", option, value, "-w", workspace)
    assert said.code == 2
    assert wrong in " ".join(said.err.split())
    assert "Traceback" not in said.err


def test_a_calibration_without_widths_is_refused(cli, made) -> None:
    said = cli("solve", "--widths", "-w", made, "--out", made / "unused.json")
    assert said.code != 0
    assert "has no narrow widths: its network was trained at one, or it was made before" in said.err
    assert "ddt-accel train --from CHECKPOINT --dynamic nested" in said.err
