"""The pipeline of diffusers against `Sampler`, and what it keeps, takes and refuses."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from ddt_accel import Sampler, SamplingSpec, Schedule, load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.networks.class_names import names_of, number_of, numbers_by_name
from ddt_accel.networks.config import Source
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from ddt_accel.integrations.diffusers import DDTPipeline, seeds_of

SCHEDULE = Schedule(
    spec=SamplingSpec(num_steps=6, guidance=1.5), refresh_steps=(0, 2, 4), forecasts={3: ((0, -0.5), (2, 1.5))}
)
LATENT_CONFIG = DDTConfig(
    in_channels=4, patch_size=2, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=4
)


@pytest.fixture(scope="module")
def pipe(tiny_model_path) -> DDTPipeline:
    made = DDTPipeline.from_pretrained(tiny_model_path, schedule=SCHEDULE, batch_size=4)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def latent_pipe(tmp_path) -> DDTPipeline:
    """One that needs an autoencoder, whose weights are random."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4, scaling_factor=0.5,
    )  # fmt: skip
    model = DDT(LATENT_CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.1)
    model.source = Source(name="random", sha256="0" * 64, latent_shape=(4, 8, 8), class_names=None)
    made = DDTPipeline(model, SCHEDULE, vae)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_draws_what_the_sampler_draws(pipe, tiny_model_path) -> None:
    """Bit for bit: labels by name and number, seeds from the generator, more images than a batch."""
    expected = Sampler(load_model(tiny_model_path), SCHEDULE, batch_size=4)([1, 3, 0, 1, 2], seeds_of(seeded(3), 5))
    drawn = pipe(["bee", 3, "Ant", 1, 2], generator=seeded(3), output_type="latent").images
    assert torch.equal(drawn, expected)
    numbers = torch.tensor([1, 3, 0, 1, 2])
    assert torch.equal(pipe(numbers, 6, 1.5, seeded(3), "latent", return_dict=False)[0], expected)
    assert torch.equal(pipe(numbers.numpy(), generator=seeded(3), output_type="latent").images, expected)
    assert pipe(numbers.numpy()[0]).images[0].size == (8, 8)


def test_a_generator_gives_the_same_picture_in_any_batch(pipe) -> None:
    """As many numbers, in the same order, however many images are asked for at once; each of several its own image."""
    alone = [pipe("cat", generator=seeded(seed), output_type="latent").images[0] for seed in (5, 6, 7)]
    together = pipe(["cat"] * 3, generator=[seeded(seed) for seed in (5, 6, 7)], output_type="latent").images
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)
    one, stream = seeded(9), pipe(["cat", "dog"], generator=seeded(9), output_type="latent").images
    for k, label in enumerate(("cat", "dog")):
        drawn = pipe(label, generator=one, output_type="latent").images[0]
        torch.testing.assert_close(drawn, stream[k], atol=1e-5, rtol=1e-4)
    torch.manual_seed(4)
    first = pipe([2], output_type="latent").images
    second = pipe([2], output_type="latent").images
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(pipe([2], output_type="latent").images, first)


def test_output_types_are_of_one_picture(pipe) -> None:
    given = {name: pipe([0, 2], generator=seeded(1), output_type=name).images for name in ("pil", "np", "pt", "latent")}
    expected = (given["latent"] / 2 + 0.5).clamp(0, 1)
    assert torch.equal(given["pt"], expected)
    np.testing.assert_array_equal(given["np"], expected.permute(0, 2, 3, 1).numpy())
    for picture, array in zip(given["pil"], given["np"], strict=True):
        np.testing.assert_array_equal(np.asarray(picture), (array * 255).round().astype(np.uint8))


def test_steps_are_called_back_and_counted(pipe, capsys) -> None:
    seen = []

    def watch(given: DDTPipeline, step: int, time: float, tensors: dict) -> dict | None:
        assert given is pipe
        seen.append((step, time))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 5 else None

    pipe.set_progress_bar_config(disable=False)
    drawn = pipe([0] * 5, output_type="latent", callback_on_step_end=watch).images
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(drawn, torch.zeros(5, 3, 8, 8))
    assert seen == [(k, pytest.approx(time)) for _ in range(2) for k, time in enumerate(SCHEDULE.spec.times)]
    assert "12/12" in capsys.readouterr().err


def test_it_is_kept_and_loaded_again(latent_pipe, tmp_path) -> None:
    """With network, schedule and autoencoder, as data; the same pictures."""
    latent_pipe.save_pretrained(tmp_path / "kept")
    suffixes = {path.suffix for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}
    assert json.loads((tmp_path / "kept" / "model_index.json").read_text())["_class_name"] == "DDTPipeline"
    loaded = DDTPipeline.from_pretrained(tmp_path / "kept")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.schedule == SCHEDULE
    drawn = [one([1, 3], generator=seeded(2), output_type="np").images for one in (latent_pipe, loaded)]
    assert drawn[0].shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(*drawn)
    assert set(loaded.components) == {"network", "schedule", "vae"}


def test_a_schedule_for_the_embedded_model_stays_its_own(tmp_path) -> None:
    """Saved in full precision, the network is the one that its shipped schedules are for."""
    made = DDTPipeline.from_pretrained("cifar10", schedule="cifar10-fitted-4of6")
    made.save_pretrained(tmp_path)
    again = DDTPipeline.from_pretrained(tmp_path)
    assert again.network.source.sha256 == made.network.source.sha256 == again.schedule.checkpoint_sha256
    assert again.labels["frog"] == 6
    for asked, said in (
        ({"num_inference_steps": 50}, "for 6; .*: cifar10-10of50, cifar10-12of50"),
        ({"num_inference_steps": 9}, "for 6; .*: cifar10-fitted-6of9"),
        ({"guidance_scale": 3.5}, "3.5, and the schedule is for 2; .*ddt-accel calibrate --guidance 3.5"),
    ):
        with pytest.raises(MismatchError, match=said):
            again([0], **asked)
    with pytest.raises(ConfigError, match=r"schedule is missing; .*cifar10-10of50"):
        DDTPipeline.from_pretrained("cifar10")
    again.schedule = Schedule(spec=SCHEDULE.spec, refresh_steps=(0,), checkpoint_sha256="1" * 64)
    with pytest.raises(MismatchError, match="solved for the checkpoint"):
        again([0])


def test_converting_and_replacing_take_effect(tiny_model_path, tmp_path) -> None:
    made = DDTPipeline.from_pretrained(tiny_model_path, schedule=SCHEDULE)
    made.set_progress_bar_config(disable=True)
    wide = made([0, 1], generator=seeded(0), output_type="latent").images
    means = np.linspace(-1, 1, made.network.config.modulation_size, dtype=np.float32)[None]
    made.schedule = dataclasses.replace(SCHEDULE, forecasts={3: ((0, -0.5), (2, 0.5))})
    relative = dataclasses.replace(made.schedule, mean_modulations=means)
    assert relative == made.schedule  # what they are compared by leaves the means out
    before = made([0, 1], generator=seeded(0), output_type="latent").images
    made.schedule = relative
    assert not torch.equal(made([0, 1], generator=seeded(0), output_type="latent").images, before)
    made.schedule = Schedule.full(SCHEDULE.spec)
    full = made([0, 1], generator=seeded(0), output_type="latent").images
    assert not torch.equal(wide, full)
    assert made.to(torch.bfloat16).dtype is torch.bfloat16
    narrow = made([0, 1], generator=seeded(0), output_type="latent").images
    assert not torch.equal(narrow, full)
    torch.testing.assert_close(narrow, full, atol=0.2, rtol=0.1)
    with pytest.raises(ConfigError, match="bfloat16"):
        made.save_pretrained(tmp_path)


def test_what_it_refuses(pipe, tiny_model_path, tmp_path) -> None:
    for given, said in (
        ({"class_labels": ["eel"]}, "no class 'eel'; give a number from 0 to 3, or a name such as ant, bee"),
        ({"class_labels": [4]}, "no class 4"),
        ({"class_labels": []}, "labels are"),
        ({"class_labels": None}, "no class None"),
        ({"class_labels": torch.tensor([1.0])}, r"no class 1\.0"),
        ({"class_labels": [[1]]}, r"no class \[1\]"),
        ({"class_labels": [0], "num_inference_steps": "6"}, "num_inference_steps is '6'; give a number"),
        ({"class_labels": [0], "generator": 5}, "generator is 5; give torch.Generator"),
        ({"class_labels": [0, 1], "generator": [1, 2]}, "generator is 1; give"),
        ({"class_labels": [0], "output_type": "jpg"}, "output_type is 'jpg'"),
        ({"class_labels": [0], "generator": [seeded(0)] * 2}, "2 generators for 1 images"),
    ):
        with pytest.raises(ConfigError, match=said):
            pipe(**given)
    with pytest.raises(ConfigError, match="backend is 'fast'"):
        DDTPipeline.from_pretrained(tiny_model_path, schedule=SCHEDULE, backend="fast")
    other = TorchBackend(DDT(LATENT_CONFIG))
    with pytest.raises(MismatchError, match="open on other weights"):
        DDTPipeline.from_pretrained(tiny_model_path, schedule=SCHEDULE, backend=other)
    with pytest.raises(ArtifactError, match="There is no schedule"):
        DDTPipeline.from_pretrained(tiny_model_path, schedule=tmp_path / "none.json")


def test_names_of_classes() -> None:
    names = names_of(1000, None)
    assert names is not None
    assert names_of(4, None) is None
    for name, number in (("golden retriever", 207), ("tench", 0), ("Great White Shark", 2), ("toilet tissue", 999)):
        assert number_of(name, 1000, names) == number
    words = numbers_by_name(names)
    assert set(range(1000)) - set(words.values()) == {517}  # two classes are called crane alone, and the bird is first
    assert (words["crane"], words["partridge"]) == (134, 86)  # 82 is a partridge, too, by its second name
    with pytest.raises(ConfigError, match="True"):
        number_of(True, 2, None)
