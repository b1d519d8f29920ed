"""RAE's latents to pictures: the published decoder's numbers, every layout of its files, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import assert_sentence
from PIL import Image

from ddt_accel import RAEDecoder, Sampler, SamplingSpec, Schedule, draw_noise, load_model, sample
from ddt_accel.backends.decoders import decoder_sha256, open_decoder
from ddt_accel.backends.vae import LatentDecoder
from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.errors import CheckpointError, ConfigError, DependencyError
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT

RAE = Path(__file__).parent / "reference" / "rae_small"
STAGE_1 = RAE / "stage1"
SPEC = SamplingSpec(num_steps=3)
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture(scope="module", autouse=True)
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers", minversion="0.39")


@pytest.fixture(scope="module")
def numbers() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(RAE / "tensors.safetensors")


@pytest.fixture(scope="module")
def latents(numbers) -> torch.Tensor:
    return numbers["euler_trajectory"][-1]


@pytest.fixture
def stage_1(tmp_path) -> Path:
    return Path(shutil.copytree(STAGE_1, tmp_path / "stage1"))


def weights() -> dict[str, torch.Tensor]:
    return torch.load(STAGE_1 / "decoder/model.pt", weights_only=True)


def saved(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def in_layout_of_diffusers(folder: Path, buffers=MappingProxyType({}), **settings) -> Path:
    """As AutoencoderRAE saves itself, without the encoder's tensors."""
    names = {"attention.attention.query": "attention.to_q", "attention.attention.key": "attention.to_k",
             "attention.attention.value": "attention.to_v", "attention.output.dense": "attention.to_out.0"}  # fmt: skip
    statistics = torch.load(STAGE_1 / "stat.pt", weights_only=True)
    tensors = {"encoder.layernorm.bias": torch.zeros(8), "_latents_mean": statistics["mean"],
               "_latents_std": (statistics["var"] + 1e-5).sqrt(), **buffers}  # fmt: skip
    for name, tensor in weights().items():
        for published, theirs in names.items():
            name = name.replace(published, theirs)
        tensors[f"decoder.{name}"] = tensor
    told = {"_class_name": "AutoencoderRAE", "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4, "decoder_intermediate_size": 56, "patch_size": 4,
            "encoder_input_size": 84, "encoder_patch_size": 14, "scaling_factor": 1.0, "latents_mean": None,
            **settings}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    safetensors.torch.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("source", ["stage1", "stage1/decoder", "stage1/decoder/model.pt", "config.yaml"])
def test_pictures_of_the_published_decoder(numbers, latents, source: str, caplog) -> None:
    decoder = RAEDecoder(RAE / source, batch_size=2)
    assert decoder.latent_shape == (8, 6, 6)
    torch.testing.assert_close(decoder.pixels(latents), numbers["stage1_images"], atol=1e-5, rtol=0)
    expected = (2 * numbers["stage1_images"] - 1).clamp(-1, 1)
    torch.testing.assert_close(decoder(latents), expected, atol=2e-5, rtol=0)
    assert not caplog.records


def test_in_the_layout_of_diffusers(numbers, latents, tmp_path) -> None:
    """Its standard deviation is the published one, and gets no second 1e-5; positions in the file count."""
    decoder = open_decoder(in_layout_of_diffusers(tmp_path), (8, 6, 6))
    assert isinstance(decoder, RAEDecoder)
    torch.testing.assert_close(decoder.pixels(latents), numbers["stage1_images"], atol=1e-5, rtol=0)


def test_a_scaling_factor_of_diffusers(numbers, latents, tmp_path) -> None:
    decoder = RAEDecoder(in_layout_of_diffusers(tmp_path, scaling_factor=0.5))
    torch.testing.assert_close(decoder.pixels(latents / 2), numbers["stage1_images"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [6, 16])
def test_positions_that_no_file_has(diffusers, stage_1, side: int) -> None:
    """Sines over whole numbers for every grid, width before height; at 16 × 16 diffusers has the same."""
    from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder as Network

    saved(stage_1 / "decoder/model.pt", {name: t for name, t in weights().items() if name != "decoder_pos_embed"})
    saved(stage_1 / "stat.pt", {"mean": torch.zeros(8, side, side), "var": torch.ones(8, side, side)})
    table = RAEDecoder(stage_1)._decoder.decoder_pos_embed
    assert table.shape == (1, side**2 + 1, 32)
    assert not table[0, 0].any()
    for row, column in ((0, 0), (1, 0), (2, 5)):
        angles = [place / 10_000 ** (k / 8) for place in (column, row) for k in range(8)]
        expected = [f(angle) for part in (angles[:8], angles[8:]) for f in (math.sin, math.cos) for angle in part]
        torch.testing.assert_close(table[0, 1 + row * side + column], torch.tensor(expected), atol=1e-5, rtol=0)
    if side == 16:
        theirs = Network(hidden_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=1, num_patches=256)
        torch.testing.assert_close(table, theirs.decoder_pos_embed)


def test_files_of_a_training(numbers, latents, stage_1) -> None:
    """Averaged weights of `{model, ema}`, under the names that the whole autoencoder has."""
    averaged = {f"decoder.{name}": tensor for name, tensor in weights().items()} | {"encoder.bias": torch.zeros(1)}
    raw = {name: tensor + 0.01 for name, tensor in averaged.items()}
    saved(stage_1 / "decoder/model.pt", {"step": 1, "model": raw, "ema": averaged})
    torch.testing.assert_close(RAEDecoder(stage_1).pixels(latents), numbers["stage1_images"], atol=1e-5, rtol=0)


def test_a_class_token_that_is_missing_is_zero(latents, stage_1) -> None:
    path = stage_1 / "decoder/model.pt"
    saved(path, weights() | {"trainable_cls_token": torch.zeros(1, 1, 32)})
    expected = RAEDecoder(stage_1).pixels(latents)
    saved(path, {name: tensor for name, tensor in weights().items() if name != "trainable_cls_token"})
    torch.testing.assert_close(RAEDecoder(stage_1).pixels(latents), expected)


def test_statistics_that_are_missing_are_told(latents, stage_1, caplog) -> None:
    told = torch.load(stage_1 / "stat.pt", weights_only=True)
    whole = RAEDecoder(stage_1)
    saved(stage_1 / "stat.pt", {"mean": told["mean"]})
    without_var = RAEDecoder(stage_1)
    assert "no var of latents; going on with 1" in caplog.text
    z = latents * math.sqrt(1 + 1e-5) + told["mean"]
    normalised = (z - told["mean"]) / (told["var"] + 1e-5).sqrt()
    torch.testing.assert_close(without_var.pixels(latents), whole.pixels(normalised), atol=1e-5, rtol=0)
    saved(stage_1 / "stat.pt", {"var": told["var"]})
    RAEDecoder(stage_1)
    assert "no mean of latents; going on with 0" in caplog.text
    (stage_1 / "stat.pt").unlink()
    none = RAEDecoder(stage_1)
    assert "no statistics (stat.pt)" in caplog.text
    torch.testing.assert_close(none.pixels(z), without_var.pixels(latents))


def test_what_the_preprocessor_says_of_pixels(numbers, latents, stage_1) -> None:
    (stage_1 / "preprocessor_config.json").write_text(json.dumps(HALVES))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (numbers["stage1_images"] - mean) / std * 0.5 + 0.5
    torch.testing.assert_close(RAEDecoder(stage_1).pixels(latents), expected, atol=1e-5, rtol=1e-5)


def test_what_diffusers_says_of_pixels(latents, stage_1, tmp_path) -> None:
    (stage_1 / "preprocessor_config.json").write_text(json.dumps(HALVES))
    expected = RAEDecoder(stage_1).pixels(latents)
    halves = torch.full((1, 3, 1, 1), 0.5)
    by_weights = in_layout_of_diffusers(tmp_path / "a", {"encoder_mean": halves, "encoder_std": halves.clone()})
    by_settings = in_layout_of_diffusers(tmp_path / "b", encoder_norm_mean=[0.5] * 3, encoder_norm_std=[0.5] * 3)
    for folder in (by_weights, by_settings):
        torch.testing.assert_close(RAEDecoder(folder).pixels(latents), expected, atol=1e-5, rtol=0)


def test_published_yaml_with_paths_from_models(numbers, latents, tmp_path) -> None:
    """As in the published repository: paths begin at the top of it, YAMLs lie deeper. SigLIP has pixels of its own."""
    shutil.copytree(STAGE_1 / "decoder", tmp_path / "models/decoders/siglip2/base/ViTXL")
    shutil.copytree(STAGE_1 / "decoder_config", tmp_path / "configs/decoder/ViTXL")
    shutil.copy(STAGE_1 / "stat.pt", tmp_path / "stat.pt")
    stage = {"decoder_config_path": "configs/decoder/ViTXL", "decoder_patch_size": 4,
             "pretrained_decoder_path": "models/decoders/siglip2/base/ViTXL/model.pt",
             "normalization_stat_path": "models/stat.pt",
             "encoder_config_path": "google/siglip2-base-patch16-256"}  # fmt: skip
    path = tmp_path / "configs/stage2/sampling/x.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"stage_1": {"target": "stage1.RAE", "params": stage}}))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (numbers["stage1_images"] - mean) / std * 0.5 + 0.5
    torch.testing.assert_close(RAEDecoder(path).pixels(latents), expected, atol=1e-5, rtol=1e-5)
    for changed, said in (
        ({"pretrained_decoder_path": "models/x.pt"}, "pretrained_decoder_path: models/x.pt, which is neither"),
        ({"normalization_stat_path": "models/x.pt"}, "normalization_stat_path: models/x.pt, which is neither"),
        ({"decoder_patch_size": 16}, "decoder_patch_size 16, and .* patches of 4"),
    ):
        path.write_text(yaml.safe_dump({"stage_1": {"params": stage | changed}}))
        with pytest.raises(CheckpointError, match=said):
            RAEDecoder(path)
    path.write_text(yaml.safe_dump({"model": {"denoiser": {}}}))
    with pytest.raises(ConfigError, match=r"names no decoder: it has model.*stage_1\.params"):
        RAEDecoder(path)


def test_a_published_collection_by_its_folders(numbers, latents, tmp_path) -> None:
    """Statistics are the ones in stats/, of the size that the decoder has."""
    decoder = Path(shutil.copytree(STAGE_1 / "decoder", tmp_path / "decoders/dinov2/base/ViT_n08"))
    shutil.copytree(STAGE_1 / "decoder_config", decoder / "decoder_config")
    larger = {"mean": torch.ones(8, 12, 12), "var": torch.ones(8, 12, 12)}
    saved(tmp_path / "stats/dinov2/base/imagenet1k/stat.pt", larger)
    (tmp_path / "stats/dinov2/base/imagenet1k_84").mkdir()
    shutil.copy(STAGE_1 / "stat.pt", tmp_path / "stats/dinov2/base/imagenet1k_84/stat.pt")
    pictures = RAEDecoder(decoder / "model.pt").pixels(latents)
    torch.testing.assert_close(pictures, numbers["stage1_images"], atol=1e-5, rtol=0)


class Hub:
    """Repositories that are folders."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache, self.fetched, self.connected = root, cache, set(), True

    def names(self, repository: str) -> list[str]:
        if repository != "someone/rae" or not self.connected:
            raise RuntimeError("no such repository")
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def model_info(self, repository: str, **_: float) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names(repository)])

    def snapshot_download(self, repository: str, *, allow_patterns=(), local_files_only: bool = False) -> str:
        for name in self.names(repository) if self.connected and not local_files_only else ():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.fetched.add(name)
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.root / name, self.cache / name)
        if not self.cache.exists():
            raise RuntimeError("no connection")
        return str(self.cache)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    made = Hub(tmp_path / "hub", tmp_path / "cache")
    made.root.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_from_a_repository(numbers, latents, hub) -> None:
    for name in ("ViT_n08", "ViT_n08_i512"):
        shutil.copytree(STAGE_1 / "decoder", hub.root / f"decoders/dinov2/base/{name}")
        shutil.copytree(STAGE_1 / "decoder_config", hub.root / f"decoders/dinov2/base/{name}/decoder_config")
    (hub.root / "stats/dinov2/base/imagenet1k").mkdir(parents=True)
    shutil.copy(STAGE_1 / "stat.pt", hub.root / "stats/dinov2/base/imagenet1k/stat.pt")
    saved(hub.root / "DiTs/stage2_model.pt", {"x": torch.zeros(1)})
    for source in ("decoders/dinov2/base/ViT_n08/model.pt", "decoders/dinov2/base/ViT_n08"):
        pictures = RAEDecoder(f"someone/rae:{source}").pixels(latents)
        torch.testing.assert_close(pictures, numbers["stage1_images"], atol=1e-5, rtol=0)
    assert hub.fetched == {
        "decoders/dinov2/base/ViT_n08/model.pt", "decoders/dinov2/base/ViT_n08/decoder_config/config.json",
        "stats/dinov2/base/imagenet1k/stat.pt",
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="2 decoders; give one of them: someone/rae:decoders/dinov2/base/ViT"):
        RAEDecoder("someone/rae")
    with pytest.raises(CheckpointError, match="holds no decoder of latents at DiTs; it has someone/rae:decoders"):
        RAEDecoder("someone/rae:DiTs")
    with pytest.raises(CheckpointError, match=r"No autoencoder .* someone/else.*\(no such repository\)"):
        RAEDecoder("someone/else")


def test_without_a_connection_what_is_here_counts(numbers, latents, hub) -> None:
    shutil.copytree(STAGE_1, hub.root / "x")
    hub.connected = False
    with pytest.raises(CheckpointError, match=r"cannot be had from the Hugging Face hub \(no connection\)"):
        RAEDecoder("someone/rae")
    shutil.copytree(hub.root, hub.cache)
    torch.testing.assert_close(RAEDecoder("someone/rae").pixels(latents), numbers["stage1_images"], atol=1e-5, rtol=0)


def test_from_a_repository_of_diffusers(numbers, latents, hub) -> None:
    in_layout_of_diffusers(hub.root)
    torch.testing.assert_close(RAEDecoder("someone/rae").pixels(latents), numbers["stage1_images"], atol=1e-5, rtol=0)
    shutil.rmtree(hub.cache)
    in_layout_of_diffusers(hub.root / "vae")
    assert RAEDecoder("someone/rae:vae").latent_shape == (8, 6, 6)
    (hub.root / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(CheckpointError, match="use LatentDecoder"):
        RAEDecoder("someone/rae")


def test_the_kind_is_told_by_the_contents(diffusers, tmp_path) -> None:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "kl", safe_serialization=True)
    assert isinstance(open_decoder(tmp_path / "kl", (4, 8, 8)), LatentDecoder)
    with pytest.raises(CheckpointError, match=r"\[8, 6, 6\].*\[4, H, W\]"):
        open_decoder(tmp_path / "kl", (8, 6, 6))
    with pytest.raises(CheckpointError, match="use LatentDecoder"):
        RAEDecoder(tmp_path / "kl")
    assert isinstance(open_decoder(STAGE_1, (8, 6, 6)), RAEDecoder)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AsymmetricAutoencoderKL"}))
    with pytest.raises(CheckpointError, match="AsymmetricAutoencoderKL; decoders of latents are"):
        open_decoder(tmp_path, (4, 8, 8))


@pytest.mark.parametrize("shape", [(4, 6, 6), (8, 12, 12), (8, 6, 12)])
def test_other_latents_are_refused(shape) -> None:
    with pytest.raises(CheckpointError, match=r"this decoder takes \[8, 6, 6\]"):
        open_decoder(STAGE_1, shape)
    with pytest.raises(CheckpointError, match=r"this decoder takes \[8, 6, 6\]"):
        RAEDecoder(STAGE_1)(torch.zeros(1, *shape))


def changed(name: str, tensor: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {key: value for key, value in (weights() | {name: tensor}).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed("decoder_norm.bias", None), r"no whole decoder: decoder_norm\.bias are missing"),
        (changed("decoder_layers.1.output.dense.bias", torch.zeros(3)), "no whole decoder: decoder_layers.1.output"),
        (changed("decoder_layers.0.rope.freqs", torch.zeros(3)), r"holds decoder_layers\.0\.rope\.freqs, which"),
        (changed("decoder_layers.2.output.dense.bias", torch.zeros(32)), "decoder_num_hidden_layers 2, .* have 3"),
        (changed("decoder_pred.bias", None), "no whole decoder: decoder_embed, decoder_pred or"),
        (changed("decoder_pred.bias", torch.zeros(50)), "50 values a token, which is no square patch"),
        (changed("decoder_pos_embed", torch.zeros(1, 36, 32)), r"decoder_pos_embed of shape \[1, 36, 32\]"),
        (changed("decoder_embed.weight", torch.zeros(9, 8)), "decoder_hidden_size 32, and its weights have 9"),
    ],
)
def test_weights_that_do_not_fit(stage_1, content, said: str) -> None:
    saved(stage_1 / "decoder/model.pt", content)
    with pytest.raises(CheckpointError, match=said):
        RAEDecoder(stage_1)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"decoder_num_attention_heads": 5}, "5 attention heads, which a width of 32 does not have"),
        ({"decoder_intermediate_size": 64}, "decoder_intermediate_size 64, and its weights have 56"),
        ({"hidden_act": "softplus9"}, "No decoder can be built of .*softplus9"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps 'small'; a positive number"),
    ],
)
def test_settings_that_do_not_fit(stage_1, setting: dict, said: str) -> None:
    path = stage_1 / "decoder_config/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(CheckpointError, match=said):
        RAEDecoder(stage_1)


def test_folders_that_do_not_do(stage_1, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"No autoencoder can be loaded from .*neither a config\.json"):
        RAEDecoder(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="There is no absent; give"):
        RAEDecoder("absent")
    with pytest.raises(CheckpointError, match="holds no decoder of latents"):
        RAEDecoder(stage_1 / "stat.pt")
    (stage_1 / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, "x", 0.5]}))
    with pytest.raises(CheckpointError, match="three numbers are expected"):
        RAEDecoder(stage_1)
    (stage_1 / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        RAEDecoder(stage_1)
    (stage_1 / "preprocessor_config.json").unlink()
    saved(stage_1 / "stat.pt", {"mean": torch.zeros(8, 12, 12), "var": torch.ones(8, 12, 12)})
    with pytest.raises(CheckpointError, match=r"latents are \[8, 6, 6\], and their statistics are of others"):
        RAEDecoder(stage_1)
    saved(stage_1 / "stat.pt", {"var": -torch.ones(8, 6, 6)})
    with pytest.raises(CheckpointError, match="a variance is negative"):
        RAEDecoder(stage_1)
    (stage_1 / "stat.pt").unlink()
    saved(stage_1 / "decoder/model.pt", changed("decoder_pos_embed", None))
    with pytest.raises(CheckpointError, match="Nothing says how many tokens"):
        RAEDecoder(stage_1)
    shutil.rmtree(stage_1 / "decoder_config")
    with pytest.raises(CheckpointError, match="Nothing says how many attention heads"):
        RAEDecoder(stage_1)
    saved(stage_1 / "other.pt", weights())
    with pytest.raises(CheckpointError, match=r"2 decoders: decoder/model\.pt, other\.pt; give one"):
        RAEDecoder(stage_1)


def test_without_diffusers(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_rae", None)
    with pytest.raises(DependencyError, match=r"came with 0\.39; upgrade"):
        RAEDecoder(STAGE_1)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DependencyError, match=r"ddt-accel\[vae\]"):
        RAEDecoder(STAGE_1)


def model_of(path: Path, latent_shape: tuple[int, int, int]) -> Path:
    config = DDTConfig(
        in_channels=latent_shape[0], patch_size=2, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2,
        num_classes=4,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.15 * torch.randn(t.shape, generator=generator) for name, t in DDT(config).state_dict().items()}
    told = {"config": json.dumps(asdict(config)), "latent_shape": json.dumps(latent_shape)}
    safetensors.torch.save_file(tensors, path, told)
    return path


def test_in_a_sampler(tmp_path) -> None:
    model, schedule = load_model(model_of(tmp_path / "m.safetensors", (8, 6, 6))), Schedule.uniform(SPEC, 2)
    decode = RAEDecoder(STAGE_1)
    images = Sampler(model, schedule, batch_size=2, decode=decode)([0, 1, 2], 0)
    assert images.shape == (3, 3, 24, 24)
    torch.testing.assert_close(images, decode(Sampler(model, schedule, batch_size=2)([0, 1, 2], 0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("option", ["--decoder", "--vae"])
def test_by_the_command(cli, tmp_path, option: str) -> None:
    model, schedule = model_of(tmp_path / "m.safetensors", (8, 6, 6)), Schedule.uniform(SPEC, 2)
    schedule.save(tmp_path / "s.json")
    said = ["sample", "-w", tmp_path / "w", "--backend", "torch", "--model", model, "--schedule", tmp_path / "s.json",
            "-n", 3, "--out", tmp_path / "out"]  # fmt: skip
    ran = cli(*said, option, STAGE_1)
    assert ran.code == 0, ran.err
    noise = draw_noise((8, 6, 6), seed=0, indices=range(3))
    images = RAEDecoder(STAGE_1)(sample(load_model(model), schedule, noise, torch.arange(3)))
    for index, image in enumerate(to_uint8(images)):
        np.testing.assert_allclose(np.asarray(Image.open(tmp_path / f"out/{index:06d}-{index}.png")), image, atol=1)


def test_a_run_decodes_and_knows_its_decoder(cli, tmp_path) -> None:
    """In batches of its own; latents, or pictures of another decoder, are another run."""
    model, schedule = model_of(tmp_path / "m.safetensors", (8, 6, 6)), Schedule.uniform(SPEC, 2)
    schedule.save(tmp_path / "s.json")
    said = ["sample", "-w", tmp_path / "w", "--backend", "torch", "--model", model, "--schedule", tmp_path / "s.json",
            "-n", 110, "--out", tmp_path / "out", "--npz", tmp_path / "x.npz"]  # fmt: skip
    ran = cli(*said, "--decoder", STAGE_1, "--decode-batch", 7)
    assert ran.code == 0, ran.err
    images, first = np.load(tmp_path / "x.npz")["arr_0"], range(16)
    latents = sample(load_model(model), schedule, draw_noise((8, 6, 6), seed=0, indices=first), torch.arange(16) % 4)
    assert images.shape == (110, 24, 24, 3)
    np.testing.assert_allclose(images[:16].astype(int), to_uint8(RAEDecoder(STAGE_1)(latents)), atol=1)
    assert RunFolder.load(tmp_path / "out").identity["decoder_sha256"] == decoder_sha256(RAEDecoder(STAGE_1))
    assert_sentence(cli(*said[:-2]), "the decoder is ")
    for option, asked in (("--npz holds images", []), ("--png is for pictures", ["--png"])):
        assert_sentence(cli(*(said[:-2] if asked else said), "--out", tmp_path / "other", *asked), option)
    assert_sentence(cli(*said, "--decode-batch", 7), "--decode-batch is of --decoder")
    assert cli(*said[:-2], "--out", tmp_path / "latents").code == 0
    drawn = np.load(tmp_path / "latents" / "latents.npz")
    np.testing.assert_allclose(drawn["arr_0"][:16], latents.numpy(), atol=1e-5)
    assert drawn["arr_1"].tolist() == [index % 4 for index in range(110)]


def test_what_the_command_refuses(cli, tmp_path, tiny_model_path) -> None:
    Schedule.uniform(SPEC, 2).save(tmp_path / "s.json")
    said = ["sample", "-w", tmp_path / "w", "--backend", "torch", "--schedule", tmp_path / "s.json", "-n", 2,
            "--out", tmp_path / "out", "--decoder", STAGE_1, "--model"]  # fmt: skip
    ran = cli(*said, tiny_model_path)
    assert ran.code == 2
    assert "--decoder makes pictures of latents, and this model draws pictures itself" in " ".join(ran.err.split())
    ran = cli(*said, model_of(tmp_path / "m.safetensors", (8, 12, 12)))
    assert ran.code == 2
    assert "Latents are [8, 12, 12], and this decoder takes [8, 6, 6]" in " ".join(ran.err.split())
    assert not list((tmp_path / "out").iterdir())
