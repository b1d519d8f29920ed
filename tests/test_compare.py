"""`compare`: everyone at the same cost, on the same noises, resumed after an interruption."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.comparison.choices import Choices
from ddt_accel.comparison.choosing import Chooser, Entry
from ddt_accel.comparison.compare import compare
from ddt_accel.comparison.contest import Field
from ddt_accel.comparison.ours import ALIGNED, CLOSED, FITTED, SOLVED, SOLVING
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.evaluation.converged import converged_ends, reference_steps
from ddt_accel.evaluation.costs import counted_of
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.joint import JointFit
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
def brief(field) -> Field:
    """Of few steps and images, for what is no matter of who is how close."""
    calibration = calibrate(field.backend.model, SamplingSpec(num_steps=6), 2, sensitivity_samples=1)
    return dataclasses.replace(field, calibration=calibration, num_images=2)


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
        assert {row.entry.name for row in contest.rows} == {"fewer steps", "TaylorSeer", SOLVED, ALIGNED, CLOSED}
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


def test_fits_in_closed_form_are_to_the_reference_solution(contests, field) -> None:
    """On images that nothing is reported on, and closer than what they were fitted from."""
    for contest in contests:
        row = next(row for row in contest.rows if row.entry.name == CLOSED)
        (fitted_on,) = row.entry.schedule.fitted_on
        assert fitted_on[0] not in (field.seed, 0)
        plain = next(row for row in contest.rows if row.entry.name == "fewer steps")
        assert row.ahead_of(plain, "reference").low > 0


def test_they_are_to_the_unshared_sampler_where_that_is_the_aim(field, tmp_path) -> None:
    """Closer to it than fewer steps are, of the best integrator and time shift."""
    (contest,) = compare(dataclasses.replace(field, aim="unshared"), [COST], FEW[:1], [], tmp_path)
    rows = {row.entry.name: row for row in contest.rows}
    assert rows[CLOSED].ahead_of(rows["fewer steps"], "unshared").low > 0


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


def test_grids_and_settings_are_searched_in_turns(chooser) -> None:
    """No worse than the best of any grid and setting, but for what two images do not tell apart."""
    rival, cost = next(rival for rival in RIVALS if rival.name == "TaylorSeer"), 0.45
    entry, best = chooser.choose(rival, cost), -np.inf
    for statistics in chooser.grids(rival, cost):
        for variant in rival.variants(statistics):
            runs = range(1, statistics.spec.num_evaluations + 1)
            affordable = [s for k in runs if (s := variant.of(k)) is not None and chooser.cost(s) <= cost]
            best = max(best, chooser.decibels(affordable[-1]) if affordable else -np.inf)
    assert entry.promise >= best - 1.0


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_short_calibrations(backend, tmp_path, steps) -> None:
    calibration = calibrate(backend.model, SamplingSpec(num_steps=steps), 2, sensitivity_samples=1)
    field = Field(
        backend=backend, calibration=calibration, costs=counted_of(backend, SHAPE), num_images=2, seed=5, batch_size=4,
        aim="reference",
    )  # fmt: skip
    (contest,) = compare(field, [0.9], FEW, [], tmp_path)
    assert ("TaylorSeer" in contest.missing) == (steps <= 2)


def test_what_leaves_the_finite_numbers_on_other_images_does_not_end_it(brief, tmp_path, monkeypatch) -> None:
    """Measured on 2 images, of which nobody knew when it was chosen."""
    from ddt_accel.comparison import compare as under_test

    measure = under_test.measure

    def failing(backend, schedules, **settings):
        if "TaylorSeer" in schedules:
            raise NumericsError("ended in NaN")
        return measure(backend, schedules, **settings)

    monkeypatch.setattr(under_test, "measure", failing)
    monkeypatch.setattr(under_test, "_is_finite", lambda field, schedule: schedule.forecast != "rival")
    (contest,) = compare(brief, [0.9], FEW, [], tmp_path)
    assert {row.entry.name for row in contest.rows} == {"fewer steps", SOLVED, ALIGNED, CLOSED}
    assert "TaylorSeer" in contest.missing


def test_two_comparisons_in_one_folder_keep_apart(field, chooser, tmp_path) -> None:
    rival = next(rival for rival in RIVALS if rival.name == "TaylorSeer")
    first, second = (
        Entry("TaylorSeer", "", f"{runs} runs", rival.variants(field.calibration)[0].of(runs), 1.0) for runs in (3, 5)
    )
    mine = Choices(tmp_path, "mine")
    mine.of(0.2, "TaylorSeer", lambda: first)
    Choices(tmp_path, "another's").of(0.2, "TaylorSeer", lambda: second)
    mine.of(0.3, "TaylorSeer", lambda: first)
    assert Choices(tmp_path, "mine").of(0.2, "TaylorSeer", lambda: None) == first


def test_images_that_would_be_fitted_on_are_refused(field, chooser, tmp_path, backend) -> None:
    joint = JointFit(backend.model, field.calibration, field.costs, FitSpec(seed=field.seed))
    with pytest.raises(MismatchError, match="would be fitted on"):
        compare(field, [COST], FEW, [], tmp_path, joint=joint)


def test_published_solvers_are_fitted_as_ours_are(brief, tmp_path, backend, searched_briefly) -> None:
    spec = FitSpec(seed=9, images=4, batch_size=4, held_out=4, iterations=2, reference_steps=24)
    joint = JointFit(backend.model, brief.calibration, brief.costs, spec, folder=tmp_path / "fit")
    rivals = [rival for rival in RIVALS if rival.refitted]
    assert [rival.name for rival in rivals] == ["neural solver"]
    (contest,) = compare(brief, [0.9], rivals, [], tmp_path, joint=joint)
    rows = {row.entry.name: row for row in contest.rows}
    assert {"neural solver, fitted here", FITTED} <= rows.keys()
    fitted, given = rows["neural solver, fitted here"].entry, rows["neural solver"].entry
    assert fitted.promise >= given.promise
    assert fitted.schedule.spec == given.schedule.spec


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


def test_choices_of_other_images_are_not_taken_over(brief, tmp_path, monkeypatch) -> None:
    compare(brief, [0.9], FEW[:1], [], tmp_path)
    chosen: list[str] = []
    choose = Chooser.choose
    monkeypatch.setattr(
        Chooser, "choose", lambda self, rival, cost: chosen.append(rival.name) or choose(self, rival, cost)
    )
    compare(dataclasses.replace(brief, seed=6), [0.9], FEW[:1], [], tmp_path)
    assert chosen == ["fewer steps", SOLVED]


@pytest.mark.parametrize("targets", [[], [0.0], [1.0], [float("nan")]])
def test_costs_that_make_no_sense(field, tmp_path, targets) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        compare(field, targets, FEW, [], tmp_path)


def test_calibrated_images_are_refused(field) -> None:
    with pytest.raises(MismatchError, match="calibrated on"):
        dataclasses.replace(field, seed=0)


def test_compare_on_the_command_line(cli, solved, tiny_model_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
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
    assert "No schedule for a cost of 0.02" in ran.err
    page = (solved / "compare" / "compare.html").read_text()
    assert page.count("<svg") > 3
    assert "arXiv 2503.06923" in page
    facts = json.loads((solved / "compare" / "compare.json").read_text())
    contest = facts["contests"][1]
    assert {row["name"] for row in contest["rows"]} == {"TaylorSeer", "fewer steps", SOLVED, ALIGNED, CLOSED}
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
