"""`open_backend`: from an export folder to networks that are ready to run."""

from __future__ import annotations

from pathlib import Path

from ddt_accel.backends.manifest import Manifest
from ddt_accel.backends.ort import OnnxRuntimeBackend
from ddt_accel.errors import ConfigError


def open_backend(out_dir: str | Path, *, device: str = "cpu") -> OnnxRuntimeBackend:
    """Opens what `export` wrote, every file verified against the manifest, on "cpu" or "cuda".

    Raises ArtifactError for a folder without a whole export, DependencyError where the runtime is not installed.
    """
    manifest = Manifest.load(Path(out_dir))
    if (engine := manifest.engine) is not None:
        raise ConfigError(
            f"{out_dir} holds engines of {engine.library}; this version builds them, but cannot run them yet: export "
            "to ONNX, or run with PyTorch."
        )
    return OnnxRuntimeBackend(out_dir, device=device, manifest=manifest)
