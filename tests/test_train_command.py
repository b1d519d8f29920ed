"""`train` as it is typed: what it says, what it refuses before it reads, how it stops and goes on."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from ddt_accel import load_model
from ddt_accel.cli import learning
from ddt_accel.cli.learning import watched
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.training.loop import Trainer
from ddt_accel.training.train_spec import TrainSpec

NETWORK = ("--size", 8, "--hidden-size", 16, "--heads", 2, "--encoder-blocks", 1, "--decoder-blocks", 1)
TINY = (*NETWORK, "--batch-size", 4, "--images", 40, "--threads", 1, "--precision", "fp32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    images = np.random.default_rng(0).integers(256, size=(6, 4, 4), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(6) % 2, class_names=np.array(["ant", "bee"]))
    return path


def state(folder: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safetensors.safe_open(folder / "state.safetensors", framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_it_says_what_it_does(cli, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    ran = cli("train", "--data", data, "--out", out, *TINY)
    assert ran.code == 0, ran.err
    lines = ran.err.splitlines()
    assert lines[0] == f"Reading {data} …"
    assert "6 pictures in 2 classes (ant, bee)" in lines
    assert "4 × 4 pixels, enlarged to 8 × 8; grey, trained as colour" in lines
    parameters = sum(parameter.numel() for parameter in load_model(out / "model.safetensors").parameters())
    assert f"{parameters:,} parameters, fp32, 1 thread" in lines
    assert re.fullmatch(r"step 10 of 10, loss \d\.\d{4}, \d+ images/s", lines[-1])
    assert ran.out.splitlines()[1] == f"Next: ddt-accel optimize --quick --model '{out}/model.safetensors'"
    assert load_model(out / "model.safetensors").source.class_names == ("ant", "bee")

    longer = cli("train", "--data", data, "--out", out, *TINY, "--images", 80, "--json")
    assert longer.code == 0, longer.err
    assert f"Going on at step 10 of 20, which {out}/state.safetensors holds" in longer.err.splitlines()
    assert json.loads(longer.out)["images"] == 80


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--heads", 3), "--hidden-size is 16 and --heads 3; give a --hidden-size that is a multiple of 12"),
        (("--patch", 3), "--size is 8 and --patch 3"),
        (("--images", 3), "--images is 3 and --batch-size 4"),
        (("--precision", "fp64"), "--precision is 'fp64'; choose auto, bf16 or fp32"),
        (("--ema-decay", 1), "--ema-decay is 1"),
        (("--threads", 0), "--threads is 0; give a number from 1 to"),
        (("--threads", 100_000), "--threads is 100000"),
        (("--device", "tpu"), "--device is"),
        (("--size", 100_000), "16384"),
        (("--size", 16_000), "choose a smaller --batch-size, --size or --hidden-size, or a larger --patch"),
        (("--hidden-size", 65_536), "choose a smaller --batch-size, --size or --hidden-size"),
        (("--seed", -1), "--seed is -1"),
    ],
)
def test_settings_are_checked_before_anything_is_read(
    cli, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    ran = cli("train", "--data", tmp_path / "absent", "--out", tmp_path / "run", *TINY, *options)
    assert ran.code == 2
    assert said in " ".join(ran.err.replace("│", " ").split())
    assert "absent" not in ran.err
    assert not (tmp_path / "run").exists()


def test_another_run_is_refused_before_anything_is_read(cli, data: Path, tmp_path: Path) -> None:
    assert cli("train", "--data", data, "--out", tmp_path / "run", *TINY).code == 0
    ran = cli("train", "--data", tmp_path / "absent", "--out", tmp_path / "run", *TINY, "--patch", 2)
    assert ran.code == 2
    assert "was trained with --patch 4, not 2; give the same to continue" in ran.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_kept_and_goes_on(cli, data: Path, tmp_path: Path, monkeypatch, number: int) -> None:
    command = ("train", "--data", data, *TINY, "--out")
    take_step = Trainer._train_step

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step == 6:
            signal.raise_signal(number)
        return take_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        ran = cli(*command, tmp_path / "run", "--json")
    assert ran.code == 128 + number
    assert ran.out == ""
    assert ran.err.splitlines()[-2:] == [
        "Step 7 of 10 is saved.",
        f"{'Interrupted' if number == signal.SIGINT else 'Stopped'}. The same command goes on from the last save in "
        f"{tmp_path}/run/state.safetensors.",
    ]
    again = cli(*command, tmp_path / "run")
    assert again.code == 0
    assert "Going on at step 7 of 10" in again.err
    assert cli(*command, tmp_path / "whole").code == 0
    (expected, tensors), (facts, continued) = state(tmp_path / "whole"), state(tmp_path / "run")
    assert facts == expected
    assert all(torch.equal(continued[name], tensors[name]) for name in tensors)


def test_a_second_interruption_is_immediate() -> None:
    with learning.stoppable() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_losses_come_early_and_then_seldom(capfd, monkeypatch) -> None:
    """Steps of half a second, by a clock of the test's own: a loss after seconds, then one in ten seconds at most."""
    spec = TrainSpec(
        network=DDTConfig(in_channels=3, patch_size=4, num_groups=2, hidden_size=16, num_blocks=2,
                          num_encoder_blocks=1, num_classes=1),
        total_images=8 * 8000, batch_size=8,
    )  # fmt: skip
    now = 0.0
    monkeypatch.setattr(learning.time, "monotonic", lambda: now)
    spoken = []
    with watched(spec) as report:
        for step in range(1, 8001):
            now += 0.5
            report(step, torch.tensor(1.0 + step % 2))
            if lines := capfd.readouterr().err.splitlines():
                spoken += [(now, *lines)]
    assert [at for at, _ in spoken[:4]] == [2.0, 12.0, 22.0, 32.0]
    assert spoken[0][1] == "step 4 of 8,000, loss 1.5000, 16 images/s, about 67 min left"
    assert spoken[1][1] == "step 24 of 8,000, loss 1.5000, 16 images/s, about 66 min left"
    assert spoken[-1][1].startswith("step 8,000 of 8,000, loss ")
    gaps = np.diff([at for at, _ in spoken[:-1]])
    assert gaps.min() >= 10
    assert gaps.max() <= 80


@pytest.mark.slow
def test_without_a_compiler_it_is_a_sentence(cli, no_compiler, data: Path, tmp_path: Path) -> None:
    ran = cli("train", "--data", data, "--out", tmp_path / "run", *TINY, "--compile")
    assert ran.code == 2
    assert "error: PyTorch cannot compile the networks here (No working C++ compiler" in ran.err
    assert (
        "a C++ compiler, on a GPU Triton, a C compiler and Python's headers (python3-dev), or leave out --compile."
        in ran.err
    )
    assert "Traceback" not in ran.err
