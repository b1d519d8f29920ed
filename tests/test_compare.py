"""`compare`: everyone at the same cost, on the same noises, resumed after an interruption."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.comparison.choosing import Chooser
from ddt_accel.comparison.compare import compare
from ddt_accel.comparison.contest import Field
from ddt_accel.comparison.ours import ALIGNED, FITTED, SOLVED, SOLVING
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.converged import converged_ends, reference_steps
from ddt_accel.evaluation.costs import counted_of
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.rivals.rival import Rival, Variant
from ddt_accel.rivals.table import RIVALS

SHAPE, COST = (3, 8, 8), 0.6
SPEC = SamplingSpec(num_steps=12)


@pytest.fixture(scope="module")
def backend(tiny_model_path) -> TorchBackend:
    return TorchBackend(load_model(tiny_model_path))


@pytest.fixture(scope="module")
def calibration(backend):
    return calibrate(backend.model, SPEC, 2, sensitivity_samples=1)


@pytest.fixture(scope="module")
def field(backend, calibration) -> Field:
    return Field(
        backend=backend, calibration=calibration, costs=counted_of(backend, SHAPE), num_images=4, seed=5, batch_size=3,
        aim="reference",
    )  # fmt: skip


@pytest.fixture(scope="module")
def chooser(field) -> Chooser:
    steps = reference_steps(SPEC.num_steps)
    ends = converged_ends(field.backend, SPEC, steps, field.choosing, SHAPE, 4)
    return Chooser(field.backend, field.calibration, field.costs, field.choosing, ends, 4, own_grid=False)


FEW = [rival for rival in RIVALS if rival.name in ("fewer steps", "TaylorSeer")]


@pytest.fixture(scope="module")
def contests(field, tmp_path_factory):
    return compare(field, [COST, 0.4], FEW, [], tmp_path_factory.mktemp("compare"))


def test_everyone_keeps_to_the_cost(contests, field) -> None:
    for contest in contests:
        assert {row.entry.name for row in contest.rows} == {"fewer steps", "TaylorSeer", SOLVED, ALIGNED}
        assert contest.missing == [FITTED]
        for row in contest.rows:
            assert row.cost <= contest.cost
            assert row.cost == pytest.approx(field.costs.of(row.entry.schedule) / field.costs.of(Schedule.full(SPEC)))


def test_decibels_are_those_of_the_pictures(contests, field) -> None:
    """Drawn once more, by themselves."""
    row = next(row for row in contests[-1].rows if row.entry.name == "TaylorSeer")
    ends = sample_images(field.backend, row.entry.schedule, field.reporting, SHAPE, 4)
    unshared = sample_images(field.backend, Schedule.full(SPEC), field.reporting, SHAPE, 4)
    reference = converged_ends(field.backend, SPEC, reference_steps(12), field.reporting, SHAPE, 4)
    np.testing.assert_allclose(row.to_unshared, latent_decibels(ends, unshared), atol=0.02)
    np.testing.assert_allclose(row.to_reference, latent_decibels(ends, reference), atol=0.02)


def test_the_best_of_all_settings_is_chosen_where_there_is_one_grid(field, calibration) -> None:
    ends = sample_images(field.backend, field.unshared, field.choosing, SHAPE, 4)
    chooser = Chooser(field.backend, calibration, field.costs, field.choosing, ends, 4, own_grid=True)
    rival = next(rival for rival in RIVALS if rival.name == "TaylorSeer")
    entry = chooser.choose(rival, COST)
    every = []
    for variant in rival.variants(calibration):
        affordable = [s for runs in range(1, 13) if chooser.cost(s := variant.of(runs)) <= COST]
        drawn = sample_images(field.backend, affordable[-1], field.choosing, SHAPE, 4)
        every.append(latent_decibels(drawn, ends).mean())
    assert entry.promise == pytest.approx(max(every), abs=0.02)
    assert entry.schedule.spec == SPEC


def test_what_shares_may_do_so_on_other_grids(chooser) -> None:
    """At a cost at which the calibrated grid affords no second run of the encoder."""
    cheap = 0.3
    assert chooser.cost(Schedule.uniform(SPEC, 2)) > cheap
    entry = chooser.choose(SOLVING, cheap)
    assert entry.schedule.spec.num_steps < 12
    assert 2 <= entry.schedule.budget < entry.schedule.spec.num_evaluations


def test_a_rival_that_leaves_the_finite_numbers_does_not_enter(chooser, calibration) -> None:
    def broken(runs: int) -> Schedule:
        schedule = Schedule.uniform(SPEC, 2)
        wild = dict.fromkeys(range(1, 6), ((0, 3e38),))
        return dataclasses.replace(schedule, forecasts=wild, mean_modulations=calibration.modulation_bias[None].copy())

    rival = Rival(name="wild", source="none", variants=lambda statistics: [Variant(settings="", of=broken)])
    assert chooser.choose(rival, 0.9) is None


def test_an_interrupted_comparison_goes_on(field, contests, tmp_path, monkeypatch) -> None:
    chosen: list[str] = []
    choose = Chooser.choose

    def counted(self, rival, cost):
        if len(chosen) == 2:
            raise KeyboardInterrupt
        chosen.append(rival.name)
        return choose(self, rival, cost)

    monkeypatch.setattr(Chooser, "choose", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(field, [COST], FEW, [], tmp_path)
    assert chosen == ["fewer steps", "TaylorSeer"]
    chosen.clear()
    (contest,) = compare(field, [COST], FEW, [], tmp_path)
    assert chosen == [SOLVED]
    monkeypatch.setattr("ddt_accel.comparison.compare.measure", None)  # all is measured already
    assert compare(field, [COST], FEW, [], tmp_path) == [contest]
    known = {row.entry.name: row.entry for row in contests[-1].rows}
    for row in contest.rows:
        assert row.entry.schedule.refresh_steps == known[row.entry.name].schedule.refresh_steps
        assert row.entry.settings == known[row.entry.name].settings


def test_choices_of_other_images_are_not_taken_over(field, tmp_path, monkeypatch) -> None:
    compare(field, [COST], FEW[:1], [], tmp_path)
    chosen: list[str] = []
    choose = Chooser.choose
    monkeypatch.setattr(
        Chooser, "choose", lambda self, rival, cost: chosen.append(rival.name) or choose(self, rival, cost)
    )
    compare(dataclasses.replace(field, seed=6), [COST], FEW[:1], [], tmp_path)
    assert chosen == ["fewer steps", SOLVED]


@pytest.mark.parametrize("targets", [[], [0.0], [1.0], [float("nan")]])
def test_costs_that_make_no_sense(field, tmp_path, targets) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        compare(field, targets, FEW, [], tmp_path)


def test_calibrated_images_are_refused(field) -> None:
    with pytest.raises(MismatchError, match="calibrated on"):
        dataclasses.replace(field, seed=0)


def test_compare_on_the_command_line(cli, solved, tiny_model_path) -> None:
    arguments = [
        "--workspace",
        solved,
        "--model",
        tiny_model_path,
        "--images",
        4,
        "--rivals",
        "TaylorSeer,fewer steps",
        "--cost",
        "0.02,0.7",
    ]
    ran = cli("compare", *arguments)
    assert ran.code == 0, ran.err
    told = " ".join(ran.out.split())
    assert all(name in told for name in ("TaylorSeer", ALIGNED, "ours ahead by"))
    assert "Nothing as cheap as 0.02" in ran.err
    page = (solved / "compare" / "compare.html").read_text()
    assert page.count("<svg") > 3
    assert "arXiv 2503.06923" in page
    facts = json.loads((solved / "compare" / "compare.json").read_text())
    contest = facts["contests"][1]
    assert {row["name"] for row in contest["rows"]} == {"TaylorSeer", "fewer steps", SOLVED, ALIGNED}
    for row in contest["rows"]:
        assert len(row["to_reference_db"]) == 4
    best = max(contest["rows"], key=lambda row: np.mean(row["to_reference_db"]))
    assert f"the closest are {best['name']} at 0.7" in " ".join(cli("status", "--workspace", solved).out.split())
    said = " ".join(cli("inspect", solved / "compare" / "compare.json").out.split())
    assert f"at cost 0.7 {best['name']} {np.mean(best['to_reference_db']):.1f}" in said
    (solved / "compare" / "compare.json").write_text("{")
    assert "comparison damaged" in " ".join(cli("status", "--workspace", solved).out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rivals", "TaylorSeer,Nobody"], "there are fewer steps"),
        (["--cost", "cheap"], "numbers with commas"),
        (["--cost", "2"], "between 0 and 1"),
        (["--ms", "20"], "measured here"),
        (["--ms", "20", "--cost", "0.2"], "give one of them"),
        (["--to", "nowhere"], "reference, unshared"),
        (["--images", 1], "at least 2 images"),
        (["--seed", 0], "calibrated on"),
    ],
)
def test_bad_input_is_a_sentence(cli, solved, tiny_model_path, arguments, said) -> None:
    ran = cli("compare", "--workspace", solved, "--model", tiny_model_path, *arguments)
    assert ran.code == 2
    assert said in " ".join(ran.err.split()), ran.err
