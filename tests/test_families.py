"""All families against numbers of the published implementations, and how their files are told apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from conftest import TINY
from torch import Tensor
from torch.nn import functional as F

from ddt_accel import load_model
from ddt_accel.errors import CheckpointError, ConfigError
from ddt_accel.networks import checkpoints
from ddt_accel.networks.checkpoints import describe, identity, tensors_sha256
from ddt_accel.networks.families import FAMILIES, as_mapping, build, config_of, release_of, settings_in
from ddt_accel.networks.pixnerd.config import PixNerdConfig
from ddt_accel.networks.pixnerd.network import PatchBlock
from ddt_accel.networks.rae.config import COMPUTED, DiTDHConfig
from ddt_accel.networks.settings import read_yaml
from ddt_accel.networks.split import SplitNetwork

REFERENCE = Path(__file__).parent / "reference"
RAE, PIXNERD = REFERENCE / "rae_small", REFERENCE / "pixnerd_small"
PIXNERD_FILE = PIXNERD / "epoch=3-step=800.ckpt"
VARIANTS = ["layernorm", "gelu", "no_pos_embed", "qknorm"]
SMALL_RAE: dict[str, Any] = {
    "input_size": 3, "in_channels": 2, "hidden_size": [16, 24], "depth": [2, 1], "num_heads": [2, 3], "num_classes": 4,
}  # fmt: skip
SMALL_PIXNERD: dict[str, Any] = {
    "in_channels": 3, "patch_size": 2, "num_groups": 2, "hidden_size": 16, "hidden_size_x": 4, "num_blocks": 3,
    "num_cond_blocks": 2, "nerf_mlpratio": 3, "num_classes": 4,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {"ddt": asdict(TINY), "rae": SMALL_RAE, "pixnerd": SMALL_PIXNERD}
SIGNS = {
    "ddt": r"DDT, by its tensor x_embedder\.proj\.weight of two axes",
    "rae": r"RAE DiT-DH, by its tensor t_embedder\.W",
    "pixnerd": r"PixNerd, by its tensor blocks\.2\.param_generator1\.0\.weight",
}
SETTING = {"ddt": "DDT, by its num_encoder_blocks", "rae": "RAE DiT-DH, by its depth",
           "pixnerd": "PixNerd, by its num_cond_blocks"}  # fmt: skip


def relative(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).norm() / expected.norm()).item()


def tensors_of(folder: Path, name: str = "tensors") -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def drawn(config: dict[str, Any] | Any, seed: int = 0) -> SplitNetwork:
    """A network whose weights are all random."""
    model = build(config_of(config) if isinstance(config, dict) else config)
    generator = torch.Generator().manual_seed(seed)
    model.load_state_dict({n: 0.15 * torch.randn(t.shape, generator=generator) for n, t in model.state_dict().items()})
    return model.eval().requires_grad_(False)


def published_state(model: SplitNetwork) -> dict[str, Tensor]:
    """A state_dict as the published code has it, tables included."""
    return {**model.state_dict(), **model.computed_tables()}


def nested(family: str, config: dict[str, Any], shape: list[int] | None = None) -> dict[str, Any]:
    """A YAML's content in the published form."""
    published = FAMILIES[family].published
    content: dict[str, Any] = {}
    for place, value in ((published.SETTINGS_AT[0], config), (published.LATENTS_AT, shape)):
        inner = content
        for part in place[:-1]:
            inner = inner.setdefault(part, {})
        inner[place[-1]] = value
    return content


# --- Published numbers. Their time of RAE is 1 − ours, and its velocity is minus ours. ---


def test_rae_state_modulations_and_velocities() -> None:
    model, t = load_model(RAE / "DiTDH" / "stage2_model.pt"), tensors_of(RAE)
    state = model.encode(t["x"], 1 - t["t"], t["y"])
    assert relative(state, t["u"]) < 1e-5
    assert relative(model.s_projector(t["s"]), t["projected"]) < 1e-5
    assert relative(F.silu(t["projected"]), t["u"]) < 1e-6
    assert relative(model.modulations(state)[:1], t["modulations_of_first"]) < 1e-5
    assert relative(-model.decode(t["x"], state), t["velocity"]) < 1e-5
    assert relative(-model(t["x"], 1 - t["t"], t["y"]), t["velocity"]) < 1e-5
    assert relative(-model.decode(t["x_reuse"], state), t["velocity_reuse"]) < 1e-5
    assert model.config.null_label in t["y"]


def test_rae_guide_flat_and_as_training_keeps_it() -> None:
    t = tensors_of(RAE)
    flat = load_model(RAE / "DiTDH-guide" / "stage2_model.pt")
    kept = load_model(RAE / "checkpoints" / "ep-0000010.pt")
    raw = load_model(RAE / "checkpoints" / "ep-0000010.pt", weights="raw")
    for guide in (flat, kept):
        assert relative(-guide(t["x"], 1 - t["t"], t["y"]), t["guide_velocity"]) < 1e-5
    assert flat.source.sha256 == kept.source.sha256 != raw.source.sha256
    for name, tensor in raw.state_dict().items():
        torch.testing.assert_close(tensor, kept.state_dict()[name] + 0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_rae_variants(name: str) -> None:
    folder, t = RAE / "variants" / name, tensors_of(RAE, "variants")
    told = load_model(folder / "stage2_model.pt")  # by the YAML beside it
    x, time, y = (t[f"{name}.{part}"] for part in ("x", "t", "y"))
    assert relative(-told(x, 1 - time, y), t[f"{name}.velocity"]) < 1e-5
    assert settings_in({n: tuple(s.shape) for n, s in published_state(told).items()}) == told.config


def test_pixnerd_state_weights_and_velocities() -> None:
    model, t = load_model(PIXNERD_FILE), tensors_of(PIXNERD)
    state = model.encode(t["x"], t["t"], t["y"])
    assert relative(state, t["state"]) < 1e-5
    assert relative(model.modulations(state)[:1], t["parameters_of_first"]) < 1e-5
    patches = F.unfold(t["x"][:1], 4, stride=4).transpose(1, 2).unflatten(-1, (3, 16)).transpose(-1, -2)
    assert relative(model.x_embedder(patches, model.get_buffer("_waves")), t["embedded_of_first"]) < 1e-5
    assert relative(model.decode(t["x"], state), t["velocity"]) < 1e-5
    assert relative(model(t["x"], t["t"], t["y"]), t["velocity"]) < 1e-5
    assert relative(model.decode(t["x_reuse"], state), t["velocity_reuse"]) < 1e-5
    assert model.source.latent_shape == (3, 16, 16)
    raw = load_model(PIXNERD_FILE, weights="raw")
    for name, tensor in raw.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name] + 0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_pixnerd_multiplies_by_columns_of_length_1(dtype: torch.dtype, tolerance: float) -> None:
    """In the published order, and with its gradients, which are finite where a column is zero."""
    generator = torch.Generator().manual_seed(0)
    block = PatchBlock(8, 4, 2).to(dtype)
    pixels = torch.randn(2, 3, 5, 4, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(2, 3, 64, generator=generator).to(dtype)
    weights[0, 0, :32:8] = 0.0  # the first column of A [4, 8]
    weights.requires_grad_()
    first, second = weights.double().split(32, dim=-1)
    inner = F.normalize(first.unflatten(-1, (4, 8)), dim=-2)
    outer = F.normalize(second.unflatten(-1, (8, 4)), dim=-2)
    expected = pixels.double() + F.silu(block.norm(pixels).double() @ inner) @ outer
    got = block(pixels, weights)
    assert got.dtype == dtype
    assert relative(got.double(), expected) < tolerance
    ours, theirs = (torch.autograd.grad(one.sum(), (pixels, weights), retain_graph=True) for one in (got, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        assert relative(one[1].double(), other[1].double()) < tolerance  # beside the zeros, which have no direction


@pytest.mark.parametrize("shape", [(8, 16), (20, 4)])
def test_pixnerd_draws_pictures_that_are_not_square(shape: tuple[int, int]) -> None:
    """Pixel by pixel, as the mathematics has it, patches by their row and column."""
    model = load_model(PIXNERD_FILE)
    height, width = shape
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    state = model.encode(x, torch.tensor([0.3, 0.8]), torch.tensor([0, 10]))
    velocity = model.decode(x, state)
    waves, columns = model.get_buffer("_waves"), width // 4
    for row, column in ((0, 0), (height // 4 - 1, 0), (0, columns - 1), (height // 4 - 1, columns - 1)):
        weights = model.modulations(state[:, row * columns + column])
        for py, px in ((0, 0), (1, 3), (3, 2)):
            pixel = x[:, :, 4 * row + py, 4 * column + px]
            y = model.x_embedder.embedder[0](torch.cat([pixel, waves[4 * py + px].expand(2, -1)], dim=-1))
            for block, own in zip(model.decoder_blocks, weights.split(2 * 2 * 8 * 8, dim=-1), strict=True):
                first, second = own[:, :128].unflatten(-1, (8, 16)), own[:, 128:].unflatten(-1, (16, 8))
                first, second = (m / m.norm(dim=1, keepdim=True) for m in (first, second))
                hidden = F.silu(torch.einsum("bi,bio->bo", block.norm(y), first))
                y = y + torch.einsum("bi,bio->bo", hidden, second)
            expected = model.final_layer.linear(model.final_layer.norm(y))
            assert relative(velocity[:, :, 4 * row + py, 4 * column + px], expected) < 1e-5


# --- Options, and files of every kind. ---

OPTIONS: dict[str, dict[str, Any]] = {
    "equal widths": {"hidden_size": [16, 16], "num_heads": [2, 1]},
    "one number of heads": {"num_heads": 2, "hidden_size": [16, 24]},
    "no null class": {"class_dropout_prob": 0},
    "ratio 3": {"mlp_ratio": 3.0},
    "ratio 8/3": {"mlp_ratio": 8 / 3},
    "ratio 2, GELU": {"mlp_ratio": 2, "use_swiglu": False},
    "everything else": {"use_qknorm": True, "use_rmsnorm": False, "use_pos_embed": False, "patch_size": [1, 1]},
    "wider encoder": {"hidden_size": [24, 16], "num_heads": [3, 2], "depth": [1, 3]},
    "one place": {"input_size": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_rae_options_run_and_go_through_files(tmp_path: Path, name: str) -> None:
    model = drawn({**SMALL_RAE, **OPTIONS[name]})
    config = model.config
    assert isinstance(config, DiTDHConfig)
    side = config.input_size
    x, t = torch.randn(2, 2, side, side), torch.tensor([0.0, 0.6])
    y = torch.tensor([0, config.num_classes if config.null_label is not None else 3])
    velocity = model(x, t, y)
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()
    assert ("s_projector.weight" in model.state_dict()) == (config.hidden_size[0] != config.hidden_size[1])
    torch.save({"model": published_state(model)}, tmp_path / "x.pt")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(nested("rae", {**SMALL_RAE, **OPTIONS[name]}, [2, side, side])))
    loaded = load_model(tmp_path / "x.pt")
    assert loaded.config == config
    assert torch.equal(loaded(x, t, y), velocity)
    if config.null_label is not None and name != "equal widths":
        (tmp_path / "x.yaml").unlink()
        told = load_model(tmp_path / "x.pt").config
        assert {**asdict(told), "mlp_ratio": 0} == {**asdict(config), "mlp_ratio": 0}
        assert told.mlp_ratio == pytest.approx(config.mlp_ratio, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_that_describe_themselves(tmp_path: Path, family: str) -> None:
    model = drawn(SMALL[family])
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    about = {"config": json.dumps(as_mapping(model.config)), "tensors_sha256": tensors_sha256(state)}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors", about)
    loaded = load_model(tmp_path / "x.safetensors")
    assert loaded.config == model.config
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    told = describe(tmp_path / "x.safetensors")
    assert told["configuration"].startswith(f"{FAMILIES[family].published.TITLE}: ")
    assert told["family"].startswith(FAMILIES[family].published.TITLE)
    assert told["left out"] == "nothing"
    # The family is part of what makes a network its own, but for those that were there before families were.
    assert ("family" in as_mapping(model.config)) == (family != "ddt")


@pytest.mark.parametrize("family", FAMILIES)
def test_published_yaml_and_mappings(tmp_path: Path, family: str) -> None:
    model, shape = drawn(SMALL[family]), [SMALL[family]["in_channels"], 6, 6]
    if family == "rae":
        shape = [2, 3, 3]
    content = nested(family, SMALL[family], shape)
    torch.save(published_state(model), tmp_path / "x.pt")
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(content))
    for config in (tmp_path / "given.yaml", content, SMALL[family], model.config):
        loaded = load_model(tmp_path / "x.pt", config=config)
        assert loaded.config == model.config
    assert read_yaml(tmp_path / "given.yaml").latent_shape == tuple(shape)


def test_the_published_yamls_of_the_references() -> None:
    for name in ("config", "config_cfg", "config_AG"):
        told = read_yaml(RAE / f"{name}.yaml")
        assert told.latent_shape == (8, 6, 6)
        assert told.config == config_of(json.loads((RAE / "case.json").read_text())["stage_2"])
    told = read_yaml(PIXNERD / "config.yaml")
    assert told.latent_shape == (3, 16, 16)
    assert told.config == config_of(json.loads((PIXNERD / "case.json").read_text())["config"])


def test_a_yaml_of_two_networks_is_read_for_the_one_in_the_file() -> None:
    case = json.loads((RAE / "case.json").read_text())
    guide, main = RAE / "DiTDH-guide" / "stage2_model.pt", RAE / "DiTDH" / "stage2_model.pt"
    assert load_model(guide, config=RAE / "config_AG.yaml").config == config_of(case["guidance_model"])
    assert load_model(main, config=RAE / "config_AG.yaml").config == config_of(case["stage_2"])
    with pytest.raises(CheckpointError, match=r"does not fit .* By them hidden_size is \(16, 48\), not \(32, 48\) and"):
        load_model(guide, config=RAE / "config.yaml")


def test_a_yaml_one_folder_up(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    place = tmp_path / "run" / "checkpoints" / "ep-last.pt"
    model = drawn({**SMALL_RAE, "hidden_size": [16, 16], "num_heads": 2})  # which does not follow from weights
    torch.save({"model": published_state(model), "step": 3}, place)
    with pytest.raises(ConfigError, match=r"blocks are encoder cannot be read off .* equally wide"):
        load_model(place)
    above = tmp_path / "run" / "config.yaml"
    above.write_text(yaml.safe_dump(nested("rae", SMALL_RAE, [2, 3, 3])))
    with pytest.raises(ConfigError, match=r"equally wide.*run/config\.yaml is about a network of other weights"):
        load_model(place)
    above.write_text(yaml.safe_dump(nested("rae", asdict(model.config), [2, 3, 3])))
    assert load_model(place).config == model.config
    above.write_text("a: [1")
    with pytest.raises(ConfigError, match=r"run/config\.yaml is no YAML"):
        load_model(place)


def test_rotary_tables_are_passed_over_whether_there_or_not(tmp_path: Path, caplog) -> None:
    model = drawn(SMALL_RAE)
    torch.save(published_state(model), tmp_path / "with.pt")
    torch.save(model.state_dict(), tmp_path / "without.pt")
    both = [load_model(tmp_path / name, config=SMALL_RAE).source.sha256 for name in ("with.pt", "without.pt")]
    assert both[0] == both[1]
    assert caplog.text == ""
    assert describe(tmp_path / "with.pt")["left out"] == "nothing"
    assert set(COMPUTED) <= set(published_state(model)) - set(model.state_dict())
    # Heads follow from the tables alone.
    assert load_model(tmp_path / "with.pt").config == model.config
    with pytest.raises(ConfigError, match="numbers of heads cannot be read off the weights"):
        load_model(tmp_path / "without.pt")
    other = {**SMALL_RAE, "num_heads": [4, 3]}
    with pytest.raises(CheckpointError, match=r"freqs_cos is \[9, 8\], expected \[9, 4\].* num_heads is \(2, 3\), not"):
        load_model(tmp_path / "with.pt", config=other)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "ema_denoiser.", "module.ema_model._orig_mod."])
@pytest.mark.parametrize("family", ["rae", "pixnerd"])
def test_wrapped_names(tmp_path: Path, family: str, prefix: str) -> None:
    model = drawn(SMALL[family])
    state = {prefix + name: tensor.contiguous() for name, tensor in published_state(model).items()}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    assert load_model(tmp_path / "x.ckpt").source.sha256 == identity(model)
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    assert load_model(tmp_path / "x.safetensors").source.sha256 == identity(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_protocol_promises(family: str) -> None:
    model = drawn(SMALL[family])
    config = model.config
    shape = config.fixed_shape or (config.in_channels, 4, 8)
    x, t, y = torch.randn(2, *shape), torch.tensor([0.2, 0.9]), torch.tensor([1, config.num_classes])
    state = model.encode(x, t, y)
    assert state.shape == (2, config.num_tokens(shape), config.state_size)
    modulations = model.modulations(state)
    assert modulations.shape == (2, config.num_tokens(shape), config.modulation_size)
    assert config.modulation_size == sum(config.modulation_widths)
    assert torch.equal(model.decode(x, state), model.decode_modulated(x, modulations))
    # Affine in the state: forecasts, which are sums with weights of sum 1, commute with the map.
    mean = model.modulations(0.5 * state[:1] + 0.5 * state[1:])
    assert relative(mean, 0.5 * modulations[:1] + 0.5 * modulations[1:]) < 1e-5
    assert torch.equal(model.modulations(torch.zeros_like(state))[0, 0], model.modulation_bias)
    costs = config.multiply_adds(shape)
    assert min(costs.encoder, costs.modulations, costs.decoder) > 0


def test_embedded_models_are_who_they_were() -> None:
    """Schedules and calibrations of earlier versions belong to them by this."""
    known = "a60e5f80f1c4610270af8d1d501c357a2ad2a5cb6a0647f37dfb679968bb32ea"
    assert load_model("cifar10").source.sha256 == known


def test_an_average_without_names_has_no_tables(tmp_path: Path) -> None:
    model = drawn(SMALL_RAE)
    average = [tensor + 1 for tensor in model.state_dict().values()]
    torch.save({"model": published_state(model), "ema": {"shadow_params": average}}, tmp_path / "x.pt")
    loaded = load_model(tmp_path / "x.pt")
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), average, strict=True))


def test_tensors_of_another_family_are_passed_over(tmp_path: Path, caplog) -> None:
    model = drawn(SMALL["ddt"])
    torch.save({**model.state_dict(), "pos_embed": torch.zeros(1, 4, 16)}, tmp_path / "x.pt")
    assert load_model(tmp_path / "x.pt", config=TINY).config == TINY
    assert "pos_embed" in caplog.text


# --- What does not fit. ---


@pytest.mark.parametrize(("held", "told"), [(a, b) for a in FAMILIES for b in FAMILIES if a != b])
def test_a_file_of_one_family_with_a_yaml_of_another(tmp_path: Path, held: str, told: str) -> None:
    torch.save(published_state(drawn(SMALL[held])), tmp_path / "x.pt")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(nested(told, SMALL[told])))
    said = rf"holds a network of {SIGNS[held]}, and the configuration in .*x\.yaml is one of {SETTING[told]}; give"
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="that was given is one of"):
        load_model(tmp_path / "x.pt", config=SMALL[told])


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("rae", {"patch_size": 2}, "patch_size is 2; the published network works with patches of 1 alone"),
        ("rae", {"patch_size": [1, 2]}, r"patch_size is \[1, 2\]; the published"),
        ("rae", {"use_rope": False}, "use_rope is false, with which the published network cannot be run either"),
        ("rae", {"wo_shift": True}, "wo_shift is true, with which the published network cannot be run either"),
        ("rae", {"num_heads": [2, 4]}, "not a multiple of 4, which the 2-D rotary embedding needs"),
        ("rae", {"hidden_size": 16}, "hidden_size is 16; give two whole numbers"),
        ("rae", {"depth": [2, 0]}, r"depth is \[2, 0\]; give two whole numbers"),
        ("rae", {"class_dropout_prob": 1.5}, "class_dropout_prob is 1.5"),
        ("rae", {"mlp_ratio": "wide"}, "mlp_ratio is 'wide'; give a number"),
        ("rae", {"use_qknorm": "no"}, "use_qknorm is 'no'; give true or false"),
        ("pixnerd", {"num_cond_blocks": 3}, "num_cond_blocks is 3 of 3 blocks; the decoder needs at least one"),
        ("pixnerd", {"nerf_mlpratio": 0}, "nerf_mlpratio is 0; give a whole number of at least 1"),
        ("pixnerd", {"nerf_mlpratio": 1.5}, "nerf_mlpratio is 1.5; give a whole number"),
        ("pixnerd", {"num_groups": 8}, "not a multiple of 4"),
        ("pixnerd", {"hidden_size_x": None}, "hidden_size_x is None"),
    ],
)
def test_settings_that_no_network_has(tmp_path: Path, family: str, change: dict[str, Any], said: str) -> None:
    config = {**SMALL[family], **change}
    with pytest.raises(ConfigError, match=said):
        config_of(config)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(nested(family, config)))
    with pytest.raises(ConfigError, match=rf"x\.yaml is not a published configuration of a network\. .*{said}"):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_mapping_lacks_is_said_of_the_family_that_it_is_nearest_to(family: str) -> None:
    for name in FAMILIES[family].needed:
        with pytest.raises(ConfigError, match=f"configuration lacks {name}\\."):
            config_of({key: value for key, value in SMALL[family].items() if key != name})


def test_latents_that_the_network_does_not_take(tmp_path: Path) -> None:
    file = RAE / "DiTDH" / "stage2_model.pt"
    with pytest.raises(ConfigError, match=r"Latents of shape \[8, 12, 12\]: this network takes \[8, 6, 6\] alone"):
        load_model(file, latent_shape=(8, 12, 12))
    with pytest.raises(ConfigError, match=r"Latents of shape \[3, 15, 16\] do not fit"):
        load_model(PIXNERD_FILE, latent_shape=(3, 15, 16))
    case = json.loads((RAE / "case.json").read_text())["stage_2"]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(nested("rae", case, [8, 12, 12])))
    with pytest.raises(ConfigError, match=r"takes \[8, 6, 6\] alone, by its table of positions"):
        load_model(file, config=tmp_path / "x.yaml")
    # The table of positions of other latents than the YAML's, as with the published YAML of the training at 512 px.
    with pytest.raises(CheckpointError, match=r"pos_embed is \[1, 36, 32\], .* By them input_size is 6, not 12\."):
        load_model(file, config={**case, "input_size": 12})


def test_weights_that_tell_too_little(tmp_path: Path) -> None:
    state = drawn(SMALL_PIXNERD).state_dict()
    del state["blocks.0.attn.q_norm.weight"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="cannot be read off the weights, of which some are missing or odd"):
        load_model(tmp_path / "x.pt")
    plain = {n: t for n, t in published_state(drawn(SMALL_RAE)).items() if not n.startswith("s_embedder")}
    torch.save(plain, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no s_embedder, as a DiT without an encoder"):
        load_model(tmp_path / "x.pt")
    torch.save(drawn(SMALL_PIXNERD).state_dict(), tmp_path / "x.pt")
    assert load_model(tmp_path / "x.pt").config == PixNerdConfig(**SMALL_PIXNERD)


def test_a_stage_1_decoder_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no state_dict of a DDT, RAE DiT-DH or PixNerd"):
        load_model(RAE / "stage1" / "decoder" / "model.pt")
    shutil.copy(RAE / "stage1" / "stat.pt", tmp_path / "stat.pt")
    with pytest.raises(CheckpointError, match=r"holds 2 tensors \(mean, var\)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("repository", "path", "modulations", "state"),
    [
        ("MCG-NJU/DDT-XL-22en6de-R256", "", "22.4", "0.59"),
        ("MCG-NJU/PixNerd-XL-P16-C2I", "res512_ft200k_epoch=325-step=1800000_emainit.ckpt", "134", "2.36"),
        (
            "nyu-visionx/RAE-collections",
            "DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt",
            "14.7",
            "1.05",
        ),
    ],
)
def test_what_is_kept_between_refreshes_is_told(repository: str, path: str, modulations: str, state: str) -> None:
    """Megabytes of the published networks, as they were counted by hand."""
    release = release_of(repository, path)
    assert release is not None
    told = checkpoints._kept(release.config, release.latent_shape)
    assert told.startswith(f"{modulations} MB of modulations, or {state} MB of states")


def test_settings_that_compute_the_same_are_the_same_network() -> None:
    """Ratios that lead to the same width, and how often labels were dropped; whether there is a null label is more."""
    settings = {"input_size": 4, "in_channels": 6, "hidden_size": [16, 24], "depth": [2, 1], "num_heads": [2, 3]}
    base = config_of({"family": "rae", **settings})
    for same in ({"mlp_ratio": 4.001}, {"class_dropout_prob": 0.2}):
        assert config_of({"family": "rae", **settings, **same}).essence == base.essence
    for other in ({"mlp_ratio": 3.0}, {"class_dropout_prob": 0.0}, {"use_rmsnorm": False}, {"num_heads": [4, 3]}):
        assert config_of({"family": "rae", **settings, **other}).essence != base.essence


def test_rotary_tables_of_another_network_are_refused(tmp_path: Path) -> None:
    """The published code would turn by them."""
    tensors = torch.load(RAE / "DiTDH" / "stage2_model.pt", weights_only=True)
    tensors[COMPUTED[0]] = torch.ones_like(tensors[COMPUTED[0]])
    torch.save(tensors, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=rf"other tables in {COMPUTED[0]} than follow from its settings"):
        load_model(tmp_path / "net.pt")
