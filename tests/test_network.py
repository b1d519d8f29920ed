"""The network against numbers of the published implementation."""

from __future__ import annotations

import torch

from ddt_accel import load_model
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.ddt.published import RELEASES
from ddt_accel.networks.layers import patchify, unpatchify


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def test_state_and_velocity(reference) -> None:
    model = load_model(reference.checkpoint, config=reference.config)
    t = reference.tensors
    state = model.encode(t["x"], t["t"], t["y"])
    assert relative(state, t["state"]) < 1e-5
    assert relative(model.decode(t["x"], state), t["velocity"]) < 1e-5
    assert relative(model(t["x"], t["t"], t["y"]), t["velocity"]) < 1e-5
    assert relative(model.decode(t["x_reuse"], state), t["velocity_reuse"]) < 1e-5


def test_cached_modulations_decode_to_the_same_bits(reference) -> None:
    model = load_model(reference.checkpoint, config=reference.config)
    t = reference.tensors
    modulations = model.modulations(t["state"])
    assert modulations.shape == (*t["state"].shape[:2], model.config.modulation_size)
    assert torch.equal(model.decode_modulated(t["x"], modulations), model.decode(t["x"], t["state"]))


def test_patches_are_those_of_unfold() -> None:
    x = torch.randn(2, 3, 8, 12)
    expected = torch.nn.functional.unfold(x, kernel_size=4, stride=4).transpose(1, 2)
    assert torch.equal(patchify(x, 4), expected)
    assert torch.equal(unpatchify(patchify(x, 4), 4, 8, 12), x)


def test_a_fresh_network_predicts_zero() -> None:
    config = DDTConfig(
        in_channels=3, patch_size=2, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=4
    )
    velocity = DDT(config)(torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 4]))
    assert torch.equal(velocity, torch.zeros_like(velocity))


def test_published_networks_have_675_million_parameters() -> None:
    for release in RELEASES:
        with torch.device("meta"):
            model = DDT(release.config)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 675
        assert release.config.num_tokens(release.latent_shape) in (256, 1024)
