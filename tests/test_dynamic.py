"""Gates, routers, masks and losses, held to numbers of DyDiT's code."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from dydit import CHANNELS, COSTS, DEPTH, HEADS, WIDTH, DiT
from torch import Tensor

from ddt_accel.errors import CheckpointError
from ddt_accel.networks.dynamic.gates import gate, gumbels
from ddt_accel.networks.dynamic.masks import BlockMasks, cost_share, spread
from ddt_accel.networks.dynamic.routers import Routers, TimeRouter, TokenRouter
from ddt_accel.training.dynamic_loss import cost_loss, matching_loss, target_at

REFERENCE = Path(__file__).parent / "reference" / "dydit_small"
SAME = 2e-5  # cosines of a thousand times a frequency differ as its exponential is rounded


def numbers(name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(REFERENCE / f"{name}.safetensors")


def same(ours: Tensor, theirs: Tensor, within: float) -> None:
    assert ours.shape == theirs.shape
    error = (ours - theirs).norm() / theirs.norm()
    assert error < within, float(error)


def routed(network: DiT, t: Tensor) -> list[BlockMasks]:
    return network.routers.masks(network.time(t), CHANNELS)


def heads_and_groups(masks: list[BlockMasks]) -> tuple[Tensor, Tensor]:
    """As the reference has them: [B, blocks, H]."""
    groups = [mask.channels.unflatten(-1, (HEADS, -1)) for mask in masks]
    assert all((one == one[..., :1]).all() for one in groups)
    return torch.stack([mask.heads for mask in masks], 1), torch.stack([one[..., 0] for one in groups], 1)


def same_at_all_times(network: DiT, expected: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The tables of heads and of groups, held to the expected ones but where rounding decides: a few of 16 000."""
    time = network.time(torch.arange(1000))
    tables = network.routers.table(time)
    for table, (ours, theirs) in zip(tables, (("attn_rate", "attn_masks"), ("mlp_rate", "mlp_masks")), strict=True):
        logits = torch.stack([block.get_submodule(ours).router(time) for block in network.routers.blocks], 1)
        told = torch.cat([torch.ones(1000, DEPTH, HEADS - logits.shape[-1]), logits.abs()], -1) > 1e-4
        assert (~told).sum() <= 4
        assert torch.equal(table[told], expected[f"{theirs}_all_t"][told])
    return tables


def test_masks_and_outputs_are_the_official_codes() -> None:
    expected, network = numbers("eval"), DiT(numbers("weights"))
    same(network(expected["x"], expected["t"], expected["y"]), expected["complete_output"], SAME)
    masks = routed(network, expected["t"])
    same(network(expected["x"], expected["t"], expected["y"], masks), expected["output"], SAME)
    heads, groups = heads_and_groups(masks)
    assert torch.equal(heads, expected["attn_masks"])
    assert torch.equal(groups, expected["mlp_masks"])
    assert torch.equal(torch.stack([mask.tokens.taken for mask in masks], 1), expected["token_masks"])
    same(cost_share(masks, COSTS), expected["flops_ratio_per_sample"], 1e-6)
    assert cost_loss(cost_share(masks, COSTS), 0.5).item() == pytest.approx(
        expected["flops_loss_batch"].item(), rel=1e-3
    )


def test_what_runs_is_known_at_all_times_beforehand() -> None:
    expected, network = numbers("eval"), DiT(numbers("weights"))
    assert same_at_all_times(network, expected)[0][..., 0].all()
    between = heads_and_groups(routed(network, expected["fractional_t"]))
    assert torch.equal(between[0], expected["fractional_attn_masks"])
    assert torch.equal(between[1], expected["fractional_mlp_masks"])


def test_the_older_layout_has_a_gate_for_every_head() -> None:
    expected = numbers("legacy")
    weights = {name.removeprefix("weights."): tensor for name, tensor in expected.items() if name.startswith("weights")}
    network = DiT(weights)
    assert not same_at_all_times(network, expected)[0][..., 0].all()
    masks = routed(network, expected["t"])
    same(network(expected["x"], expected["t"], expected["y"], masks), expected["output"], SAME)


def test_losses_and_gradients_are_the_official_codes() -> None:
    expected = numbers("train")
    weights = {name: tensor.requires_grad_() for name, tensor in numbers("weights").items()}
    network = DiT(weights)
    for name, parameter in network.routers.named_parameters():  # which were copied
        weights[name] = parameter
    alphas = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[expected["t"]]
    signal, rest = (value.float()[:, None, None, None] for value in (alphas.sqrt(), (1 - alphas).sqrt()))
    x = signal * expected["x_start"] + rest * expected["noise"]
    order = [(index, kind) for index in range(DEPTH) for kind in ("attn", "mlp")]
    order += [(index, "token") for index in range(DEPTH)]
    drawn = iter(order)

    def draw(shape: torch.Size) -> tuple[Tensor, Tensor]:
        index, kind = next(drawn)
        first, second = (-expected[f"exponential.{index}.{kind}.{which}"].log() for which in (1, 2))
        assert first.shape == shape
        return first, second

    masks = network.routers.masks(network.time(expected["t"]), CHANNELS, draw)
    dynamic = network(x, expected["t"], expected["labels_dynamic"], masks)[:, :4]
    complete = network(x, expected["t"], expected["labels_complete"])[:, :4]
    heads, groups = heads_and_groups(masks)
    assert torch.equal(heads, expected["attn_masks"])
    assert torch.equal(groups, expected["mlp_masks"])
    assert torch.equal(torch.stack([mask.tokens.taken for mask in masks], 1), expected["token_masks"])
    for ours, term in ((dynamic, "mse"), (complete, "complete_mse")):
        same((ours - expected["noise"]).square().mean((1, 2, 3)), expected[f"terms.{term}"], SAME)
    shares = cost_share(masks, COSTS)
    assert shares.mean().item() == pytest.approx(expected["flops_ratio"].item(), rel=SAME)
    assert cost_loss(shares, 0.5).item() == pytest.approx(expected["flops_loss"].item(), rel=1e-5)
    loss = matching_loss(dynamic, complete, expected["noise"]) + cost_loss(shares, 0.5)
    assert loss.item() == pytest.approx(expected["simple_loss"].item(), rel=SAME)
    loss.backward()
    gradients = {name: tensor for name, tensor in expected.items() if name.startswith("simple_grad.")}
    assert len(gradients) > 80
    for name, gradient in gradients.items():
        ours = weights[name.removeprefix("simple_grad.")].grad
        # Sums that all but cancel, as of a router's bias, have the rounding of their terms.
        assert (ours - gradient).norm() < 1e-4 * gradient.norm() + 2e-7, name


def test_a_gate_is_drawn_open_with_the_probability_of_its_logit() -> None:
    logits = torch.tensor([-2.0, 0.0, 1.0]).repeat(20_000, 1)
    drawn = gate(logits, gumbels(torch.Generator().manual_seed(0)))
    assert {*drawn.unique().tolist()} == {0.0, 1.0}
    assert drawn.mean(0).tolist() == pytest.approx(logits[0].sigmoid().tolist(), abs=0.015)
    assert gate(torch.tensor([-1e-6, 0.0, 1e-6])).tolist() == [0, 0, 1]  # a logit of exactly 0 is closed


def test_groups_need_not_divide_the_channels() -> None:
    mask = spread(torch.tensor([[1.0, 0.0, 1.0]]), 8)
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0, 1, 1]]
    sizes = spread(torch.eye(4), 341).sum(-1)
    assert sizes.sum() == 341
    assert sizes.max() - sizes.min() == 1


def test_a_fixed_number_of_tokens_is_taken_by_logit() -> None:
    torch.manual_seed(0)
    router, x = TokenRouter(32), torch.randn(3, 10, 32)
    logits = router.mlp_head(x)[..., 0]
    mask = router.best(x, 4)
    assert mask.shape == (3, 10, 1)
    for taken, values in zip(mask[..., 0].bool(), logits, strict=True):
        assert taken.sum() == 4
        assert values[taken].min() >= values[~taken].max()


def test_fresh_routers_leave_nothing_out_and_can_be_closed() -> None:
    torch.manual_seed(0)
    routers = Routers.fresh(16, 4, 3, with_tokens=2)
    time = torch.randn(5, 16)
    masks = routers.masks(time, 10, gumbels(torch.Generator().manual_seed(0)))
    assert [mask.tokens is not None for mask in masks] == [True, True, False]
    assert all(mask.heads.all() and mask.channels.all() for mask in masks)
    cost_loss(cost_share(masks, [(1.0, 2.0)] * 3), 0.5).backward()
    routers_of_time = [router for block in routers.blocks for router in (block.attn_rate, block.mlp_rate)]
    assert all(router.router.bias.grad.min() > 0 for router in routers_of_time)


def test_routers_that_do_not_fit_are_refused() -> None:
    weights = numbers("weights")
    lacking = {name: tensor for name, tensor in weights.items() if "2.mlp_rate" not in name}
    with pytest.raises(CheckpointError, match=r"lacks the router blocks\.2\.mlp_rate\.router\.weight; give one"):
        Routers.of(lacking, HEADS, DEPTH, WIDTH)
    with pytest.raises(CheckpointError, match="has 3 gates for 8 groups; 7 or 8 are read"):
        Routers.of(weights, 8, DEPTH, WIDTH)
    assert TimeRouter(8, 4)(torch.zeros(2, 8)).shape == (2, 4)


def test_the_target_comes_down_over_its_ramp() -> None:
    at = [target_at(step, 0.5, 1000) for step in (0, 99, 100, 500, 1000, 5000)]
    assert at == [1, 1, 0.95, 0.75, 0.5, 0.5]
