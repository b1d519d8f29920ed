"""The network as it is laid out for inference, compiled by PyTorch, and the choice of the fastest backend."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, load_model, sample
from ddt_accel.backends.choose import cache_of, measure_all, seconds_a_refresh
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.cli.networks import open_networks
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.benchmark import measure
from ddt_accel.networks import prepared_layers
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.device import fastest_precision
from ddt_accel.networks.families import prepare
from ddt_accel.networks.prepared import Arithmetic
from ddt_accel.workspace import Workspace

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_model_path) -> DDT:
    return load_model(tiny_model_path)


@pytest.mark.parametrize("max_score", [prepared_layers.MAX_SCORE, 0.0])
def test_it_computes_what_the_published_network_does(reference, monkeypatch, max_score: float) -> None:
    """With and without the softmax that needs no maximum."""
    monkeypatch.setattr(prepared_layers, "MAX_SCORE", max_score)
    t = reference.tensors
    prepared = prepare(
        load_model(reference.checkpoint, config=reference.config), tuple(t["x"].shape[1:]), Arithmetic.of("fp32")
    )
    assert all(block.bounded == (max_score > 0) for block in prepared.encoder_blocks)
    with torch.inference_mode():
        state = prepared.encode(t["x"], t["t"], t["y"])
        velocity = prepared.decode_modulated(t["x"], prepared.modulations(state))
    # Processors sum products in different orders.
    torch.testing.assert_close(state, t["state"], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(velocity, t["velocity"], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(24,), (2, 1, 24), None])
@pytest.mark.parametrize("biased", [False, True])
def test_a_norm_by_halves_is_the_norm(centred: bool, shape: tuple[int, ...] | None, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(4, 2, 5, 24, generator=generator)
    weight, bias = (torch.randn(shape or 24, generator=generator) for _ in range(2))
    norm = prepared_layers.PreparedNorm(
        prepared_layers.NormWeights(
            weight=None if shape is None else weight, bias=bias if biased else None, centred=centred
        )
    )
    for half, expected in zip(norm.halves(x), norm(x).chunk(2, dim=-1), strict=True):
        torch.testing.assert_close(half, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 1e-3, 2e-2), ("fp16", 1e-4, 2e-3)])
def test_reduced_precision_is_near(model, precision: str, least: float, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(4, *SHAPE, generator=generator), torch.rand(4, generator=generator), torch.arange(4)
    prepared = prepare(model, SHAPE, Arithmetic.of(precision))
    with torch.inference_mode():
        got = prepared.decode_modulated(x, prepared.modulations(prepared.encode(x, t, y)))
        expected = model(x, t, y)
    assert got.dtype == torch.float32
    assert least < (got - expected).norm() / expected.norm() < most


def test_scores_without_a_bound_are_left_to_the_fused_kernel(tiny_model_path) -> None:
    """Large norms make scores of which exponentials overflow."""
    model = load_model(tiny_model_path)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_norm.weight.fill_(12.0)
            block.attn.k_norm.weight.fill_(12.0)
    x, t, y = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.rand(2), torch.tensor([0, 1])
    prepared = prepare(model, SHAPE, Arithmetic.of("fp32"))
    assert not any(block.bounded for block in prepared.decoder_blocks)
    with torch.inference_mode():
        torch.testing.assert_close(prepared.encode(x, t, y), model.encode(x, t, y), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("wide", [True, False])
def test_attention_written_out_is_the_same(model, wide: bool) -> None:
    """Where queries are scaled before they meet the keys."""
    x, t, y = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.rand(2), torch.tensor([0, 1])
    written_out = prepare(model, SHAPE, Arithmetic.of("fp32", written_out=True, wide_softmax=wide))
    with torch.inference_mode():
        torch.testing.assert_close(written_out.encode(x, t, y), model.encode(x, t, y), atol=5e-5, rtol=1e-4)


def test_rotated_halves_are_joined_in_the_precision_of_products(model) -> None:
    """Joined in float32 and cast afterwards, they are three kernels for a compiler and three times the bytes."""
    prepared = prepare(model, SHAPE, Arithmetic.of("bf16"))
    with torch.inference_mode():
        graph = make_fx(lambda x, t, y: prepared.encode(x, t, y))(
            torch.randn(2, *SHAPE), torch.rand(2), torch.tensor([0, 1])
        )
    joined = [node.meta["val"] for node in graph.graph.nodes if node.target is torch.ops.aten.cat.default]
    assert [one.dtype for one in joined if one.ndim == 5] == [torch.bfloat16] * model.config.num_encoder_blocks


def test_it_refuses_what_it_cannot_prepare(model) -> None:
    with pytest.raises(ConfigError, match="int8"):
        prepare(model, SHAPE, Arithmetic.of("int8"))
    with pytest.raises(ConfigError, match=r"\[3, 8, 7\]"):
        prepare(model, (3, 8, 7), Arithmetic.of("fp32"))
    with pytest.raises(ConfigError, match=r"\[3, 16, 16\].*\[3, 8, 8\]"):
        CompiledBackend(model).open(1, (3, 16, 16), 1)


def test_a_last_batch_of_one_is_not_timed_while_it_is_compiled(model, monkeypatch, traced) -> None:
    spec = SamplingSpec(num_steps=3)
    backend = CompiledBackend(model, precision="fp32")
    opened, spent = backend.open, []

    def watched(*arguments, **given):
        spent.append(backend.compile_seconds)
        return opened(*arguments, **given)

    monkeypatch.setattr(backend, "open", watched)
    schedules = {"unshared": Schedule.full(spec), "shared": Schedule.uniform(spec, 1)}
    measure(backend, schedules, latent_shape=SHAPE, num_images=5, seed=1, batch_size=2)
    assert spent[-6] == backend.compile_seconds > 0  # before three batches of two schedules, and after them


def test_nothing_is_compiled_twice(model, traced) -> None:
    """Four batches, both branches, forecasts from two: two programs of the encoder and the decoder's, and no more."""
    backend = CompiledBackend(model, precision="fp32")
    schedule = Schedule(spec=SamplingSpec(num_steps=4), refresh_steps=(0, 1), forecasts={2: ((0, -1.0), (1, 2.0))})
    counters = torch._dynamo.utils.counters
    counters.clear()
    for batch in (2, 3, 5, 4):
        labels = draw_labels(4, seed=0, indices=range(batch))
        noise = draw_noise(SHAPE, seed=0, indices=range(batch))
        got = sample(backend, schedule, noise, labels)
        torch.testing.assert_close(got, sample(model, schedule, noise, labels), atol=1e-4, rtol=1e-3)
    assert counters["stats"]["unique_graphs"] == 3
    with torch.inference_mode():  # another mode of the caller, and a network of its own for other latents
        sample(backend, schedule, noise, labels)
        other = CompiledBackend(model, precision="fp32", latent_shape=(3, 4, 4))
        held = Schedule.uniform(schedule.spec, 2)
        sample(other, held, draw_noise((3, 4, 4), seed=0, indices=range(4)), labels)
    assert counters["stats"]["unique_graphs"] == 5
    assert sum(counters["graph_break"].values()) == 0
    assert backend.compile_seconds > 0


def test_without_a_compiler_it_says_what_is_missing(cli, no_compiler, tiny_model_path, tmp_path) -> None:
    schedule = tmp_path / "schedule.json"
    Schedule.uniform(SamplingSpec(num_steps=2), 1).save(schedule)
    ran = cli("sample", "--backend", "compiled", "-n", 2, "--schedule", schedule, "--model", tiny_model_path, "-w",
              tmp_path / "run")  # fmt: skip
    assert ran.code == 2
    assert "error: PyTorch cannot compile the networks here (No working C++ compiler" in ran.err
    assert "Traceback" not in ran.err


class Slow(TorchBackend):
    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int, **given):
        session = super().open(batch, latent_shape, slots, **given)
        encode = session.encode

        def slowly(slot: int, rows: slice) -> None:
            time.sleep(0.05)
            encode(slot, rows)

        session.encode = slowly
        return session


def test_the_fastest_is_found_and_what_does_not_run_is_told(model, monkeypatch) -> None:
    monkeypatch.setattr("ddt_accel.backends.choose.SECONDS", 0.1)

    def absent() -> TorchBackend:
        raise MismatchError("other weights")

    candidates = {"slow": lambda: Slow(model), "fast": lambda: TorchBackend(model), "absent": absent}
    seconds, reasons = measure_all(candidates, SHAPE, 2)
    assert seconds["slow"] > max(0.05, seconds["fast"])
    assert reasons == {"absent": "other weights"}
    with pytest.raises(ConfigError, match="absent: other weights"):
        measure_all({"absent": absent}, SHAPE, 2)
    assert seconds_a_refresh(Slow(model), SHAPE, 2, within=0.0) > 0.05


def test_speeds_are_kept_where_one_backend_runs_out_of_memory(cli, workspace, monkeypatch) -> None:
    """It would not run another time, either; what fails for another reason may."""

    def measured(error: Exception) -> Callable[..., tuple[dict[str, float], dict[str, str]]]:
        def failing() -> TorchBackend:
            raise error

        return lambda candidates, shape, batch: measure_all(
            {"torch": candidates["torch"], "onnx": failing}, shape, batch
        )

    monkeypatch.setattr("ddt_accel.backends.choose.SECONDS", 0.05)
    line = ["sample", "-w", workspace, "-n", 2, "--backend", "auto"]
    for error, kept in (
        (RuntimeError("no such kernel"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
    ):
        monkeypatch.setattr("ddt_accel.backends.choose.measure_all", measured(error))
        assert "Measuring" in cli(*line).err
        again = cli(*line).err
        assert ("Measuring" not in again) == kept
        assert "Backend: torch" in again


@pytest.mark.parametrize("memory", ["enough", "little"])
def test_states_are_cached_where_modulations_do_not_fit(cli, workspace, monkeypatch, memory: str) -> None:
    model = Workspace(workspace).load_model({})
    slot = 2 * 3 * 16 * model.config.modulation_size * (2 if fastest_precision(CPU) != "fp32" else 4)
    monkeypatch.setattr("ddt_accel.backends.choose.memory_of", lambda _: 6 * slot - (memory == "little"))
    expected = "state" if memory == "little" else "modulations"
    assert cache_of(model, SHAPE, 3) == expected
    opened = open_networks(Workspace(workspace), "compiled", None, {}, "cpu", 3)
    assert opened.backend.cut.cache == expected


def test_what_was_measured_without_compiling_is_not_measured_again(cli, workspace, monkeypatch) -> None:
    """As `optimize --quick` leaves it; a thorough one wants to know of all."""
    asked = []

    def measured(candidates, shape, batch) -> tuple[dict[str, float], dict[str, str]]:
        asked.append(list(candidates))
        return {name: 1.0 + (name != "onnx") for name in candidates}, {}

    monkeypatch.setattr("ddt_accel.backends.choose.measure_all", measured)
    place = Workspace(workspace)
    line = ["sample", "-w", workspace, "-n", 4, "--backend", "auto"]
    for compiling, names in ((False, ["torch", "onnx"]), (None, None), (True, ["compiled", "torch", "onnx"])):
        asked.clear()
        opened = open_networks(place, "auto", None, {}, "cpu", 4, compiling=compiling)
        assert (asked, opened.option) == ([names] if names else [], "onnx")
        if compiling is False:
            ran = cli(*line)
            assert (ran.code, asked) == (0, [names])
            assert "not tried: --backend compiled" in ran.err
    assert "not tried" not in cli(*line).err


def test_auto_measures_once(cli, tiny_model_path, tmp_path, monkeypatch, traced) -> None:
    monkeypatch.setattr("ddt_accel.backends.choose.SECONDS", 0.1)
    schedule = tmp_path / "schedule.json"
    Schedule.uniform(SamplingSpec(num_steps=3), 2).save(schedule)
    where = ["-w", str(tmp_path / "run"), "--model", str(tiny_model_path), "--schedule", str(schedule)]
    first = cli("sample", *where, "--backend", "auto", "-n", "4", "--json")
    assert first.code == 0, first.err
    assert "Measuring which backend" in first.err
    assert "Backend: " in first.err
    speeds = tmp_path / "run" / "speeds.json"
    kept = json.loads(speeds.read_text())
    assert set(kept["seconds"]) == {"compiled", "torch"}
    again = cli("sample", *where, "--backend", "auto", "-n", "4")
    assert again.code == 0
    assert "Measuring" not in again.err
    assert "Backend: " in again.err

    # From here on only whether it is measured matters, which takes long where something is compiled for it.
    def at_once(found, *_: object) -> tuple[dict[str, float], dict[str, str]]:
        return {name: 1.0 + (name != "torch") for name in found}, {}

    monkeypatch.setattr("ddt_accel.backends.choose.measure_all", at_once)
    fewer = cli("sample", *where, "--backend", "auto", "-n", "3").err
    assert "Measuring" not in fewer
    assert "Measured in batches of 4: " in fewer
    assert "Measuring" in cli("sample", *where, "--backend", "auto", "-n", "5").err
    explained = cli("inspect", speeds)
    assert explained.code == 0
    assert "compiled" in explained.out
    speeds.write_text(speeds.read_text().replace("torch", "touch"))  # damaged: as if there were none
    assert "Measuring" in cli("sample", *where, "--backend", "auto", "-n", "4").err
    assert "Measuring" not in cli("sample", *where, "--backend", "auto", "-n", "4").err
    assert "choose auto" in cli("sample", *where, "--backend", "fastest").err
