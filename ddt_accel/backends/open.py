"""`open_backend`: from an export folder to networks that are ready to run."""

from __future__ import annotations

from pathlib import Path

from ddt_accel.backends.ort import OnnxRuntimeBackend


def open_backend(out_dir: str | Path, *, device: str = "cpu") -> OnnxRuntimeBackend:
    """Opens what `export` wrote, every file verified against the manifest, on "cpu" or "cuda".

    Raises ArtifactError for a folder without a whole export, DependencyError where the runtime is not installed.
    """
    return OnnxRuntimeBackend(out_dir, device=device)
