"""What is reported is what was measured, on images that no statistic has seen."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model, sample, solve
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import MismatchError
from ddt_accel.evaluation.benchmark import Earlier, measure, network_rows
from ddt_accel.evaluation.budgets import Target
from ddt_accel.evaluation.fidelity import interval, psnr, relative_l2, to_images
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.report.gallery import gallery
from ddt_accel.report.render import write_report
from ddt_accel.report.study import Study, conduct
from ddt_accel.report.ways import curve_budgets
from ddt_accel.report.words import label
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
    target: Target | None = None,
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
        batch_size=3,
        on_stage=silent,
        others=others,
        target=target,
    )


@pytest.fixture(scope="module")
def solved(tiny_model_path) -> Study:
    return study_of(load_model(tiny_model_path), (3, 8, 8))


def test_a_schedule_of_ones_own_is_not_called_solved(tiny_model_path, tmp_path) -> None:
    model = load_model(tiny_model_path)
    study = study_of(model, (3, 8, 8), schedule=Schedule(spec=SPEC, refresh_steps=(0, 1, 5)))
    page, text, numbers = write_report(study, tmp_path)
    assert json.loads(numbers.read_text())["measurements"][3]["name"] == "given"
    assert "The solver picked" not in page.read_text()
    assert "These steps were not solved for" in page.read_text()
    assert "| given | 3 |" in text.read_text()


def test_others_are_measured_beside(tiny_model_path, tmp_path) -> None:
    model = load_model(tiny_model_path)
    other = Schedule(spec=SamplingSpec(num_steps=3, solver="ab2", guidance=1.5), refresh_steps=(0, 1))
    study = study_of(model, (3, 8, 8), others={"another, 3 steps": other}, target=Target(speedup=1e9))
    page, text, numbers = write_report(study, tmp_path)
    data = json.loads(numbers.read_text())
    found = {m["name"]: m for m in data["measurements"]}["another, 3 steps"]
    assert (found["num_steps"], found["refresh_steps"]) == (3, [0, 1])
    # Nothing is that fast: the fastest is shown, and that it is not enough.
    assert data["headline"] == study.headline == min(data["measurements"], key=lambda m: m["seconds"])["name"]
    assert (data["target"]["speedup"], data["target_met"]) == (1e9, False)
    assert "Not met" in page.read_text()
    assert "| another, 3 steps | 2 | 3 |" in text.read_text()
    with pytest.raises(MismatchError, match="fitted on"):
        study_of(model, (3, 8, 8), others={"seen": dataclasses.replace(other, fitted_on=((2, 0, 9), (1, 0, 9)))})


def test_a_fitted_schedule_stands_beside_the_calibrated_sampler(tiny_model_path, tmp_path) -> None:
    """Of another number of steps, with numbers of its own: errors are to the reference solution."""
    model = load_model(tiny_model_path)
    spec = SamplingSpec(num_steps=3, solver="ab2", guidance=1.5)
    fitted = Schedule(spec=spec, refresh_steps=(0, 1), times=(0.0, 0.3, 0.7), objective="fitted")
    study = study_of(model, (3, 8, 8), schedule=fitted)
    _, text, numbers = write_report(study, tmp_path)
    data = json.loads(numbers.read_text())
    by_name = {m["name"]: m for m in data["measurements"]}
    assert (by_name["unshared"]["num_steps"], by_name["fitted"]["num_steps"]) == (6, 3)
    noise = draw_noise((3, 8, 8), seed=1, indices=range(5))
    labels = draw_labels(4, seed=1, indices=range(5))
    reference = Schedule.full(SamplingSpec(num_steps=48, solver="ab2", guidance=1.5))
    ends = [to_images(sample(model, s, noise, labels)) for s in (fitted, reference)]
    np.testing.assert_allclose(data["limits_db"]["fitted"], psnr(*ends), rtol=1e-3)
    assert "dB to the reference solution" in text.read_text()
    for wrong in (
        dataclasses.replace(fitted, spec=dataclasses.replace(spec, guidance=1.2)),
        dataclasses.replace(fitted, fitted_on=((1, 2, 9),)),
    ):
        with pytest.raises(MismatchError):
            study_of(model, (3, 8, 8), schedule=wrong)


def test_a_schedule_of_another_grid_stands_beside_the_calibrated_sampler(tiny_model_path) -> None:
    """Which is what a user has: what a plan gains is gained over that."""
    model = load_model(tiny_model_path)
    planned = Schedule(spec=SamplingSpec(num_steps=4, solver="heun", guidance=1.5), refresh_steps=(0, 1, 2, 3, 4, 5, 6))
    study = study_of(model, (3, 8, 8), schedule=planned)
    assert (study.measurements[0].num_steps, study.calibrated) == (6, SPEC)
    assert study.schedules["published"].budget == 6  # as many as there are
    elsewhere = Schedule(spec=dataclasses.replace(SPEC, last_step=0.04), refresh_steps=(0, 3))
    assert study_of(model, (3, 8, 8), schedule=elsewhere).calibrated == elsewhere.spec


def test_the_report_holds_the_measurements(solved, tiny_model_path, tmp_path) -> None:
    study, model = solved, load_model(tiny_model_path)
    _, text, numbers = write_report(study, tmp_path)
    data = json.loads(numbers.read_text())
    assert [m["name"] for m in data["measurements"]][:4] == ["unshared", "uniform", "published", "solved"]
    noise = draw_noise((3, 8, 8), seed=1, indices=range(5))
    labels = draw_labels(4, seed=1, indices=range(5))
    full, shared = (sample(model, s, noise, labels) for s in (Schedule.full(SPEC), study.schedule))
    assert data["measurements"][3]["relative_l2"]["mean"] == pytest.approx(relative_l2(shared, full).mean(), rel=1e-3)
    assert data["measurements"][0]["relative_l2"]["mean"] == 0
    # Without sharing beside it: all steps of its grid run the encoder, whatever that grid is.
    beside = study.schedules[data["fewer_steps"]["solved"]]
    assert (beside.budget, study.calibrated.guidance) == (beside.spec.num_evaluations, beside.spec.guidance)
    assert "| solved | 2 |" in text.read_text()
    for key in ("machine", "versions", "model", "sampling"):
        assert data["conditions"][key] in text.read_text()
    # Every point of the curves is of the first images, and those of the table are the same ones again.
    for points in data["curves"].values():
        assert points[0]["name"] == "unshared"
        assert all(len(m["psnr_values"]) == 3 and m["name"] in data["curve_limits_db"] for m in points)
    again = {m["name"]: m for points in data["curves"].values() for m in points}["solved"]
    assert again["psnr_values"] == data["measurements"][3]["psnr_values"][:3]
    assert data["curve_limits_db"]["solved"] == data["limits_db"]["solved"][:3]


def test_the_page_stands_alone_and_can_be_read_by_machines(solved, tmp_path) -> None:
    study = solved
    page, *_ = write_report(study, tmp_path)
    html = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html.replace('xlink:href="#', 'href="#'))
    assert not re.findall(r"url\((?!#)|@import", html)
    first_screen = html[: html.index("<main>")].lower()
    assert label(study.headline, study.schedules[study.headline]) in first_screen
    assert "does sharing pay here?" in first_screen
    names = len(dict.fromkeys(["unshared", "published", study.headline, study.fewer["solved"], "solved"]))
    ways = min(4, names)
    assert html.count('class="way"') == ways
    # Five images of each and of the reference solution, and the difference to that.
    assert html.count("<img ") == 5 * (2 * ways + 1)
    assert html.count("<img ") == html.count('<img alt="')
    tables = re.findall("<table.*?</table>", html, re.DOTALL)
    assert len(tables) == 3
    assert all("<caption>" in table and 'scope="col"' in table and 'scope="row"' in table for table in tables)
    for svg in re.findall(r"(<[^>]*>)<svg|(<svg class[^>]*>)", html):
        assert "aria-label=" in "".join(svg)


def test_the_gallery_holds_the_pictures_pixel_by_pixel(solved) -> None:
    ways, reference, _ = gallery(solved)
    assert ways[0].name == "unshared"
    for way in (*ways, reference):
        source = solved.ends if way is reference else solved.latents[way.name]
        for picture, latent in zip(way.pictures, source, strict=False):
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
            wanted = to_images(latent[None])[0].permute(1, 2, 0).numpy() * 255
            assert np.abs(shown - wanted).max() <= 0.5001


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
    assert "<img" not in page.read_text()


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


def test_a_later_run_is_put_in_terms_of_an_earlier_one(tiny_model_path) -> None:
    backend = TorchBackend(load_model(tiny_model_path))
    full, shared, other = Schedule.full(SPEC), Schedule.uniform(SPEC, 2), Schedule.uniform(SPEC, 3)
    where = {"latent_shape": (3, 8, 8), "seed": 0, "batch_size": 2}
    (baseline, pacer), latents = measure(backend, {"full": full, "shared": shared}, num_images=4, **where)
    earlier = Earlier(pacer=pacer, baseline=baseline, baseline_schedule=full, latents=latents["full"])
    (again, row), drawn = measure(backend, {"shared": shared, "other": other}, num_images=3, earlier=earlier, **where)
    assert again.seconds == pytest.approx(pacer.seconds)
    assert again.speedup == pytest.approx(pacer.speedup)
    assert row.speedup == pytest.approx(baseline.seconds / row.seconds)
    assert row.ideal_speedup < again.ideal_speedup == pytest.approx(pacer.ideal_speedup)
    np.testing.assert_allclose(row.psnr_values, psnr(to_images(drawn["other"]), to_images(latents["full"][:3])))


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
