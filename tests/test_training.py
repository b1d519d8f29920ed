"""Training: the data it reads, the steps it takes, and what a kill costs it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from ddt_accel import load_model
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError, NumericsError
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.training import loop
from ddt_accel.training.images import ImageSet, load_images
from ddt_accel.training.loop import Trainer
from ddt_accel.training.release import write_release
from ddt_accel.training.train_spec import TrainSpec

NETWORK = DDTConfig(
    in_channels=3, patch_size=4, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=2
)
SPEC = TrainSpec(network=NETWORK, total_images=24 * 8, batch_size=8, warmup_steps=4, precision="fp32")


def two_classes() -> ImageSet:
    """Dark and bright."""
    labels = np.arange(40) % 2
    noise = np.random.default_rng(0).integers(0, 40, (40, 8, 8, 3))
    return ImageSet(
        images=(noise + labels[:, None, None, None] * 180).astype(np.uint8),
        labels=labels,
        class_names=("dark", "bright"),
    )


@pytest.fixture
def data() -> ImageSet:
    return two_classes()


@pytest.fixture(autouse=True)
def log_often(monkeypatch) -> None:
    monkeypatch.setattr(loop, "HISTORY_EVERY", 4)
    monkeypatch.setattr(loop, "HISTORY_ENTRIES", 1)


def trainer(data: ImageSet, folder: Path, spec: TrainSpec = SPEC) -> Trainer:
    return Trainer(spec, data, folder, torch.device("cpu"), compiled=False)


def contents(folder: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safetensors.safe_open(folder / "state.safetensors", framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "HISTORY_EVERY", 4)
        patch.setattr(loop, "HISTORY_ENTRIES", 1)
        trainer(two_classes(), folder).run(save_every=100)
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    (expected, tensors), (facts, continued) = contents(whole), contents(folder)
    assert facts == expected
    assert all(torch.equal(continued[name], tensors[name]) for name in tensors | continued)


@pytest.mark.parametrize("save_every", [3, 4, 5])  # the history has an entry every four steps
def test_a_killed_run_continues_to_the_same_bits(data: ImageSet, whole: Path, tmp_path: Path, save_every: int) -> None:
    killed = trainer(data, tmp_path)

    def kill(step: int, loss: torch.Tensor) -> None:
        if step == 11:
            raise Killed

    with pytest.raises(Killed):
        killed.run(save_every=save_every, report=kill)
    resumed = trainer(data, tmp_path)
    assert resumed.step == 11 - 11 % save_every
    resumed.run(save_every=save_every)
    assert_same(tmp_path, whole)


def test_a_stopped_run_keeps_its_last_step(data: ImageSet, whole: Path, tmp_path: Path) -> None:
    stopped = trainer(data, tmp_path)
    stopped.run(save_every=100, stop=lambda: stopped.step == 11)
    resumed = trainer(data, tmp_path)
    assert resumed.step == 11
    resumed.run(save_every=100)
    assert_same(tmp_path, whole)


def test_slow_steps_are_kept_every_few_minutes(data: ImageSet, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    kept = []
    run = trainer(data, tmp_path)
    run.run(save_every=100, report=lambda step, loss: kept.append(run.state_path.exists()),
            stop=lambda: run.step == 2)  # fmt: skip
    assert kept == [False, True]


def test_a_run_is_extended_to_more_images(data: ImageSet, tmp_path: Path) -> None:
    trainer(data, tmp_path).run(save_every=100)
    before, weights = contents(tmp_path)
    longer = trainer(data, tmp_path, dataclasses.replace(SPEC, total_images=2 * SPEC.total_images))
    assert (longer.step, longer.finished) == (24, False)
    rates = []
    longer.run(save_every=100, report=lambda step, loss: rates.append(longer.optimizer.param_groups[0]["lr"]))
    assert rates == [longer.spec.learning_rate_at(step) for step in range(24, 48)]
    assert rates[0] > 0.4 * SPEC.learning_rate
    after, changed = contents(tmp_path)
    assert json.loads(after["history"])[:6] == json.loads(before["history"])
    assert int(after["step"]) == json.loads(after["history"])[-1][0] == 48
    assert not torch.equal(changed["denoiser.x_embedder.proj.weight"], weights["denoiser.x_embedder.proj.weight"])
    with pytest.raises(MismatchError, match="--images 384, not 192"):
        trainer(data, tmp_path)


def test_a_short_run_has_a_curve_and_the_loss_of_its_end(data: ImageSet, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    losses: list[float] = []
    run = trainer(data, tmp_path, dataclasses.replace(SPEC, total_images=45 * 8))
    run.run(save_every=100, report=lambda step, loss: losses.append(loss.item()))
    assert [step for step, _ in run.history] == [*range(2, 46, 2), 45]
    assert run.history[-1][1] == pytest.approx(losses[-1])


def test_it_learns(data: ImageSet, tmp_path: Path) -> None:
    losses: list[float] = []
    spec = TrainSpec(network=NETWORK, total_images=120 * 16, batch_size=16, warmup_steps=8, learning_rate=3e-3,
                     precision="fp32")  # fmt: skip
    trainer(data, tmp_path, spec).run(save_every=120, report=lambda step, loss: losses.append(loss.item()))
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:4])


def test_every_image_is_seen_once_an_epoch(data: ImageSet, tmp_path: Path) -> None:
    run = trainer(data, tmp_path)
    seen = []
    for run.step in range(5):
        seen += run._indices().tolist()
    assert sorted(seen) == list(range(40))


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [SPEC.learning_rate_at(step) for step in range(SPEC.num_steps + 1)]
    assert rates[0] < rates[1] < rates[3] == SPEC.learning_rate
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_defaults_fit_the_length_of_the_run() -> None:
    """The embedded model's settings at its length; shorter runs forget and warm up sooner."""
    embedded = dataclasses.replace(SPEC, total_images=4_200_000, batch_size=128, warmup_steps=None)
    assert (embedded.decay, embedded.warmup) == (0.9995, 500)
    lengths = [1, 10, 100, 1000, 10_000, 100_000, 10_000_000]
    fitted = [dataclasses.replace(SPEC, total_images=8 * steps, warmup_steps=None) for steps in lengths]
    assert [spec.decay for spec in fitted] == [0, 0, 0.84, 0.984, 0.9984, 0.9998, 0.9999]
    assert [spec.warmup for spec in fitted] == [0, 2, 25, 250, 500, 500, 500]
    assert dataclasses.replace(SPEC, ema_decay=0.7).decay == 0.7


def test_a_loss_that_is_no_number_leaves_the_last_good_state(data: ImageSet, tmp_path: Path) -> None:
    run = trainer(data, tmp_path)
    run.run(save_every=100, stop=lambda: run.step == 5)
    with torch.no_grad():
        run.model.x_embedder.proj.weight.fill_(torch.nan)
    for save_every, stop in ((1, 100), (100, 100), (100, 6)):
        run.step = 5
        with pytest.raises(
            NumericsError, match=r"loss is nan.*--learning-rate.*state\.safetensors holds the last good"
        ):
            run.run(save_every=save_every, stop=lambda stop=stop: run.step == stop)
        assert trainer(data, tmp_path).step == 5
        run._window = []


def test_the_state_is_a_checkpoint_and_the_release_its_average(data: ImageSet, tmp_path: Path) -> None:
    run = trainer(data, tmp_path)
    run.run(save_every=4)
    raw = load_model(run.state_path, weights="raw")
    assert torch.equal(raw.x_embedder.proj.weight, run.model.x_embedder.proj.weight)
    released = load_model(write_release(run.state_path, tmp_path / "m.safetensors", latent_shape=(3, 8, 8)))
    average = load_model(run.state_path)
    for (name, ours), theirs in zip(released.named_parameters(), average.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float()), name
    assert released.source.class_names == ("dark", "bright")
    assert released.source.latent_shape == (3, 8, 8)


def test_the_state_of_another_run_is_refused(data: ImageSet, tmp_path: Path) -> None:
    trainer(data, tmp_path).run(save_every=4)
    wider = dataclasses.replace(NETWORK, hidden_size=32, num_blocks=4)
    for other, said in ((dataclasses.replace(SPEC, seed=1), "--seed 0, not 1;"),
                        (dataclasses.replace(SPEC, flip=False), "--flip on, not off;"),
                        (dataclasses.replace(SPEC, ema_decay=0.5), "--ema-decay fitted to the run, not 0.5;"),
                        (dataclasses.replace(SPEC, network=wider),
                         "--hidden-size 16, not 32, --decoder-blocks 1, not 2;")):  # fmt: skip
        with pytest.raises(MismatchError, match=said):
            trainer(data, tmp_path, other)
    (tmp_path / "state.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ArtifactError, match="training state"):
        trainer(data, tmp_path).run(save_every=4)


def test_folder_zip_and_npz_give_the_same_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    labels = np.array([0, 0, 0, 1, 1, 1])
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            for split in ("train", "test"):
                path = tmp_path / "folder" / split / ("ant", "bee")[label] / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image if split == "train" else 255 - image).save(path)
                archive.write(path, path.relative_to(tmp_path / "folder"))
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    for source in ("folder", "images.zip", "images.npz"):
        loaded = load_images(tmp_path / source, size=8)
        assert np.array_equal(loaded.images, images), source
        assert np.array_equal(loaded.labels, labels), source
    assert load_images(tmp_path / "images.zip", size=8).class_names == ("ant", "bee")
    assert np.array_equal(load_images(tmp_path / "images.zip", size=8, split="test").images, 255 - images)


def test_unusable_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.png").write_bytes(b"no image")
    (tmp_path / "class/x").mkdir(parents=True)
    (tmp_path / "class/x/a.png").write_bytes(b"no image")
    np.savez(tmp_path / "odd.npz", images=np.zeros((2, 8, 8)), labels=np.zeros(2))
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "whole.npz", images=images, labels=np.zeros(2, np.int64))
    whole = (tmp_path / "whole.npz").read_bytes()
    for flipped in range(len(whole)):  # some of them end in errors of zlib, or are taken for encrypted
        damaged = whole[:flipped] + bytes([whole[flipped] ^ 255]) + whole[flipped + 1 :]
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with contextlib.suppress(ConfigError):
            load_images(tmp_path / "damaged.npz", size=8)
    for name in ("broken.zip", "flat", "class", "odd.npz", "empty.npz", "single.npz", "absent"):
        with pytest.raises(ConfigError, match=name if name != "class" else r"a\.png"):
            load_images(tmp_path / name, size=8)


def test_images_of_no_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size 0"):
        load_images(tmp_path, size=0)


def test_a_state_with_a_flipped_bit_or_other_images_is_refused(data: ImageSet, tmp_path: Path) -> None:
    trainer(data, tmp_path).run(save_every=4)
    state = tmp_path / "state.safetensors"
    whole = state.read_bytes()
    other = dataclasses.replace(data, images=255 - data.images)
    with pytest.raises(MismatchError, match=r"on other images, of 2 classes \(dark, bright\)"):
        trainer(other, tmp_path)
    state.write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])
    with pytest.raises(ArtifactError, match="checksum"):
        trainer(data, tmp_path).run(save_every=4)


@pytest.mark.parametrize("settings", [{"seed": -1}, {"seed": 2**40}, {"learning_rate": -1.0}, {"label_dropout": 1.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(SPEC, **settings)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array([0.0, 1.5]))
    with pytest.raises(ConfigError, match="whole numbers"):
        load_images(tmp_path / "named.npz", size=8)
    (tmp_path / "set" / "cat").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "set" / "cat" / "a.png")
    path = tmp_path / "set" / "cat" / "a.png"
    whole = path.read_bytes()
    complaints = []
    for cut in range(8, len(whole) - 12):
        path.write_bytes(whole[:cut] + bytes(4) + whole[cut + 4 :])
        try:
            load_images(tmp_path / "set", size=8)
        except ConfigError as error:
            complaints.append(str(error))
    assert complaints
    assert all("a.png" in text for text in complaints)
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("cat/a.png", whole)
    locked = bytearray((tmp_path / "locked.zip").read_bytes())
    for header in (b"PK\x03\x04", b"PK\x01\x02"):  # the flag for encryption, in both of a zip's tables
        locked[locked.index(header) + (6 if header[2] == 3 else 8)] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(ConfigError, match="not a readable zip"):
        load_images(tmp_path / "locked.zip", size=8)
