"""Networks of which parts are left out: equal to those with the same parts masked, and networks like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, export, load_model, open_backend, sample
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.networks.checkpoints import identity
from ddt_accel.networks.config import Source
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.dynamic.masks import BlockMasks
from ddt_accel.networks.dynamic.routers import Routers
from ddt_accel.networks.dynamic.slicing import ranked, unmasked
from ddt_accel.networks.dynamic.widths import narrow, width_costs, width_masks, widths_to
from ddt_accel.networks.families import as_mapping, build, config_of, prepare
from ddt_accel.networks.pixnerd.config import PixNerdConfig
from ddt_accel.networks.prepared import Arithmetic
from ddt_accel.networks.rae.config import DiTDHConfig
from ddt_accel.networks.saving import save_network
from ddt_accel.networks.split import SplitNetwork

CONFIGS = {
    "ddt": DDTConfig(in_channels=3, patch_size=2, num_groups=4, hidden_size=32, num_blocks=4, num_encoder_blocks=3,
                     num_classes=5),
    "pixnerd": PixNerdConfig(in_channels=3, patch_size=2, num_groups=4, hidden_size=32, hidden_size_x=4, num_blocks=4,
                             num_cond_blocks=3, num_classes=5),
}  # fmt: skip
WIDTHS = (1.0, 0.75, 0.5)


@pytest.fixture(params=CONFIGS)
def network(request) -> SplitNetwork:
    return random_network(request.param)


def random_network(name: str, **changed: int) -> SplitNetwork:
    """All weights random, at a scale at which every block counts."""
    model = build(replace(CONFIGS[name], **changed))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.source = Source(name="random", sha256="0", latent_shape=(3, 8, 8), class_names=None, widths=WIDTHS)
    return model.eval().requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 5])


def same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).norm() < 2e-6 * theirs.norm()


def differs(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).norm() > 1e-2 * theirs.norm()


@pytest.mark.parametrize("encoder", WIDTHS)
@pytest.mark.parametrize("decoder", WIDTHS)
def test_a_width_is_the_masked_network(network: SplitNetwork, encoder: float, decoder: float) -> None:
    masked = network.masked(*inputs(), width_masks(network.config, encoder, decoder))
    sliced = narrow(network, encoder, decoder)
    same(sliced(*inputs()), masked)
    if (encoder, decoder) == (1, 1):
        assert sliced.config == network.config
        assert identity(sliced) == identity(network)
    elif encoder < 1:
        differs(masked, network(*inputs()))
        assert sliced.config.heads[0] == 4 * encoder
        assert sliced.config.channels[0] == round(85 * encoder + 0.01)
    prepared = prepare(sliced, (3, 8, 8), Arithmetic.of("fp32"))
    x, t, y = inputs()
    decoded = prepared.decode_modulated(x, prepared.modulations(prepared.encode(x, t, y)))
    assert (decoded - masked).norm() < 1e-5 * masked.norm()


def test_what_routers_leave_out_can_be_taken_out(network: SplitNetwork) -> None:
    """At any time, though every block keeps others."""
    torch.manual_seed(0)
    config = network.config
    routers = Routers.fresh(config.hidden_size, 4, config.transformer_blocks)
    for block in routers.blocks:
        for router in (block.attn_rate, block.mlp_rate):
            torch.nn.init.normal_(router.router.weight)
            torch.nn.init.zeros_(router.router.bias)
    x, t, y = inputs()
    masks = routers.masks(network.t_embedder(t), config.channels[0])
    together = network.masked(x, t, y, masks)
    kept = set()
    for index in range(len(x)):
        of_this = [
            BlockMasks(heads=mask.heads[index : index + 1], channels=mask.channels[index : index + 1]) for mask in masks
        ]
        sliced = unmasked(network, of_this)
        one = slice(index, index + 1)
        same(sliced(x[one], t[one], y[one]), together[one])
        kept.add((sliced.config.block_heads, sliced.config.block_channels))
    assert len(kept) == 3
    assert any(len(set(heads)) > 1 for heads, _ in kept)


def test_ranking_changes_the_order_and_nothing_else(network: SplitNetwork) -> None:
    ordered = ranked(network)
    same(ordered(*inputs()), network(*inputs()))
    assert ordered.config == network.config
    assert not torch.equal(ordered.blocks[0].mlp.w1.weight, network.blocks[0].mlp.w1.weight)
    mlp, attention = ordered.blocks[1].mlp, ordered.blocks[1].attn
    magnitudes = mlp.w1.weight.norm(dim=1) * mlp.w3.weight.norm(dim=1) * mlp.w2.weight.norm(dim=0)
    assert (magnitudes.diff() <= 1e-6).all()
    d = network.config.head_size
    heads = [
        (attention.proj.weight[:, h * d : (h + 1) * d] @ attention.qkv.weight[64 + h * d : 64 + (h + 1) * d]).norm()
        for h in range(4)
    ]
    assert heads == sorted(heads, reverse=True)


def test_a_width_is_a_checkpoint_like_any_other(network: SplitNetwork, tmp_path: Path) -> None:
    save_network(network, tmp_path / "all.safetensors")
    complete = load_model(tmp_path / "all.safetensors")
    assert complete.source.widths == WIDTHS
    half = narrow(complete, 0.5)
    save_network(half, tmp_path / "half.safetensors")
    loaded = load_model(tmp_path / "half.safetensors")
    assert loaded.source.widths == ()
    assert loaded.source.sha256 == half.source.sha256 != complete.source.sha256
    assert half.source.name == "all.safetensors at width 0.5"
    same(loaded(*inputs()), half(*inputs()))
    assert config_of(as_mapping(half.config)) == half.config
    assert "block_heads" not in as_mapping(network.config) | network.config.essence
    assert "4 heads, of which blocks have 2, and 43 channels in their MLPs, " in half.config.description


@pytest.mark.slow
def test_a_width_is_exported_like_any_other(once) -> None:
    """The export holds what it wrote to the network; narrower in the encoder than in the decoder."""
    half = narrow(random_network("ddt", num_blocks=2, num_encoder_blocks=1), 0.5, 0.75)
    backend = open_backend(once("narrow", lambda folder: export(half, folder)))
    assert backend.config == half.config
    schedule = Schedule.full(SamplingSpec(num_steps=3))
    noise, labels = inputs()[0], torch.tensor([0, 1, 2])
    drawn, expected = (sample(network, schedule, noise, labels) for network in (backend, half))
    assert (drawn - expected).norm() < 1e-5 * expected.norm()


def test_costs_are_counted_of_what_is_left(network: SplitNetwork) -> None:
    complete = network.config.multiply_adds((3, 8, 8))
    half = narrow(network, 0.5).config.multiply_adds((3, 8, 8))
    # Per token and block: 4 D² and 2 L D in attention, 3 D F in the MLP; half of 85 channels is 43.
    saved = 3 * 16 * (0.5 * (4 * 32**2 + 2 * 16 * 32) + 3 * 32 * (85 - 43))
    assert complete.encoder - half.encoder == pytest.approx(saved)
    assert half.modulations == complete.modulations
    assert width_costs(network.config, 16, 1, 1) == 1
    assert width_costs(network.config, 16, 0.5, 0.5) == pytest.approx(0.5, abs=0.01)


def test_widths_go_evenly_down_to_the_narrowest() -> None:
    config = CONFIGS["ddt"]
    assert widths_to(config, 0.5) == (1, 0.75, 0.5)
    assert widths_to(replace(config, num_groups=2), 0.5) == (1, 0.5)
    assert widths_to(replace(config, num_groups=8), 0.25) == (1, 0.625, 0.25)
    with pytest.raises(ConfigError, match=r"has 1 heads, and at --target 0\.5 as many are left"):
        widths_to(replace(config, num_groups=1), 0.5)


def test_impossible_widths_are_refused(network: SplitNetwork) -> None:
    with pytest.raises(ConfigError, match=r"The width is 0\.6; the network was trained at 1, 0\.75, 0\.5"):
        narrow(network, 0.6)
    network.source = replace(network.source, widths=())
    with pytest.raises(ConfigError, match="random was trained at one width; `ddt-accel train --from CHECKPOINT"):
        narrow(network, 0.5)
    masks = width_masks(network.config, 0.5, 0.5)
    nothing = [replace(masks[0], heads=torch.zeros(1, 4)), *masks[1:]]
    with pytest.raises(ConfigError, match="no head or no channel left"):
        unmasked(network, nothing)
    for wrong in ([2, 2], [2, 2, 2, 5], [0, 1, 1, 1], "4", [1.5] * 4):
        with pytest.raises(ConfigError, match=r"block_heads is .*; give \d whole numbers from 1 to 4"):
            replace(network.config, block_heads=wrong)


def test_other_blocks_are_not_narrowed() -> None:
    rae = DiTDHConfig(input_size=4, patch_size=1, in_channels=3, hidden_size=(8, 16), depth=(2, 1), num_heads=(1, 2),
                      mlp_ratio=4.0, num_classes=3)  # fmt: skip
    with pytest.raises(ConfigError, match="of DDT and PixNerd, and this network is one of RAE"):
        ranked(build(rae))


@pytest.mark.slow
def test_the_embedded_network_has_learned_its_widths() -> None:
    """Half of it draws what it does complete, where half of the ranked network it began with does not."""
    dynamic, start = load_model("cifar10-dynamic"), load_model("cifar10")
    assert dynamic.source.widths == WIDTHS
    untrained = ranked(start)
    untrained.source = replace(start.source, widths=WIDTHS)
    noise, labels = draw_noise((3, 32, 32), seed=9, indices=range(8)), draw_labels(10, seed=9, indices=range(8))
    schedule = Schedule.full(SamplingSpec(num_steps=8, solver="ab2"))
    found = {}
    for name, network in (("trained", dynamic), ("untrained", untrained)):
        complete = sample(network, schedule, noise, labels)
        half = sample(narrow(network, 0.5), replace(schedule), noise, labels)
        found[name] = latent_decibels(half, complete).mean()
    assert found["trained"] > 20 > found["untrained"] + 5
