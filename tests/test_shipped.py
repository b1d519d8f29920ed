"""The schedules that come with the package."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, load_model, sample
from ddt_accel.errors import ArtifactError
from ddt_accel.evaluation.fidelity import latent_decibels, psnr, to_images
from ddt_accel.rivals.neural_solver import FLOWDCN, solver
from ddt_accel.sampling.reference import converged, second_order
from ddt_accel.schedule import shipped_schedules

FITTED = {
    "cifar10": ("4of6", "5of7", "6of9", "8of8", "8of12", "9of14", "9of14-final-step", "10of14", "12of17", "16of23"),
    "cifar10-pixnerd": ("4of4", "6of6", "8of8", "10of10", "14of26"),
}
SOLVED = {"cifar10": (5, 6, 8, 10, 12, 16, 25), "cifar10-pixnerd": (4, 6, 8, 10, 16)}
MEASURED = Path(__file__).parent.parent / "benchmarks" / "results"
CIFAR10 = [name for name in shipped_schedules() if name.startswith("cifar10-")]
NEURAL = [name for name in shipped_schedules() if name.startswith("neural-solver-")]


def model_of(name: str) -> str:
    return "cifar10-pixnerd" if name.startswith("cifar10-pixnerd-") else "cifar10"


def test_the_promised_ones_are_there() -> None:
    solved = {f"{model}-{k}of50" for model, runs in SOLVED.items() for k in runs}
    fitted = {f"{model}-fitted-{k}" for model, names in FITTED.items() for k in names}
    assert solved | fitted == set(CIFAR10)
    assert {f"neural-solver-{k}" for k in (5, 6, 7, 8, 9, 10, 15)} == set(NEURAL)


@pytest.mark.parametrize("name", sorted(set(shipped_schedules()) - set(NEURAL)))
def test_a_name_says_what_the_schedule_is(name: str) -> None:
    schedule = Schedule.load(name)
    runs, steps = (int(part) for part in re.search(r"-(\d+)of(\d+)", name).groups())
    assert (schedule.budget, schedule.spec.num_steps) == (runs, steps)
    known = load_model(model_of(name)).source.sha256 if name in CIFAR10 else None
    assert schedule.checkpoint_sha256 == known


@pytest.mark.parametrize("name", NEURAL)
def test_the_neural_solver_is_that_of_the_rivals(name: str) -> None:
    schedule = Schedule.load(name)
    assert schedule == solver(SamplingSpec(), FLOWDCN, int(name.rpartition("-")[2]))
    assert schedule.checkpoint_sha256 is None


def test_a_file_comes_before_a_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Schedule.uniform(Schedule.load(CIFAR10[0]).spec, 3)
    mine.save(CIFAR10[0])
    assert Schedule.load(CIFAR10[0]) == mine
    with pytest.raises(ArtifactError, match="cifar10-10of50"):
        Schedule.load("cifar10-11of50")


@pytest.mark.parametrize(
    ("name", "fewer", "over_even"), [("cifar10", "cifar10-5of50", 10), ("cifar10-pixnerd", "cifar10-pixnerd-4of50", 2)]
)
def test_they_do_what_they_are_for(name: str, fewer: str, over_even: float) -> None:
    """On noise that was not calibrated on: far closer to the unshared pictures than as many runs evenly spread, and
    the closer the more runs; the distances expected are those of `docs/results/`, with room for rounding."""
    model, ten = load_model(name), f"{name}-10of50"
    spec = Schedule.load(ten).spec
    noise = draw_noise((3, 32, 32), seed=7, indices=range(6))
    labels = draw_labels(10, seed=7, indices=range(6))

    def pictures(schedule: Schedule):
        return to_images(sample(model, schedule, noise, labels))

    unshared = pictures(Schedule.full(spec))
    fidelity = {one: psnr(pictures(Schedule.load(one)), unshared).mean() for one in (fewer, ten)}
    even = psnr(pictures(Schedule.uniform(spec, 10)), unshared).mean()
    assert fidelity[ten] > even + over_even
    assert fidelity[ten] > fidelity[fewer] + 3
    assert name != "cifar10" or fidelity[fewer] > even


@cache
def noises() -> tuple[Tensor, Tensor]:
    """Four that nothing was fitted on, and their labels."""
    images = range(4)
    return draw_noise((3, 32, 32), seed=7, indices=images), draw_labels(10, seed=7, indices=images)


@cache
def unshared_ends(model: str, spec: SamplingSpec) -> Tensor:
    return sample(load_model(model), second_order(spec), *noises())


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in FITTED.items() for name in names])
def test_fitted_ones_lead_where_many_steps_do(model: str, name: str) -> None:
    """On noise that was not fitted: closer than even steps of AB2 for the same cost by what `benchmarks/shipped.py`
    found on other images, with room for these few."""
    fitted = Schedule.load(f"{model}-fitted-{name}")
    assert fitted.fitted_on == ((3, 0, 96),)
    measured = MEASURED / ("shipped.json" if model == "cifar10" else f"shipped-{model}.json")
    rows = json.loads(measured.read_text())["rows"]
    (known,) = [row for row in rows if row["schedule"] == f"{model}-fitted-{name}"]
    grids = (converged(fitted.spec, steps).spec for steps in (80, known["even"]["steps"]))
    limit, even = (unshared_ends(model, spec) for spec in grids)
    closer = latent_decibels(sample(load_model(model), fitted, *noises()), limit)
    plain = latent_decibels(even, limit)
    assert (closer - plain).mean() > known["even"]["gain"]["mean"] - 5
