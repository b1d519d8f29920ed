"""Which file in a folder is the checkpoint, and that paths are remembered as they were given."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import TINY, write_tiny_model

from ddt_accel import load_model
from ddt_accel.artifacts import write_json
from ddt_accel.errors import CheckpointError, ConfigError
from ddt_accel.networks.locate import locate
from ddt_accel.workspace import FORMAT, SETTINGS_NAME, VERSION, ModelChoice, Workspace

BRIEFLY = ["--steps", 3, "--samples", 1, "--sensitivity-samples", 1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint in a folder of its own."""
    (tmp_path / "place").mkdir()
    return write_tiny_model(tmp_path / "place" / "tiny.safetensors", seed=0)


def published_yaml(path: Path) -> None:
    content = {"model": {"denoiser": {"init_args": asdict(TINY)}}, "data": {"latent_shape": [3, 8, 8]}}
    path.write_text(yaml.safe_dump(content))


def foreign_checkpoint(path: Path) -> Path:
    """One that does not describe itself."""
    torch.save(safetensors.torch.load_file(write_tiny_model(path.parent / "tiny.safetensors", seed=0)), path)
    (path.parent / "tiny.safetensors").unlink()
    return path


def test_a_workspace_inside_of_the_models_folder(cli, model: Path) -> None:
    """Whatever ddt-accel has written there, under whatever name."""
    run = model.parent / "run"
    for _ in range(2):
        ran = cli("calibrate", "--model", model.parent, "-w", run, *BRIEFLY)
        assert ran.code == 0, ran.err
        ran = cli("solve", "--budget", 2, "-w", run)
        assert ran.code == 0, ran.err
    (run / "calibration.safetensors").rename(model.parent / "mine.safetensors")
    assert {path.name[:5] for path in model.parent.rglob("*.safetensors")} == {"tiny.", "mine.", "means"}
    assert locate(str(model.parent)).path == model
    with pytest.raises(CheckpointError, match="is a ddt-accel calibration, not a checkpoint"):
        load_model(model.parent / "mine.safetensors")
    with pytest.raises(CheckpointError, match="found none"):
        load_model(run)


def test_the_finished_model_of_a_training_run(cli, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (8, 16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(8) % 2)
    line = ["--size", 16, "--hidden-size", 16, "--heads", 2, "--encoder-blocks", 1, "--decoder-blocks", 1, "--patch", 4,
            "--batch-size", 4, "--images", 8]  # fmt: skip
    ran = cli("train", "--data", tmp_path / "data.npz", "--out", tmp_path / "run", *line)
    assert ran.code == 0, ran.err
    assert load_model(tmp_path / "run").source.name == "model.safetensors"
    (tmp_path / "run" / "model.safetensors").unlink()
    state = load_model(tmp_path / "run").source
    assert (state.name, state.latent_shape) == ("state.safetensors", (3, 16, 16))


@pytest.mark.parametrize("name", ["x.ckpt", "x.CKPT", "x.PT", "x.pth", "x.pth.tar", "x.bin", "inside/x.SafeTensors"])
def test_suffixes_of_checkpoints(model: Path, name: str) -> None:
    (model.parent / name).parent.mkdir(exist_ok=True)
    found = model.rename(model.parent / name)
    (found.parent / "notes.txt").write_text("none")
    assert locate(str(model.parent)).path == found


def test_several_checkpoints_are_listed(model: Path) -> None:
    for name in "abcdef":
        shutil.copy(model, model.parent / f"{name}.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(model.parent)
    said = "holds 7 checkpoints: a.safetensors, b.safetensors, c.safetensors, d.safetensors and 3 more; give"
    assert str(caught.value).endswith(f"{said} one of them, such as {model.parent / 'a.safetensors'}.")


def test_hidden_files_and_those_of_other_tools_are_none(model: Path) -> None:
    for name in (
        *(".tiny.safetensors", "._tiny.safetensors", "__MACOSX/tiny.ckpt", ".cache/tiny.pt"),
        *("optimizer.bin", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "zero_pp_rank_0_optim_states.pt"),
    ):
        path = model.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"?")
    assert locate(str(model.parent)).path == model


def test_a_file_and_links_to_it_are_one(tmp_path: Path) -> None:
    foreign_checkpoint(tmp_path / "epoch=3.ckpt")
    (tmp_path / "last.ckpt").symlink_to("epoch=3.ckpt")
    published_yaml(tmp_path / "last.yaml")
    assert load_model(tmp_path).source.latent_shape == (3, 8, 8)
    (tmp_path / "last.yaml").rename(tmp_path / "epoch=3.yaml")
    assert load_model(tmp_path).source.latent_shape == (3, 8, 8)


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").symlink_to("epoch=3.ckpt")
    with pytest.raises(CheckpointError, match=r"is a link to epoch=3\.ckpt, which is not there"):
        load_model(tmp_path / "last.ckpt")


def hub_cache(folder: Path) -> Path:
    """As the hub's client keeps files: named by their contents, with links of their own names."""
    (folder / "blobs").mkdir()
    (folder / "snapshots" / "x").mkdir(parents=True)
    foreign_checkpoint(folder / "blobs" / "0a1b.ckpt").rename(folder / "blobs" / "0a1b")
    published_yaml(folder / "blobs" / "2c3d")
    path = folder / "snapshots" / "x" / "model.ckpt"
    path.symlink_to("../../blobs/0a1b")
    (path.parent / "config.yaml").symlink_to("../../blobs/2c3d")
    return path


def test_links_into_a_cache_are_remembered_as_links(cli, tmp_path: Path) -> None:
    path = hub_cache(tmp_path)
    place = ["-w", tmp_path / "w"]
    assert cli("calibrate", "--model", path, *BRIEFLY, *place).code == 0
    told = json.loads((tmp_path / "w" / SETTINGS_NAME).read_text())
    assert told["source"] == str(path)
    ran = cli("calibrate", *BRIEFLY, *place)
    assert ran.code == 0, ran.err


def test_paths_hold_from_any_folder(tmp_path: Path, monkeypatch) -> None:
    path = hub_cache(tmp_path)
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = ModelChoice(source="model.ckpt", config="~/snapshots/x/config.yaml")
    assert said.load().source.latent_shape == (3, 8, 8)
    absolute = said.resolved()
    assert (absolute.source, absolute.config) == (str(path), str(path.parent / "config.yaml"))
    assert ModelChoice(source="~/snapshots/x/model.ckpt").resolved().source == str(path)
    assert ModelChoice(source="cifar10").resolved() == ModelChoice(source="cifar10")


def test_an_old_workspace_still_reads(tmp_path: Path) -> None:
    content = {"source": "/old/model.ckpt", "config": None, "weights": "raw", "latent_shape": [4, 32, 32]}
    write_json(tmp_path / SETTINGS_NAME, FORMAT, VERSION, content)
    remembered = Workspace(tmp_path).remembered()
    assert remembered == ModelChoice(source="/old/model.ckpt", weights="raw", latent_shape=(4, 32, 32))


def test_a_header_of_another_tool(tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(write_tiny_model(tmp_path / "tiny.safetensors", seed=0))
    for told in ('{"architectures": ["DDT"]}', "not JSON", '"text"', "[" * 9999):
        safetensors.torch.save_file(tensors, tmp_path / "tiny.safetensors", {"config": told, "latent_shape": "?"})
        assert load_model(tmp_path, config=asdict(TINY)).config == TINY
        with pytest.raises(ConfigError, match="the config that its header has is none of a DDT, RAE DiT-DH or PixNerd"):
            load_model(tmp_path)
    published_yaml(tmp_path / "tiny.yaml")
    assert load_model(tmp_path).config == TINY


def test_messages_speak_the_commands_words(cli, tmp_path: Path, monkeypatch) -> None:
    path = foreign_checkpoint(tmp_path / "model.ckpt")
    ran = cli("calibrate", "--model", path, "-w", tmp_path / "w")
    assert ran.code == 2
    assert "--config FILE.yaml" in ran.err
    assert "config={" not in ran.err
    published_yaml(tmp_path / "x.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = cli("calibrate", "--model", path, "--config", "~/x.yaml", *BRIEFLY, "-w", tmp_path / "w")
    assert ran.code == 0, ran.err
    torch.save({"model": torch.load(path, weights_only=True), "ema": None}, path)
    ran = cli("calibrate", "--model", path, "--config", "~/x.yaml", *BRIEFLY, "-w", tmp_path / "w")
    assert ran.code == 2
    assert "--weights raw takes the raw ones" in ran.err
