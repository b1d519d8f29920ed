"""TensorRT engines, built here without a GPU: what they compute, in which types, and what is said of them."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddt_accel import SamplingSpec, Schedule, draw_noise, export, load_model, open_backend, sample
from ddt_accel.artifacts import read_arrays
from ddt_accel.backends.manifest import (
    ENGINE_LIBRARIES,
    REFERENCE_FORMAT,
    REFERENCE_VERSION,
    Engine,
    Manifest,
    reference_name,
)
from ddt_accel.backends.networks import DecoderNetwork, EncoderNetwork
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.tensorrt import check_engine
from ddt_accel.backends.tensors import Cut, tensor_table
from ddt_accel.errors import ConfigError, DependencyError, MismatchError, ParityError
from ddt_accel.exporting import engines as building
from ddt_accel.exporting import export as exporting
from ddt_accel.exporting.engines import EngineOptions, build_engine, find_library
from ddt_accel.exporting.onnx import write_network
from ddt_accel.exporting.reference import AT, reference_points
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.dynamic.widths import narrow
from ddt_accel.networks.families import prepare
from ddt_accel.networks.layers import attend_written_out
from ddt_accel.networks.prepared import Arithmetic
from ddt_accel.networks.prepared_layers import PreparedBlock

builds = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed"
)
SHAPE, LATENTS = (3, 8, 8), (3, 32, 32)  # of the tiny model, of the embedded one
RTX = EngineOptions(engine="tensorrt-rtx", batches=((1, 2, 4),))


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def shallow() -> DDT:
    """Three blocks of the embedded model: one more takes the exporter seconds, and shows nothing that these do not."""
    whole = load_model("cifar10")
    few = DDT(dataclasses.replace(whole.config, num_blocks=3, num_encoder_blocks=2))
    few.load_state_dict(whole.state_dict(), strict=False)
    few.blocks[-1] = whole.blocks[-1]  # a decoder's
    return few.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def engines(shallow, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    options = dataclasses.replace(RTX, timing_cache=folder.parent / "timing.cache")
    export(shallow, folder, format="tensorrt", precision="bf16", latent_shape=LATENTS, engines=options)
    return folder


@builds
def test_engines_say_what_they_are(engines, shallow) -> None:
    manifest, library = Manifest.load(engines), find_library("tensorrt-rtx")
    assert (manifest.format, manifest.precision, manifest.cache, manifest.sources) == (
        "tensorrt", "bf16", "modulations", 2
    )  # fmt: skip
    assert set(manifest.files) == {"encoder.engine", "decoder.engine", reference_name(1.0)}
    engine = manifest.engine
    assert (engine.library, engine.version, engine.gpu) == (library.name, library.version, None)
    assert engine.batches == ((1, 2, 4),)
    assert engine.verified is None
    assert 0 < max(manifest.parity.values()) < exporting.TOLERANCE["bf16"]
    assert [name for name, _, _ in manifest.tensors["decoder"]] == [
        "latents", "modulations_1", "modulations_2", "weights", "constant", "velocity"
    ]  # fmt: skip
    # Smaller than in float32, weights alone: they are really in the file, and in half the size.
    weights = sum(parameter.numel() for parameter in shallow.parameters())
    assert 2 * weights < sum((engines / f"{name}.engine").stat().st_size for name in ("encoder", "decoder"))


@builds
def test_products_are_in_the_precision_that_was_asked_for(engines) -> None:
    """All but the two of the timestep embedding: six a block, both modulations, patches in and patches out."""
    config = Manifest.load(engines).config
    assert Manifest.load(engines).engine.products == {
        "encoder": {"BF16": 6 * config.num_encoder_blocks + 3, "FLOAT": 2},
        "decoder": {"BF16": 6 * config.num_decoder_blocks + 2},
    }


@builds
def test_attention_can_be_fused(model, tmp_path, monkeypatch) -> None:
    """Nothing stands between scores and softmax; scaled there, as it is usually written, the export would not pass."""
    layers: list[str] = []

    def counted(trt, network) -> None:
        layers.extend(str(network.get_layer(k).type) for k in range(network.num_layers))
        check(trt, network)

    check = building._check_attention
    monkeypatch.setattr(building, "_check_attention", counted)
    export(model, tmp_path, format="tensorrt", precision="bf16", engines=RTX)
    assert sum("SOFTMAX" in one for one in layers) == model.config.num_blocks
    monkeypatch.setattr(exporting, "write_network", write_network)  # anew: no network tells what its code is
    monkeypatch.setattr(PreparedBlock, "_attend", lambda self, *given: attend_written_out(*given))
    with pytest.raises(ConfigError, match="stands between scores and softmax"):
        export(model, tmp_path, format="tensorrt", precision="bf16", engines=RTX)


@builds
def test_engines_need_a_gpu(engines) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        open_backend(engines)


@builds
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_engines_draw_the_pictures_that_pytorch_draws(engines, shallow) -> None:
    """Verified at the first opening, and on a guided trajectory with forecasts from both branches' own refreshes."""
    backend = open_backend(engines)
    assert 0 < Manifest.load(engines).engine.verified < exporting.TOLERANCE["bf16"]
    spec = SamplingSpec(num_steps=8, solver="ab2")
    schedule = Schedule(
        spec=spec, refresh_steps=(0, 2, 5), forecasts={3: ((0, -0.4), (2, 1.4)), 6: ((5, 1.0),)},
        unconditional_steps=(2, 4), unconditional_forecasts={6: ((2, -1.0), (4, 2.0))},
    )  # fmt: skip
    noise, labels = draw_noise(LATENTS, seed=4, indices=range(2)), torch.tensor([1, 7])
    expected = sample(shallow, schedule, noise, labels)
    got = sample(backend, schedule, noise, labels).cpu()
    assert (got - expected).norm() < 0.05 * expected.norm()
    with pytest.raises(ConfigError, match="1 to 8"):
        sample(backend, schedule, draw_noise(LATENTS, seed=4, indices=range(9)), torch.zeros(9, dtype=torch.int64))


ENGINE = Engine(
    library="tensorrt", version="10.9.0", gpu="sm_90", batches=((1, 8, 32),), version_compatible=False,
    hardware_compatible=False, products={}, verified=None,
)  # fmt: skip


def test_engines_of_another_version_or_gpu_are_refused() -> None:
    check_engine(ENGINE, "10.9.0", "sm_90")
    with pytest.raises(MismatchError, match=r"10\.9\.0.*10\.10\.1"):
        check_engine(ENGINE, "10.10.1", "sm_90")
    with pytest.raises(MismatchError, match=r"sm_90.*sm_86"):
        check_engine(ENGINE, "10.9.0", "sm_86")
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        check_engine(ENGINE, "10.9.0", None)
    portable = dataclasses.replace(ENGINE, version_compatible=True, hardware_compatible=True)
    check_engine(portable, "10.10.1", "sm_86")
    for other in ("11.0.0", "10.8.2"):  # another major version, an earlier one
        with pytest.raises(MismatchError):
            check_engine(portable, other, "sm_86")
    check_engine(dataclasses.replace(ENGINE, gpu=None), "10.9.0", "sm_120")


def test_engines_for_rtx_cards_are_for_no_others() -> None:
    rtx = dataclasses.replace(ENGINE, library="tensorrt-rtx", gpu=None)
    for card in ("sm_86", "sm_89", "sm_120", "sm_121"):
        check_engine(rtx, "10.9.0", card)
    for card in ("sm_75", "sm_80", "sm_90", "sm_100"):
        with pytest.raises(MismatchError, match=f"this GPU is {card}: it needs TensorRT"):
            check_engine(rtx, "10.9.0", card)


@builds
def test_auto_goes_by_the_card(monkeypatch) -> None:
    """With TensorRT for RTX alone: as without a GPU on an RTX card; on one of a data centre it says what is missing."""
    monkeypatch.setitem(ENGINE_LIBRARIES, "tensorrt", "no_such_package")
    for card in (None, "sm_89", "sm_120"):
        monkeypatch.setattr("ddt_accel.exporting.engines.gpu", lambda card=card: card)
        assert find_library("auto").name == "tensorrt-rtx"
    monkeypatch.setattr("ddt_accel.exporting.engines.gpu", lambda: "sm_90")
    with pytest.raises(DependencyError, match=r"not for this GPU, sm_90, which needs tensorrt: .*\[trt\]"):
        find_library("auto")
    assert find_library("tensorrt-rtx").name == "tensorrt-rtx"  # for another machine


@pytest.mark.parametrize("cache", ["modulations", "state"])
@pytest.mark.parametrize("sources", [0, 1, 2, 3])
def test_cut_networks_compute_what_the_runtime_does(model, cache: str, sources: int) -> None:
    """Encoder and decoder with the forecast inside, against the session that forecasts outside."""
    cut = Cut(cache=cache, sources=sources)
    prepared = prepare(model, SHAPE, Arithmetic.of("fp32"))
    encoder, decoder = EncoderNetwork(prepared, cut), DecoderNetwork(prepared, cut)
    generator = torch.Generator().manual_seed(3)
    count = max(1, sources)
    x = torch.randn(count + 1, 2, *SHAPE, generator=generator)
    t, y = torch.rand(count, 2, generator=generator), torch.tensor([0, 3])
    weights = torch.randn(count, generator=generator) if sources else torch.ones(1)
    constant = torch.randn(model.config.modulation_size, generator=generator) * (sources > 0)
    session = TorchBackend(model).open(1, SHAPE, count + 1)
    for s in range(count):
        session.latents.copy_(x[s])
        session.times.copy_(t[s])
        session.labels.copy_(y)
        session.encode(s, slice(0, 2))
    session.forecast(count, list(enumerate(weights.tolist())), constant, slice(0, 2))
    session.latents.copy_(x[-1])
    session.decode(count, slice(0, 2))
    with torch.inference_mode():
        cached = [encoder(x[s], t[s], y) for s in range(count)]
        forecast = [weights.expand(2, -1), constant.expand(2, -1)] if sources else []
        got = decoder(x[-1], *cached, *forecast)
    torch.testing.assert_close(got, session.velocity, atol=2e-5, rtol=1e-4)
    table = tensor_table(model.config, SHAPE, cut)
    assert tuple(cached[0].shape) == table["encoder"][-1].at(2)
    assert [one.at(2) for one in table["decoder"][:-1]] == [tuple(v.shape) for v in (x[-1], *cached, *forecast)]


@pytest.mark.parametrize("cache", ["modulations", "state"])
def test_reference_points_lie_on_a_trajectory(model, cache: str) -> None:
    points = reference_points(model, SHAPE, sources=3, cache=cache)
    assert (points.times[1:] > points.times[:-1]).all()
    assert (points.refresh_times.max(0).values < points.times).all()
    with torch.inference_mode():
        states = [model.encode(x, t, points.labels) for x, t in zip(points.refresh_latents, points.refresh_times)]  # noqa: B905
        caches = states if cache == "state" else [model.modulations(state) for state in states]
        torch.testing.assert_close(points.caches, torch.stack(caches))
        modulations = sum(
            points.weights[:, s, None, None] * model.modulations(state) for s, state in enumerate(states)
        ) + points.constant[:, None]  # fmt: skip
        torch.testing.assert_close(
            points.velocity, model.decode_modulated(points.latents, modulations), atol=1e-4, rtol=1e-4
        )
    assert len(set(AT)) == len(points.latents)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("forgotten", ["weights", "constant", 0, 1, 2])
@pytest.mark.parametrize("sources", [1, 3])
def test_a_decoder_that_forgets_something_is_noticed(model, precision: str, forgotten: str | int, sources: int) -> None:
    """What the comparison measures, of a decoder that leaves one of its inputs out."""
    if isinstance(forgotten, int) and forgotten >= sources:
        pytest.skip("it has no such input")
    cut = Cut(precision=precision, sources=sources)
    points = reference_points(model, SHAPE, sources=sources, cache="modulations")
    inputs, outputs = exporting._examples(points, cut)
    decoder = DecoderNetwork(prepare(model, SHAPE, Arithmetic.of(precision)), cut)
    whole = exporting._error(decoder, inputs["decoder"], outputs["decoder"])
    changed = dict(inputs["decoder"])
    name = f"modulations_{forgotten + 1}" if isinstance(forgotten, int) else forgotten
    changed[name] = 0 * changed[name] if name != "weights" else torch.ones_like(changed[name])
    assert whole < exporting.TOLERANCE[precision] < exporting._error(decoder, changed, outputs["decoder"])


@builds
def test_an_export_that_fails_the_comparison_writes_nothing(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(exporting.TOLERANCE, "bf16", 1e-9)
    with pytest.raises(ParityError, match="--precision fp16"):
        export(model, tmp_path, format="tensorrt", precision="bf16", engines=RTX)
    assert list(tmp_path.iterdir()) == []


@builds
@pytest.mark.parametrize(("precision", "cache", "sources"), [("fp32", "modulations", 1), ("fp16", "state", 3)])
def test_every_cut_can_be_built(model, tmp_path, precision: str, cache: str, sources: int) -> None:
    options = dataclasses.replace(
        RTX, batches=((1, 1, 2), (3, 4, 5)), optimization_level=1, workspace_gib=0.5, timing_cache=tmp_path / "timing"
    )
    stages: list[tuple[str, int]] = []
    manifest = export(
        model, tmp_path / "made", format="tensorrt", precision=precision, cache=cache, sources=sources, engines=options,
        on_stage=lambda label, total: stages.append((label, total)) or (lambda: None),
    )  # fmt: skip
    assert max(manifest.parity.values()) < exporting.TOLERANCE[precision]
    wide = {"fp32": "FLOAT", "fp16": "HALF"}[precision]
    assert set(manifest.engine.products["decoder"]) == {wide}
    assert Manifest.load(tmp_path / "made") == manifest
    assert manifest.engine.batches == options.batches
    assert any(label.startswith("encoder: ") and total > 1 for label, total in stages)
    _, arrays = read_arrays(tmp_path / "made" / reference_name(1.0), REFERENCE_FORMAT, REFERENCE_VERSION)
    points = reference_points(model, SHAPE, sources=sources, cache=cache)
    np.testing.assert_allclose(arrays["velocity"], points.velocity, atol=1e-5)


@builds
def test_every_width_has_engines_of_its_own(model, tmp_path) -> None:
    """And points of a trajectory of its own to verify them with; each is smaller than the complete network's."""
    nested = copy.copy(model)
    nested.source = dataclasses.replace(model.source, widths=(1.0, 0.5))
    manifest = export(nested, tmp_path, format="tensorrt", precision="bf16", engines=RTX)
    names = ("encoder", "decoder", "encoder-0.5", "decoder-0.5")
    assert set(manifest.files) == {f"{name}.engine" for name in names} | {reference_name(1.0), reference_name(0.5)}
    assert tuple(manifest.parity) == tuple(manifest.tensors) == tuple(manifest.engine.products) == names
    assert Manifest.load(tmp_path) == manifest
    for kind in ("encoder", "decoder"):
        sizes = [(tmp_path / f"{name}.engine").stat().st_size for name in (kind, f"{kind}-0.5")]
        assert sizes[1] < sizes[0]
    _, arrays = read_arrays(tmp_path / reference_name(0.5), REFERENCE_FORMAT, REFERENCE_VERSION)
    half = reference_points(narrow(nested, 0.5), SHAPE, sources=2, cache="modulations")
    np.testing.assert_allclose(arrays["velocity"], half.velocity, atol=1e-5)


@builds
def test_tensors_that_are_not_those_of_the_table_are_refused(model, exports, tmp_path) -> None:
    path, cut = exports("forecasts") / "decoder.onnx", Cut(sources=2)
    table = tensor_table(model.config, SHAPE, cut)["decoder"]
    library = find_library("tensorrt-rtx")
    for wrong in (
        [dataclasses.replace(table[0], dtype="float16"), *table[1:]],
        [dataclasses.replace(table[0], name="x"), *table[1:]],
        [dataclasses.replace(table[0], shape=("B", 3, 8, 4)), *table[1:]],
    ):
        with pytest.raises(ConfigError, match="latents"):
            build_engine(library, path, tmp_path / "decoder.engine", wrong, RTX, lambda label, total: lambda: None)


@given(st.lists(st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted), min_size=1, max_size=3))
def test_profiles_are_read_as_they_are_written(profiles: list[list[int]]) -> None:
    text = ",".join(":".join(map(str, profile)) for profile in profiles)
    covered = set().union(*(range(least, 2 * most + 1) for least, _, most in profiles))
    if covered != set(range(min(covered), max(covered) + 1)):
        with pytest.raises(ConfigError, match="meet"):
            EngineOptions.parse_batches(text)
        return
    assert EngineOptions.parse_batches(text) == tuple(map(tuple, profiles))
    assert EngineOptions.parse_batches(str(profiles[0][0])) == ((profiles[0][0],) * 3,)


@pytest.mark.parametrize("text", ["", "a", "4:2:8", "1:2", "0:1:2", "1:2:3:4", "1,", "-1", "1:2:99999"])
def test_impossible_profiles_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="1:8:32"):
        EngineOptions.parse_batches(text)


@builds
def test_a_library_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises((DependencyError, ConfigError), match="rtx"):
        find_library("tensorrt")
    assert find_library("auto").name == "tensorrt-rtx"


@builds
def test_from_the_command_line(cli, workspace) -> None:
    ran = cli("export", "--trt", "-w", workspace, "--engine", "tensorrt-rtx", "--batch", "1:2:4", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["precision"] == "bf16"
    assert told["engine"]["batches"] == [[1, 2, 4]]
    assert (workspace / "engines" / "decoder.engine").exists()
    assert (workspace / "export" / "decoder.onnx").exists()
    explained = cli("inspect", workspace / "engines")
    assert explained.code == 0, explained.err
    assert "tensorrt-rtx" in explained.out
    explained = cli("inspect", workspace / "engines" / "decoder.engine")
    assert explained.code == 0, explained.err
    explained = cli("inspect", workspace / "engines" / reference_name(1.0))
    assert "velocity" in explained.out
    for wrong in (["--batch", "x"], ["--cache", "x"], ["--sources", 9], ["--engine", "onnx"], ["--precision", "int8"],
                  ["--optimization-level", 9], ["--workspace-gib", 0], ["--workspace-gib", "inf"],
                  ["--onnx", "--batch", 4], ["--onnx", "--precision", "bf16"]):  # fmt: skip
        ran = cli("export", "--trt", "-w", workspace, *wrong)
        assert ran.code == 2, wrong
        assert "Traceback" not in ran.err
