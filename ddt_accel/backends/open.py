"""`open_backend`: from an export folder to networks that are ready to run."""

from __future__ import annotations

from pathlib import Path

from ddt_accel.backends.manifest import Manifest, published
from ddt_accel.backends.ort import OnnxRuntimeBackend
from ddt_accel.backends.tensorrt import TensorRTBackend


def open_backend(out_dir: str | Path, *, device: str = "cpu") -> OnnxRuntimeBackend | TensorRTBackend:
    """Opens what `export` wrote, every file verified against the manifest: ONNX files on "cpu", "cuda" or "cuda:N",
    engines on the current GPU.

    Raises ArtifactError for a folder without a whole export, DependencyError where the runtime is not installed.
    """
    with published(Path(out_dir)):  # what is opened is what was verified
        manifest = Manifest.load(Path(out_dir))
        if manifest.engine is not None:
            return TensorRTBackend(out_dir, manifest=manifest)
        return OnnxRuntimeBackend(out_dir, device=device, manifest=manifest)
