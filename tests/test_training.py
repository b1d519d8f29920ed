"""Training: the data it reads, the steps it takes, and what a kill costs it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from ddt_accel import load_model
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.networks.config import DDTConfig
from ddt_accel.training import loop
from ddt_accel.training.images import ImageSet, load_images
from ddt_accel.training.loop import Progress, Trainer, TrainSpec
from ddt_accel.training.release import write_release

NETWORK = DDTConfig(
    in_channels=3, patch_size=4, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=2
)
SPEC = TrainSpec(network=NETWORK, total_images=24 * 8, batch_size=8, warmup_steps=4, precision="fp32")


@pytest.fixture
def data() -> ImageSet:
    """Two classes, dark and bright."""
    labels = np.arange(40) % 2
    noise = np.random.default_rng(0).integers(0, 40, (40, 8, 8, 3))
    return ImageSet(
        images=(noise + labels[:, None, None, None] * 180).astype(np.uint8),
        labels=labels,
        class_names=("dark", "bright"),
    )


@pytest.fixture(autouse=True)
def log_often(monkeypatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 4)


def trainer(data: ImageSet, folder: Path, spec: TrainSpec = SPEC) -> Trainer:
    return Trainer(spec, data, folder, torch.device("cpu"), compiled=False)


def contents(folder: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safetensors.safe_open(folder / "state.safetensors", framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def silent(_: Progress) -> None:
    pass


def test_a_killed_run_continues_to_the_same_bits(data: ImageSet, tmp_path: Path) -> None:
    whole = trainer(data, tmp_path / "whole")
    whole.run(save_every=4, report=silent)
    killed = trainer(data, tmp_path / "killed")
    killed.run(save_every=4, report=silent, stop=lambda: killed.step == 11)  # three steps past the last save
    resumed = trainer(data, tmp_path / "killed")
    resumed.run(save_every=4, report=silent)
    (expected, tensors), (facts, continued) = (contents(tmp_path / name) for name in ("whole", "killed"))
    assert facts == expected
    assert all(torch.equal(continued[name], tensors[name]) for name in tensors | continued)


def test_it_learns(data: ImageSet, tmp_path: Path) -> None:
    losses: list[float] = []
    spec = TrainSpec(network=NETWORK, total_images=240 * 16, batch_size=16, warmup_steps=10, learning_rate=3e-3,
                     precision="fp32")  # fmt: skip
    trainer(data, tmp_path, spec).run(save_every=240, report=lambda p: losses.append(p.loss))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


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


def test_the_state_is_a_checkpoint_and_the_release_its_average(data: ImageSet, tmp_path: Path) -> None:
    run = trainer(data, tmp_path)
    run.run(save_every=4, report=silent)
    raw = load_model(run.state_path, weights="raw")
    assert torch.equal(raw.x_embedder.proj.weight, run.model.x_embedder.proj.weight)
    released = load_model(write_release(run.state_path, tmp_path / "m.safetensors", latent_shape=(3, 8, 8)))
    average = load_model(run.state_path)
    for (name, ours), theirs in zip(released.named_parameters(), average.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float()), name
    assert released.source.class_names == ("dark", "bright")
    assert released.source.latent_shape == (3, 8, 8)


def test_the_state_of_another_run_is_refused(data: ImageSet, tmp_path: Path) -> None:
    trainer(data, tmp_path).run(save_every=4, report=silent)
    with pytest.raises(MismatchError, match="seed"):
        trainer(data, tmp_path, TrainSpec(network=NETWORK, total_images=24 * 8, batch_size=8, warmup_steps=4, seed=1,
                                          precision="fp32")).run(save_every=4, report=silent)  # fmt: skip
    (tmp_path / "state.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ArtifactError, match="training state"):
        trainer(data, tmp_path).run(save_every=4, report=silent)


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
    trainer(data, tmp_path).run(save_every=4, report=silent)
    state = tmp_path / "state.safetensors"
    whole = state.read_bytes()
    other = dataclasses.replace(data, images=255 - data.images)
    with pytest.raises(MismatchError, match="another images"):
        trainer(other, tmp_path).run(save_every=4, report=silent)
    state.write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])
    with pytest.raises(ArtifactError, match="checksum"):
        trainer(data, tmp_path).run(save_every=4, report=silent)


@pytest.mark.parametrize("settings", [{"seed": -1}, {"seed": 2**40}, {"learning_rate": -1.0}, {"label_dropout": 1.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(SPEC, **settings)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.array(["a", "b"]))
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
