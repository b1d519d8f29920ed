"""Guidance by a second network: beside the published numbers, and that nothing is run that is not read."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import assert_sentence, typed, write_tiny_model
from torch import Tensor

from ddt_accel import (
    Calibration,
    Sampler,
    SamplingSpec,
    Schedule,
    calibrate,
    draw_labels,
    draw_noise,
    export,
    fit,
    load_model,
    open_backend,
    sample,
    solve,
)
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.guided import GuidedBackend
from ddt_accel.backends.manifest import Manifest
from ddt_accel.backends.pytorch import TorchBackend, TorchSession
from ddt_accel.calibration.resample import resample
from ddt_accel.errors import ArtifactError, ConfigError, DependencyError, MismatchError
from ddt_accel.evaluation.costs import Costs, counted_costs, counted_of, kept_costs
from ddt_accel.evaluation.plan import make_plans
from ddt_accel.evaluation.timing import timed_costs
from ddt_accel.fitting.fit import Fitter
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.scalars import Scalars
from ddt_accel.fitting.trajectory import fitted_trajectory
from ddt_accel.networks.families import build, config_of
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend
from ddt_accel.solver.solve import Method, solve_curve
from ddt_accel.solver.split import branch_runs, split, splits
from ddt_accel.stages import silent
from ddt_accel.workspace import ModelChoice

FOLDER = Path(__file__).parent / "reference" / "rae_small"
FACTS = json.loads((FOLDER / "case.json").read_text())
TENSORS = safetensors.torch.load_file(FOLDER / "tensors.safetensors")
NOISE, LABELS = TENSORS["noise"], TENSORS["labels"]
MODEL, GUIDE = FOLDER / "DiTDH" / "stage2_model.pt", FOLDER / "DiTDH-guide" / "stage2_model.pt"


def spec_of(name: str = "euler_autoguidance", **changes: Any) -> SamplingSpec:
    told = FACTS["guidances"][name]
    low, high = told["interval"]
    settings = {
        "num_steps": FACTS["evaluations"], "timeshift": FACTS["time_dist_shift"], "end": FACTS["last_tau"],
        "guidance": told["scale"], "guidance_interval": (1 - high, 1 - low), "closed_interval": True,
    }  # fmt: skip
    return SamplingSpec(**settings | changes)


SPEC = spec_of()
EVERY = tuple(range(SPEC.num_evaluations))
PUBLISHED = {
    "euler_autoguidance": Schedule.full(SPEC),
    "euler_autoguidance_part": Schedule.full(spec_of("euler_autoguidance_part")),
    "euler_autoguidance_refresh_every_2": Schedule(spec=SPEC, refresh_steps=EVERY[::2]),
    "euler_autoguidance_refresh_every_3": Schedule(spec=SPEC, refresh_steps=EVERY[::3]),
    "euler_autoguidance_main_every_2": Schedule(spec=SPEC, refresh_steps=EVERY[::2], unconditional_steps=EVERY),
}


@pytest.fixture(scope="module")
def model() -> SplitNetwork:
    return load_model(MODEL)


@pytest.fixture(scope="module")
def guide() -> SplitNetwork:
    return load_model(GUIDE)


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published(model, guide, name: str) -> None:
    expected = TENSORS[name]
    assert relative(sample(model, PUBLISHED[name], NOISE, LABELS, guide=guide), expected) < 1e-4
    sampler = Sampler(model, PUBLISHED[name], guide=guide)
    for _ in range(2):
        assert relative(sampler.draw(NOISE, LABELS), expected) < 1e-4


def test_compiled_beside_another(tiny_model_path, tmp_path, traced) -> None:
    """Any two backends go together."""
    model = load_model(tiny_model_path)
    guide = load_model(write_tiny_model(tmp_path / "guide.safetensors", seed=1))
    noise, labels = draw_noise((3, 8, 8), seed=2, indices=range(3)), draw_labels(4, seed=2, indices=range(3))
    spec = SamplingSpec(num_steps=5, guidance=1.6)
    try:
        mixed = GuidedBackend(CompiledBackend(model, precision="fp32"), TorchBackend(guide))
        for other in ((0, 2), (0, 1, 2, 3, 4)):
            schedule = Schedule(spec=spec, refresh_steps=(0, 2), unconditional_steps=other)
            expected = sample(model, schedule, noise, labels, guide=guide)
            assert relative(sample(mixed, schedule, noise, labels), expected) < 1e-4
    except DependencyError as error:
        pytest.skip(str(error))
    assert mixed.compile_seconds > 0


class Counted(TorchBackend):
    """Notes how many rows every call has."""

    def __init__(self, model: SplitNetwork) -> None:
        super().__init__(model)
        self.calls: dict[str, list[int]] = {"encode": [], "decode": [], "forecast": []}
        self.taken = 0

    def open(self, *arguments: Any, **named: Any) -> TorchSession:
        session = super().open(*arguments, **named)
        self.taken = sum(one.numel() for one in session.slots.values())
        for name in self.calls:
            setattr(session, name, partial(self._counted, name, getattr(session, name)))
        return session

    def _counted(self, name: str, run: Callable[..., None], *arguments: Any) -> None:
        (rows,) = (one for one in arguments if isinstance(one, slice))
        self.calls[name].append(rows.stop - rows.start)
        run(*arguments)


def counted(schedule: Schedule, model: SplitNetwork, guide: SplitNetwork) -> tuple[Counted, Counted]:
    both = Counted(model), Counted(guide)
    sample(both[0], schedule, NOISE, LABELS, guide=both[1])
    return both


def test_nothing_is_run_that_is_not_read(model, guide) -> None:
    batch = len(NOISE)
    schedule = Schedule(
        spec=spec_of("euler_autoguidance_part"),  # guided: 2 to 8 of 0 to 9
        refresh_steps=(0, 2, 6),
        forecasts={4: ((0, 0.5), (2, 0.5))},
    )
    main, second = counted(schedule, model, guide)
    assert main.calls == {"encode": [batch] * 3, "decode": [batch] * 10, "forecast": [batch]}
    # At 0, too: evaluation 4 reads it.
    assert second.calls == {"encode": [batch] * 3, "decode": [batch] * 7, "forecast": [batch]}
    main, second = counted(PUBLISHED["euler_autoguidance_main_every_2"], model, guide)
    assert (len(main.calls["encode"]), len(second.calls["encode"])) == (5, 10)
    assert not main.calls["forecast"]  # a state that is held is not copied, though the guide's is new
    main, second = counted(dataclasses.replace(schedule, forecasts={}), model, guide)
    assert (len(main.calls["encode"]), len(second.calls["encode"])) == (3, 2)
    # Rows of its own half alone: as many values of either network as one branch needs.
    slots = main.taken // (batch * 36 * model.config.modulation_size)
    assert second.taken == slots * batch * 36 * guide.config.modulation_size


def test_a_network_guides_itself_to_where_it_goes_anyway(model) -> None:
    plain = sample(model, Schedule.full(dataclasses.replace(SPEC, guidance=1.0, closed_interval=False)), NOISE, LABELS)
    for scale in (-1.0, 0.5, 3.0):
        spec = dataclasses.replace(SPEC, guidance=scale)
        assert relative(sample(model, Schedule.full(spec), NOISE, LABELS, guide=model), plain) < 1e-5


def test_each_network_has_means_of_its_own(model, guide, tmp_path) -> None:
    """Forecasts whose weights do not add up to one, against whole states."""
    rows = {4: ((0, 0.4), (2, 0.3)), 7: ((2, -0.5), (6, 1.2))}
    biases = [one.modulation_bias.numpy()[None] for one in (model, guide)]
    assert biases[0].shape != biases[1].shape
    schedule = Schedule(
        spec=SPEC, refresh_steps=(0, 2, 6), forecasts=rows, mean_modulations=biases[0],
        guide_mean_modulations=biases[1], guide_sha256=guide.source.sha256,
    )  # fmt: skip
    x, states, grid = NOISE.clone(), {}, SPEC.grid
    with torch.inference_mode():
        for k in range(SPEC.num_evaluations):
            velocities = []
            for side, network in enumerate((model, guide)):
                if k in schedule.refresh_steps:
                    states[side, k] = network.encode(x, torch.full((len(x),), grid[k], dtype=torch.float32), LABELS)
                state = sum(weight * states[side, r] for r, weight in schedule.forecast_at(k))
                velocities.append(network.decode(x, state))
            x = x + (grid[k + 1] - grid[k]) * torch.lerp(velocities[1], velocities[0], SPEC.guidance)
    assert relative(sample(model, schedule, NOISE, LABELS, guide=guide), x.float()) < 1e-4
    schedule.save(tmp_path / "schedule.json")
    again = Schedule.load(tmp_path / "schedule.json")
    assert again == schedule
    for name, means in schedule.means.items():
        np.testing.assert_array_equal(again.means[name], means)
    assert len(list(tmp_path.glob("means-*"))) == 1
    with pytest.raises(ConfigError, match="guide_mean_modulations"):
        dataclasses.replace(schedule, guide_mean_modulations=None)


def test_schedules_without_a_guide_say_nothing_of_one(tmp_path) -> None:
    schedule = PUBLISHED["euler_autoguidance"]
    assert "guide_sha256" not in schedule.document()
    schedule.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    told = json.loads((tmp_path / "schedule.json").read_text())
    del told["checksum"]
    (tmp_path / "schedule.json").write_text(json.dumps(told | {"guide_sha256": 3}))
    with pytest.raises(ArtifactError, match="guide_sha256 must be a string"):
        Schedule.load(tmp_path / "schedule.json")


def test_schedules_with_and_without_a_guide_refuse_each_other(model, guide) -> None:
    guided = dataclasses.replace(
        PUBLISHED["euler_autoguidance"],
        checkpoint_sha256=model.source.sha256,
        guide_sha256=guide.source.sha256,
    )
    sample(model, guided, NOISE, LABELS, guide=guide)
    with pytest.raises(MismatchError, match=r"solved with a second network .*--guide"):
        sample(model, guided, NOISE, LABELS)
    with pytest.raises(MismatchError, match=r"solved without a second network, .*--guide"):
        sample(model, dataclasses.replace(guided, guide_sha256=None), NOISE, LABELS, guide=guide)
    with pytest.raises(MismatchError, match=f"for the guide {guide.source.sha256[:12]}"):
        Sampler(model, guided, guide=model)


def test_guides_that_are_none(model, guide, tiny_model_path) -> None:
    full = PUBLISHED["euler_autoguidance"]

    def refused(words: str, *, by: SplitNetwork | Backend = guide, schedule: Schedule = full) -> None:
        with pytest.raises((ConfigError, MismatchError), match=words):
            sample(model, schedule, NOISE, LABELS, guide=by)

    refused(
        r"--guide\) is for latents \[3, 8, 8\], the network for latents \[8, 6, 6\]", by=load_model(tiny_model_path)
    )
    plain = Schedule.full(dataclasses.replace(SPEC, guidance=1.0, closed_interval=False))
    refused("would guide nothing: guidance is 1 on", schedule=plain)
    outside = dataclasses.replace(SPEC, guidance_interval=(0.999, 1.0), closed_interval=False)
    refused("would guide nothing: guidance is 1.42 on", schedule=Schedule.full(outside))
    refused("a second one that guides already", by=GuidedBackend(TorchBackend(model), TorchBackend(guide)))
    other = type(guide)(dataclasses.replace(guide.config, num_classes=7))
    other.source = None
    refused("has 7 classes, the network 10", by=other)


@pytest.fixture(scope="module")
def calibration(model, guide) -> Calibration:
    return calibrate(model, SPEC, 4, batch_size=2, sensitivity_samples=2, guide=guide)


def test_statistics_are_each_networks_own(model, guide, calibration) -> None:
    """Against states that a plain loop passes."""
    images = range(4)
    noise = draw_noise((8, 6, 6), seed=0, indices=images)
    labels = draw_labels(10, seed=0, indices=images)
    states: list[list[Tensor]] = [[], []]
    x, grid = noise, SPEC.grid
    with torch.inference_mode():
        for k in range(SPEC.num_evaluations):
            t = torch.full((4,), grid[k], dtype=torch.float32)
            for side, network in enumerate((model, guide)):
                states[side].append(network.encode(x, t, labels))
            v = [network.decode(x, own[k]) for network, own in zip((model, guide), states, strict=True)]
            x = (x + (grid[k + 1] - grid[k]) * torch.lerp(v[1], v[0], SPEC.guidance)).float()
    for side, network in enumerate((model, guide)):
        own = torch.stack(states[side]).double()  # [E, B, L, D]
        gram = torch.einsum("ibld,jbld->ij", own, own) / (4 * 36)
        np.testing.assert_allclose(calibration.branch_grams[side], gram.numpy(), rtol=1e-3)
        mean = own.mean((1, 2))
        np.testing.assert_allclose(calibration.means[side], mean.numpy(), rtol=1e-3, atol=1e-3)
        known = (calibration, calibration.guide)[side]
        modulations = network.modulations(mean[:, None].float())[:, 0]
        np.testing.assert_allclose(known.mean_modulations, modulations.detach().numpy(), rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(known.modulation_bias, network.modulation_bias.numpy(), rtol=1e-6)
    expected = sum(mean @ mean.T for mean in calibration.means) / 2
    np.testing.assert_allclose(calibration.mean_gram, expected)
    assert calibration.guide_sha256 == guide.source.sha256


def test_calibrations_are_kept_merged_and_continued(model, guide, calibration, tmp_path) -> None:
    calibration.save(tmp_path / "calibration.safetensors")
    again = Calibration.load(tmp_path / "calibration.safetensors")
    assert again.sha256 == calibration.sha256
    plain = calibrate(model, SPEC, 2, sensitivity_samples=0)
    assert plain.guide is None
    assert "guide_sha256" not in plain._document()
    with pytest.raises(MismatchError, match="different guides"):
        calibration.merge(calibrate(model, SPEC, 2, seed=1, sensitivity_samples=0))
    begun = calibrate(model, SPEC, 2, batch_size=2, sensitivity_samples=2, guide=guide)
    whole = calibrate(model, SPEC, 4, batch_size=2, sensitivity_samples=2, guide=guide, resume=begun)
    np.testing.assert_allclose(whole.gram_sum, calibration.gram_sum)
    np.testing.assert_allclose(whole.guide_sums.mean_sum, calibration.guide_sums.mean_sum)
    with pytest.raises(MismatchError, match="another checkpoint"):
        calibrate(model, SPEC, 4, batch_size=2, sensitivity_samples=2, resume=begun)
    with pytest.raises(ConfigError, match="would guide nothing"):
        calibrate(model, dataclasses.replace(SPEC, guidance=1.0, closed_interval=False), 2, guide=guide)


@pytest.mark.parametrize("settings", [{}, {"centred": False}, {"forecast": "hold", "objective": "similarity"}])
def test_what_is_solved_is_sampled(model, guide, calibration, settings, tmp_path) -> None:
    schedule = solve(calibration, 4, **settings)
    assert schedule.guide_sha256 == guide.source.sha256
    schedule.save(tmp_path / "schedule.json")
    read = Schedule.load(tmp_path / "schedule.json")
    expected = sample(model, schedule.unshared(), NOISE, LABELS, guide=guide)
    latents = sample(model, read, NOISE, LABELS, guide=guide)
    assert torch.isfinite(latents).all()
    assert 0 < relative(latents, expected) < 0.5
    coarser = resample(calibration, dataclasses.replace(SPEC, num_steps=7))
    coarse = solve_curve(coarser, 3, Method())[-1][0]
    assert coarse.guide_mean_modulations.shape == (7, guide.config.modulation_size)
    sample(model, coarse, NOISE, LABELS, guide=guide)


def test_the_split_is_of_costs(model, guide, calibration) -> None:
    """Against all pairs of curves; runs of the main network are much dearer."""
    costs = counted_costs(model.config, (8, 6, 6), guide=guide.config)
    assert costs.guide is not None
    assert costs.relative[1] < 0.6
    method = Method(centred=False)
    common = solve_curve(calibration, 4, method)[-1][0]
    found = split(calibration, common, method, costs=costs.relative)
    assert found.guide_sha256 == guide.source.sha256

    def spent(schedule: Schedule) -> float:
        return sum(each * runs for each, runs in zip(costs.relative, branch_runs(schedule), strict=True))

    assert spent(found) <= spent(common) * (1 + 1e-6)
    assert spent(common) - spent(found) < max(costs.relative)  # no run of either would have fitted
    every = splits(calibration, common, method, costs=costs.relative)
    assert found.predicted_cost == min(one.predicted_cost for one in every)
    alike = split(calibration, common, method)
    assert branch_runs(alike)[0] + branch_runs(alike)[1] == 8
    assert spent(alike) > spent(common) * (1 + 1e-6) or alike.predicted_cost >= found.predicted_cost
    sample(model, found, NOISE, LABELS, guide=guide)


def test_costs_are_each_networks_own(model, guide, tmp_path) -> None:
    costs = counted_costs(model.config, (8, 6, 6), guide=guide.config)
    alone = [counted_costs(one.config, (8, 6, 6)) for one in (model, guide)]
    schedule = PUBLISHED["euler_autoguidance_main_every_2"]
    main, second = 5 * alone[0].encoder + 10 * alone[0].decoder, alone[1]
    assert costs.of(schedule) == pytest.approx(main + 10 * (second.encoder + second.decoder))
    forecast = dataclasses.replace(schedule, forecasts={5: ((2, -0.5), (4, 1.5))})
    assert costs.of(forecast) == pytest.approx(costs.of(schedule) + 2 * alone[0].forecast)
    costs.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == costs
    part = spec_of("euler_autoguidance_part")
    both = GuidedBackend(TorchBackend(model), TorchBackend(guide))
    measured = timed_costs(both, part, (8, 6, 6), 2, "here")
    assert measured.is_of(model.source.sha256, guide.source.sha256)
    assert measured.guide is not None
    assert min(measured.guide.encoder, measured.guide.decoder, measured.guide.forecast) > 0
    kept = {"say": lambda words: None, "guide_sha256": guide.source.sha256}
    measured.save(tmp_path / "costs.json")
    assert kept_costs(tmp_path / "costs.json", model.source.sha256, **kept) == measured
    assert kept_costs(tmp_path / "costs.json", model.source.sha256, **kept | {"guide_sha256": None}) is None


@pytest.fixture(scope="module")
def exported(model, guide, once) -> Path:
    return once("guided", lambda folder: export(model, folder, guide=guide))


@pytest.mark.parametrize("name", PUBLISHED)
def test_exports_of_both_as_published(exported, name: str) -> None:
    backend = open_backend(exported)
    assert isinstance(backend, GuidedBackend)
    assert relative(sample(backend, PUBLISHED[name], NOISE, LABELS), TENSORS[name]) < 1e-4


def test_an_export_names_its_guide(model, guide, exported, tmp_path) -> None:
    manifest = Manifest.load(exported)
    assert manifest.guide_sha256 == guide.source.sha256
    assert set(manifest.files) == {"encoder.onnx", "decoder.onnx"}
    assert Manifest.load(exported / "guide").checkpoint_sha256 == guide.source.sha256
    folder = shutil.copytree(exported, tmp_path / "export")
    alone = dataclasses.replace(manifest, guide_sha256=None)
    alone.save(folder)
    assert "guide_sha256" not in (folder / "manifest.json").read_text()
    assert open_backend(folder).guide is None
    dataclasses.replace(manifest, guide_sha256="0" * 64).save(folder)
    with pytest.raises(MismatchError, match=r"is not the guide that .* export anew"):
        open_backend(folder)
    manifest.save(folder)
    shutil.rmtree(folder / "guide")
    with pytest.raises(ArtifactError, match="holds no export"):
        open_backend(folder)


@pytest.fixture(scope="module")
def commanded(once) -> Path:
    """A workspace that was made by the command line."""

    def make(folder: Path) -> None:
        like = FOLDER / "config_AG.yaml"
        for command in (
            ["calibrate", "--model", MODEL, "--guide", GUIDE, "--like", like, "--samples", 2,
             "--sensitivity-samples", 1],
            ["solve", "--budget", 4, "--split"],
            ["export", "--onnx"],
        ):  # fmt: skip
            assert typed(*command, "--workspace", folder) == 0

    return once("commanded-guide", make)


def test_by_the_command_line(commanded, tmp_path, cli, guide) -> None:
    folder = shutil.copytree(commanded, tmp_path / "run")
    schedule = Schedule.load(folder / "schedule.json")
    assert schedule.guide_sha256 == guide.source.sha256
    assert schedule.unconditional_steps is not None
    drawn = []
    for backend in ("onnx", "torch"):
        ran = cli("sample", "--backend", backend, "-n", 2, "--workspace", folder)
        assert ran.code == 0, ran
        drawn.append(torch.from_numpy(np.load(folder / "samples" / "latents.npz")["arr_0"]))
    assert relative(*drawn) < 1e-3
    for told in (cli("status", "--workspace", folder).out, cli("inspect", folder / "schedule.json").out):
        assert "guide" in told
    assert "guided by" in cli("inspect", folder).out
    assert guide.source.sha256 in cli("inspect", folder / "export").out
    assert guide.source.sha256 in cli("inspect", folder / "calibration.safetensors").out
    # Common refreshes, and a curve.
    assert cli("solve", "--budget", 3, "--workspace", folder).code == 0
    assert cli("sample", "-n", 1, "--workspace", folder).code == 0
    assert cli("solve", "--pareto", "--workspace", folder).code == 0


def test_engines_of_both(tiny_model_path, tmp_path, cli) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT for RTX is not installed")
    other = write_tiny_model(tmp_path / "other.safetensors", seed=1)
    ran = cli("export", "--trt", "--engine", "tensorrt-rtx", "--batch", "1:2:4", "--model", tiny_model_path, "--guide",
              other, "--workspace", tmp_path / "run")  # fmt: skip
    assert ran.code == 0, ran
    main, second = (Manifest.load(tmp_path / "run" / place) for place in ("engines", "engines/guide"))
    assert main.guide_sha256 == second.checkpoint_sha256 == load_model(other).source.sha256
    assert {"encoder.engine", "decoder.engine"} <= set(main.files) & set(second.files)


def test_what_the_command_line_refuses(commanded, tmp_path, cli, tiny_model_path) -> None:
    folder = shutil.copytree(commanded, tmp_path / "run")

    def refused(said: str, *arguments: object) -> None:
        assert_sentence(cli(*arguments, "--workspace", folder), said)

    refused("would guide nothing: guidance is 1", "calibrate", "--guide", GUIDE, "--guidance", 1, "--samples", 1)
    refused("is for latents [3, 8, 8], the network for latents [8, 6, 6]", "export", "--guide", tiny_model_path)
    told = json.loads((folder / "workspace.json").read_text())
    assert told["guide"] == str(GUIDE)  # what was refused is not remembered
    refused("is an export with the guide", "sample", "--guide", MODEL, "-n", 1)
    told = json.loads((folder / "workspace.json").read_text())
    refused("solved with a second network", "sample", "--guide", "none", "--backend", "torch", "-n", 1)
    assert "guide" not in json.loads((folder / "workspace.json").read_text())


@pytest.mark.parametrize("name", ["centred", "uncentred", "split", "by hand"])
def test_what_is_fitted_is_what_is_run(model, guide, calibration, name: str) -> None:
    """At the start, and with every number moved."""
    method = Method(centred=name == "centred")
    schedule = solve_curve(calibration, 4, method)[-1][0]
    if name == "split":
        schedule = split(calibration, schedule, method)
    if name == "by hand":
        sha256 = guide.source.sha256
        schedule = dataclasses.replace(PUBLISHED["euler_autoguidance_refresh_every_3"], guide_sha256=sha256)
    biases = [one.modulation_bias.numpy() for one in (model, guide)]
    scalars = Scalars(schedule, biases[0], guide_bias=biases[1])
    generator = torch.Generator().manual_seed(1)
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                for value in filter(lambda value: value.requires_grad, scalars.parameters()):
                    value += 0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        end = fitted_trajectory(model, scalars, NOISE, LABELS, guide=guide).end.detach()
        assert relative(end, sample(model, scalars.schedule(), NOISE, LABELS, guide=guide)) < 1e-4


def test_a_fit_with_a_guide(model, guide, calibration) -> None:
    tiny = FitSpec(iterations=2, images=4, held_out=4, batch_size=4, micro_batch=2, reference_steps=20)
    start = solve(calibration, 3)
    fitted = Fitter(model, start, tiny, guide=guide).run()
    assert fitted.after.mean > fitted.before.mean + 1  # the closed form alone brings it closer
    assert fitted.schedule.guide_sha256 == guide.source.sha256
    sample(model, fitted.schedule, NOISE, LABELS, guide=guide)
    with pytest.raises(MismatchError, match="--guide"):
        fit(model, start, tiny)
    with pytest.raises(MismatchError, match="in either the calibration or the fit"):
        JointFit(model, calibration, counted_costs(model.config, (8, 6, 6)), tiny)


def test_plans_and_fits_by_the_command_line(commanded, tmp_path, cli, guide, searched_briefly) -> None:
    folder = shutil.copytree(commanded, tmp_path / "run")
    few = ("--images", 4, "--held-out", 4, "--batch-size", 4, "--iterations", 1, "--reference-steps", 40)
    for command in (
        ("plan", "--cost", 0.6, "-n", 2),
        ("fit", *few),
        ("fit", "--budget", 3, "--steps", 5, *few),
        ("bench", "--backend", "torch", "-n", 2, "--curve-images", 2),
        ("solve", "--target-speedup", 1.5, "--split"),
    ):
        ran = cli(*command, "--workspace", folder)
        assert ran.code == 0, (command, ran)
        assert Schedule.load(folder / "schedule.json").guide_sha256 == guide.source.sha256
    assert Costs.load(folder / "costs.json").guide.checkpoint_sha256 == guide.source.sha256
    assert "guidance by a second network 1.42" in (folder / "report.md").read_text()
    assert cli("status", "--workspace", folder).code == 0
    assert "seconds" in cli("inspect", folder / "costs.json").out


def test_a_guide_says_itself_how_it_is_built(tmp_path, tiny_model_path) -> None:
    """The model's configuration is for the model, even where the guide's tensors fit it."""
    settings = dataclasses.asdict(load_model(tiny_model_path).config) | {"num_blocks": 3}
    for name, blocks in (("main", 2), ("guide", 1)):
        (tmp_path / name).mkdir()
        own = {**settings, "num_encoder_blocks": blocks}
        torch.save({"ema": build(config_of(own)).state_dict()}, tmp_path / name / "net.pt")
        (tmp_path / name / "config.yaml").write_text(json.dumps({**own, "latent_shape": [3, 8, 8]}))
    choice = ModelChoice(
        source=str(tmp_path / "main/net.pt"),
        config=str(tmp_path / "main/config.yaml"),
        guide=str(tmp_path / "guide/net.pt"),
    )
    opened = choice.load_guide()
    assert opened is not None
    assert opened.config == config_of({**settings, "num_encoder_blocks": 1})


def test_a_guide_of_raw_weights_alone(tmp_path) -> None:
    weights = torch.load(GUIDE, weights_only=True)
    torch.save({"model": weights, "optimizer": {"m": torch.zeros(2)}, "step": 3}, tmp_path / "net.pt")
    opened = ModelChoice(source=str(MODEL), weights="raw", guide=str(tmp_path / "net.pt")).load_guide()
    assert opened is not None
    assert opened.source.sha256 == load_model(GUIDE).source.sha256


def test_a_grid_on_which_nothing_is_guided_is_fitted_all_the_same(model, guide) -> None:
    """Searches try coarse grids, whose evaluations may all miss a narrow interval."""
    spec = SamplingSpec(num_steps=4, guidance=1.4, guidance_interval=(0.05, 0.2))
    assert (spec.guidance_weights == 1.0).all()
    Fitter(model, Schedule.full(spec), FitSpec(images=2, held_out=4, batch_size=2, micro_batch=2), guide=guide)
    with pytest.raises(ConfigError, match="would guide nothing"):
        fit(model, Schedule.full(spec), guide=guide)


def test_plans_want_the_calibrated_guide(model, guide, calibration) -> None:
    costs = counted_costs(model.config, model.config.fixed_shape)
    with pytest.raises(MismatchError, match=r"made guided by .*, and the networks here are without a second network"):
        make_plans(
            TorchBackend(model), calibration, costs, [0.5], latent_shape=model.config.fixed_shape, num_images=2,
            seed=9, batch_size=2, on_stage=silent,
        )  # fmt: skip


def test_costs_without_a_guide_are_none_with_an_unknown_one(model, guide) -> None:
    costs = counted_of(GuidedBackend(TorchBackend(model), TorchBackend(guide)), model.config.fixed_shape)
    unknown = dataclasses.replace(
        costs, checkpoint_sha256="a", guide=dataclasses.replace(costs.guide, checkpoint_sha256=None)
    )
    assert not unknown.is_of("a", None)
