"""Routers that learn which heads and channels run when, and the widths that their checkpoints have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from test_fine_tuning import CPU, NETWORK, two_classes, written

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, load_model, sample
from ddt_accel.errors import CheckpointError, ConfigError, MismatchError
from ddt_accel.networks.checkpoints import describe
from ddt_accel.networks.config import Source
from ddt_accel.networks.dynamic.gates import gumbels
from ddt_accel.networks.dynamic.masks import BlockMasks, cost_share
from ddt_accel.networks.dynamic.routers import Routers
from ddt_accel.networks.dynamic.routing import TIMES, masks_over_time
from ddt_accel.networks.dynamic.slicing import unmasked
from ddt_accel.networks.dynamic.widths import config_at, narrow, width_masks, widths_by_quarter
from ddt_accel.networks.families import as_mapping, build, config_of
from ddt_accel.networks.saving import save_network
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.training import loop
from ddt_accel.training.loop import Trainer
from ddt_accel.training.release import write_release
from ddt_accel.training.routed import RoutedPass, fresh_routers
from ddt_accel.training.start import in_order
from ddt_accel.training.train_spec import TrainSpec

SHAPE = (3, 8, 8)
TOKENS = NETWORK.num_tokens(SHAPE)


def begin() -> SplitNetwork:
    torch.manual_seed(0)
    network = build(NETWORK).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():  # fresh networks begin with zeros
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    network.source = Source(name="begin", sha256="0" * 64, latent_shape=SHAPE, class_names=None)
    return in_order(network, 0.5)


def run_in(folder: Path, *, steps: int, **settings: object) -> Trainer:
    spec = TrainSpec(network=NETWORK, total_images=16 * steps, batch_size=16, learning_rate=2e-3, precision="fp32",
                     start="0" * 64, target=0.5)  # fmt: skip
    return Trainer(dataclasses.replace(spec, **settings), two_classes(), folder, CPU, compiled=False, start=begin())


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("routed")
    run = run_in(folder, steps=160)
    run.run(save_every=1000)
    return write_release(run.state_path, folder / "model.safetensors", latent_shape=SHAPE)


@pytest.fixture
def routed(learned: Path) -> SplitNetwork:
    return load_model(learned)


def routers_of(path: Path) -> Routers:
    return Routers.of(safetensors.torch.load_file(path), NETWORK.num_groups, NETWORK.num_blocks, NETWORK.hidden_size)


def costs() -> list[tuple[float, float]]:
    return NETWORK.block_costs(TOKENS)


def shares_over_time(model: SplitNetwork, routers: Routers) -> torch.Tensor:
    """[TIMES]: multiply-adds of the blocks, written out."""
    heads, groups = masks_over_time(model, routers.float())
    attention, mlp = torch.tensor(costs()).T
    return (heads.mean(-1) * attention + groups.mean(-1) * mlp).sum(-1) / (attention + mlp).sum()


def test_what_is_left_on_comes_to_the_target(routed: SplitNetwork, learned: Path) -> None:
    assert shares_over_time(routed, routers_of(learned)).mean() == pytest.approx(0.5, abs=0.1)
    widths = widths_by_quarter(routed.config)
    assert routed.source.widths == (1.0, *sorted({*widths} - {1.0}, reverse=True))
    assert np.mean(widths) == pytest.approx(0.5, abs=0.15)


def test_a_width_is_what_most_times_of_its_quarters_leave_on(routed: SplitNetwork, learned: Path) -> None:
    over_time = masks_over_time(routed, routers_of(learned).float())
    quarter = torch.arange(TIMES) * 4 // TIMES
    x, y = draw_noise(SHAPE, seed=0, indices=range(2)), torch.tensor([0, 1])
    for index, width in enumerate(widths_by_quarter(routed.config)):
        heads, groups = (kind[quarter == index].mean(0) > 0.5 for kind in over_time)
        sliced = routed if width == 1 else narrow(routed, width)
        route = next(one for one in routed.config.block_routes if index in one.quarters)
        assert [set(one) for one in route.heads] == [set(one.nonzero().flatten().tolist()) for one in heads]
        assert [set(one) for one in route.groups] == [set(one.nonzero().flatten().tolist()) for one in groups]
        # Where all routers say at one time what most of them do, the network is the masked one.
        t = (torch.arange(TIMES)[quarter == index] + 0.5) / TIMES
        both = torch.ones(len(t), dtype=torch.bool)
        for kind, most in zip(over_time, (heads, groups), strict=True):
            both &= (kind[quarter == index] == most).flatten(1).all(1)
        if not both.any():
            continue
        at = t[both][:1]
        masks = routers_of(learned).float().masks(routed.t_embedder(at), NETWORK.channels[0])
        masked = routed.masked(x, at.expand(2), y, masks)
        assert (sliced(x, at.expand(2), y) - masked).norm() < 1e-5 * masked.norm()
        assert config_at(routed.config, width) == (sliced.config if width < 1 else config_at(NETWORK, 1.0))


def test_it_still_draws_with_what_is_left(routed: SplitNetwork) -> None:
    """Classes come out dark and bright, complete and as routed."""
    spec = SamplingSpec(num_steps=8, guidance=1.0)
    program = Schedule.full(spec)
    at = {k: width for k, t in enumerate(spec.times) if (width := _width_at(routed, t)) < 1}
    narrowed = dataclasses.replace(program, encoder_widths=at, decoder_widths=at)
    assert at
    noise, labels = draw_noise(SHAPE, seed=0, indices=range(8)), torch.arange(8) % 2
    for schedule in (program, narrowed):
        brightness = sample(routed, schedule, noise=noise, labels=labels).mean((1, 2, 3))
        assert brightness[labels == 1].mean() > brightness[labels == 0].mean() + 0.5


def _width_at(model: SplitNetwork, t: float) -> float:
    return widths_by_quarter(model.config)[min(3, int(4 * t))]


def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    run_in(tmp_path / "whole", steps=12).run(save_every=100)
    first = run_in(tmp_path / "killed", steps=12)
    first.run(save_every=100, stop=lambda: first.step == 7)
    run_in(tmp_path / "killed", steps=12).run(save_every=100)
    whole, killed = (safetensors.torch.load_file(tmp_path / name / "state.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert "ema_denoiser.blocks.2.mlp_rate.router.bias" in whole
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    with pytest.raises(MismatchError, match=r"routers to 0\.5 of the cost, not to 0\.6 of the cost;"):
        run_in(tmp_path / "killed", steps=12, target=0.6)


def test_a_step_takes_the_complete_network_what_routers_leave_and_its_cost(tmp_path: Path, monkeypatch) -> None:
    """Its gradient is that of the loss written out."""
    monkeypatch.setattr(loop, "GRADIENT_NORM", 1e9)
    run = run_in(tmp_path, steps=1)
    captured: list[tuple[torch.Tensor, ...]] = []
    complete, routed = run._passes(torch.Generator().manual_seed(3))

    def noted(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        captured.append((x, t, y))
        return complete[0](x, t, y)

    monkeypatch.setattr(run, "_passes", lambda generator: [(noted, complete[1]), routed])
    with torch.no_grad():  # so that noise closes some
        for one in run.routers.parameters():
            one.mul_(0.02)
    run._train_step()
    gradients = {name: one.grad.clone() for name, one in run.parameters.items()}

    again = run_in(tmp_path / "again", steps=1)
    with torch.no_grad():
        for one in again.routers.parameters():
            one.mul_(0.02)
    (x, t, y), model, generator = captured[0], again.model, torch.Generator().manual_seed(3)

    def masks_at(times: torch.Tensor) -> list[BlockMasks]:
        return again.routers.masks(model.t_embedder(times), NETWORK.channels[0], gumbels(generator))

    masks, truth = masks_at(t), _truth(run, x, t)
    # What it costs is asked at other times: one of every sixteenth of t.
    share = cost_share(masks_at((torch.arange(16) + torch.rand(16, generator=generator)) / 16), costs())
    assert 0.3 < share.mean() < 0.8
    assert len({round(one, 6) for one in share.tolist()}) > 3
    loss = (model(x, t, y) - truth).square().mean() + (model.masked(x, t, y, masks) - truth).square().mean()
    (loss + 2 * (share.mean() - routed[0].target) ** 2).backward()
    for name, one in again.parameters.items():
        assert (gradients[name] - one.grad).norm() < 1e-4 * one.grad.norm() + 1e-7, name


def _truth(run: Trainer, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x₁ − ε of the first step, from its mixture: the pictures of that step are known, so the noise is."""
    generator = torch.Generator().manual_seed(run.spec.seed << 40)
    chosen = run._indices()
    x1 = run.images[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
    flipped = torch.rand(len(chosen), generator=generator) < 0.5
    x1 = torch.where(flipped[:, None, None, None], x1.flip(-1), x1)
    return (x1 - x) / (1 - t)[:, None, None, None]  # x = t x₁ + (1 − t) ε


def test_the_cost_pulls_where_nothing_else_does() -> None:
    model = begin()
    routers = fresh_routers(model)
    one = RoutedPass(model, routers, torch.Generator().manual_seed(0), target=0.5)
    one(draw_noise(SHAPE, seed=0, indices=range(4)), torch.rand(4), torch.zeros(4, dtype=torch.int64))
    cost = one.cost()
    assert cost.item() == pytest.approx(2 * 0.5**2)  # fresh routers leave all on
    cost.backward()
    assert all(block.attn_rate.router.bias.grad.min() > 0 for block in routers.blocks)


def test_settings_with_routes_are_read_back(routed: SplitNetwork, tmp_path: Path) -> None:
    assert config_of(as_mapping(routed.config)) == routed.config
    save_network(routed, tmp_path / "saved.safetensors")
    loaded = load_model(tmp_path / "saved.safetensors")
    assert loaded.config == routed.config
    assert loaded.source.widths == routed.source.widths
    assert loaded.source.sha256 == routed.source.sha256
    wrong = as_mapping(routed.config)
    for key, value in (("heads", [[0, 9], [0], [0]]), ("quarters", [7]), ("width", 1.5), ("groups", [[0]])):
        broken = {**wrong["block_routes"][0], key: value}
        with pytest.raises(ConfigError, match=r"A route of the configuration has width .* expected a width below 1"):
            config_of({**wrong, "block_routes": [broken]})
    for routes, said in (
        ([{"width": 0.5}], "lacks its width, quarters, heads or groups"),
        (5, "block_routes is 5; give a list of routes"),
        ([wrong["block_routes"][0]] * 2, "share a width or a quarter"),
    ):
        with pytest.raises(ConfigError, match=said):
            config_of({**wrong, "block_routes": routes})
    with pytest.raises(ConfigError, match="A network with routes is complete"):
        config_of({**wrong, "block_heads": [2, 2, 2]})
    # Without the routes there are no widths, whatever the header says of them.
    plain = load_model(tmp_path / "saved.safetensors", config=NETWORK)
    assert plain.source.widths == ()
    with pytest.raises(ConfigError, match=r"The width is 0\.1; the network was trained at 1, 0\.\d"):
        narrow(routed, 0.1)


def rewritten(path: Path, to: Path, change) -> Path:
    with safetensors.safe_open(path, framework="pt") as file:
        told = {key: value for key, value in file.metadata().items() if key != "tensors_sha256"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    safetensors.torch.save_file(tensors, to, told)
    return to


def test_checkpoints_of_other_layouts(routed: SplitNetwork, learned: Path, tmp_path: Path, caplog) -> None:
    def older(tensors: dict[str, torch.Tensor]) -> None:
        """A gate for the first group, too, always open; and routers of tokens."""
        for name in [one for one in tensors if ".router." in one]:
            first = torch.zeros_like(tensors[name][:1]) + (20 if name.endswith("bias") else 0)
            tensors[name] = torch.cat([first, tensors[name]])
        for index in range(NETWORK.num_blocks):
            tensors[f"blocks.{index}.token_selection.mlp_head.0.weight"] = torch.zeros(2, 32)

    again = load_model(rewritten(learned, tmp_path / "older.safetensors", older))
    assert again.config == routed.config
    assert "token_selection" in caplog.text

    def lacking(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["blocks.1.mlp_rate.router.bias"]

    with pytest.raises(CheckpointError, match=r"lacks the router blocks\.1\.mlp_rate\.router\.weight"):
        load_model(rewritten(learned, tmp_path / "lacking.safetensors", lacking))
    weight = "blocks.0.attn_rate.router.weight"
    for name, value in (
        ("flat", torch.zeros(3)), ("wide", torch.zeros(3, 40)), ("whole", torch.zeros(3, 32, dtype=torch.int32)),
        ("broken", torch.full((3, 32), torch.nan)),
    ):  # fmt: skip
        file = rewritten(
            learned, tmp_path / f"{name}.safetensors", lambda tensors, value=value: tensors.update({weight: value})
        )
        with pytest.raises(CheckpointError, match=r"The router blocks\.0\.attn_rate\.router\.weight is .* all finite"):
            load_model(file)
    told = describe(learned)
    assert told["routers"].startswith("12 tensors")

    def all_open(tensors: dict[str, torch.Tensor]) -> None:
        for name in [one for one in tensors if ".router." in one]:
            tensors[name] = torch.zeros_like(tensors[name]) + (20 if name.endswith("bias") else 0)

    complete = load_model(rewritten(learned, tmp_path / "open.safetensors", all_open))
    assert complete.config.block_routes == ()
    assert complete.source.widths == (1.0,)


def test_one_mask_a_quarter_is_the_network_without_it(routed: SplitNetwork) -> None:
    """Masked, sliced by its masks, and as `narrow` takes it."""
    x, t, y = draw_noise(SHAPE, seed=1, indices=range(3)), torch.rand(3), draw_labels(2, seed=1, indices=range(3))
    for width in routed.source.widths[1:]:
        masks = width_masks(routed.config, width, width)
        ours, theirs = narrow(routed, width)(x, t, y), unmasked(routed, masks)(x, t, y)
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert (ours - routed.masked(x, t, y, masks)).norm() < 1e-5 * ours.norm()


@pytest.mark.slow
def test_from_a_checkpoint_to_pictures_by_routers(cli, learned: Path, tmp_path: Path) -> None:
    data = written(two_classes(24), tmp_path / "pictures")
    # Also from a checkpoint that has routers already: its complete network begins.
    line = ("train", "--data", data, "--threads", 1, "--precision", "fp32", "--batch-size", 8,
            "--from", learned, "--out", tmp_path / "run", "--dynamic", "routers", "--target", 0.6,
            "--images", 800)  # fmt: skip
    ran = cli(*line)
    assert ran.code == 0, ran.err
    rows = [" ".join(row.split()) for row in ran.out.splitlines()]
    said = {tuple(row.split()[:-6]): row.split()[-6] for row in rows if "%" in row}
    assert list(said) == [("before",), ("complete",), ("as", "routed")]
    assert 30 < int(said["as", "routed"].rstrip("%")) < 95
    drawn = (tmp_path / "run" / "routers.svg").read_text()
    assert all(f"{kind}, {part}" in drawn for kind in ("heads", "channels") for part in ("encoder", "decoder"))

    place = ("-w", tmp_path / "workspace")
    for words in (("calibrate", "--model", tmp_path / "run", "--steps", 4, "--samples", 2, "--sensitivity-samples", 1),
                  ("solve", "--budget", 2, "--widths"), ("sample", "--backend", "torch", "--images", 2)):  # fmt: skip
        ran = cli(*words, *place)
        assert ran.code == 0, ran.err
