"""Checkpoints of every layout, and what is done with those that cannot or must not be used."""

from __future__ import annotations

import collections
import datetime
import functools
import inspect
import io
import json
import logging
import math
import operator
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import Reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddt_accel import load_model
from ddt_accel.errors import CheckpointError, ConfigError, DDTAccelError
from ddt_accel.networks.archives import PickledCheckpoint
from ddt_accel.networks.checkpoints import describe
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.locate import EMBEDDED, embedded_models
from ddt_accel.networks.split import latent_shape_of


@pytest.fixture(scope="module")
def reference() -> Reference:
    """One of the reference networks is enough here: what differs is the file around it."""
    folder = Path(__file__).parent / "reference" / "small_square"
    case = json.loads((folder / "case.json").read_text())
    return Reference(case=case, tensors={}, checkpoint=folder / "checkpoint.ckpt")


def published(reference) -> dict[str, torch.Tensor]:
    return torch.load(reference.checkpoint, weights_only=True)["state_dict"]


def ema(reference) -> dict[str, torch.Tensor]:
    return {k.removeprefix("ema_denoiser."): v for k, v in published(reference).items() if k.startswith("ema_")}


def same(model: DDT, tensors: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return set(state) == set(tensors) and all(torch.equal(state[name], tensors[name]) for name in tensors)


def test_lightning_ema_by_default_raw_on_request(reference) -> None:
    averaged = load_model(reference.checkpoint, config=reference.config)
    raw = load_model(reference.checkpoint, config=reference.config, weights="raw")
    assert same(averaged, ema(reference))
    for name, tensor in raw.state_dict().items():
        torch.testing.assert_close(tensor, averaged.state_dict()[name] + 0.01)
    with pytest.raises(ConfigError, match="--weights is 'best'"):
        load_model(reference.checkpoint, config=reference.config, weights="best")


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "ema_denoiser._orig_mod.", "module.ema_denoiser.module."],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_plain_files_and_wrapped_names(reference, tmp_path: Path, prefix: str, suffix: str) -> None:
    tensors = {prefix + name: tensor for name, tensor in ema(reference).items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    assert same(load_model(path, config=reference.config), ema(reference))
    assert same(load_model(tmp_path, config=reference.config), ema(reference))


def test_sets_under_keys_of_their_own(reference, tmp_path: Path) -> None:
    """As training scripts without Lightning save them."""
    averaged = ema(reference)
    raw = {name: tensor + 0.01 for name, tensor in averaged.items()}
    torch.save({"model": raw, "ema": averaged, "opt": {"state": {0: torch.zeros(3)}}}, tmp_path / "both.pt")
    assert same(load_model(tmp_path / "both.pt", config=reference.config), averaged)
    assert same(load_model(tmp_path / "both.pt", config=reference.config, weights="raw"), raw)
    torch.save({"state_dict": raw, "model_ema": averaged}, tmp_path / "other.pt")
    assert same(load_model(tmp_path / "other.pt", config=reference.config), averaged)
    torch.save({"model": raw, "ema": None}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"empty place for an average \(ema\)\. --weights raw"):
        load_model(tmp_path / "none.pt", config=reference.config)
    assert same(load_model(tmp_path / "none.pt", config=reference.config, weights="raw"), raw)
    torch.save({"model": raw}, tmp_path / "one.pt")
    assert same(load_model(tmp_path / "one.pt", config=reference.config), raw)
    torch.save({"ema": averaged}, tmp_path / "averaged.pt")
    with pytest.raises(CheckpointError, match="--weights ema takes the averaged ones"):
        load_model(tmp_path / "averaged.pt", config=reference.config, weights="raw")


def test_identity_is_that_of_the_weights_and_the_configuration(reference, tmp_path: Path) -> None:
    def identity(path: Path, weights: str = "ema", **changes: int) -> str:
        return load_model(path, config={**reference.config, **changes}, weights=weights).source.sha256

    safetensors.torch.save_file(ema(reference), tmp_path / "same.safetensors")
    lightning = identity(reference.checkpoint)
    assert identity(tmp_path / "same.safetensors") == lightning
    assert identity(reference.checkpoint, "raw") != lightning
    fewer = reference.config["num_encoder_blocks"] - 1
    assert identity(reference.checkpoint, num_encoder_blocks=fewer) != lightning


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_layout_are_read_as_pytorch_reads_them(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "whole": base, "view": base[1:3, ::2], "transposed": base.t(), "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 3), "half": base.half(), "brain": base.bfloat16(), "flags": base > 3,
        "bytes": torch.arange(3, dtype=torch.uint8), "parameter": torch.nn.Parameter(base[0]),
        "negated": torch._neg_view(base), "conjugated": torch.complex(base, base).conj(),
        "imaginary": torch.complex(base, base).conj().imag,
        "expanded": base[:1].expand(5, 6), "eighth": base.to(torch.float8_e4m3fn) if zipped else base,
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    file = PickledCheckpoint(tmp_path / "x.pt")
    assert set(file.content) == set(expected)
    for name, tensor in expected.items():
        found = file.read(file.content[name])
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert (
            found.contiguous()
            .flatten()
            .view(torch.uint8)
            .equal(tensor.detach().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8))
        ), name


def test_pickled_weights_that_are_called_safetensors(reference, tmp_path: Path) -> None:
    """The content says what a file is."""
    for zipped in (True, False):
        torch.save(ema(reference), tmp_path / "x.safetensors", _use_new_zipfile_serialization=zipped)
        assert same(load_model(tmp_path / "x.safetensors", config=reference.config), ema(reference))


def test_legacy_pickles_without_a_zip(reference, tmp_path: Path) -> None:
    torch.save({"state_dict": published(reference)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(load_model(tmp_path / "old.pt", config=reference.config), ema(reference))


@pytest.mark.parametrize("name", ["model.yaml", "config.yaml", "anything.yml"])
def test_a_published_yaml_beside_the_file(reference, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.ckpt").write_bytes(reference.checkpoint.read_bytes())
    init = {"class_path": "src.models.denoiser.DDT", "init_args": {**reference.config, "learn_sigma": True}}
    content = {"model": {"denoiser": init}, "data": {"latent_shape": reference.case["latent_shape"]}}
    (tmp_path / name).write_text(yaml.safe_dump(content))
    model = load_model(tmp_path / "model.ckpt")
    assert same(model, ema(reference))
    assert model.source.latent_shape == tuple(reference.case["latent_shape"])
    (tmp_path / name).write_text("model: !!python/object/apply:os.system ['true']")
    said = "number of encoder blocks" if name == "anything.yml" else "not a published configuration of a network"
    with pytest.raises(ConfigError, match=said):
        load_model(tmp_path / "model.ckpt")


def test_without_a_configuration_it_says_what_to_give(reference) -> None:
    with pytest.raises(ConfigError, match="number of encoder blocks cannot be read off"):
        load_model(reference.checkpoint)
    with pytest.raises(ConfigError, match="lacks num_encoder_blocks"):
        load_model(
            reference.checkpoint, config={k: v for k, v in reference.config.items() if k != "num_encoder_blocks"}
        )
    with pytest.raises(ConfigError, match="do not fit"):
        load_model(reference.checkpoint, config=reference.config, latent_shape=(1, 8, 8))


def test_tensors_that_do_not_fit_are_listed(reference, tmp_path: Path) -> None:
    tensors = ema(reference)
    tensors["blocks.0.norm1.bias"] = torch.zeros(3)
    del tensors["final_layer.linear.bias"]
    tensors["x_embedder.proj.bias"] = torch.zeros(5)
    torch.save(tensors, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "odd.pt", config=reference.config)
    for phrase in ("missing final_layer.linear.bias", "extra blocks.0.norm1.bias", "x_embedder.proj.bias is [5]"):
        assert phrase in str(caught.value)


def test_weights_that_are_not_finite_are_refused(reference, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in ema(reference).items()}
    tensors["blocks.1.mlp.w1.weight"][0, 0] = float("nan")
    torch.save(tensors, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"NaN, infinity or .* in blocks\.1\.mlp\.w1\.weight"):
        load_model(tmp_path / "nan.pt", config=reference.config)


def test_foreign_classes_still_yield_the_tensors(reference, tmp_path: Path) -> None:
    """As Lightning saves them: settings objects of packages that are not installed here."""
    module = types.ModuleType("some_trainer")
    exec(
        "import enum, functools\n"
        "class Settings(dict):\n    def __init__(self, **kw): super().__init__(**kw); self.extra = [1]\n"
        "class Mode(enum.Enum):\n    A = 1\n"
        "class Listed(list): pass\n"
        "class Outer:\n    class Inner: pass\n    def method(self): pass\n"
        "class Plain:\n    def __reduce__(self): return make, (1, 2), {'x': 3}\n"
        "def make(*a): return Plain()\n",
        module.__dict__,
    )
    sys.modules["some_trainer"] = module
    try:
        extras = {
            "hyper_parameters": module.Settings(rate=1e-4, path=Path("/data"), step=module.make),
            "mode": module.Mode.A,
            "listed": module.Listed([1, 2]),
            "plain": module.Plain(),
            "args": types.SimpleNamespace(a=1, kind=type(None), given=..., either=int | None, many=list[int]),
            "nested": module.Outer.Inner(),
            "bound": module.Outer().method,
            "logger": logging.getLogger("trainer"),
            "set": {1, "two", (3, 4)},
            "keys": {(1, 2): 3, 4: 5, None: 6},
        }
        torch.save({**extras, "state_dict": published(reference)}, tmp_path / "x.ckpt")
    finally:
        del sys.modules["some_trainer"]
    assert same(load_model(tmp_path / "x.ckpt", config=reference.config), ema(reference))
    assert "some_trainer" not in sys.modules


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "template"),
    [
        (os.system, "touch {}"),
        (eval, "open({!r}, 'w')"),
        (exec, "open({!r}, 'w')"),
        (subprocess.check_call, ["touch", "{}"]),
        (os.mkdir, "{}"),
        (open, "{}"),
        (__import__, "antigravity"),
    ],
)
def test_nothing_in_a_pickle_is_run_and_its_tensors_come_out(
    reference, tmp_path: Path, function, template, zipped: bool
) -> None:
    marker = tmp_path / "marker"
    argument = (
        [part.format(marker) for part in template] if isinstance(template, list) else template.format(str(marker))
    )
    arguments = (argument, "w") if function is open else (argument,)
    content = {"state_dict": published(reference), "callbacks": [Calls(function, *arguments)]}
    torch.save(content, tmp_path / "bad.ckpt", _use_new_zipfile_serialization=zipped)
    assert same(load_model(tmp_path / "bad.ckpt", config=reference.config), ema(reference))
    assert not marker.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_harmless_names_of_the_standard_library(reference, tmp_path: Path, protocol: int) -> None:
    content = {
        "join": os.path.join, "add": operator.add, "pi": math.sqrt, "draw": random.random, "state": random.getstate(),
        "empty": inspect.Parameter.empty, "signature": inspect.signature(same), "pattern": re.compile("a+"),
        "array": np.arange(6.0), "generator": np.random.default_rng(0).bit_generator.state, "bytes": bytearray(b"ab"),
        "counts": collections.Counter("abc"), "when": datetime.datetime(2025, 1, 1), "lock": functools.partial(max, 1),
        "state_dict": published(reference),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.ckpt", pickle_protocol=protocol)
    assert same(load_model(tmp_path / "x.ckpt", config=reference.config), ema(reference))


class Held(dict[str, Any]):
    """A dict of another package, as trainers keep settings and weights in."""


class Averager:
    """An object that was pickled whole, with its average inside."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.decay, self.shadow_params, self.owner = 0.99, tensors, self


def test_tensors_inside_of_objects_are_found(reference, tmp_path: Path) -> None:
    averaged = ema(reference)
    raw = {name: tensor + 0.01 for name, tensor in averaged.items()}
    torch.save({"model": Held(raw), "ema": Averager(list(averaged.values()))}, tmp_path / "x.pt")
    assert same(load_model(tmp_path / "x.pt", config=reference.config), averaged)
    assert same(load_model(tmp_path / "x.pt", config=reference.config, weights="raw"), raw)
    network = DDT(DDTConfig(**reference.config))
    network.load_state_dict(averaged)
    torch.save(network, tmp_path / "whole.pt")
    assert same(load_model(tmp_path / "whole.pt", config=reference.config), averaged)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("order", ["C", "F", ">"])
def test_weights_as_numpy_arrays(reference, tmp_path: Path, protocol: int, order: str) -> None:
    dtype, layout = (">f4", "C") if order == ">" else ("<f4", order)
    arrays = {name: np.array(tensor.numpy(), dtype, order=layout) for name, tensor in ema(reference).items()}
    torch.save({"state_dict": arrays, "objects": np.array([None, {}])}, tmp_path / "x.pt", pickle_protocol=protocol)
    assert same(load_model(tmp_path / "x.pt", config=reference.config), ema(reference))


def test_quantised_weights_are_no_weights(reference, tmp_path: Path) -> None:
    tensors = ema(reference)
    tensors["blocks.0.attn.qkv.weight"] = tensors["blocks.0.attn.qkv.weight"].to(torch.int8)
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"qkv\.weight holds torch\.int8, expected floating point"):
        load_model(tmp_path / "x.pt", config=reference.config)


@pytest.mark.filterwarnings("ignore")  # PyTorch's of its own quantised tensors
@pytest.mark.parametrize("kind", ["quantised", "sparse", "sparse rows"])
def test_unusual_tensors_are_called_what_they_are(reference, tmp_path: Path, kind: str) -> None:
    """Not missing; and what makes ordinary ones of them loads."""
    ways = {
        "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.01, 0, torch.qint8),
        "sparse": torch.Tensor.to_sparse,
        "sparse rows": torch.Tensor.to_sparse_csr,
    }
    tensors = {name: ways[kind](tensor) if tensor.ndim == 2 else tensor for name, tensor in ema(reference).items()}
    torch.save(tensors, tmp_path / "x.pt")
    back = "dequantize" if kind == "quantised" else "to_dense"
    named = rf"as {kind.split()[0]} tensors \(x_embedder\.proj\.weight, .*{back}"
    with pytest.raises(CheckpointError, match=named) as refused:
        load_model(tmp_path / "x.pt", config=reference.config)
    assert "missing" not in str(refused.value)
    ordinary = {name: getattr(tensor, back)() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    torch.save(ordinary, tmp_path / "x.pt")
    assert same(load_model(tmp_path / "x.pt", config=reference.config), ordinary)


def test_a_list_that_fits_no_order_is_called_one(reference, tmp_path: Path) -> None:
    averaged = ema(reference)
    sorted_raw = {name: averaged[name] + 0.01 for name in sorted(averaged)}
    buffered = {"blocks.0.table": torch.zeros(3, 3), **averaged}
    for raw in (sorted_raw, buffered):
        torch.save({"model": raw, "ema": {"decay": 0.9, "shadow_params": list(averaged.values())}}, tmp_path / "x.pt")
        said = rf"a list of {len(averaged)} averaged tensors without names \(ema\.shadow_params\), .*save the average"
        with pytest.raises(CheckpointError, match=said) as refused:
            load_model(tmp_path / "x.pt", config=reference.config)
        assert "shadow_params.0" not in str(refused.value)
    # What is no part of the network stands in no order of its weights.
    beside = {"table": torch.zeros(3, 3), **{name: tensor + 0.01 for name, tensor in averaged.items()}}
    torch.save({"model": beside, "ema": {"decay": 0.9, "shadow_params": list(averaged.values())}}, tmp_path / "x.pt")
    assert same(load_model(tmp_path / "x.pt", config=reference.config), averaged)


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",
        b'c__builtin__\neval\n(S\'open("{}", "w")\'\ntR.',
        b"cposix\nsystem\n(S'touch {}'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.",
        b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93\x8c\x01x\x85R.",
        b"ccollections\nOrderedDict.fromkeys.__self__\n(tR.",
        # An instance of a real class with keyword arguments, the state of a real function, a huge memo, a huge buffer.
        b"\x80\x04ctorch\nUntypedStorage\n)}X\x09\x00\x00\x00allocatorK\x01s\x92.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__K\x07sb.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97\x98.",
        # Dicts in dicts that double at every level.
        b"\x80\x02}" + b"".join(b"q%c}(U\x01ah%cU\x01bh%cu" % (n, n, n) for n in range(99)) + b".",
        # Keys that hashing would not survive, and a dict that holds itself.
        b"\x80\x02}(" + b")" + b"\x85" * 30_000 + b"K\x01u.",
        b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.",
        b"not a pickle at all",
        b"",
    ],
)
def test_raw_pickles_are_refused(reference, tmp_path: Path, program: bytes) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "bad.pt").write_bytes(program.replace(b"{}", str(marker).encode()))
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "bad.pt", config=reference.config)
    assert not marker.exists()
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults
    # The same where the weights are whole and the program is a part of the archive's pickle.
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("x/data.pkl", program)
    (tmp_path / "bad.pt").write_bytes(bomb.getvalue())
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "bad.pt", config=reference.config)


def test_tar_archives_are_refused_without_a_look_inside(tmp_path: Path) -> None:
    """PyTorch before 0.2 wrote them; a member can be a link to anywhere."""
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        member = tarfile.TarInfo("storages")
        member.type = tarfile.FIFOTYPE
        archive.addfile(member)
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "old.pt")


def test_tensors_beyond_their_storage_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    wider = {name: data.replace(b"K\x04\x85", b"K\x05\x85") for name, data in records.items()}
    assert wider != records
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for name, data in wider.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="reaches beyond its storage"):
        load_model(tmp_path / "b.pt")


@pytest.mark.parametrize("function", ["type", "getattr"])
def test_what_honest_files_also_name_is_not_run_either(reference, tmp_path: Path, function: str) -> None:
    marker = tmp_path / "marker"
    program = f"cbuiltins\n{function}\n(S'open'\nS'{marker}'\ntR."
    with zipfile.ZipFile(tmp_path / "y.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", program)
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "y.ckpt", config=reference.config)
    assert not marker.exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_other_number_formats(reference, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in ema(reference).items()}
    torch.save(tensors, tmp_path / "x.pt")
    assert same(
        load_model(tmp_path / "x.pt", config=reference.config), {name: t.float() for name, t in tensors.items()}
    )
    if dtype == torch.float64:
        tensors["blocks.0.attn.qkv.weight"][0, 0] = 1e300
        torch.save(tensors, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="beyond float32"):
            load_model(tmp_path / "x.pt", config=reference.config)


def test_a_foreign_yaml_beside_the_file_is_no_trouble(reference, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(reference.checkpoint.read_bytes())
    (tmp_path / "docker-compose.yaml").write_text("services: {}")
    assert same(load_model(tmp_path / "model.ckpt", config=reference.config), ema(reference))
    with pytest.raises(ConfigError, match="number of encoder blocks"):
        load_model(tmp_path / "model.ckpt")
    (tmp_path / "model.yaml").write_text("services: {}")
    assert same(load_model(tmp_path / "model.ckpt", config=reference.config), ema(reference))
    with pytest.raises(ConfigError, match="not a published configuration of a network"):
        load_model(tmp_path / "model.ckpt")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "program.pt"))
    with pytest.raises(CheckpointError, match="TorchScript program"):
        load_model(tmp_path / "program.pt")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_lightning_files_never_give_other_weights(reference, tmp_path: Path, data: st.DataObject) -> None:
    damaged = damage(reference.checkpoint.read_bytes(), data)
    (tmp_path / "damaged.ckpt").write_bytes(damaged)
    try:
        model = load_model(tmp_path / "damaged.ckpt", config=reference.config)
    except CheckpointError:
        return
    assert same(model, ema(reference))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_never_give_other_weights(tiny_model_path, tmp_path: Path, data: st.DataObject) -> None:
    original = load_model(tiny_model_path)
    (tmp_path / "damaged.safetensors").write_bytes(damage(tiny_model_path.read_bytes(), data))
    try:
        model = load_model(tmp_path / "damaged.safetensors")
    except DDTAccelError:
        return
    assert same(model, original.state_dict())


def damage(whole: bytes, data: st.DataObject) -> bytes:
    if data.draw(st.booleans(), label="truncate"):
        return whole[: data.draw(st.integers(0, len(whole) - 1), label="length")]
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1), label="byte")] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    return bytes(damaged)


def test_embedded_models_load_and_keep_to_their_limits() -> None:
    assert "cifar10" in embedded_models()
    for name in embedded_models():
        model = load_model(name)
        counted = model.config.multiply_adds(latent_shape_of(model))
        assert counted.encoder + counted.modulations >= 3 * counted.decoder
        assert len(model.source.class_names) == model.config.num_classes
        assert (EMBEDDED / f"{name}.safetensors").stat().st_size <= 10e6
        facts = describe(EMBEDDED / f"{name}.safetensors")
        assert facts["dtypes"] == ["float16"]
        assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("source", ["cifar11", "absent.ckpt", "some/folder/with/parts"])
def test_unknown_names_list_what_there_is(source: str) -> None:
    with pytest.raises(CheckpointError, match="cifar10"):
        load_model(source)


def test_a_folder_must_hold_one_checkpoint(reference, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        load_model(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).write_bytes(reference.checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match=r"a\.ckpt, b\.ckpt"):
        load_model(tmp_path)


@pytest.mark.slow
def test_a_hub_repository_is_found_in_the_local_cache(reference, tmp_path: Path) -> None:
    """The hub's own client resolves it; offline, out of a cache as that client lays it out."""
    folder = tmp_path / "models--someone--ddt"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    (snapshot / "model.ckpt").write_bytes(reference.checkpoint.read_bytes())
    content = {"model": {"denoiser": {"init_args": reference.config}}}
    (snapshot / "config.yaml").write_text(yaml.safe_dump(content))
    code = (
        "import ddt_accel; from ddt_accel.errors import CheckpointError\n"
        "print(ddt_accel.load_model('someone/ddt').source.name)\n"
        "try: ddt_accel.load_model('someone/absent')\n"
        "except CheckpointError as error: print('refused', error)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = result.stdout.strip().splitlines()
    assert first == "someone/ddt"
    assert second.startswith("refused someone/absent is no local file")


def test_a_pickled_list_is_no_checkpoint(tmp_path: Path) -> None:
    for content in ([1, 2], {"a": 1}, {"state_dict": {}}, 5):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(CheckpointError, match="no state_dict"):
            load_model(tmp_path / "odd.pt")
    (tmp_path / "odd.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "odd.pt")
