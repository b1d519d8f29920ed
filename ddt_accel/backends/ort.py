"""The networks run by ONNX Runtime on buffers that are bound once.

The encoder writes its modulations into the buffer that the decoder reads; between refreshes nothing is moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddt_accel.backends.manifest import Manifest
from ddt_accel.backends.pytorch import combine
from ddt_accel.errors import ArtifactError, ConfigError, DependencyError

if TYPE_CHECKING:
    import onnxruntime

_TYPES = {torch.float32: "float32", torch.float16: "float16", torch.int64: "int64"}


class OnnxRuntimeBackend:
    """An export folder, opened by ONNX Runtime on "cpu" or "cuda"."""

    def __init__(self, folder: str | Path, *, device: str = "cpu", threads: int | None = None) -> None:
        """`threads` is the number of CPU threads inside an operator; by default one a core.

        Raises ArtifactError for a folder without a whole export, DependencyError without onnxruntime.
        """
        try:
            import onnxruntime
        except ImportError:
            raise DependencyError("ONNX Runtime is not installed; install ddt-accel[cpu] or ddt-accel[gpu].") from None
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device)
        if provider not in onnxruntime.get_available_providers():
            raise ConfigError(f"This ONNX Runtime cannot run on {device!r}; install ddt-accel[gpu] for 'cuda'.")
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.config, self.checkpoint_sha256 = self.manifest.config, self.manifest.checkpoint_sha256
        workers = f", {threads or 'all'} threads" if device == "cpu" else ""
        self.name = f"ONNX Runtime, {self.manifest.precision}{workers}"
        self.device = torch.device(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # PyTorch updates the latents between two calls with threads of its own; workers that spin while they wait
        # would take the cores away from it, and cost half the speed.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        self.networks = {}
        for network in ("encoder", "decoder"):
            path = self.folder / f"{network}.onnx"
            try:
                self.networks[network] = onnxruntime.InferenceSession(path, options, providers=[provider])
            except Exception as error:  # ONNX Runtime has no common exception type
                raise ArtifactError(f"{path} cannot be opened ({str(error)[:200]}); export anew.") from None

    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int) -> OnnxRuntimeSession:
        if latent_shape != self.manifest.latent_shape:
            raise ConfigError(
                f"Latents of shape {list(latent_shape)}: this export is for {list(self.manifest.latent_shape)}."
            )
        return OnnxRuntimeSession(self, batch, slots)


class OnnxRuntimeSession:
    """See `sampling.backend.Session`."""

    def __init__(self, backend: OnnxRuntimeBackend, batch: int, slots: int) -> None:
        self._networks, self._device = backend.networks, backend.device
        config, shape = backend.config, backend.manifest.latent_shape
        rows, tokens = 2 * batch, config.num_tokens(shape)
        dtype = torch.float16 if backend.manifest.precision == "fp16" else torch.float32
        self.latents = torch.zeros((rows, *shape), device=backend.device)
        self.velocity = torch.zeros((rows, *shape), device=backend.device)
        self.times = torch.zeros(rows, device=backend.device)
        self.labels = torch.zeros(rows, dtype=torch.int64, device=backend.device)
        self.modulations = [
            torch.zeros((rows, tokens, config.modulation_size), dtype=dtype, device=backend.device)
            for _ in range(slots)
        ]
        inputs = {"latents": self.latents, "times": self.times, "labels": self.labels}
        self._encode = {
            (slot, start, stop): self._bind("encoder", inputs, {"modulations": modulations}, slice(start, stop))
            for slot, modulations in enumerate(self.modulations)
            for start, stop in ((0, batch), (batch, rows), (0, rows))
        }
        outputs = {"velocity": self.velocity}
        self._decode = {
            (slot, stop): self._bind(
                "decoder", {"latents": self.latents, "modulations": modulations}, outputs, slice(0, stop)
            )
            for slot, modulations in enumerate(self.modulations)
            for stop in (batch, rows)
        }

    def encode(self, slot: int, rows: slice) -> None:
        self._run("encoder", self._encode[slot, rows.start, rows.stop])

    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        combine(self.modulations, slot, sources, constant, rows)

    def decode(self, slot: int, rows: slice) -> None:
        self._run("decoder", self._decode[slot, rows.stop])

    def _run(self, network: str, binding: onnxruntime.IOBinding) -> None:
        if self._device.type == "cuda":
            # ONNX Runtime has a stream of its own, which does not wait for what PyTorch still writes.
            torch.cuda.current_stream(self._device).synchronize()
        self._networks[network].run_with_iobinding(binding)

    def _bind(
        self, network: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor], rows: slice
    ) -> onnxruntime.IOBinding:
        """Binds some rows of the buffers, which stay where they are for the life of the session."""
        binding: Any = self._networks[network].io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                view = tensor[rows]
                bind(name, self._device.type, 0, _TYPES[view.dtype], list(view.shape), view.data_ptr())
        return binding
