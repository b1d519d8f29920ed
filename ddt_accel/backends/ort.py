"""The networks run by ONNX Runtime on buffers that are bound once (`backends.session`)."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.backends.manifest import Manifest
from ddt_accel.backends.providers import (
    BATCHES,
    TENSORRT,
    TensorRTOptions,
    cache_folder,
    forbid_tf32,
    providers_of,
    starting,
    unstarted,
)
from ddt_accel.backends.session import BoundSession
from ddt_accel.backends.tensors import tensor_table
from ddt_accel.errors import ArtifactError, ConfigError, DependencyError
from ddt_accel.sampling.backend import Buffers

_TYPES = {torch.float32: "float32", torch.float16: "float16", torch.int64: "int64"}


class OnnxRuntimeBackend:
    """An export folder, opened by ONNX Runtime on "cpu", "cuda" or "cuda:N"."""

    takes_all = True
    guide = None
    capturable = False  # it has a stream of its own

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        tensorrt: bool = False,
        batches: tuple[int, int, int] = BATCHES,
        manifest: Manifest | None = None,
    ) -> None:
        """`threads` is the number of CPU threads inside an operator; by default as many as PyTorch computes with.

        With `tensorrt` ONNX Runtime's TensorRT provider runs on "cuda" what it can, by engines for `batches`, images at
        least, usually and at most, that it keeps in the export's folder; for float32 it turns TF32 off for the process.
        `manifest` is that of the folder, where it was read and the files were verified.

        Raises ArtifactError for a folder without a whole export, DependencyError without onnxruntime, ConfigError where
        a provider does not start.
        """
        try:
            import onnxruntime
        except ImportError:
            raise DependencyError("ONNX Runtime is not installed; install ddt-accel[cpu] or ddt-accel[gpu].") from None
        kind, _, number = device.partition(":")
        if tensorrt and kind != "cuda":
            raise ConfigError(f"TensorRT runs on 'cuda', and the device is {device!r}.")
        wanted = [TENSORRT] * tensorrt + [name for name, _ in providers_of(kind, 0)]
        if absent := [one for one in wanted if one not in onnxruntime.get_available_providers()]:
            raise ConfigError(
                f"This ONNX Runtime has no {absent[0]}; a GPU takes ddt-accel[gpu] "
                "in the place of ddt-accel[cpu]: uninstall onnxruntime first."
            )
        cuda = {"built_for": getattr(onnxruntime, "cuda_version", None), "pytorch": torch.version.cuda}
        if kind == "cuda" and not torch.cuda.is_available():
            if torch.version.cuda is None:
                raise ConfigError(unstarted(wanted[0], "", **cuda))
            raise ConfigError(f"The device is {device!r}, and PyTorch finds no NVIDIA GPU here; give 'cpu'.")
        self._number = int(number) if number else torch.cuda.current_device() if kind == "cuda" else 0
        self.folder = Path(folder)
        self.manifest = manifest or Manifest.load(self.folder)
        self.config, self.checkpoint_sha256 = self.manifest.config, self.manifest.checkpoint_sha256
        self.latent_shape, self.cut = self.manifest.latent_shape, self.manifest.cut
        self.widths = self.manifest.widths
        threads = threads or torch.get_num_threads()
        workers = f", {threads} thread{'s' * (threads > 1)}" if kind == "cpu" else ""
        self.name = f"ONNX Runtime{' with TensorRT' * tensorrt}, {self.manifest.precision}{workers}"
        self.device = torch.device(kind, self._number) if kind == "cuda" else torch.device(device)
        self._batches = batches if tensorrt else None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # PyTorch updates the latents between two calls with threads of its own; workers that spin while they wait
        # would take the cores away from it, and cost half the speed.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = threads
        if tensorrt and self.manifest.precision == "fp32":
            forbid_tf32()
        self.networks = {}
        for network in self.manifest.tensors:
            path = self.folder / f"{network}.onnx"
            engines = self._engines(network, batches, onnxruntime.__version__) if tensorrt else None
            providers = providers_of(kind, self._number, engines)
            with starting(onnxruntime) if kind == "cuda" else contextlib.nullcontext(io.StringIO()) as said:
                try:
                    self.networks[network] = onnxruntime.InferenceSession(path, options, providers=providers)
                except Exception as error:  # ONNX Runtime has no common exception type
                    raise ArtifactError(f"{path} cannot be opened ({str(error)[:200]}); export anew.") from None
            if self.networks[network].get_providers()[0] != wanted[0]:
                raise ConfigError(unstarted(wanted[0], said.getvalue(), **cuda))

    def _engines(self, network: str, batches: tuple[int, int, int], runtime: str) -> TensorRTOptions:
        table = tensor_table(self.config, self.latent_shape, self.cut)
        gpu = torch.cuda.get_device_name(self.device)
        return TensorRTOptions(
            inputs=table[network.partition("-")[0]][:-1],
            batches=batches,
            cache=cache_folder(self.folder, self.manifest.files, network, runtime, gpu),
        )

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> BoundSession:
        if latent_shape != self.latent_shape:
            raise ConfigError(f"Latents of shape {list(latent_shape)}: this export is for {list(self.latent_shape)}.")
        if self._batches is not None and not self._batches[0] <= batch <= self._batches[2]:
            raise ConfigError(
                f"{batch} images at once, and TensorRT's engines are for {self._batches[0]} to {self._batches[2]}; "
                "sample in other batches, or open the export with other batches."
            )
        return BoundSession(self, batch, slots, buffers=buffers)

    def bind(self, network: str, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """See `backends.session.Runner`."""
        session = self.networks[network]
        binding: Any = session.io_binding()
        inputs = {given.name for given in session.get_inputs()}
        for name, tensor in tensors.items():
            bind = binding.bind_input if name in inputs else binding.bind_output
            bind(name, self.device.type, self._number, _TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr())

        def call() -> None:
            if self.device.type == "cuda":
                # ONNX Runtime has a stream of its own, which does not wait for what PyTorch still writes.
                torch.cuda.current_stream(self.device).synchronize()
            try:
                session.run_with_iobinding(binding)
            except Exception as error:  # ONNX Runtime has no common exception type
                reason = str(error)[:300]
                if re.search("allocate|out of memory|alloc_failed", str(error), re.IGNORECASE):
                    raise torch.OutOfMemoryError(f"ONNX Runtime is out of memory in the {network}: {reason}") from None
                raise ArtifactError(f"ONNX Runtime cannot run the {network} of {self.folder} ({reason}).") from None

        return call
