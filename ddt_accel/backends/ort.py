"""The networks run by ONNX Runtime on buffers that are bound once (`backends.session`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.backends.manifest import Manifest
from ddt_accel.backends.session import BoundSession
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
        manifest: Manifest | None = None,
    ) -> None:
        """`threads` is the number of CPU threads inside an operator; by default as many as PyTorch
        computes with. With `tensorrt` ONNX
        Runtime's TensorRT provider runs on "cuda" what it can. `manifest` is that of the folder, where it was read and
        the files were verified.

        Raises ArtifactError for a folder without a whole export, DependencyError without onnxruntime.
        """
        try:
            import onnxruntime
        except ImportError:
            raise DependencyError("ONNX Runtime is not installed; install ddt-accel[cpu] or ddt-accel[gpu].") from None
        # By default float32 products are those of TF32 there, with the mantissa of a float16.
        kind, _, number = device.partition(":")
        self._number = int(number or 0)
        settings = {
            "CUDAExecutionProvider": {"use_tf32": "0", "device_id": str(self._number)},
            "TensorrtExecutionProvider": {"device_id": str(self._number)},
        }
        providers = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider"]}.get(kind, [device])
        if tensorrt and kind != "cuda":
            raise ConfigError(f"TensorRT runs on 'cuda', and the device is {device!r}.")
        if tensorrt:
            providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
        if absent := [one for one in providers if one not in onnxruntime.get_available_providers()]:
            raise ConfigError(
                f"This ONNX Runtime has no {absent[0]}; a GPU takes ddt-accel[gpu] "
                "in the place of ddt-accel[cpu]: uninstall onnxruntime first."
            )
        self.folder = Path(folder)
        self.manifest = manifest or Manifest.load(self.folder)
        self.config, self.checkpoint_sha256 = self.manifest.config, self.manifest.checkpoint_sha256
        self.latent_shape, self.cut = self.manifest.latent_shape, self.manifest.cut
        threads = threads or torch.get_num_threads()
        workers = f", {threads} thread{'s' * (threads > 1)}" if kind == "cpu" else ""
        self.name = f"ONNX Runtime{' with TensorRT' * tensorrt}, {self.manifest.precision}{workers}"
        self.device = torch.device(kind, self._number) if kind == "cuda" else torch.device(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # PyTorch updates the latents between two calls with threads of its own; workers that spin while they wait
        # would take the cores away from it, and cost half the speed.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = threads
        self.networks = {}
        for network in ("encoder", "decoder"):
            path = self.folder / f"{network}.onnx"
            try:
                self.networks[network] = onnxruntime.InferenceSession(
                    path, options, providers=[(one, settings.get(one, {})) for one in providers]
                )
            except Exception as error:  # ONNX Runtime has no common exception type
                raise ArtifactError(f"{path} cannot be opened ({str(error)[:200]}); export anew.") from None
            if (used := self.networks[network].get_providers()[0]) != providers[0]:
                raise ConfigError(f"ONNX Runtime could not start its {providers[0]} and would use {used}.")

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> BoundSession:
        if latent_shape != self.latent_shape:
            raise ConfigError(f"Latents of shape {list(latent_shape)}: this export is for {list(self.latent_shape)}.")
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
