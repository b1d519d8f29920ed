"""`inspect` says what a thing is, whatever it is."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml
from conftest import TINY, Result
from PIL import Image

from ddt_accel import Schedule
from ddt_accel.schedule import shipped_schedules


def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def samples(folder: Path) -> Path:
    for index in range(3):
        picture(folder / f"{index:06d}.png", (8, 8))
    return folder


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def curve(folder: Path) -> Path:
    folder.mkdir()
    for name in ("cifar10-10of50", "cifar10-5of50"):
        schedule = Schedule.load(name)
        schedule.save(folder / f"{schedule.budget}.json")
    return folder


def configuration(path: Path) -> Path:
    arguments = vars(TINY) | {"dropout": 0.1}
    path.write_text(
        yaml.safe_dump({"model": {"denoiser": {"init_args": arguments}}, "data": {"latent_shape": [3, 8, 8]}})
    )
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def run_of_training(folder: Path) -> Path:
    folder.mkdir()
    metadata = {"train_spec": json.dumps({"batch_size": 4, "total_images": 400}), "step": "20",
                "history": json.dumps([[10, 0.9], [20, 0.5]]), "class_names": json.dumps(["cat", "dog"])}  # fmt: skip
    safetensors.numpy.save_file({"denoiser.x": np.zeros(2, np.float32)}, folder / "state.safetensors", metadata)
    return folder


def classes(folder: Path) -> Path:
    for name, count in (("cat", 2), ("dog", 1)):
        for index in range(count):
            picture(folder / name / f"{index}.jpg")
    picture(folder / ".thumbnails" / "0.png")
    return folder


def archive(path: Path) -> Path:
    picture(path.parent / "p.png")
    with zipfile.ZipFile(path, "w") as file:
        file.write(path.parent / "p.png", "train/cat/p.png")
        file.writestr("readme.txt", "")
    return path


uint8 = np.zeros((5, 8, 6, 3), np.uint8)
# What is made, what it is called, and what else is said of it, as the JSON has it.
KINDS: dict[str, tuple[Callable[[Path], Path], str, dict[str, object]]] = {
    "samples": (lambda p: samples(p / "x"), "folder of pictures", {"pictures": 3, "sizes": ["8 × 8 RGB"]}),
    "npz of samples": (lambda p: npz(p / "x.npz", arr_0=uint8), "5 pictures of 8 × 6", {"arr_0": "uint8 [5, 8, 6, 3]"}),
    "npz, upper case": (lambda p: npz(p / "x.NPZ.npz", arr_0=uint8).rename(p / "X.NPZ"), "5 pictures of 8 × 6", {}),
    "npz of latents": (lambda p: npz(p / "x.npz", arr_0=np.zeros((2, 4, 8, 8))), "2 latents of 4 × 8 × 8", {}),
    "samples as latents": (lambda p: npz(p / "latents.npz", arr_0=np.zeros((2, 4, 8, 8))).parent,
                           "2 latents of 4 × 8 × 8", {}),
    "npz to train on": (lambda p: npz(p / "x.npz", images=uint8, labels=np.zeros(5)), "5 pictures with labels", {}),
    "npz of others": (lambda p: npz(p / "x.npz", a=np.zeros(3)), "arrays of NumPy", {"a": "float64 [3]"}),
    "curve": (lambda p: curve(p / "curve"), "folder of schedules", {"schedules": 2}),
    "configuration": (lambda p: configuration(p / "c.yaml"), "configuration of a network",
                      {"hidden size": TINY.hidden_size, "latent shape": [3, 8, 8]}),
    "YAML of others": (lambda p: text(p / "x.yml", "a: 1\nb: 2"), "YAML, but no", {"holds": ["a", "b"]}),
    "run of training": (lambda p: run_of_training(p / "run"), "run of training",
                        {"images": "80 of 400", "step": 20, "loss": 0.5, "classes": ["cat", "dog"]}),
    "pictures by class": (lambda p: classes(p / "data"), "pictures by class", {"pictures": 3, "cat": 2, "dog": 1}),
    "picture": (lambda p: samples(p / "x") / "000000.png", "picture", {"format": "PNG", "size": "8 × 8"}),
    "zip": (lambda p: archive(p / "x.zip"), "zip", {"pictures": 1, "in": ["train/cat"], "other entries": 1}),
    "drawing": (lambda p: text(p / "loss.svg", "<svg/>"), "picture", {"format": "SVG"}),
    "page": (lambda p: text(p / "x.html", "<p>"), "a page, for a browser", {}),
    "timing cache": (lambda p: text(p / "timing.cache", "x"), "timing cache", {"bytes": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_a_thing_is(cli, tmp_path, kind: str) -> None:
    make, name, facts = KINDS[kind]
    path = make(tmp_path)
    told = json.loads(cli("inspect", path, "--json").out)
    assert told["kind"].startswith(name)
    assert facts.items() <= told.items()
    ran = cli("inspect", path)
    assert (ran.code, name in ran.out) == (0, True)


@pytest.mark.parametrize("name", ["x.npz", "x.png", "x.zip", "x.onnx", "x.yaml", "x.safetensors", "x.json", "x.ckpt"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02" * 40, b"PK\x03\x04" + b"x" * 60])
def test_damage_is_a_sentence(cli, tmp_path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    sentence(cli("inspect", tmp_path / name), name)


def sentence(ran: Result, said: str) -> None:
    assert ran.code == 2 or (said == "x.yaml" and "YAML" in ran.out), ran
    assert said in ran.out + ran.err
    assert "Traceback" not in ran.err


def test_folders_of_nothing(cli, tmp_path) -> None:
    sentence(cli("inspect", tmp_path), "is an empty folder")


def test_all_that_a_workspace_holds(cli, solved) -> None:
    samples(solved / "samples")
    curve(solved / "curve")
    ran = cli("inspect", solved)
    for word in (
        "workspace",
        "2 samples",
        "schedule.json (2 encoder runs in 6 steps)",
        "3 pictures",
        "2 schedules of 5 to",
    ):
        assert word in ran.out
    assert json.loads(cli("inspect", solved, "--json").out)["samples"]["pictures"] == 3


@pytest.mark.parametrize("name", ["cifar10-10of50", "cifar10-fitted-9of14"])
def test_shipped_schedules_have_their_cost(cli, name: str) -> None:
    """Known without reading a network: with R of E encoder runs they save at least part of E − R."""
    schedule = Schedule.load(name)
    told = json.loads(cli("inspect", name, "--json").out)
    share = float(told["cost"].split()[0])
    assert schedule.budget / schedule.spec.num_evaluations < share < 1
    assert name in shipped_schedules()


def test_an_export_in_words(cli, workspace) -> None:
    ran = cli("inspect", workspace / "export")
    for words in ("1 encoder and 1 decoder blocks of width 16, 2 heads", "3 × 8 × 8", "ant, bee, cat, dog", "fp32"):
        assert words in ran.out
    assert "{" not in ran.out
    told = json.loads(cli("inspect", workspace / "export", "--json").out)
    assert told["config"]["hidden_size"] == 16
    (workspace / "export" / "encoder.onnx").unlink()
    sentence(cli("inspect", workspace / "export"), "encoder.onnx")


def test_a_network_without_its_export(cli, tmp_path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"x")
    sentence(cli("inspect", tmp_path / "x.onnx"), "no manifest.json")
