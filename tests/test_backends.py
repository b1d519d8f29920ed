"""One conformance suite over every backend: whatever runs the networks, the pictures are the same."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise, export, load_model, open_backend, sample
from ddt_accel.artifacts import sha256_of
from ddt_accel.backends import manifest
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.ort import OnnxRuntimeBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError, ParityError
from ddt_accel.exporting import export as exporting
from ddt_accel.networks.device import supports_bf16
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import run

SHAPE = (3, 8, 8)
# Relative to the size of the latents: rounding in float32, and in float16 or bfloat16 over a whole trajectory.
TOLERANCE = {
    "torch": 1e-5, "onnx-fp32": 1e-4, "onnx-fp16": 3e-2, "onnx-forecasts": 1e-4, "onnx-states": 1e-4,
    "compiled-fp32": 1e-4, "compiled-bf16": 1e-1, "compiled-states": 1e-4
}  # fmt: skip
ON_GPU = {"torch": 1e-4, "onnx-fp32": 1e-3, "onnx-tensorrt": 1e-3, "compiled-fp32": 1e-3, "compiled-bf16": 1e-1,
          "compiled-states": 1e-3}  # fmt: skip
# Each program that PyTorch compiles takes many seconds: those of one precision are enough for what is no arithmetic.
COMPILED_ONCE = [kind for kind in TOLERANCE if kind not in ("compiled-bf16", "compiled-states")]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture(scope="session")
def compiled(tiny_model_path) -> Callable[[str, str], CompiledBackend]:
    """By precision and device, each compiled once."""
    settings = {"states": {"precision": "fp32", "cache": "state"}}
    return cache(
        lambda kind, device: CompiledBackend(
            load_model(tiny_model_path).to(device), **settings.get(kind, {"precision": kind})
        )
    )


ON_CUDA = [pytest.param(f"{kind} on cuda", marks=GPU) for kind in ON_GPU]
compiled_once = pytest.mark.parametrize("backend", [*COMPILED_ONCE, *ON_CUDA], indirect=True)


@pytest.fixture(params=[*TOLERANCE, *ON_CUDA])
def backend(request, tiny_model_path, compiled):
    name, _, place = request.param.partition(" on ")
    # Where the processor has no bf16, nobody compiles for it, and the compiler takes longest to write it out.
    as_it_is = name == "compiled-bf16" and not place and not supports_bf16(torch.device("cpu"))
    with torch.compiler.set_stance("force_eager") if as_it_is else contextlib.nullcontext():
        yield _opened(request, name, place, tiny_model_path, compiled)


def _opened(request, name: str, place: str, tiny_model_path: Path, compiled):
    """A backend and its tolerance."""
    runner, _, kind = name.partition("-")
    tolerance, device = ON_GPU[name] if place else TOLERANCE[name], place or "cpu"
    if runner == "compiled":
        return compiled(kind, device), tolerance
    if runner == "torch":
        return TorchBackend(load_model(tiny_model_path).to(device)), tolerance
    # What follows takes packages that a GPU machine may lack.
    onnxruntime = pytest.importorskip("onnxruntime")
    provider = {"tensorrt": "TensorrtExecutionProvider"}.get(kind, "CUDAExecutionProvider")
    if place and provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {provider}")
    exports = request.getfixturevalue("exports")
    if kind == "tensorrt":
        return OnnxRuntimeBackend(exports("fp32"), device=device, tensorrt=True), tolerance
    return open_backend(exports(kind), device=device), tolerance


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((got.cpu() - expected.cpu()).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
@pytest.mark.parametrize("budget", [1, 3, None])
def test_trajectories(backend, tiny_model_path, solver: str, budget: int | None) -> None:
    spec = SamplingSpec(num_steps=5, solver=solver, guidance=1.6)
    schedule = Schedule.full(spec) if budget is None else Schedule.uniform(spec, budget)
    noise, labels = draw_noise(SHAPE, seed=2, indices=range(3)), draw_labels(4, seed=2, indices=range(3))
    expected = sample(load_model(tiny_model_path), schedule, noise, labels)
    opened, tolerance = backend
    assert close(sample(opened, schedule, noise, labels), expected, tolerance)


@pytest.mark.parametrize(
    ("backend", "sources"),
    [
        *((kind, sources) for kind in TOLERANCE for sources in (1, 2, 3)),
        *(pytest.param(f"{kind} on cuda", sources, marks=GPU) for kind in ON_GPU for sources in (1, 2, 3)),
    ],
    indirect=["backend"],
)
def test_forecasts(request, backend, tiny_model_path, sources: int) -> None:
    opened, tolerance = backend
    rows = {1: {1: ((0, 0.8),)}, 2: {4: ((2, -1.0), (3, 2.0))}, 3: {5: ((0, 0.5), (2, -1.5), (3, 2.0))}}[sources]
    schedule = Schedule(
        spec=SamplingSpec(num_steps=6, guidance=1.5),
        refresh_steps=(0, 2, 3),
        forecasts=rows,
        mean_modulations=np.random.default_rng(0).normal(size=(6, 8 * 16)).astype(np.float32) / 4,
    )
    program = compile_program(schedule)
    noise, labels = draw_noise(SHAPE, seed=2, indices=range(2)), torch.tensor([0, 3])
    expected = run(TorchBackend(load_model(tiny_model_path)), program, noise, labels)
    # The compiler sums any number of states in one precision, and two in the others: there the rest is run as it is.
    as_it_is = sources != 2 and request.node.callspec.params["backend"] in ("compiled-bf16", "compiled-states")
    with torch.compiler.set_stance("force_eager") if as_it_is else contextlib.nullcontext():
        assert close(run(opened, program, noise, labels), expected, 2 * tolerance)


@compiled_once
def test_forecasts_from_as_many_states_as_there_are(backend, tiny_model_path) -> None:
    """Decoders that make forecasts take up to three; what is more is made before them."""
    network, tolerance = backend
    spec = SamplingSpec(num_steps=8)
    bias = load_model(tiny_model_path).modulation_bias.numpy()[None]
    rows = {
        5: ((0, 0.4), (1, -0.9), (2, 0.5), (3, -1.5), (4, 2.7)),
        7: ((0, -0.2), (1, 0.3), (2, -0.6), (3, 0.8), (4, -1.7), (6, 2.1)),
    }
    schedule = Schedule(spec=spec, refresh_steps=(0, 1, 2, 3, 4, 6), forecasts=rows, mean_modulations=bias)
    noise, labels = draw_noise(SHAPE, seed=2, indices=range(2)), draw_labels(4, seed=2, indices=range(2))
    expected = sample(load_model(tiny_model_path), schedule, noise, labels)
    assert close(sample(network, schedule, noise, labels), expected, tolerance)


@compiled_once
def test_branches_with_refreshes_of_their_own(backend, tiny_model_path) -> None:
    schedule = Schedule(
        spec=SamplingSpec(num_steps=6, guidance=1.5),
        refresh_steps=(0, 3),
        unconditional_steps=(1, 2, 5),
        unconditional_forecasts={3: ((1, -1.0), (2, 2.0)), 4: ((2, 1.0),)},
    )
    program = compile_program(schedule)
    noise, labels = draw_noise(SHAPE, seed=2, indices=range(2)), torch.tensor([0, 3])
    opened, tolerance = backend
    expected = run(TorchBackend(load_model(tiny_model_path)), program, noise, labels)
    assert close(run(opened, program, noise, labels), expected, 2 * tolerance)


@compiled_once
def test_batches_of_any_size(backend) -> None:
    opened, tolerance = backend
    schedule = Schedule.uniform(SamplingSpec(num_steps=4), 2)
    labels = draw_labels(4, seed=0, indices=range(4))
    whole = sample(opened, schedule, draw_noise(SHAPE, seed=0, indices=range(4)), labels)
    for size in (1, 3):
        part = sample(opened, schedule, draw_noise(SHAPE, seed=0, indices=range(size)), labels[:size])
        assert close(part, whole[:size], tolerance)


def test_modulations_are_neither_copied_nor_reallocated(exports) -> None:
    """The decoder reads the very buffer that the encoder wrote, for the whole trajectory."""
    session = open_backend(exports("fp32")).open(2, SHAPE, 1)
    (slot,) = session.slots[0]
    address = slot.data_ptr()
    session.latents.normal_()
    session.times.fill_(0.4)
    session.labels.fill_(1)
    session.encode(0, slice(0, 4))
    written = slot.clone()
    assert written.abs().sum() > 0
    session.decode(0, slice(0, 4))
    first = session.velocity.clone()
    slot.zero_()  # the decoder must notice
    session.decode(0, slice(0, 4))
    assert not torch.equal(first, session.velocity)
    slot.copy_(written)
    session.decode(0, slice(0, 4))
    assert torch.equal(first, session.velocity)
    assert session.slots[0][0].data_ptr() == address


def test_half_precision_keeps_norms_softmax_and_timestep_in_float32(exports) -> None:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(exports("fp16") / "encoder.onnx"))
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)}
    types |= {init.name: init.data_type for init in model.graph.initializer}
    kept = {"Softmax", "Cos", "Sin", "ReduceMean", "Sqrt", "Reciprocal"}
    found = set()
    for node in model.graph.node:
        if node.op_type in kept:
            found.add(node.op_type)
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.op_type
    assert {"Softmax", "Cos", "ReduceMean"} <= found
    products = [types[n.input[1]] for n in model.graph.node if n.op_type in ("MatMul", "Gemm")]
    assert products.count(onnx.TensorProto.FLOAT16) > len(products) / 2


def test_large_networks_keep_their_weights_in_a_file_beside_the_graph(tiny_model_path, exports) -> None:
    opened = open_backend(exports("states"))
    names = {"encoder.onnx", "encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"}
    assert set(opened.manifest.files) == names
    noise, labels = draw_noise(SHAPE, seed=2, indices=range(2)), torch.tensor([0, 3])
    schedule = Schedule.uniform(SamplingSpec(num_steps=3), 2)
    expected = sample(load_model(tiny_model_path), schedule, noise, labels)
    assert close(sample(opened, schedule, noise, labels), expected, 1e-4)


def test_the_manifest_tells_the_parity(exports) -> None:
    for precision in ("fp32", "fp16"):
        limit = exporting.TOLERANCE[precision]
        told = open_backend(exports(precision)).manifest
        assert 0 < max(told.parity.values()) <= limit
        assert set(told.files) == {"encoder.onnx", "decoder.onnx"}
        assert told.precision == precision


def test_an_export_out_of_tolerance_fails_and_keeps_the_earlier_one(
    tiny_model_path, exports, tmp_path, monkeypatch
) -> None:
    model = load_model(tiny_model_path)
    shutil.copytree(exports("fp32"), tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setitem(exporting.TOLERANCE, "fp16", 1e-9)
    with pytest.raises(ParityError, match="away from PyTorch"):
        export(model, tmp_path, precision="fp16")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("renames", range(5))
def test_an_export_killed_while_it_is_published_is_whole(exports, tmp_path, monkeypatch, renames: int) -> None:
    """After any number of its renames a reader finds the earlier export or the new one, never a mixture."""
    folder = tmp_path / "export"
    shutil.copytree(exports("fp32"), folder)
    shutil.copytree(exports("fp16"), folder / "staging")
    replace, done = os.replace, []

    def dying(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise SystemExit("killed")
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with contextlib.suppress(SystemExit):
        manifest.publish(folder / "staging", folder)
    monkeypatch.undo()
    assert len(done) == min(renames, 4)
    assert open_backend(folder).manifest.precision == ("fp16" if renames else "fp32")


def test_another_kind_of_export_leaves_no_files_of_the_last(exports, tmp_path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exports("fp32"), folder)
    told = manifest.Manifest.load(folder)
    for name in ("encoder.onnx.data", "notes.txt"):
        (folder / name).write_bytes(b"weights")
    dataclasses.replace(told, files=told.files | {"encoder.onnx.data": sha256_of(folder / "encoder.onnx.data")}).save(
        folder
    )
    shutil.copytree(exports("fp16"), folder / "staging")
    manifest.publish(folder / "staging", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "decoder.onnx", "encoder.onnx", "manifest.json", "notes.txt"
    ]  # fmt: skip
    assert open_backend(folder).manifest.precision == "fp16"


def test_what_onnx_runtime_refuses_is_a_sentence(exports) -> None:
    session = open_backend(exports("fp32")).open(2, SHAPE, 1)
    session.labels.fill_(10**6)  # beyond the table
    with pytest.raises(ArtifactError, match="encoder"):
        session.encode(0, slice(0, 2))


def test_what_a_killed_export_left_behind_is_removed(tiny_model_path, tmp_path) -> None:
    (tmp_path / f"{exporting.STAGING_PREFIX}abc").mkdir()
    (tmp_path / f"{exporting.STAGING_PREFIX}abc" / "encoder.onnx").write_bytes(b"half")
    export(load_model(tiny_model_path), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.onnx", "encoder.onnx", "manifest.json"]


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_a_damaged_engine_is_refused(exports, tmp_path, name: str) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exports("fp32"), folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=name):
        open_backend(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        open_backend(folder)


def test_another_latent_shape_is_refused(exports) -> None:
    with pytest.raises(ConfigError, match="export is for"):
        sample(
            open_backend(exports("fp32")),
            Schedule.full(SamplingSpec(num_steps=2)),
            torch.zeros(1, 3, 16, 16),
            torch.tensor([0]),
        )


def test_a_schedule_for_another_checkpoint_is_refused(backend) -> None:
    schedule = Schedule(spec=SamplingSpec(num_steps=2), refresh_steps=(0,), checkpoint_sha256="0" * 64)
    with pytest.raises(MismatchError, match="000000000000"):
        sample(backend[0], schedule, torch.zeros(1, *SHAPE), torch.tensor([0]))


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "tflite"},
        {"precision": "int4"},
        {"precision": "bf16"},
        {"cache": "state"},
        {"sources": 4},
        {"format": "tensorrt", "sources": 0},
        {"format": "tensorrt", "sources": 4},
    ],
)
def test_impossible_exports_are_refused(tiny_model_path, tmp_path, settings: dict) -> None:
    with pytest.raises(ConfigError):
        export(load_model(tiny_model_path), tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reference", ["small_square"], indirect=True)
def test_published_layout_through_onnx(reference, tmp_path) -> None:
    """The exported networks land on the published shared trajectory."""
    model = load_model(reference.checkpoint, config=reference.config)
    case, t = reference.case, reference.tensors
    export(model, tmp_path, latent_shape=tuple(case["latent_shape"]))
    names = ("num_steps", "guidance", "guidance_interval", "timeshift", "last_step")
    spec = SamplingSpec(**{name: case[name] for name in names})
    schedule = Schedule(spec=spec, refresh_steps=tuple(case["shared_refresh_steps"]))
    got = sample(open_backend(tmp_path), schedule, t["noise"], t["labels"])
    assert close(got, t["euler_shared"], 5e-4)
    assert np.isfinite(got.numpy()).all()
