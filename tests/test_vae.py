"""Latents to pictures, with a real autoencoder of diffusers whose weights are random."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ddt_accel import Sampler, SamplingSpec, Schedule
from ddt_accel.backends.decoders import decoder_sha256
from ddt_accel.backends.vae import LatentDecoder
from ddt_accel.errors import CheckpointError, DependencyError
from ddt_accel.networks.config import Source
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT

CONFIG = DDTConfig(
    in_channels=4, patch_size=2, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=4
)


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def vae_path(diffusers, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4, scaling_factor=0.5,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(path, safe_serialization=True)
    return path


def test_pictures_are_what_diffusers_decodes(diffusers, vae_path) -> None:
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    images = LatentDecoder(vae_path, batch_size=2)(latents)
    with torch.inference_mode():
        expected = diffusers.AutoencoderKL.from_pretrained(vae_path).decode(latents / 0.5).sample.clamp(-1, 1)
    assert images.shape == (5, 3, 16, 16)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-4)


def test_a_decoder_is_known_by_its_weights(vae_path, tmp_path) -> None:
    known = decoder_sha256(LatentDecoder(vae_path))
    shutil.copytree(vae_path, tmp_path / "copy")
    assert decoder_sha256(LatentDecoder(tmp_path / "copy", batch_size=3)) == known
    settings = tmp_path / "copy" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"scaling_factor": 0.25}))
    assert decoder_sha256(LatentDecoder(tmp_path / "copy")) != known


def test_in_a_sampler(vae_path) -> None:
    model = DDT(CONFIG).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    model.source = Source(name="random", sha256="0" * 64, latent_shape=(4, 8, 8), class_names=None)
    schedule = Schedule.uniform(SamplingSpec(num_steps=3), 2)
    decode = LatentDecoder(vae_path)
    images = Sampler(model, schedule, batch_size=2, decode=decode)([0, 1, 2], 0)
    latents = Sampler(model, schedule, batch_size=2)([0, 1, 2], 0)
    np.testing.assert_allclose(images, decode(latents), atol=1e-5)


def test_what_it_refuses(vae_path, tmp_path, monkeypatch) -> None:
    with pytest.raises(CheckpointError, match=r"\[3, 8, 8\].*\[4, H, W\]"):
        LatentDecoder(vae_path)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(CheckpointError, match="No autoencoder"):
        LatentDecoder(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DependencyError, match=r"ddt-accel\[vae\]"):
        LatentDecoder(vae_path)
