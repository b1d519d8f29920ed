"""Repositories of the hub with several checkpoints, and what is known of published ones."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch

from ddt_accel import load_model
from ddt_accel.errors import CheckpointError
from ddt_accel.networks.families import FAMILIES, blank_tensors, release_of

REFERENCE = Path(__file__).parent / "reference"
RAE, PIXNERD = REFERENCE / "rae_small", REFERENCE / "pixnerd_small"
PIXNERD_FILE = PIXNERD / "epoch=3-step=800.ckpt"


class Hub:
    """A repository of the hub; files appear in a folder when they are asked for."""

    def __init__(self, monkeypatch, folder: Path, files: dict[str, Path | None], *, lost: bool = False) -> None:
        huggingface_hub = pytest.importorskip("huggingface_hub")
        self.folder, self.files, self.lost, self.asked = folder, files, lost, []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda _, repository, **__: self.info(repository))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def info(self, _: str) -> SimpleNamespace:
        if self.lost:
            raise RuntimeError("Name or service not known\nmore")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def download(self, repository: str, *, allow_patterns: list[str] | None = None, local_files_only=False) -> str:
        if self.lost and not self.folder.exists():
            raise FileNotFoundError("no copy")
        assert local_files_only == self.lost
        for name, source in self.files.items():
            if allow_patterns and any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.asked.append(name)
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                if source:
                    shutil.copyfile(source, self.folder / name)
        return str(self.folder)


COLLECTION: dict[str, Path | None] = {
    "README.md": None,
    "DiTs/a/DiTDH/stage2_model.pt": RAE / "DiTDH" / "stage2_model.pt",
    "DiTs/a/DiTDH/other.pt": None,
    "DiTs/a/config.yaml": RAE / "config.yaml",
    "DiTs/b/guide=2/stage2_model.pt": RAE / "DiTDH-guide" / "stage2_model.pt",
    "decoders/model.pt": RAE / "stage1" / "decoder" / "model.pt",
    "far/config.yaml": None,
}


def test_repositories_with_several_checkpoints(monkeypatch, tmp_path: Path) -> None:
    hub = Hub(monkeypatch, tmp_path / "copy", COLLECTION)
    with pytest.raises(CheckpointError) as caught:
        load_model("some/collection")
    for name in COLLECTION:
        assert (f"some/collection:{name}" in str(caught.value)) == name.endswith(".pt")
    assert hub.asked == []
    model = load_model("some/collection:DiTs/a/DiTDH/stage2_model.pt")
    assert hub.asked == ["DiTs/a/DiTDH/stage2_model.pt", "DiTs/a/config.yaml"]
    assert model.source.name == "some/collection:DiTs/a/DiTDH/stage2_model.pt"
    assert model.config.hidden_size == (32, 48)
    for path in ("DiTs/b/guide=2/stage2_model.pt", "DiTs/b/guide%3D2/stage2_model.pt", "DiTs/b", "DiTs/b/guide%3D2/"):
        guide = load_model(f"some/collection:{path}")
        assert guide.config.hidden_size == (16, 48)
        assert guide.source.name == "some/collection:DiTs/b/guide=2/stage2_model.pt"
    with pytest.raises(CheckpointError, match=r"holds no x\.pt; its checkpoints are some/collection:DiTs/a/DiTDH/st"):
        load_model("some/collection:x.pt")
    hub.lost = True  # what was downloaded is found without a connection
    assert load_model("some/collection:DiTs/b").source.sha256 == guide.source.sha256
    with pytest.raises(CheckpointError, match="holds 2 checkpoints; give one of them: some/collection:DiTs/a"):
        load_model("some/collection")
    shutil.rmtree(hub.folder)
    with pytest.raises(CheckpointError, match=r"cannot be had from the Hugging Face hub \(Name or service not known\)"):
        load_model("some/collection")


def test_shards_in_a_repository(monkeypatch, tmp_path: Path) -> None:
    whole = load_model(PIXNERD_FILE)
    state = whole.state_dict()
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    halves = [list(state)[:9], list(state)[9:]]
    for name, half in zip(names, halves, strict=True):
        safetensors.torch.save_file({key: state[key] for key in half}, tmp_path / name)
    homes = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    shards = {f"net/{name}": tmp_path / name for name in [*names, "model.safetensors.index.json"]}
    hub = Hub(monkeypatch, tmp_path / "copy", {**shards, "net/model.bin.md": None})
    assert load_model("some/net").source.sha256 == whole.source.sha256
    assert sorted(hub.asked) == sorted(shards)


def test_published_files_are_known_by_repository_and_path() -> None:
    collection, folder = "nyu-visionx/RAE-collections", "DiTs/Dinov2/wReg_base"
    for path, side, width in (
        ("ImageNet256/DiTDH-XL", 16, 1152), ("ImageNet256/DiTDH-S_ep14", 16, 384),
        ("ImageNet512/DiTDH-XL_ep400", 32, 1152), ("ImageNet512/DiTDH-S_ep20", 32, 384),
    ):  # fmt: skip
        release = release_of(collection, f"{folder}/{path}/stage2_model.pt")
        assert release is not None
        assert release.latent_shape == (768, side, side)
        assert release.config.hidden_size == (width, 2048)
    assert release_of(collection, "decoders/dinov2/wReg_base/ViTXL_n08/model.pt") is None
    pixels = "MCG-NJU/PixNerd-XL-P16-C2I"
    large = release_of(pixels, "res512_ft200k_epoch=325-step=1800000_emainit.ckpt")
    assert large is not None
    assert large.latent_shape == (3, 512, 512)
    other = release_of(pixels, "epoch=319-step=1600000_emainit.ckpt")
    assert other is not None
    assert other.latent_shape == (3, 256, 256)
    assert release_of("someone/else", "model.ckpt") is None


def test_what_is_known_of_a_published_file_is_taken(monkeypatch, tmp_path: Path) -> None:
    path = "res512_ft200k_epoch=325-step=1800000_emainit.ckpt"
    Hub(monkeypatch, tmp_path / "copy", {path: PIXNERD_FILE, "base.ckpt": PIXNERD_FILE})
    with pytest.raises(CheckpointError, match=r"does not fit the configuration \(PixNerd: .* By them patch_size is 4,"):
        load_model("MCG-NJU/PixNerd-XL-P16-C2I:res512_ft200k_epoch%3D325-step%3D1800000_emainit.ckpt")


def test_names_as_addresses_have_them(tmp_path: Path) -> None:
    shutil.copy(PIXNERD_FILE, tmp_path)
    assert load_model(tmp_path / "epoch%3D3-step%3D800.ckpt").source.name == "epoch=3-step=800.ckpt"
    assert load_model(tmp_path).source.latent_shape is None  # which only the YAML says


def test_released_networks_have_the_published_numbers_of_parameters() -> None:
    for family in FAMILIES.values():
        for release in family.published.RELEASES:
            parameters = sum(tensor.numel() for tensor in blank_tensors(release.config).values()) / 1e6
            release.config.num_tokens(release.latent_shape)
            if family.name == "rae":
                assert round(parameters) in (839, 840, 196, 197), release
            else:
                assert round(parameters) == {"ddt": 675, "pixnerd": 701}[family.name]
