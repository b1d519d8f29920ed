"""What is reported is what was measured, on images that no statistic has seen."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model, sample, solve
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.benchmark import measure, network_rows
from ddt_accel.evaluation.fidelity import interval, psnr, relative_l2, to_images, to_uint8
from ddt_accel.networks.config import DDTConfig
from ddt_accel.networks.ddt import DDT
from ddt_accel.report.pictures import SampleWriter
from ddt_accel.report.render import write_report
from ddt_accel.report.study import Study, conduct, curve_budgets
from ddt_accel.sampling.noise import draw_labels, draw_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.stages import silent

SPEC = SamplingSpec(num_steps=6, guidance=1.5)


def study_of(
    model: DDT,
    shape: tuple[int, int, int],
    seed: int = 1,
    schedule: Schedule | None = None,
    others: dict[str, Schedule] | None = None,
) -> Study:
    calibration = calibrate(model, SPEC, num_samples=2, latent_shape=shape)
    return conduct(
        TorchBackend(model),
        calibration,
        schedule or solve(calibration, 2),
        model_name="tiny",
        latent_shape=shape,
        num_images=5,
        curve_images=3,
        seed=seed,
        batch_size=2,
        on_stage=silent,
        others=others,
    )


def test_a_schedule_of_ones_own_is_not_called_solved(tiny_model_path, tmp_path) -> None:
    model = load_model(tiny_model_path)
    study = study_of(model, (3, 8, 8), schedule=Schedule(spec=SPEC, refresh_steps=(0, 1, 5)))
    page, text, numbers = write_report(study, tmp_path)
    assert json.loads(numbers.read_text())["measurements"][3]["name"] == "given"
    assert "worked out" not in page.read_text()
    assert "These steps were not solved for" in page.read_text()
    assert "| given | 3 |" in text.read_text()


def test_others_are_measured_beside(tiny_model_path, tmp_path) -> None:
    model = load_model(tiny_model_path)
    other = Schedule(spec=SamplingSpec(num_steps=3, solver="ab2", guidance=1.5), refresh_steps=(0, 1))
    study = study_of(model, (3, 8, 8), others={"another, 3 steps": other})
    page, text, numbers = write_report(study, tmp_path)
    found = json.loads(numbers.read_text())["measurements"][-1]
    assert (found["name"], found["num_steps"], found["refresh_steps"]) == ("another, 3 steps", 3, [0, 1])
    assert "<b>Another, 3 steps</b>" in page.read_text()
    limits = json.loads(numbers.read_text())["limits_db"]
    gain = np.subtract(limits["another, 3 steps"], limits["unshared"]).mean()
    assert f"{abs(gain):.1f} dB (95 % interval" in page.read_text().split("Another way.")[1]
    assert "| another, 3 steps | 2 | 3 |" in text.read_text()
    with pytest.raises(MismatchError, match="fitted on"):
        study_of(model, (3, 8, 8), others={"seen": dataclasses.replace(other, fitted_on=((2, 0, 9), (1, 0, 9)))})


def test_a_fitted_schedule_stands_beside_the_calibrated_sampler(tiny_model_path, tmp_path) -> None:
    """Of another number of steps, with numbers of its own: errors are to the limit, and that is measured."""
    model = load_model(tiny_model_path)
    spec = SamplingSpec(num_steps=3, solver="ab2", guidance=1.5)
    fitted = Schedule(spec=spec, refresh_steps=(0, 1), times=(0.0, 0.3, 0.7), objective="fitted")
    study = study_of(model, (3, 8, 8), schedule=fitted)
    page, text, numbers = write_report(study, tmp_path)
    data = json.loads(numbers.read_text())
    by_name = {m["name"]: m for m in data["measurements"]}
    assert (by_name["unshared"]["num_steps"], by_name["fitted"]["num_steps"]) == (6, 3)
    noise = draw_noise((3, 8, 8), seed=1, indices=range(3))
    labels = draw_labels(4, seed=1, indices=range(3))
    limit = Schedule.full(SamplingSpec(num_steps=24, solver="ab2", guidance=1.5))
    ends = [to_images(sample(model, s, noise, labels)) for s in (fitted, limit)]
    np.testing.assert_allclose(data["limits_db"]["fitted"], psnr(*ends), rtol=1e-3)
    assert "fitted to where many more steps would lead" in page.read_text()
    assert "dB to the limit" in text.read_text()
    for wrong in (
        dataclasses.replace(fitted, spec=dataclasses.replace(spec, guidance=1.2)),
        dataclasses.replace(fitted, fitted_on=((1, 2, 9),)),
        Schedule(spec=dataclasses.replace(spec, num_steps=9), refresh_steps=tuple(range(9)), objective="fitted"),
    ):
        with pytest.raises(MismatchError):
            study_of(model, (3, 8, 8), schedule=wrong)


def test_the_report_holds_the_measurements(tiny_model_path, tmp_path) -> None:
    model = load_model(tiny_model_path)
    study = study_of(model, (3, 8, 8))
    page, text, numbers = write_report(study, tmp_path)
    data = json.loads(numbers.read_text())
    assert [m["name"] for m in data["measurements"]][:4] == ["unshared", "uniform", "published", "solved"]
    noise = draw_noise((3, 8, 8), seed=1, indices=range(5))
    labels = draw_labels(4, seed=1, indices=range(5))
    full, shared = (sample(model, s, noise, labels) for s in (Schedule.full(SPEC), study.schedule))
    assert data["measurements"][3]["relative_l2"]["mean"] == pytest.approx(relative_l2(shared, full).mean(), rel=1e-3)
    assert data["measurements"][0]["relative_l2"]["mean"] == 0
    html = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html.replace('xlink:href="#', 'href="#'))
    assert html.count("<img ") == 5
    assert html.count("<svg") == 2
    assert "| solved | 2 |" in text.read_text()
    for key in ("machine", "versions", "model", "sampling"):
        assert data["conditions"][key] in text.read_text()


def test_latents_that_are_no_pixels_are_compared_as_latents(tmp_path) -> None:
    config = DDTConfig(
        in_channels=4, patch_size=2, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=4
    )
    torch.manual_seed(0)
    model = DDT(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    page, *_ = write_report(study_of(model, (4, 8, 8)), tmp_path)
    assert "PSNR" not in page.read_text()
    assert "relative error of the latents" in page.read_text()


def test_images_that_were_calibrated_on_are_refused(tiny_model_path) -> None:
    with pytest.raises(MismatchError, match="calibrated on"):
        study_of(load_model(tiny_model_path), (3, 8, 8), seed=0)


def test_rows_count_what_the_networks_are_given(tiny_model_path) -> None:
    seen = {"encode": 0}
    model = load_model(tiny_model_path)
    backend = TorchBackend(model, on_state=lambda state: seen.update(encode=seen["encode"] + len(state)))
    schedule = Schedule(spec=SPEC, refresh_steps=(0, 1, 4))
    measurements, _ = measure(backend, {"a": schedule}, latent_shape=(3, 8, 8), num_images=4, seed=0, batch_size=2)
    encoded, decoded = network_rows(compile_program(schedule))
    assert seen["encode"] == encoded * (4 + 2 + 2)  # and two batches to warm up
    assert decoded == sum(1 + (0.3 < t < 1) for t in SPEC.times)
    assert measurements[0].encoder_seconds + measurements[0].decoder_seconds <= measurements[0].seconds


def test_psnr_and_relative_error_in_closed_form() -> None:
    reference = torch.full((2, 3, 4, 4), 0.5)
    off = reference + torch.tensor([0.1, 0.01])[:, None, None, None]
    np.testing.assert_allclose(psnr(off, reference), [20, 40], rtol=1e-5)
    np.testing.assert_allclose(relative_l2(off, reference), [0.2, 0.02], rtol=1e-5)
    assert np.isinf(psnr(reference, reference)).all()
    assert interval(psnr(reference, reference)) is None


def test_the_interval_is_close_to_student_s() -> None:
    values = np.random.default_rng(1).normal(30, 2, 64)
    got = interval(values)
    low, high = stats.t.interval(0.95, 63, values.mean(), stats.sem(values))
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(low, abs=0.08)
    assert got.high == pytest.approx(high, abs=0.08)


@pytest.mark.parametrize("n", [1, 2, 5, 50, 99, 250])
def test_curves_cover_all_budgets(n: int) -> None:
    budgets = curve_budgets(n)
    assert budgets == sorted(set(budgets))
    assert (budgets[0], budgets[-1]) == (1, n)


def test_samples_are_written_as_adm_reads_them(tmp_path) -> None:
    latents = torch.linspace(-1.2, 1.2, 5 * 3 * 8 * 8).reshape(5, 3, 8, 8)
    writer = SampleWriter(tmp_path, tmp_path / "samples.npz", pixels=True)
    writer.add(latents[:2])
    writer.add(latents[2:])
    sheet, *pictures, npz = writer.finish()
    with np.load(npz) as archive:
        array = archive["arr_0"]
    assert (array.dtype, array.shape) == (np.uint8, (5, 8, 8, 3))
    assert np.array_equal(array, to_uint8(latents))
    assert np.array_equal(array[0, 0, 0], [0, *array[0, 0, 0, 1:]])
    assert len(pictures) == 5
    assert np.array_equal(np.asarray(Image.open(pictures[3])), array[3])
    assert sheet.exists()
    with pytest.raises(ConfigError, match="--vae"):
        SampleWriter(tmp_path, tmp_path / "x.npz", pixels=False)
    latent = SampleWriter(tmp_path, None, pixels=False)
    latent.add(torch.ones(2, 4, 8, 8))
    (path,) = latent.finish()
    with np.load(path) as archive:
        assert archive["arr_0"].shape == (2, 4, 8, 8)
