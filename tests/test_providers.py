"""How ONNX Runtime is told to use a GPU, and what is said where it does not: none of it needs one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ddt_accel import load_model
from ddt_accel.backends import ort, providers
from ddt_accel.backends.manifest import Manifest
from ddt_accel.backends.ort import OnnxRuntimeBackend
from ddt_accel.backends.providers import TensorRTOptions, cache_folder, providers_of, starting, unstarted
from ddt_accel.backends.tensors import Cut, tensor_table
from ddt_accel.errors import ConfigError
from ddt_accel.exporting.export import checked_cut

SHAPE = (3, 8, 8)


def test_providers_by_device() -> None:
    assert providers_of("cpu", 0) == [("CPUExecutionProvider", {})]
    assert providers_of("cuda", 2) == [("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "2"})]
    assert providers_of("OpenVINOExecutionProvider", 0) == [("OpenVINOExecutionProvider", {})]


def test_tensorrt_has_explicit_profiles_and_keeps_its_engines(tiny_model_path, tmp_path) -> None:
    config = load_model(tiny_model_path).config
    *inputs, _ = tensor_table(config, SHAPE, Cut(sources=2))["decoder"]
    options = TensorRTOptions(inputs=inputs, batches=(1, 8, 32), cache=tmp_path / "one")
    (name, settings), (second, _) = providers_of("cuda", 1, options)
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    tokens, width = config.num_tokens(SHAPE), config.modulation_size
    for kind, rows in (("min", 1), ("opt", 16), ("max", 64)):
        assert settings.pop(f"trt_profile_{kind}_shapes") == (
            f"latents:{rows}x3x8x8,modulations_1:{rows}x{tokens}x{width},modulations_2:{rows}x{tokens}x{width},"
            f"weights:{rows}x2,constant:{rows}x{width}"
        )
    assert settings == {
        "device_id": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path / "one"),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }
    nowhere = TensorRTOptions(inputs=inputs, batches=(1, 8, 32), cache=None).settings()
    assert {name.rpartition("_")[2] for name in nowhere} == {"shapes"}
    with pytest.raises(ConfigError, match="TensorRT runs on 'cuda'"):
        providers_of("cpu", 0, options)


def test_cached_engines_are_those_of_these_very_weights(tmp_path, monkeypatch) -> None:
    """ONNX Runtime would take an engine of the same graph for that of other weights."""
    files = {"encoder.onnx": "a", "encoder.onnx.data": "b", "decoder.onnx": "c"}

    def folder(network: str = "encoder", runtime: str = "1.22", gpu: str = "a card", **changed: str) -> Path | None:
        return cache_folder(tmp_path, files | {name.replace("_", "."): v for name, v in changed.items()}, network,
                            runtime, gpu)  # fmt: skip

    first = folder()
    assert first is not None
    assert first.is_absolute()
    assert first == folder() == folder(decoder_onnx="other")
    others = [folder(encoder_onnx="x"), folder(encoder_onnx_data="x"), folder(runtime="1.23"), folder(gpu="another")]
    assert len({first, folder("decoder"), *others}) == 6
    monkeypatch.setattr(providers, "version", lambda package: "10.9")
    assert folder() != first
    blocking = tmp_path / "file"
    blocking.write_text("")
    assert cache_folder(blocking, files, "encoder", "1.22", "a card") is None


def test_what_is_printed_while_it_starts_is_kept(capsys) -> None:
    def load() -> None:
        print("Failed to load libcublasLt.so.12")
        raise RuntimeError("no such directory")

    with starting(SimpleNamespace(preload_dlls=load)) as said:
        print("Falling back")
    assert said.getvalue().splitlines() == ["Failed to load libcublasLt.so.12", "no such directory", "Falling back"]
    with starting(SimpleNamespace()) as said:
        pass
    assert (said.getvalue(), capsys.readouterr().out) == ("", "")


@pytest.mark.parametrize(
    ("built", "pytorch", "said"),
    [
        ("12.8", "13.0", "it was built for CUDA 12.8, and PyTorch here is for CUDA 13.0; install an ONNX Runtime for "
         "CUDA 13, or a PyTorch for CUDA 12."),
        ("12.8", "12.6", "(Failed to load libcudnn.so.9); it needs the libraries of CUDA 12.8 and cuDNN."),
        (None, "12.6", "(Failed to load libcudnn.so.9); it needs the libraries of CUDA 12.6 and cuDNN."),
        ("12.8", None, "PyTorch here is for CPUs alone; install one for CUDA 12."),
        ("", None, "PyTorch here is for CPUs alone; install one for CUDA."),
    ],
)  # fmt: skip
def test_why_a_provider_does_not_start(built: str | None, pytorch: str | None, said: str) -> None:
    reason = "\nFailed to load libcudnn.so.9\nand more"
    told = unstarted("CUDAExecutionProvider", reason, built_for=built, pytorch=pytorch)
    assert told.startswith("ONNX Runtime could not start its CUDAExecutionProvider")
    assert told.endswith(said)


def test_tensorrt_is_named_where_it_may_be_missing() -> None:
    told = unstarted("TensorrtExecutionProvider", "", built_for="12.8", pytorch="12.8")
    assert told.endswith("TensorrtExecutionProvider; it needs the libraries of CUDA 12.8 and cuDNN, and TensorRT.")


@pytest.fixture
def runtime(monkeypatch, exports) -> SimpleNamespace:
    """An ONNX Runtime for GPUs, and two of those, in pretence; it says how it is asked."""
    for precision in ("fp32", "fp16"):
        exports(precision)  # while everything is as it is
    state = SimpleNamespace(asked=[], starts=True)

    class InferenceSession:
        def __init__(self, path, options, providers) -> None:
            state.asked.append((path.name, dict(providers)))
            self.providers = [name for name, _ in providers]

        def get_providers(self) -> list[str]:
            return self.providers if state.starts else ["CPUExecutionProvider"]

    class SessionOptions:
        def add_session_config_entry(self, name: str, value: str) -> None: ...

    module = SimpleNamespace(
        __version__="1.22.0", cuda_version="12.8", InferenceSession=InferenceSession, SessionOptions=SessionOptions,
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: print("Failed to load libcublasLt.so.12"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(ort.torch.version, "cuda", "12.6")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    return state


def test_the_current_device_is_taken(runtime, exports, capsys) -> None:
    for device, number in (("cuda", "1"), ("cuda:0", "0")):
        runtime.asked.clear()
        backend = OnnxRuntimeBackend(exports("fp32"), device=device)
        assert backend.device == torch.device("cuda", int(number))
        assert [(name, given["CUDAExecutionProvider"]["device_id"]) for name, given in runtime.asked] == [
            ("encoder.onnx", number), ("decoder.onnx", number)
        ]  # fmt: skip
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"
    assert capsys.readouterr().out == ""


def test_tensorrt_keeps_its_engines_beside_the_export_and_float32_what_it_is(runtime, exports, tmp_path) -> None:
    for precision, tf32 in (("fp16", "1"), ("fp32", "0")):
        folder = tmp_path / precision
        folder.mkdir()
        for path in exports(precision).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        runtime.asked.clear()
        backend = OnnxRuntimeBackend(folder, device="cuda", tensorrt=True, batches=(2, 2, 4))
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == tf32
        given = [one["TensorrtExecutionProvider"] for _, one in runtime.asked]
        kept = [Path(one["trt_engine_cache_path"]) for one in given]
        assert [path.parent for path in kept] == [folder / "tensorrt-cache"] * 2
        assert kept[0] != kept[1]
        assert given[0]["trt_profile_max_shapes"] == "latents:8x3x8x8,times:8,labels:8"
        assert Manifest.load(folder)  # what lies beside is none of its business
        for batch in (1, 5):
            with pytest.raises(ConfigError, match=f"{batch} images at once, and TensorRT's engines are for 2 to 4"):
                backend.open(batch, SHAPE, 1)


def test_a_wheel_for_another_cuda_is_named(runtime, exports, tmp_path, monkeypatch) -> None:
    runtime.starts = False
    folder = shutil.copytree(exports("fp32"), tmp_path / "export")  # a folder for engines is made in it
    with pytest.raises(ConfigError, match=r"Failed to load libcublasLt.so.12\); it needs the libraries of CUDA 12.8"):
        OnnxRuntimeBackend(folder, device="cuda")
    monkeypatch.setattr(ort.torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"built for CUDA 12\.8, and PyTorch here is for CUDA 13\.0"):
        OnnxRuntimeBackend(folder, device="cuda", tensorrt=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no NVIDIA GPU here"):
        OnnxRuntimeBackend(folder, device="cuda")
    monkeypatch.setattr(ort.torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="PyTorch here is for CPUs alone"):
        OnnxRuntimeBackend(folder, device="cuda")


def test_exports_for_a_gpu_forecast_inside() -> None:
    assert checked_cut("onnx", "fp32", "modulations", None, None).sources == 0
    assert checked_cut("onnx", "fp32", "modulations", None, None, on_gpu=True).sources == 2
    assert checked_cut("onnx", "fp32", "modulations", 0, None, on_gpu=True).sources == 0
    assert checked_cut("onnx", "fp32", "state", None, None, on_gpu=True).sources == 2
    assert checked_cut("tensorrt", "bf16", "modulations", None, None).sources == 2
    with pytest.raises(ConfigError, match="1 to 3 sources"):
        checked_cut("onnx", "fp32", "state", None, None)
