"""Published configurations as settings of `SamplingSpec`, by file and by repository, and through the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from conftest import assert_sentence

from ddt_accel import Calibration, SamplingSpec, load_model
from ddt_accel.cli.preparation import QUICK, calibrated
from ddt_accel.cli.recipes import sampling_of
from ddt_accel.errors import ConfigError
from ddt_accel.networks.recipes import published_recipe, read_recipe
from ddt_accel.workspace import Workspace

REFERENCE = Path(__file__).parent / "reference"
RAE, PIXNERD = REFERENCE / "rae_small", REFERENCE / "pixnerd_small"


def sampler(path: Path, class_path: str = "a.b.EulerSampler", **arguments: object) -> Path:
    """A YAML of a DDT with this sampler."""
    content = {"model": {"diffusion_sampler": {"class_path": class_path, "init_args": arguments}}}
    path.write_text(yaml.safe_dump(content))
    return path


def rae(path: Path, place: str, value: object) -> Path:
    """The reference's YAML with another value at a place, which None takes away."""
    content = yaml.safe_load((RAE / "config_cfg.yaml").read_text())
    *folders, name = place.split(".")
    inner = content
    for folder in folders:
        inner = inner[folder]
    if value is None:
        del inner[name]
    else:
        inner[name] = value
    path.write_text(yaml.safe_dump(content))
    return path


def test_published_form_of_ddt(tmp_path) -> None:
    path = sampler(
        tmp_path / "x.yaml", "src.diffusion.stateful_flow_matching.sampling.EulerSampler", num_steps=250, guidance=2.0,
        timeshift=1.0, state_refresh_rate=1, guidance_interval_min=0.3, guidance_interval_max=1.0, last_step=0.04,
        guidance_fn="src.diffusion.base.guidance.simple_guidance_fn", step_fn="src.x.ode_step_fn", scheduler="x.y",
    )  # fmt: skip
    assert read_recipe(path).spec({}) == SamplingSpec(num_steps=250, guidance=2.0, last_step=0.04)


def test_what_a_ddt_configuration_leaves_out_is_as_in_its_code(tmp_path) -> None:
    spec = SamplingSpec(num_steps=250, guidance=1.0, guidance_interval=(0.0, 1.0))
    assert read_recipe(sampler(tmp_path / "x.yaml")).spec({}) == spec


@pytest.mark.parametrize(
    ("class_path", "arguments", "solver"),
    [
        ("AdamLMSampler", {}, "ab2"),
        ("x.AdamLMSampler", {"order": 4}, "ab4"),
        ("x.EulerSampler", {"step_fn": "x.sde_step_fn"}, "sde"),
        ("x.HeunSampler", {"exact_henu": True}, "heun"),
    ],
)
def test_solvers_of_ddt(tmp_path, class_path: str, arguments: dict[str, object], solver: str) -> None:
    assert read_recipe(sampler(tmp_path / "x.yaml", class_path, **arguments)).spec({}).solver == solver


def test_published_form_of_pixnerd() -> None:
    spec = SamplingSpec(num_steps=10, guidance=1.6, guidance_interval=(0.1, 1.0))
    assert read_recipe(PIXNERD / "config.yaml").spec({}) == spec


def test_published_form_of_rae() -> None:
    unguided = read_recipe(RAE / "config.yaml")
    grid = {"num_steps": 10, "timeshift": math.sqrt(288 / 64), "end": 0.999}
    spec = SamplingSpec(**grid, guidance=1.0, guidance_interval=(0.0, 1.0))
    assert unguided.spec({}) == spec
    assert unguided.guide is None
    # As soon as there is guidance, its interval is as published.
    assert unguided.spec({"guidance": 1.5}).closed_interval
    by_label = read_recipe(RAE / "config_cfg.yaml")
    guided = SamplingSpec(**grid, guidance=1.8, guidance_interval=(0.0, 0.55), closed_interval=True)
    assert by_label.spec({}) == guided
    by_network = read_recipe(RAE / "config_AG.yaml")
    assert by_network.guide == "DiTDH-guide/stage2_model.pt"
    assert by_network.spec({}).guidance == 1.42


def test_rae_of_other_spellings(tmp_path) -> None:
    other = tmp_path / "x.yaml"
    assert read_recipe(rae(other, "misc.time_dist_shift_dim", None)).spec({}).timeshift == math.sqrt(8 * 6 * 6 / 64)
    assert read_recipe(rae(other, "misc.time_dist_shift_base", None)).spec({}).timeshift == math.sqrt(288 / 4096)
    assert read_recipe(rae(other, "guidance.t_min", 0.2)).spec({}).guidance_interval == (0.0, 0.8)
    assert read_recipe(rae(other, "guidance.scale", 0.5)).spec({}).guidance == 1.0
    assert read_recipe(rae(other, "sampler.params.sampling_method", "heun2")).spec({}).solver == "heun"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("sampler.params.num_steps", 10.5, "num_steps is 10.5; a whole number from 2 to 10000"),
        ("sampler.params.num_steps", 1, "num_steps is 1; a whole number"),
        ("sampler.params.sampling_method", "dopri5", "'dopri5'; euler or heun2 can be run"),
        ("sampler.mode", "SDE", "sampler.mode is 'SDE'"),
        ("guidance.method", "magic", "'magic'; cfg or autoguidance"),
        ("guidance", [1], r"guidance is \[1\]; method, scale,"),
        ("guidance.scale", "much", "guidance.scale is 'much'; a number"),
        ("guidance.t-min", 2.0, "interval .* give two times"),
        ("misc.time_dist_shift_base", 0, "must be above 0"),
        ("sampler", None, "does not say how to sample .* looked for model.diffusion_sampler or sampler"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(tmp_path, place: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_recipe(rae(tmp_path / "x.yaml", place, value))


@pytest.mark.parametrize(
    ("class_path", "arguments", "said"),
    [
        ("x.DPMSampler", {}, "is DPMSampler; EulerSampler"),
        ("x.EulerSampler", {"step_fn": "x.sde_mean_step_fn"}, "EulerSampler by sde_mean_step_fn"),
        ("x.HeunSampler", {}, "exact_henu"),
        ("x.AdamLMSampler", {"order": 7}, "orders 1 to 4"),
        ("x.EulerSampler", {"guidance_fn": "x.c3_guidance_fn"}, "some channels only"),
        ("x.EulerSampler", {"num_steps": "many"}, "num_steps is 'many'"),
        ("x.EulerSampler", {"guidance": [1.0, 2.0]}, "a number is expected"),
    ],
)
def test_samplers_of_ddt_that_cannot_be_run(tmp_path, class_path: str, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_recipe(sampler(tmp_path / "x.yaml", class_path, **arguments))


def test_known_repositories() -> None:
    def spec(name: str) -> SamplingSpec:
        recipe = published_recipe(name)
        assert recipe is not None
        return recipe.spec({})

    ddt = SamplingSpec(num_steps=250, guidance=2.0, last_step=0.04)
    assert spec("MCG-NJU/DDT-XL-22en6de-R256") == ddt
    assert spec("MCG-NJU/DDT-XL-22en6de-R512").guidance == 3.0
    pixels = SamplingSpec(num_steps=100, guidance=3.5, guidance_interval=(0.1, 1.0))
    assert spec("MCG-NJU/PixNerd-XL-P16-C2I") == pixels
    folder = "nyu-visionx/RAE-collections:DiTs/Dinov2/wReg_base"
    small = spec(f"{folder}/ImageNet256/DiTDH-XL/stage2_model.pt")
    assert small == SamplingSpec(
        num_steps=49, guidance=1.0, guidance_interval=(0.0, 1.0), timeshift=math.sqrt(48), end=0.999
    )
    large = published_recipe(f"{folder}/ImageNet512/DiTDH-XL_ep400/stage2_model.pt")
    assert large is not None
    assert large.spec({}).guidance == 1.5
    assert large.guide == f"{folder}/ImageNet512/DiTDH-S_ep20/stage2_model.pt"
    for unknown in ("cifar10", "someone/else", "nyu-visionx/RAE-collections:decoders/model.pt"):
        assert published_recipe(unknown) is None


def test_what_is_said_wins() -> None:
    recipe = read_recipe(RAE / "config_cfg.yaml")
    spec = recipe.spec({"num_steps": 4, "last_step": 0.1, "guidance": 1.0})
    assert (spec.num_steps, spec.last_step, spec.end, spec.closed_interval) == (4, 0.1, None, False)
    with pytest.raises(ConfigError, match="guides nothing"):
        recipe.spec({"guidance": 1.0, "closed_interval": True})


def test_calibrate_like_a_file(tmp_path, tiny_model_path, cli) -> None:
    told = ""

    def made(*options: str) -> SamplingSpec:
        nonlocal told
        place = ("-w", tmp_path, "--model", tiny_model_path, "--samples", 1, "--sensitivity-samples", 0)
        ran = cli("calibrate", *place, *options)
        assert ran.code == 0
        told = " ".join(ran.err.split())
        return Calibration.load(tmp_path / "calibration.safetensors").spec

    like = ("--like", str(RAE / "config_AG.yaml"))
    assert asdict(made(*like, "--steps", "3", "--timeshift", "1.5")) == asdict(
        SamplingSpec(
            num_steps=3, guidance=1.42, guidance_interval=(0.0, 1.0), closed_interval=True, timeshift=1.5, end=0.999
        )
    )
    assert "3 steps of euler, guidance 1.42 from 0 to 1, ends included, time shift 1.5, ending at 0.9985" in told
    assert "DiTDH-guide/stage2_model.pt: give it as --guide" in told
    assert made("--steps", "2") == SamplingSpec(num_steps=2)
    own = made("--steps", "2", "--end", "0.9", "--closed-interval", "--guidance-interval", "0", "1")
    assert own == SamplingSpec(num_steps=2, end=0.9, closed_interval=True, guidance_interval=(0.0, 1.0))


def test_known_repositories_are_sampled_as_published(tiny_model_path, capsys) -> None:
    network = load_model(tiny_model_path)
    assert sampling_of(network, None, {"num_steps": 7}) == SamplingSpec(num_steps=7)
    network.source = replace(network.source, name="MCG-NJU/DDT-XL-22en6de-R512")
    spec = sampling_of(network, None, {"num_steps": 100})
    assert spec == SamplingSpec(num_steps=100, guidance=3.0, last_step=0.04)
    told = " ".join(capsys.readouterr().err.split())
    assert "as published for MCG-NJU/DDT-XL-22en6de-R512" in told
    assert "100 steps of euler, guidance 3 from 0.3 to 1, last step 0.04" in told


def test_an_optimisation_keeps_the_calibrated_sampling(tmp_path, tiny_model_path) -> None:
    place, effort = Workspace(tmp_path), replace(QUICK, samples=2, sensitivity_samples=1, sensitivity_steps=1)
    network = load_model(tiny_model_path)
    like = read_recipe(RAE / "config_cfg.yaml")
    own = calibrated(place, network, {"num_steps": 4}, like, effort).spec
    assert own == like.spec({"num_steps": 4})
    assert calibrated(place, network, {}, None, effort).spec == own
    changed = calibrated(place, network, {"last_step": 0.1, "guidance": 1.0}, None, effort).spec
    assert changed == replace(own, last_step=0.1, end=None, guidance=1.0, closed_interval=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--end", "0.9", "--last-step", "0.1"], "give one of them"),
        (["--end", "2"], "--end"),
        (["--guidance", "1", "--closed-interval"], "guides nothing"),
        (["--closed-interval", "--guidance-interval", "0.99", "0.995"], "widen it"),
        (["--like", str(RAE / "nothing.yaml")], "cannot be read"),
        (["--like", str(RAE / "config_cfg.yaml"), "--guidance", "1", "--closed-interval"], "guides nothing"),
    ],
)
def test_options_that_make_no_sense(tmp_path, tiny_model_path, cli, options: list[str], said: str) -> None:
    ran = cli("calibrate", "-w", tmp_path, "--model", tiny_model_path, "--samples", 1, *options)
    assert_sentence(ran, said)
