"""Fine-tuning of checkpoints: what it begins with, what it learns at several widths, and that a kill costs nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from ddt_accel import Schedule, load_model
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.networks.config import Source
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.dynamic.widths import narrow
from ddt_accel.networks.families import build
from ddt_accel.networks.saving import save_network
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.training import loop
from ddt_accel.training.held_out import held_out_loss
from ddt_accel.training.images import ImageSet
from ddt_accel.training.loop import Trainer
from ddt_accel.training.nested import draw_width
from ddt_accel.training.release import write_release
from ddt_accel.training.start import divided, nested, under_labels_of
from ddt_accel.training.train_spec import TrainSpec

NETWORK = DDTConfig(
    in_channels=3, patch_size=4, num_groups=4, hidden_size=32, num_blocks=3, num_encoder_blocks=2, num_classes=2
)
CPU = torch.device("cpu")


def two_classes(count: int = 64) -> ImageSet:
    """Dark and bright."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(0).integers(0, 40, (count, 8, 8, 3))
    return ImageSet(
        images=(noise + labels[:, None, None, None] * 180).astype(np.uint8),
        labels=labels,
        class_names=("dark", "bright"),
    )


def written(pictures: ImageSet, folder: Path) -> Path:
    """As a folder of classes."""
    for index, image in enumerate(pictures.images):
        place = folder / pictures.class_names[index % 2] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint that has learned something at its only width."""
    folder = tmp_path_factory.mktemp("trained")
    spec = TrainSpec(network=NETWORK, total_images=16 * 150, batch_size=16, learning_rate=4e-3, precision="fp32")
    run = Trainer(spec, two_classes(), folder, CPU, compiled=False)
    run.run(save_every=1000)
    return write_release(run.state_path, folder / "model.safetensors", latent_shape=(3, 8, 8))


@pytest.fixture
def start(trained: Path) -> SplitNetwork:
    return load_model(trained)


def fine_tuning(begin: SplitNetwork, folder: Path, *, steps: int = 12, **settings: object) -> Trainer:
    ordered, widths = nested(begin, 0.5)
    assert begin.source is not None
    spec = TrainSpec(network=begin.config, total_images=16 * steps, batch_size=16, learning_rate=2e-3, precision="fp32",
                     start=begin.source.sha256, widths=widths)  # fmt: skip
    return Trainer(dataclasses.replace(spec, **settings), two_classes(), folder, CPU, compiled=False, start=ordered)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(folder / "state.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_narrow_widths_are_learned_and_the_complete_network_is_kept(start: SplitNetwork, tmp_path: Path) -> None:
    data = two_classes()
    run = fine_tuning(start, tmp_path, steps=100)
    run.run(save_every=1000)
    path = write_release(run.state_path, tmp_path / "model.safetensors", latent_shape=(3, 8, 8))
    made = load_model(path)
    assert made.source is not None
    assert made.source.widths == (1, 0.75, 0.5)
    assert made.config == start.config
    ordered, _ = nested(start, 0.5)
    ordered.source = dataclasses.replace(made.source)

    def loss(network: SplitNetwork) -> float:
        return float(np.mean(held_out_loss(network, data, batch_size=64, device=CPU)))

    before, after = ({width: loss(narrow(one, width)) for width in (1, 0.75, 0.5)} for one in (ordered, made))
    assert before[1] == pytest.approx(loss(start), rel=1e-4)
    assert before[0.5] > before[0.75] > before[1]
    assert after[0.5] - after[1] < 0.5 * (before[0.5] - before[1])
    assert after[1] < before[1]


def test_a_killed_fine_tuning_continues_to_the_same_bits(start: SplitNetwork, tmp_path: Path) -> None:
    fine_tuning(start, tmp_path / "whole").run(save_every=100)
    first = fine_tuning(start, tmp_path / "killed")
    first.run(save_every=100, stop=lambda: first.step == 7)
    resumed = fine_tuning(start, tmp_path / "killed")
    assert resumed.step == 7
    resumed.run(save_every=100)
    whole, killed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def test_another_beginning_is_another_run(start: SplitNetwork, tmp_path: Path) -> None:
    run = fine_tuning(start, tmp_path, steps=2)
    run.run(save_every=100)
    with pytest.raises(MismatchError, match=rf"--from {run.spec.start[:12]}, not 0123456789ab;"):
        fine_tuning(start, tmp_path, steps=2, start="0123456789abcdef")
    with pytest.raises(MismatchError, match=r"widths 1, 0\.75, 0\.5, not 1, 0\.5;"):
        fine_tuning(start, tmp_path, steps=2, widths=(1.0, 0.5))
    with pytest.raises(MismatchError, match=r"--from \w{12}, not no checkpoint, widths 1, 0\.75, 0\.5, not one;"):
        fine_tuning(start, tmp_path, steps=2, start=None, widths=())


def test_a_step_takes_the_complete_network_and_a_narrow_one(start: SplitNetwork, tmp_path: Path, monkeypatch) -> None:
    """Its gradient is the sum of theirs."""
    monkeypatch.setattr(loop, "GRADIENT_NORM", 1e9)

    def gradient(which: slice) -> torch.Tensor:
        run = fine_tuning(start, tmp_path, steps=1)
        passes = run._passes
        run._passes = lambda generator: passes(generator)[which]
        run._train_step()
        return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])

    both, complete, narrower = (gradient(which) for which in (slice(None), slice(1), slice(1, None)))
    assert (both - complete - narrower).norm() < 1e-5 * both.norm()
    assert (complete - narrower).norm() > 0.1 * complete.norm()


def test_all_widths_are_drawn_but_the_complete_network() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_width(NETWORK, (1, 0.75, 0.5), generator) for _ in range(200)]
    heads = {tuple(mask.heads.sum().item() for mask in masks) for masks in drawn}
    assert heads == {(a, a, b) for a in (4, 3, 2) for b in (4, 3, 2)} - {(4, 4, 4)}
    assert {mask.channels.sum().item() for masks in drawn for mask in masks} == {85, 64, 43}


def test_pictures_go_under_the_networks_labels(start: SplitNetwork) -> None:
    data = two_classes(8)
    named, note = under_labels_of(dataclasses.replace(data, class_names=("bright", "dark")), start)
    assert note is None
    assert named.class_names == ("dark", "bright")
    assert np.array_equal(named.labels, 1 - data.labels)
    only, note = under_labels_of(dataclasses.replace(data, labels=0 * data.labels, class_names=("bright",)), start)
    assert note is None
    assert set(only.labels) == {1}
    others, note = under_labels_of(dataclasses.replace(data, class_names=("ant", "bee")), start)
    assert note == "The network's first 2 of 2 classes are taken for these, in this order"
    assert others.class_names == ("ant", "bee")
    assert np.array_equal(others.labels, data.labels)
    with pytest.raises(ConfigError, match=r"classes ant are none of the network's \(dark, bright\), and others are"):
        under_labels_of(dataclasses.replace(data, class_names=("ant", "dark")), start)
    with pytest.raises(ConfigError, match="have 3 classes and the network has 2; give at most as many"):
        under_labels_of(dataclasses.replace(data, class_names=("ant", "bee", "cat")), start)


@pytest.mark.parametrize(("count", "out"), [(2, 1), (16, 1), (17, 2), (64, 4), (20_000, 512)])
def test_some_pictures_are_kept_out(count: int, out: int) -> None:
    data = ImageSet(images=np.zeros((count, 1, 1, 3), np.uint8), labels=np.arange(count), class_names=("all",))
    kept, held = divided(data)
    assert len(held.images) == out
    assert sorted([*kept.labels, *held.labels]) == list(range(count))
    with pytest.raises(ConfigError, match="one picture, and fine-tuning keeps one out"):
        divided(dataclasses.replace(data, images=data.images[:1], labels=data.labels[:1]))


def saved(folder: Path, name: str, **settings: object) -> Path:
    network = build(dataclasses.replace(NETWORK, **settings))
    size = network.config.in_channels, 8, 8
    network.source = Source(name=name, sha256="", latent_shape=size, class_names=None)
    save_network(network, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def test_what_does_not_fit_is_said_before_anything_is_read(cli, trained: Path, tmp_path: Path) -> None:
    narrower = saved(tmp_path, "narrow", block_heads=(2, 2, 2), block_channels=(9, 9, 9))
    latents = saved(tmp_path, "latents", in_channels=4)
    single = saved(tmp_path, "single", num_groups=1)
    line = ("train", "--data", tmp_path / "absent", "--out", tmp_path / "run")
    for options, said in (
        (("--dynamic", "nested"), "--dynamic fine-tunes a checkpoint; give one with --from."),
        (("--from", trained, "--dynamic", "tokens"), "--dynamic is 'tokens'; choose nested or routers."),
        (("--from", trained, "--target", 0.5), "--target is what --dynamic is to leave of the network; give both"),
        (("--from", trained, "--heads", 4), "--heads is the checkpoint's own with --from; leave it out."),
        (("--from", trained, "--size", 16), "--size is 16, and --from draws pictures of 8 × 8; leave --size out."),
        (("--from", latents), "--from is a network that draws latents of 4 channels; give one that draws pictures"),
        (("--from", trained, "--dynamic", "nested", "--target", 1), "--target is 1; give a share between 0 and 1."),
        (("--from", trained, "--dynamic", "nested", "--target", 0.2), "--target is 0.2, and one of 4 heads, which"),
        (("--from", trained, "--dynamic", "routers", "--target", 0.2), "--target is 0.2, and one of 4 heads, which"),
        (("--from", single, "--dynamic", "routers"), "leaves heads out, and --from has one; give a network"),
        (("--from", narrower, "--dynamic", "nested"), "--from is a narrow network already; give the complete one"),
    ):  # fmt: skip
        ran = cli(*line, *options)
        assert ran.code == 2, options
        assert said in " ".join(ran.err.split()), ran.err
        assert "Reading" not in ran.err
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_a_checkpoint_to_pictures_at_half_the_width(cli, trained: Path, tmp_path: Path) -> None:
    data = written(two_classes(24), tmp_path / "pictures")
    common = ("train", "--data", data, "--threads", 1, "--precision", "fp32", "--batch-size", 8)
    line = (*common, "--from", trained, "--out", tmp_path / "run", "--dynamic", "nested", "--images", 64)
    ran = cli(*line)
    assert ran.code == 0, ran.err
    rows = [" ".join(row.split()) for row in ran.out.splitlines()]
    assert rows[0] == "Loss on 2 pictures kept out, by quarter of t from noise (0) to picture (1)"
    said = {tuple(row.split()[:-6]): row.split()[-6] for row in rows if "%" in row}
    assert said == {("before",): "100%", ("complete",): "100%", ("width", "0.75"): "75%", ("width", "0.5"): "50%"}

    again = cli(*line, "--json")
    assert "Trained to its end already" in again.err
    losses = json.loads(again.out)["held_out"]
    assert list(losses) == ["before", "complete", "width 0.75", "width 0.5"]
    assert all(len(one["quarters"]) == 4 for one in losses.values())

    # Complete, it is a network like any other; so is each of its widths, which can be trained on alone.
    half = tmp_path / "half.safetensors"
    assert cli("narrow", "--model", tmp_path / "run", "--width", 0.5, "--out", half).code == 0
    for number, model in enumerate((tmp_path / "run", half)):
        place = ("-w", tmp_path / f"workspace-{number}")
        nested = number == 0
        for words in (("calibrate", "--model", model, "--steps", 4, "--samples", 2, "--sensitivity-samples", 1),
                      ("solve", "--budget", 2, *["--widths"] * nested),
                      ("sample", "--backend", "torch", "--images", 2),
                      *[("bench", "--backend", "torch", "--images", 2, "--curve-images", 2)] * nested):  # fmt: skip
            ran = cli(*words, *place)
            assert ran.code == 0, ran.err
    assert Schedule.load(tmp_path / "workspace-0" / "schedule.json").spec.num_steps == 4
    control = cli(*common, "--from", half, "--out", tmp_path / "control", "--images", 16)
    assert control.code == 0, control.err
    assert load_model(tmp_path / "control").config == load_model(half).config
    refused = cli("narrow", "--model", half, "--width", 0.5, "--out", tmp_path / "x")
    assert refused.code == 2
    assert "half.safetensors was trained at one width" in refused.err
    assert "--model is missing; give a network with several widths" in cli("narrow", "--out", tmp_path / "x").err
    refused = cli("narrow", "--model", tmp_path / "run", "--width", 0.6, "--out", tmp_path / "x")
    assert "The width is 0.6; the network was trained at 1, 0.75, 0.5." in refused.err
