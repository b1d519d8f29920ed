"""The networks run by TensorRT, or by TensorRT for RTX, on PyTorch's buffers and stream.

Tensors are bound by address; only rows that do not begin where TensorRT wants them to are copied. Calls are queued in
the order of the current CUDA stream, without waiting for it; those of one backend share their working memory, so that
two streams may not run it at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.artifacts import read_arrays
from ddt_accel.backends.contexts import ALIGNMENT, Contexts
from ddt_accel.backends.kernel_cache import KernelCache, kernels_name
from ddt_accel.backends.manifest import (
    ENGINE_LIBRARIES,
    REFERENCE_FORMAT,
    REFERENCE_VERSION,
    TOLERANCE,
    WIDER,
    Engine,
    Manifest,
    reference_name,
)
from ddt_accel.backends.session import BoundSession
from ddt_accel.errors import ArtifactError, ConfigError, DependencyError, MismatchError, ParityError
from ddt_accel.sampling.backend import Buffers

# What TensorRT for RTX builds for unless told otherwise: no card of a data centre (sm_80, sm_90, sm_100), no Turing.
RTX_TARGETS = ("sm_86", "sm_89", "sm_120", "sm_121")


def gpu() -> str | None:
    """The architecture of the GPU at hand, as "sm_90"; None without one."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None


def check_engine(engine: Engine, installed: str, architecture: str | None) -> None:
    """Refuses engines of another version of their library, or for another GPU than the one at hand.

    Raises MismatchError, or ConfigError where there is no GPU at all.
    """
    built, here = (tuple(map(int, re.findall(r"\d+", version))) for version in (engine.version, installed))
    later = engine.version_compatible and built[:1] == here[:1] and here >= built
    if built != here and not later:
        raise MismatchError(
            f"The engines were built by {engine.library} {engine.version}, and {installed} is installed; export anew."
        )
    if architecture is None:
        raise ConfigError("Engines run on an NVIDIA GPU, and there is none here; export to ONNX, or run with PyTorch.")
    if engine.library == "tensorrt-rtx" and architecture not in RTX_TARGETS:
        raise MismatchError(
            f"The engines were built by TensorRT for RTX, which is for {', '.join(RTX_TARGETS)}, and this GPU is "
            f"{architecture}: it needs TensorRT; `pip install 'ddt-accel[gpu,trt]'`, and export anew here."
        )
    if engine.gpu not in (None, architecture) and not engine.hardware_compatible:
        raise MismatchError(
            f"The engines were built for {engine.gpu}, and this GPU is {architecture}; export anew here, or with "
            "--hardware-compatible there."
        )


class TensorRTBackend:
    """A folder of engines, opened on the current GPU.

    Engines that were never run are compared with what PyTorch has found at some points of a trajectory, and the result
    goes into the manifest. Raises MismatchError for engines that are not for this library or GPU, ConfigError without a
    GPU, ParityError where they compute something else.
    """

    takes_all = True
    guide = None
    capturable = True

    def __init__(self, folder: str | Path, *, manifest: Manifest | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = manifest or Manifest.load(self.folder)
        engine = self.manifest.engine
        if engine is None:
            raise ConfigError(f"{self.folder} holds no engines; build them with `ddt-accel export --trt`.")
        try:
            self._trt: Any = importlib.import_module(ENGINE_LIBRARIES[engine.library])
        except ImportError:
            raise DependencyError(f"{engine.library} is not installed, which has built these engines.") from None
        architecture = gpu()
        check_engine(engine, str(self._trt.__version__), architecture)
        self.config, self.checkpoint_sha256 = self.manifest.config, self.manifest.checkpoint_sha256
        self.latent_shape, self.cut = self.manifest.latent_shape, self.manifest.cut
        self.widths = self.manifest.widths
        self.name = f"{engine.library} {engine.version}, {self.manifest.precision}"
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        if engine.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True  # its lean runtime, out of a file whose checksum is ours
        self._engines = {name: self._deserialized(name) for name in self.manifest.tensors}
        self._stream = torch.cuda.Stream(self.device)
        self._kernels = KernelCache(
            self.folder / kernels_name(str(architecture)),
            library=f"{engine.library} {engine.version}",
            gpu=torch.cuda.get_device_name(self.device),
        )
        self._contexts = Contexts(self._trt, self.device, self._kernels)
        self._ran: set[tuple[str, int]] = set()  # networks by rows, whose kernels are compiled
        if engine.verified is None:
            self._verify(engine)

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> BoundSession:
        if latent_shape != self.latent_shape:
            raise ConfigError(
                f"Latents of shape {list(latent_shape)}: these engines are for {list(self.latent_shape)}."
            )
        for rows in (batch, batch if buffers else 2 * batch):
            self._profile(rows)
        return BoundSession(self, batch, slots, buffers=buffers)

    def bind(self, network: str, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """See `backends.session.Runner`."""
        engine = self._engines[network]
        # Engines want addresses that are multiples of 256 bytes, which rows in the middle of a buffer may not have.
        aligned = {name: tensor for name, tensor in tensors.items() if tensor.data_ptr() % ALIGNMENT}
        aligned = {name: torch.empty_like(tensor) for name, tensor in aligned.items()}
        inputs = {name for name in tensors if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT}
        shapes = {name: tuple(tensors[name].shape) for name in inputs}
        rows = len(next(iter(tensors.values())))
        current = torch.cuda.current_stream(self.device)
        context = self._contexts.of(network, engine, self._profile(rows), shapes, current)
        addresses = [(name, aligned.get(name, tensor).data_ptr()) for name, tensor in tensors.items()]
        before = [(aligned[name], tensors[name]) for name in aligned if name in inputs]
        after = [(tensors[name], aligned[name]) for name in aligned if name not in inputs]

        def call() -> None:
            for target, source in before:
                target.copy_(source)
            # Other sessions of as many rows run the same context on buffers of their own.
            set_up = all(context.set_tensor_address(name, address) for name, address in addresses)
            current = torch.cuda.current_stream(self.device)
            # On the default stream TensorRT would wait for the device at every call.
            stream = self._stream if current.cuda_stream == 0 else current
            if stream is self._stream:
                stream.wait_stream(current)
            if not set_up or not context.execute_async_v3(stream.cuda_stream):
                raise ArtifactError(f"The {network} engine in {self.folder} does not run; export anew.")
            if stream is self._stream:
                current.wait_stream(stream)
            for target, source in after:
                target.copy_(source)
            if torch.cuda.is_current_stream_capturing():
                self._contexts.memory.pin()
            elif (network, rows) not in self._ran:
                self._ran.add((network, rows))
                self._kernels.save()

        return call

    @property
    def least_batch(self) -> int:
        assert self.manifest.engine is not None
        return min(least for least, _, _ in self.manifest.engine.batches)

    def _profile(self, rows: int) -> int:
        """The profile for so many rows that is made for the nearest number of them."""
        assert self.manifest.engine is not None
        profiles = self.manifest.engine.batches
        fitting = [k for k, (least, _, most) in enumerate(profiles) if least <= rows <= 2 * most]
        if not fitting:
            said = ", ".join(f"{least} to {2 * most}" for least, _, most in profiles)
            raise ConfigError(
                f"{rows} rows at once, and these engines take {said}; guidance needs two for each image: sample in "
                "other batches, or export with another --batch."
            )
        return min(fitting, key=lambda k: abs(2 * profiles[k][1] - rows))

    def _deserialized(self, network: str) -> Any:
        path = self.folder / f"{network}.engine"
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ArtifactError(f"{path} cannot be loaded by {self.name}; export anew.")
        return engine

    def _verify(self, engine: Engine) -> None:
        """Compares with the reference points, and writes down how far the engines are from them at most."""
        error = max(map(self._error_at, self.widths))
        limit = TOLERANCE[self.manifest.precision]
        if not error <= limit:
            wider = WIDER.get(self.manifest.precision)
            raise ParityError(
                f"The engines are {error:.2e} away from PyTorch in float32, and {self.manifest.precision} allows "
                f"{limit:.0e}; {f'export with --precision {wider}' if wider else 'please report it'}."
            )
        self.manifest = dataclasses.replace(self.manifest, engine=dataclasses.replace(engine, verified=error))
        # Where it cannot be kept, the next opening verifies again.
        with contextlib.suppress(ArtifactError):
            self.manifest.save(self.folder)

    def _error_at(self, width: float) -> float:
        """The largest error of both networks at a width, relative to the largest velocity."""
        _, points = read_arrays(self.folder / reference_name(width), REFERENCE_FORMAT, REFERENCE_VERSION)
        expected = torch.from_numpy(points["velocity"])
        got = torch.cat([self._at(points, p, width) for p in range(len(expected))])
        return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))

    def _at(self, points: dict[str, Any], p: int, width: float) -> Tensor:
        """The velocity [1, C, H, W] at one of the points: its refreshes encoded, forecast from, and decoded."""
        count, batch = len(points["refresh_times"]), self.least_batch
        session = self.open(batch, self.manifest.latent_shape, count + 1)
        rows = slice(0, batch)  # all alike
        session.labels[rows] = int(points["labels"][p])
        for s in range(count):
            session.latents[rows] = torch.from_numpy(points["refresh_latents"][s, p]).to(self.device)
            session.times[rows] = float(points["refresh_times"][s, p])
            session.encode(s, rows, width)
        constant = torch.from_numpy(points["constant"][p]).to(self.device)
        session.forecast(count, list(enumerate(points["weights"][p].tolist())), constant, rows)
        session.latents[rows] = torch.from_numpy(points["latents"][p]).to(self.device)
        session.decode(count, rows, width)
        return session.velocity[:1].cpu()
