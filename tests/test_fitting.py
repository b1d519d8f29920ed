"""Fits: the trajectory against the runtime's, its gradients against differences, and what a fit brings."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError, NumericsError
from ddt_accel.evaluation.benchmark import network_rows
from ddt_accel.evaluation.converged import converged_ends
from ddt_accel.fitting.descent import SLOWER
from ddt_accel.fitting.fit import Fitter
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.scalars import KINDS, Scalars, widened
from ddt_accel.fitting.trajectory import _forecast, fitted_trajectory
from ddt_accel.sampling.integrators import updates
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.program import compile_program
from ddt_accel.solver.solve import Method, solve_curve
from ddt_accel.solver.split import split

SPEC = SamplingSpec(num_steps=6, solver="ab2", guidance=1.5)
LOOK_EVERY = 5  # in place of 10: fits of half as many iterations
QUICK = FitSpec(
    iterations=2 * LOOK_EVERY, images=6, held_out=4, batch_size=3, micro_batch=3, reference_steps=48, learning_rate=1e-2
)


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch) -> None:
    monkeypatch.setattr("ddt_accel.fitting.fit.LOOK_EVERY", LOOK_EVERY)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def bias(model):
    with torch.no_grad():
        return model.modulations(torch.zeros(1, 1, model.config.hidden_size))[0, 0].numpy()


@pytest.fixture(scope="module")
def schedules(model) -> dict[str, Schedule]:
    calibration = calibrate(model, SPEC, num_samples=4)
    uncentred = solve_curve(calibration, 3, Method(centred=False))[-1][0]
    found = {
        "unshared": Schedule.full(SPEC),
        "held": Schedule.uniform(SPEC, 3),
        "heun": Schedule.uniform(dataclasses.replace(SPEC, num_steps=4, solver="heun"), 4),
        "forecast": solve_curve(calibration, 3)[-1][0],
        "uncentred": uncentred,
        "from three": solve_curve(calibration, 4, Method(sources=3))[-1][0],
        "branches of their own": split(calibration, uncentred, Method(centred=False)),
        "unguided": Schedule.uniform(dataclasses.replace(SPEC, guidance=1.0), 2),
    }
    assert all(
        schedule.spec.num_evaluations > schedule.budget for name, schedule in found.items() if name != "unshared"
    )
    return found


def inputs(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    images = range(count)
    return draw_noise((3, 8, 8), seed=9, indices=images), draw_labels(4, seed=9, indices=images)


NAMES = ["unshared", "held", "heun", "forecast", "uncentred", "from three", "branches of their own", "unguided"]


SUBSETS = [kinds for count in (1, 2, 3) for kinds in itertools.combinations(KINDS, count)]


@pytest.mark.parametrize(("name", "free"), [
    *((name, KINDS) for name in NAMES), *((name, free) for name in ("held", "heun") for free in SUBSETS[:-1])
])  # fmt: skip
def test_it_is_the_trajectory_that_the_runtime_runs(model, bias, schedules, name: str, free: tuple[str, ...]) -> None:
    """At the start, and with every number moved: the loop that gradients flow through, and the loop that runs."""
    noise, labels = inputs()
    scalars = Scalars(schedules[name], bias, free=free)
    generator = torch.Generator().manual_seed(1)
    np.testing.assert_allclose(
        fitted_trajectory(model, scalars, noise, labels).end.detach(),
        sample(model, schedules[name], noise, labels),
        atol=2e-5,
    )
    with torch.no_grad():
        for value in filter(lambda value: value.requires_grad, scalars.parameters()):
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    moved = scalars.schedule()
    np.testing.assert_allclose(
        fitted_trajectory(model, scalars, noise, labels).end.detach(), sample(model, moved, noise, labels), atol=2e-5
    )
    assert not torch.allclose(sample(model, moved, noise, labels), sample(model, schedules[name], noise, labels))
    assert moved.spec == schedules[name].spec
    guidance = [e.guidance for e in compile_program(schedules[name]).evaluations]
    assert [e.guidance for e in compile_program(moved).evaluations] == guidance
    assert moved.refresh_steps == schedules[name].refresh_steps
    assert moved.unconditional_steps == schedules[name].unconditional_steps
    assert network_rows(compile_program(moved)) == network_rows(compile_program(schedules[name]))


@pytest.mark.parametrize("name", ["forecast", "branches of their own", "heun"])
def test_gradients_are_those_of_differences(model, bias, schedules, name: str) -> None:
    noise, labels = inputs(2)
    scalars = Scalars(schedules[name], bias)
    target = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))

    def loss() -> torch.Tensor:
        return (fitted_trajectory(model, scalars, noise, labels).end - target).square().mean()

    loss().backward()
    checked = 0
    for value in scalars.parameters():
        assert value.grad is not None
        for at in torch.nonzero(value.grad)[::5]:
            index, step = tuple(at.tolist()), 1e-2
            with torch.no_grad():
                value[index] += step
                above = loss().item()
                value[index] -= 2 * step
                below = loss().item()
                value[index] += step
            scale = float(value.grad.abs().max())
            assert (above - below) / (2 * step) == pytest.approx(value.grad[index].item(), rel=0.03, abs=0.01 * scale)
            checked += 1
    assert checked > 5


@given(st.lists(st.floats(-40, 40), min_size=7, max_size=7))
@example([0.0, 20, 20, 20, 20, 20, -20])
@settings(max_examples=50, deadline=None)
def test_times_increase_whatever_the_parameters_are(gaps: list[float]) -> None:
    scalars = Scalars(Schedule.full(SPEC), np.zeros(4, dtype=np.float32))
    with torch.no_grad():
        scalars.gaps += torch.tensor(gaps, dtype=torch.float64)
    times = np.array(scalars.schedule().times)
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()
    assert times[-1] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_free_stays(bias, schedules, kind: str) -> None:
    start = schedules["forecast"]
    scalars = Scalars(start, bias, free=(kind,))
    assert [name for name, value in scalars.named_parameters() if value.requires_grad] == [
        {"times": "gaps"}.get(kind, kind)
    ]
    with torch.no_grad():
        for value in filter(lambda value: value.requires_grad, scalars.parameters()):
            value += 0.1 * torch.linspace(0, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
    moved = scalars.schedule()
    assert (moved.times is not None) == (kind == "times")
    # In units of the step: fixed, they follow the times.
    assert (moved.integrator is not None) == (kind != "forecasts")
    if kind == "times":
        steps = np.diff([*moved.times, 1.0])
        for k, row in enumerate(moved.integrator):
            named = dict(updates(SPEC)[k].velocities)
            assert {j: weight / steps[k] for j, weight in row} == pytest.approx(
                {j: weight / np.diff(SPEC.grid)[k] for j, weight in named.items()}, rel=1e-5
            )
    assert (moved.forecasts != start.forecasts) == (kind == "forecasts")


def test_a_fit_ends_closer_on_images_it_has_not_seen(model, schedules, tmp_path) -> None:
    spec = dataclasses.replace(QUICK, iterations=60, images=16, held_out=16, batch_size=8, micro_batch=8)
    model.requires_grad_(False).final_layer.linear.bias.requires_grad_(True)
    fitted = Fitter(model, schedules["forecast"], spec, cache=tmp_path).run()
    assert fitted.improved
    assert fitted.gain.mean > 1
    # And that is not the closed form alone, which the descent starts from.
    standing = dataclasses.replace(spec, iterations=1, learning_rate=1e-12)
    still = Fitter(model, schedules["forecast"], standing, cache=tmp_path).run()
    assert fitted.iteration > 0
    assert fitted.after.mean > still.after.mean + 1
    assert fitted.gain.mean == pytest.approx(fitted.after.mean - fitted.before.mean)
    assert fitted.schedule.objective == "fitted"
    assert fitted.schedule.predicted_cost is None
    fitted.schedule.save(tmp_path / "fitted.json")
    loaded = Schedule.load(tmp_path / "fitted.json")
    assert loaded == fitted.schedule
    assert torch.equal(sample(model, loaded, *inputs()), sample(model, fitted.schedule, *inputs()))
    # The network is frozen while it lasts, and then as it was.
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["final_layer.linear.bias"]
    assert model.final_layer.linear.bias.grad is None
    model.requires_grad_(False)


def test_a_fit_that_gains_nothing_returns_its_start(model, schedules) -> None:
    """With steps so small that no number really moves."""
    fitted = Fitter(
        model, schedules["held"], dataclasses.replace(QUICK, learning_rate=1e-12, free=("times", "forecasts"))
    ).run()
    assert not fitted.improved
    assert fitted.schedule == schedules["held"]
    assert fitted.after.mean == pytest.approx(fitted.before.mean, abs=0.01)


def test_images_of_an_earlier_fit_are_not_reported_on(model, schedules) -> None:
    first = Fitter(model, schedules["held"], dataclasses.replace(QUICK, learning_rate=0.05)).run()
    used = (QUICK.seed, 0, QUICK.images + QUICK.held_out)
    assert first.schedule.fitted_on == (used,)
    again = Fitter(model, first.schedule, dataclasses.replace(QUICK, iterations=1))
    assert again.run().before.mean == pytest.approx(first.after.mean)
    assert again._best_schedule().fitted_on == (used,)
    elsewhere = Fitter(model, first.schedule, dataclasses.replace(QUICK, seed=8))._best_schedule()
    assert elsewhere.fitted_on == (used, (8, 0, used[2]))
    assert elsewhere.unshared().fitted_on == elsewhere.fitted_on
    for schedule in (first.schedule, elsewhere):  # those of a fit before the last are seen images, too
        with pytest.raises(MismatchError, match="another --seed"):
            Fitter(model, schedule, dataclasses.replace(QUICK, images=3, held_out=4))


@pytest.mark.parametrize("times", [(0, 0, 0.2, 0.4, 0.6, 0.8), (0, 0.3, 0.3, 0.3, 0.6, 0.8), (0.5,) * 6])
def test_times_that_stand_still_can_be_fitted(model, bias, times: tuple[float, ...]) -> None:
    start = dataclasses.replace(Schedule.uniform(SPEC, 3), times=times)
    end = fitted_trajectory(model, Scalars(start, bias), *inputs()).end
    np.testing.assert_allclose(end.detach(), sample(model, start, *inputs()), atol=2e-5)


def test_weights_that_do_not_add_up_start_as_they_are(model, bias) -> None:
    """Without means there is no constant, and widening must not bring one in; nor forget the other branch's."""
    for start in (
        Schedule(spec=SPEC, refresh_steps=(0, 2), forecasts={3: ((0, 0.2), (2, 0.5))}),
        Schedule(spec=SPEC, refresh_steps=tuple(range(6)), unconditional_steps=(0, 3)),
    ):
        end = fitted_trajectory(model, Scalars(start, bias), *inputs()).end
        np.testing.assert_allclose(end.detach(), sample(model, start, *inputs()), atol=2e-5)
        wide = widened(start, bias, 2)
        assert (wide.mean_modulations is None) == bool(start.forecasts)


def test_nothing_to_fit_is_said(model, bias) -> None:
    with pytest.raises(ConfigError, match="no forecasts that could be fitted"):
        Scalars(Schedule.full(SPEC), bias, free=("forecasts",))
    with pytest.raises(ConfigError, match="no times"):
        Scalars(Schedule.full(SamplingSpec(num_steps=1)), bias, free=("times",))
    diverging = dataclasses.replace(Schedule.full(SPEC), integrator=tuple(((k, 1e30),) for k in range(6)))
    with pytest.raises(NumericsError, match="schedule to start from ends in NaN"):
        Fitter(model, diverging, QUICK).run()
    with pytest.raises(ConfigError, match="at least 12"):
        Fitter(model, Schedule.full(SPEC), dataclasses.replace(QUICK, reference_steps=11))


class Watched(Fitter):
    """Keeps its descent, and at which iterations it returned to its best numbers."""

    def descent(self, coordinates):
        self.watched, self.returned = super().descent(coordinates), []
        return self.watched

    def _return(self, descent) -> None:
        before = {name: value.detach().clone() for name, value in self.trained.items()}
        super()._return(descent)
        assert all(torch.equal(value, self.best[name]) for name, value in self.trained.items())
        assert any(not torch.equal(value, self.best[name]) for name, value in before.items())
        self.returned.append(descent.iteration)


def killed_after(iterations: int):
    """What to call a fit's stages with, so that it is interrupted once so many iterations are done."""

    def on_stage(label: str, total: int):
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if label == "fitting" and done == iterations:
                raise KeyboardInterrupt

        return advance

    return on_stage


def test_a_descent_that_leads_away_returns_and_slows_down(model, schedules, tmp_path) -> None:
    """To where it was best; a kill in between, wherever it is, changes nothing."""
    hasty = dataclasses.replace(QUICK, iterations=4 * LOOK_EVERY, learning_rate=0.2)
    state = tmp_path / "state.safetensors"
    killed = {look * LOOK_EVERY + 1: tmp_path / f"{look}.safetensors" for look in (1, 2, 3)}

    def on_stage(label: str, total: int):
        """Keeps the state that a kill would leave."""
        done = itertools.count(1)

        def advance() -> None:
            if label == "fitting" and (kept := killed.get(next(done))):
                shutil.copyfile(state, kept)

        return advance

    whole = Watched(model, schedules["unshared"], hasty, state_path=state, on_stage=on_stage)
    found = whole.run()
    assert whole.returned[0] == LOOK_EVERY
    assert whole.watched.learning_rate == 0.2 * SLOWER ** len(whole.returned)
    assert found.iteration > LOOK_EVERY
    for at, kept in killed.items():
        again = Watched(model, schedules["unshared"], hasty, state_path=kept)
        assert again.run() == found
        assert again.returned == [one for one in whole.returned if one > at]
        assert again.watched.began == whole.watched.began


def test_a_gradient_that_is_not_finite_leads_back_as_well(model, schedules) -> None:
    """Where the best numbers have one, too, descent is at its end; where those are what it began with, that is said."""
    poisoned, lasting = {3, LOOK_EVERY + 4}, set()

    class Poisoned(Watched):
        def _step(self, descent, targets) -> None:
            value = next(iter(self.trained.values()))
            if descent.iteration in poisoned | lasting:
                poisoned.discard(descent.iteration)
                value.grad = torch.full_like(value, torch.nan)
            super()._step(descent, targets)

    spec = dataclasses.replace(QUICK, iterations=3 * LOOK_EVERY)
    fitter = Poisoned(model, schedules["unshared"], spec)
    found = fitter.run()
    assert fitter.returned[:2] == [3, LOOK_EVERY + 4]
    assert fitter.watched.iteration == spec.iterations
    assert found.improved
    lasting.add(3 * LOOK_EVERY - 1)
    fitter = Poisoned(model, schedules["unshared"], spec)
    found = fitter.run()
    assert fitter.watched.iteration == 3 * LOOK_EVERY - 1
    assert found.iteration in (LOOK_EVERY, 2 * LOOK_EVERY)
    lasting.add(3)
    with pytest.raises(NumericsError, match="not finite at iteration 3"):
        Poisoned(model, schedules["unshared"], spec).run()


@pytest.mark.parametrize("name", ["forecast", "unshared"])
def test_a_killed_fit_continues_to_the_same_numbers(model, schedules, tmp_path, name: str) -> None:
    start, spec = schedules[name], QUICK
    whole = Fitter(model, start, spec).run()
    assert whole.iteration > LOOK_EVERY + 3  # what is done after the kill counts
    state = tmp_path / "state.safetensors"

    with pytest.raises(KeyboardInterrupt):
        Fitter(model, start, spec, state_path=state, on_stage=killed_after(LOOK_EVERY + 3)).run()
    again = Fitter(model, start, spec, state_path=state)
    assert again.continues()
    assert again.run() == whole
    other = Fitter(model, schedules["held"], spec, state_path=state)
    assert not other.continues()
    with pytest.raises(MismatchError, match="state of another fit"):
        other.run()
    state.write_bytes(state.read_bytes()[:-5])
    assert not again.continues()
    with pytest.raises(ArtifactError):
        Fitter(model, start, spec, state_path=state).run()


def test_converged_ends_are_kept_and_checked(model, tmp_path) -> None:
    runs = 0

    class Counted(TorchBackend):
        def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given):
            nonlocal runs
            runs += 1
            return super().open(batch, latent_shape, slots, **given)

    def ends(steps: int = 24) -> torch.Tensor:
        images = ImageRange(seed=1, first=2, stop=5)
        return converged_ends(Counted(model), SPEC, steps, images, (3, 8, 8), 8, cache=tmp_path)

    first = ends()
    noise = draw_noise((3, 8, 8), seed=1, indices=range(2, 5))
    labels = draw_labels(4, seed=1, indices=range(2, 5))
    limit = Schedule.full(SamplingSpec(num_steps=24, solver="ab2", guidance=1.5))
    assert torch.equal(first, sample(model, limit, noise, labels))
    assert torch.equal(ends(), first)
    assert runs == 1
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-3])  # damaged: made anew
    assert torch.equal(ends(), first)
    assert runs == 2
    assert kept.read_bytes() == whole
    assert not torch.equal(ends(48), first)


@pytest.mark.parametrize(
    "changes",
    [{"iterations": 0}, {"held_out": 1}, {"batch_size": 99}, {"learning_rate": 0.0}, {"free": ()}, {"free": ("x",)},
     {"sources": 0}, {"seed": -1}],
)  # fmt: skip
def test_impossible_settings_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(QUICK, **changes)


def test_a_fit_killed_before_its_first_step_starts_anew(model, schedules, tmp_path, monkeypatch) -> None:
    whole = Fitter(model, schedules["held"], QUICK).run()
    path = tmp_path / "state.safetensors"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ddt_accel.fitting.fit.closed_form", killed)
        with pytest.raises(KeyboardInterrupt):
            Fitter(model, schedules["held"], QUICK, state_path=path).run()
    again = Fitter(model, schedules["held"], QUICK, state_path=path).run()
    assert again.after == whole.after


def test_a_stochastic_sampler_cannot_be_fitted(model) -> None:
    with pytest.raises(ConfigError, match="stochastic"):
        Fitter(model, Schedule.full(SamplingSpec(num_steps=4, solver="sde")), QUICK)


def test_from_the_command_line(cli, workspace, searched_briefly) -> None:
    few = ["-w", workspace, "-n", 6, "--held-out", 4, "--batch-size", 3, "--reference-steps", 24, "--iterations", 10]
    ran = cli("fit", *few, "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    fitted = Schedule.load(workspace / "schedule.json")
    assert (fitted.objective == "fitted") == result["improved"]
    assert not (workspace / "fit" / "state.safetensors").exists()
    ran = cli(
        "fit",
        *few,
        "--steps",
        5,
        "--budget",
        2,
        "--fixed",
        "times,integrator",
        "--out",
        workspace / "f.json",
    )
    assert ran.code == 0, ran.err
    made = Schedule.load(workspace / "f.json")
    assert (made.spec.num_steps, made.budget) == (5, 2)
    assert made.times is None
    assert cli("sample", "-w", workspace, "--schedule", workspace / "f.json", "-n", 2).code == 0
    kept = [*(workspace / "fit").iterdir(), *workspace.glob("means-*")]
    for path in (workspace / "schedule.json", workspace / "f.json", *kept):
        explained = cli("inspect", path)
        assert explained.code == 0, explained.err
    assert "mean modulations" in explained.out
    for wrong, said in (
        (["--seed", 0, "-n", 1], "calibrated on"),
        (["--fixed", "x"], "times, integrator, forecasts"),
        (["--fixed", "times,integrator,forecasts"], "To fit: nothing"),
        (["--steps", 5, "--schedule", "x.json"], "not both"),
        (["--precision", "int8"], "bf16 or fp32"),
        (["--cost", 0], "above 0"),
        (["--cost", 1e-9], "--cost 1e-09"),
        (["--budget", 99], "99"),
        (["--steps", 7, "--budget", 2], "7 steps"),
        (["--micro-batch", 0], "--micro-batch"),
        (["--micro-batch", "many"], "or auto"),
        (["--reference-steps", 0], "do not converge"),
        (["--steps", 1, "--fixed", "integrator"], "no forecasts or times"),
    ):
        ran = cli("fit", *few, *wrong)
        assert ran.code == 2, wrong
        assert said in ran.err, (wrong, ran.err)
        assert "Traceback" not in ran.err


def test_micro_batches_are_halved_until_they_fit(tiny_model_path, monkeypatch) -> None:
    """Where their size is free; the gradient of a batch is the same, however it is taken apart."""
    from ddt_accel.fitting import coordinates, fit

    model, asked = load_model(tiny_model_path), list[int]()

    def limited(network, scalars, noise, labels, **settings):
        asked.append(len(noise))
        if len(noise) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return fitted_trajectory(network, scalars, noise, labels, **settings)

    schedule = Schedule.uniform(SamplingSpec(num_steps=6, guidance=1.5), 3)
    spec = dataclasses.replace(QUICK, iterations=1, images=5, batch_size=5, micro_batch=2)
    expected = Fitter(model, schedule, spec)
    expected.run()
    for module in (coordinates, fit):
        monkeypatch.setattr(module, "fitted_trajectory", limited)
    free = Fitter(model, schedule, dataclasses.replace(spec, micro_batch=None))
    free.run()
    assert free.micro_batch == 2
    assert asked[:3] == [5, 3, 2]
    for name, value in expected.trained.items():
        torch.testing.assert_close(free.trained[name], value)
    with pytest.raises(torch.OutOfMemoryError):
        Fitter(model, schedule, dataclasses.replace(spec, micro_batch=3)).run()


def test_forecasts_are_in_float32_where_states_are_not() -> None:
    """As a sampler makes them. A weight times bfloat16 would be rounded to its eight bits, which hides its moves."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 3, 8, generator=generator).bfloat16() for _ in range(2)]
    row, means = torch.tensor([-0.4031, 1.4031, 0.0]), 5 * torch.randn(3, 8, generator=generator)
    scalars = SimpleNamespace(means_of=lambda side: means, source_means_of=lambda side: means)
    with torch.autocast("cpu", torch.bfloat16):
        made = _forecast(scalars, 2, row, [0, 1], list(states), 0)
    weights = row[:2].double()
    expected = sum(
        w * (state.double() - mean) for w, state, mean in zip(weights, states, means.double()[:2], strict=True)
    )
    torch.testing.assert_close(made.double(), expected + means[2].double(), rtol=1e-5, atol=1e-5)
