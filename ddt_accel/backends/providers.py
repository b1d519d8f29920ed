"""ONNX Runtime's execution providers: which run a network on a device, how they are set up, and why one does not start.

Its TensorRT provider names a cached engine after the graph, not after the weights. So every export has a folder of
engines of its own, named by the checksums of its files and by whatever else an engine depends on.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import check_writable, checksum
from ddt_accel.backends.tensors import TensorSpec
from ddt_accel.errors import ArtifactError, ConfigError

Provider = tuple[str, dict[str, str]]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
CACHES = "tensorrt-cache"
# What an engine is for unless told otherwise: images at least, usually and at most; guidance doubles them inside.
BATCHES = (1, 8, 32)


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions:
    """Engines that the TensorRT provider builds of one network: the inputs [B, …], for which `batches`, and where they
    are kept, if anywhere."""

    inputs: Sequence[TensorSpec]
    batches: tuple[int, int, int]
    cache: Path | None

    def settings(self) -> dict[str, str]:
        """As the provider wants them. Profiles are explicit: it would build a new engine for every batch it meets."""
        least, usual, most = self.batches
        profiles = {"min": least, "opt": 2 * usual, "max": 2 * most}
        found = {
            f"trt_profile_{name}_shapes": ",".join(
                f"{one.name}:{'x'.join(map(str, one.at(rows)))}" for one in self.inputs
            )
            for name, rows in profiles.items()
        }
        if self.cache is not None:
            found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(self.cache)}
            found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(self.cache.parent)}
        return found


def providers_of(device: str, number: int, tensorrt: TensorRTOptions | None = None) -> list[Provider]:
    """The providers for a `device`, "cpu", "cuda" or what another provider is called, with their settings, in order.

    Raises ConfigError for TensorRT anywhere but on "cuda".
    """
    if tensorrt is not None and device != "cuda":
        raise ConfigError(f"TensorRT runs on 'cuda', and the device is {device!r}.")
    if device != "cuda":
        return [(CPU if device == "cpu" else device, {})]
    # By default float32 products are those of TF32 there, with the mantissa of a float16.
    cuda: Provider = (CUDA, {"use_tf32": "0", "device_id": str(number)})
    return [cuda] if tensorrt is None else [(TENSORRT, {"device_id": str(number), **tensorrt.settings()}), cuda]


def cache_folder(folder: Path, files: dict[str, str], network: str, runtime: str, gpu: str) -> Path | None:
    """Where engines of a network of an export are kept, whose `files` have these checksums; None where nothing can be.

    `runtime` is ONNX Runtime's version, `gpu` what the card is called.
    """
    own = {name: found for name, found in files.items() if name.startswith(f"{network}.")}
    depends = {"files": own, "onnxruntime": runtime, "gpu": gpu}
    with contextlib.suppress(PackageNotFoundError):
        depends["tensorrt"] = version("tensorrt")
    cache = folder.absolute() / CACHES / f"{network}-{checksum(depends)[:16]}"
    try:
        check_writable(cache / "engine")
    except ArtifactError:
        return None
    return cache


def forbid_tf32() -> None:
    """Has TensorRT build float32 engines without TF32, for which ONNX Runtime has no setting (its issue #26029).

    NVIDIA's libraries read it once: it holds for all that this process does.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


@contextlib.contextmanager
def starting(onnxruntime: Any) -> Iterator[io.StringIO]:
    """Has ONNX Runtime load the CUDA libraries that pip has installed, and keeps what it prints then and in the block:
    why a provider does not start. It would be taken for a command's own result."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        if (load := getattr(onnxruntime, "preload_dlls", None)) is not None:  # not before 1.21
            try:
                load()
            except Exception as error:  # what it raises is not documented
                print(error)
        yield said


def unstarted(provider: str, reason: str, *, built_for: str | None, pytorch: str | None) -> str:
    """Why a provider does not start, and what to do: `reason` is what is known of it; the wheel was `built_for` one
    version of CUDA, and PyTorch for another or the same."""
    said = f"ONNX Runtime could not start its {provider}"
    built, here = (re.match(r"\d+", one or "") for one in (built_for, pytorch))
    if built and here and built[0] != here[0]:
        return (
            f"{said}: it was built for CUDA {built_for}, and PyTorch here is for CUDA {pytorch}; install an ONNX "
            f"Runtime for CUDA {here[0]}, or a PyTorch for CUDA {built[0]}."
        )
    if here is None:
        return f"{said}: PyTorch here is for CPUs alone; install one for CUDA{f' {built[0]}' if built else ''}."
    first = next((line for line in reason.splitlines() if line.strip()), "")
    libraries = f"the libraries of CUDA {built_for or pytorch} and cuDNN" + (
        ", and TensorRT" if provider == TENSORRT else ""
    )
    return f"{said}{f' ({first.strip()[:200]})' if first else ''}; it needs {libraries}."
