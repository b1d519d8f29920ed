"""Sets of weights are told apart whatever a training script calls them, and raw ones never pass for an average."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddt_accel import load_model
from ddt_accel.errors import CheckpointError, DDTAccelError
from ddt_accel.networks.checkpoints import describe
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.layout import NETWORK

CONFIG = DDTConfig(
    in_channels=1, patch_size=1, num_groups=1, hidden_size=8, num_blocks=2, num_encoder_blocks=1, num_classes=2
)
Tensors = dict[str, Tensor]


def drawn(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in DDT(CONFIG).state_dict().items()}


AVERAGE, RAW = drawn(0), drawn(1)
AVERAGES = ["ema", "model_ema", "ema_model", "ema_weights", "params_ema", "ema_state_dict", "state_dict_ema", "EMA",
            "ema_0.9999", "averaged_model", "swa_model", "netG_ema", "_ema_model_weights"]  # fmt: skip
WRAPPERS = ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "model.", "net.", "diffusion_model."]
INNER = ["_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_orig_mod.", "module.", "_fpw_module."]
TRAINING = {
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-4}]},
    "epoch": 3,
    "args": SimpleNamespace(ema_decay=0.99, path=Path("/data")),
    "rng_state": torch.zeros(16, dtype=torch.uint8),
}


def same(path: Path, tensors: Tensors, weights: str = "ema") -> bool:
    state = load_model(path, config=CONFIG, weights=weights).state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def refused(path: Path, weights: str = "ema") -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, config=CONFIG, weights=weights)
    said = str(caught.value)
    assert len(said) < 1200
    return said


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_dots(tensors: Tensors) -> Tensors:
    return {name.replace(".", ""): tensor for name, tensor in tensors.items()}


# Each makes a checkpoint of the raw weights and their average, given the average's name.
PAIRS: dict[str, Callable[[Tensors, Tensors, str], dict[str, Any]]] = {
    "beside": lambda raw, average, name: {"model": raw, name: average},
    "state dicts": lambda raw, average, name: {"state_dict": raw, name: {"state_dict": average}},
    "a list": lambda raw, average, name: {
        "model": raw,
        name: {"decay": 0.99, "num_updates": 7, "shadow_params": list(average.values()), "collected_params": None},
    },
    "in one dict": lambda raw, average, name: {**prefixed(raw, "net."), **prefixed(average, f"{name}.")},
    "Lightning": lambda raw, average, name: {
        "state_dict": {**prefixed(raw, "denoiser."), **prefixed(average, f"{name}.")}
    },
    "without dots": lambda raw, average, name: {
        "state_dict": {**prefixed(raw, "model.diffusion_model."), "model_ema.decay": torch.tensor(0.99),
                       **prefixed(without_dots(average), "model_ema.diffusion_model")}
    },
    "averaged model": lambda raw, average, _: {
        "net": raw, "second": {"n_averaged": torch.tensor(9), **prefixed(average, "module.")}
    },
    "Lightning's callback": lambda raw, average, _: {
        "state_dict": prefixed(average, "net."), "current_model_state": prefixed(raw, "net."),
        "averaging_state": {"n_averaged": torch.tensor(9)},
    },
    "ema-pytorch": lambda raw, average, name: {
        name: {"initted": torch.tensor(True), "step": torch.tensor(4), **prefixed(raw, "online_model."),
               **prefixed(average, "ema_model.")}
    },
}  # fmt: skip


def flattened(content: dict[str, Any], prefix: str = "") -> Tensors:
    """As a converter to safetensors does it."""
    flat: Tensors = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            flat[prefix + str(key)] = value.contiguous()
    return flat


def write(content: dict[str, Any], folder: Path, kind: str) -> Path:
    """One file, or several and their index; returns what to give."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if kind in (".ckpt", ".pt", ".PTH", ".pth.tar", ".bin", "without a suffix"):
        path = folder / f"model{kind if kind.startswith('.') else ''}"
        torch.save(content, path, _use_new_zipfile_serialization=kind != ".pth.tar")
        return path
    flat = {name: tensor.clone() for name, tensor in flattened(content).items()}
    if kind == ".safetensors":
        safetensors.torch.save_file(flat, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = list(flat)
    homes = {name: f"model-0000{1 + (names.index(name) * 2 // len(names))}-of-00002" for name in names}
    suffix = ".bin" if kind == "shards of PyTorch" else ".safetensors"
    for home in set(homes.values()):
        part = {name: flat[name] for name in names if homes[name] == home}
        torch.save(part, folder / (home + suffix)) if suffix == ".bin" else safetensors.torch.save_file(
            part, folder / (home + suffix)
        )
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {name: homes[name] + suffix for name in names}}))
    return folder if kind == "shards by folder" else index


@st.composite
def wrapped(draw: st.DrawFn) -> Callable[[Tensors], Tensors]:
    """A renaming that wrappers make: prefixes that all names share, and some in the middle."""
    outer = "".join(draw(st.lists(st.sampled_from(WRAPPERS), max_size=3)))
    inner = draw(st.sampled_from(["", *INNER]))
    heads = draw(st.booleans())

    def rename(tensors: Tensors) -> Tensors:
        renamed = {outer + name.replace("blocks.0.", f"blocks.0.{inner}"): tensor for name, tensor in tensors.items()}
        head = {outer + "projectors.0.weight": next(iter(tensors.values())).clone()}
        return renamed | (head if heads else {})

    return rename


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_layout_gives_the_right_weights(tmp_path: Path, data: st.DataObject) -> None:
    rename = data.draw(wrapped(), label="wrappers")
    raw, average = rename(RAW), rename(AVERAGE)
    layout = data.draw(st.sampled_from([*PAIRS, "one", "training", "unknown"]), label="layout")
    named = data.draw(st.sampled_from(AVERAGES), label="name")
    kinds = [".ckpt", ".pt", ".PTH", ".pth.tar", ".bin", "without a suffix"]
    if layout not in ("a list", "training"):
        kinds += [".safetensors", "shards", "shards by folder", "shards of PyTorch"]
    kind = data.draw(st.sampled_from(kinds), label="file")
    if layout == "one":
        container = data.draw(st.sampled_from(["", "model", "state_dict", "module", "params"]), label="container")
        path = write({container: average} if container else average, tmp_path / "x", kind)
        assert same(path, AVERAGE)
        assert same(path, AVERAGE, "raw")
    elif layout == "training":
        path = write({"model": raw, **TRAINING}, tmp_path / "x", kind)
        said = refused(path)
        assert "No averaged weights were found" in said
        assert "--weights raw takes" in said
        assert "optimizer" in said
        assert same(path, RAW, "raw")
    elif layout == "unknown":
        path = write({"model": raw, "second": average}, tmp_path / "x", kind)
        outer = next(iter(raw)).removesuffix(next(iter(RAW)))
        said = refused(path)
        assert "several sets of weights" in said
        assert "--weights NAME" in said
        name = said.partition("such as --weights ")[2].split()[0]
        assert name.startswith("model")
        assert same(path, RAW, name), outer
    else:
        content = PAIRS[layout](raw, average, named)
        if data.draw(st.booleans(), label="training beside"):
            content |= TRAINING
        path = write(content, tmp_path / "x", kind)
        assert same(path, AVERAGE)
        assert same(path, RAW, "raw")


@functools.cache
def old_pickle() -> bytes:
    """A whole module, a list, arrays and foreign objects, without the zip archive of today."""
    arrays = {name: tensor.numpy() for name, tensor in AVERAGE.items()}
    content = {"model": DDT(CONFIG), "ema": {"shadow_params": list(AVERAGE.values())}, "more": arrays, **TRAINING}
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_to_old_pickles_is_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    """They have no checksum: the pickle's machine runs whatever the damage has made of it."""
    whole = bytearray(old_pickle())
    for _ in range(data.draw(st.integers(1, 3), label="damages")):
        whole[data.draw(st.integers(0, 9000), label="place")] = data.draw(st.integers(0, 255), label="byte")
    path = tmp_path / "x.pt"
    path.write_bytes(whole)
    for read in (lambda: load_model(path, config=CONFIG), lambda: describe(path)):
        with contextlib.suppress(DDTAccelError):
            read()


def test_the_networks_names_are_those_of_the_network() -> None:
    assert {name for name, _ in DDT(CONFIG).named_children()} == NETWORK


MOMENTS = ["grad_avg", "avg_grads", "averageGradient", "ema_momentum", "avg_sq", "ema_var", "exp_avg_slow"]


@pytest.mark.parametrize(
    "content",
    [
        {"model": RAW, "opt": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"model": RAW, "ema": None},
        {"model": RAW, "model_ema": {}},
        {"state_dict": prefixed(RAW, "denoiser.")},
        {"state_dict": {**prefixed(RAW, "net."), "loss.lpips.weight": torch.ones(4)}},
        {"model": RAW, "ema": {"shadow_params": list(AVERAGE.values())[1:]}},
        {"model": RAW, "ema": dict(list(AVERAGE.items())[-3:])},
        {"model": RAW, "no_ema": AVERAGE},
        *({"model": RAW, name: AVERAGE} for name in MOMENTS),
        {"model": RAW, "ema": {"grad": AVERAGE}},
    ],
)
def test_raw_weights_are_not_taken_for_an_average(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "x.pt")
    said = refused(tmp_path / "x.pt")
    assert "--weights raw" in said
    if "no_ema" not in content:
        assert same(tmp_path / "x.pt", RAW, "raw")


def test_optimiser_states_beside_the_file_tell_of_a_training(tmp_path: Path) -> None:
    """As Accelerate saves them."""
    safetensors.torch.save_file(RAW, tmp_path / "model.safetensors")
    assert same(tmp_path, RAW)
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    torch.save({}, tmp_path / "scheduler.bin")
    assert "optimizer.bin" in refused(tmp_path)
    assert same(tmp_path, RAW, "raw")


def test_integers_beside_a_plain_state_dict_are_no_sign_of_a_training(tmp_path: Path) -> None:
    torch.save({**AVERAGE, "rng_state": torch.zeros(16, dtype=torch.uint8), "ids": torch.arange(4)}, tmp_path / "x.pt")
    assert same(tmp_path / "x.pt", AVERAGE)


def test_several_averages_are_named_or_equal(tmp_path: Path) -> None:
    torch.save({"model": RAW, "ema_0.99": RAW, "ema_0.9999": AVERAGE}, tmp_path / "x.pt")
    said = refused(tmp_path / "x.pt")
    assert "ema_0.99 (averaged), ema_0.9999 (averaged)" in said
    assert same(tmp_path / "x.pt", AVERAGE, "ema_0.9999")
    copy = {name: tensor.clone() for name, tensor in AVERAGE.items()}
    torch.save({"model": RAW, "ema_model": AVERAGE, "model_ema": copy}, tmp_path / "x.pt")
    assert same(tmp_path / "x.pt", AVERAGE)


def test_a_file_without_raw_weights_says_so(tmp_path: Path) -> None:
    torch.save({"ema": AVERAGE}, tmp_path / "x.pt")
    assert "--weights ema takes the averaged ones (weights='ema' in Python)" in refused(tmp_path / "x.pt", "raw")


def test_what_is_left_out_is_said(tmp_path: Path, caplog) -> None:
    """Counters of an averaged model, and projectors of REPA under both sets."""
    heads = {f"projectors.{n}.weight": torch.ones(2, 3) for n in range(6)}
    torch.save(
        {"model": {**RAW, **heads}, "ema": {"n_averaged": torch.tensor(1), **prefixed(AVERAGE, "module."), **heads}},
        tmp_path / "x.pt",
    )
    with caplog.at_level(logging.WARNING):
        assert same(tmp_path / "x.pt", AVERAGE)
    (record,) = caplog.records
    assert "ema.n_averaged, ema.projectors.0.weight" in record.getMessage()
    assert "and 3 more" in record.getMessage()
    facts = describe(tmp_path / "x.pt")
    assert facts["weights"] == ["model (raw)", "ema (averaged)"]
    assert facts["parameters"] == sum(tensor.numel() for tensor in RAW.values())
    assert "projectors.0.weight" in facts["left out"]
    caplog.clear()
    torch.save({"model": RAW, "ema": AVERAGE, **TRAINING}, tmp_path / "y.pt")
    assert same(tmp_path / "y.pt", AVERAGE)
    assert not caplog.records
    assert describe(tmp_path / "y.pt")["parameters"] == facts["parameters"]


def test_the_networks_own_names_stay_strict(tmp_path: Path) -> None:
    names = list(AVERAGE)
    torch.save({"ema": {name: AVERAGE[name] for name in names[:-8]}}, tmp_path / "x.pt")
    said = refused(tmp_path / "x.pt")
    assert f"8 differ: missing {', '.join(names[-8:-4])} and 4 more" in said
    torch.save({**AVERAGE, "blocks.2.norm1.weight": torch.ones(8)}, tmp_path / "x.pt")
    assert "extra blocks.2.norm1.weight" in refused(tmp_path / "x.pt")
    doubled = {"_orig_mod." + names[0]: RAW[names[0]], **AVERAGE}
    torch.save(doubled, tmp_path / "x.pt")
    assert f"several tensors under one name in its weights unnamed: {names[0]}" in refused(tmp_path / "x.pt")


def test_sizes_that_cannot_be_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    torch.save(AVERAGE, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x_embedder\.proj\.weight is \[8, 1\], expected \[4000000, 1\]"):
        load_model(tmp_path / "x.pt", config={**asdict(CONFIG), "hidden_size": 4_000_000})


def test_another_network_is_none(tmp_path: Path) -> None:
    torch.save({f"encoder.{n}.weight" + "t" * 10**n: torch.ones(2) for n in range(6)}, tmp_path / "x.pt")
    said = refused(tmp_path / "x.pt")
    assert "holds no state_dict of a DDT" in said
    assert "6 tensors (encoder.0.weight" in said
    assert describe(tmp_path / "x.pt")["weights"] == ["none of a DDT, RAE DiT-DH or PixNerd"]


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"])
def test_a_missing_shard_is_a_sentence(tmp_path: Path, lost: str) -> None:
    index = write({"model": AVERAGE}, tmp_path / "x", "shards")
    (tmp_path / "x" / lost).unlink()
    for given_path in (index, tmp_path / "x"):
        assert f"{lost} cannot be found" in refused(given_path)


def test_shards_without_an_index_and_by_one_of_them(tmp_path: Path) -> None:
    index = write({"model": AVERAGE}, tmp_path / "x", "shards")
    assert same(tmp_path / "x" / "model-00002-of-00002.safetensors", AVERAGE)
    index.unlink()
    assert same(tmp_path / "x", AVERAGE)
    assert same(tmp_path / "x" / "model-00002-of-00002.safetensors", AVERAGE)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}', "{" * 9999])
def test_an_index_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "index.json is" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "gzip"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"solid", "whatever its name"),
        (b"PK\x03\x04" + bytes(90), "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".weights"])
def test_what_is_no_checkpoint_says_what_it_is(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    told = refused(tmp_path / f"x{suffix}")
    assert said in told or (suffix == ".safetensors" and "not a safetensors file" in told)
