"""`open_backend`: from an export folder to networks that are ready to run."""

from __future__ import annotations

from pathlib import Path

from ddt_accel.backends.guided import GuidedBackend
from ddt_accel.backends.manifest import GUIDE_FOLDER, Manifest, published
from ddt_accel.backends.ort import OnnxRuntimeBackend
from ddt_accel.backends.tensorrt import TensorRTBackend
from ddt_accel.errors import MismatchError
from ddt_accel.networks.config import UNKNOWN


def open_backend(out_dir: str | Path, *, device: str = "cpu") -> OnnxRuntimeBackend | TensorRTBackend | GuidedBackend:
    """Opens what `export` wrote, every file verified against the manifest: ONNX files on "cpu", "cuda" or "cuda:N",
    engines on the current GPU; with a guide, both networks as one backend.

    Raises ArtifactError for a folder without a whole export, DependencyError where the runtime is not installed.
    """
    main = open_network(out_dir, device=device)
    guide = open_guide(main, device=device)
    return main if guide is None else GuidedBackend(main, guide)


def open_network(out_dir: str | Path, *, device: str) -> OnnxRuntimeBackend | TensorRTBackend:
    """The network of a folder alone."""
    with published(Path(out_dir)):  # what is opened is what was verified
        manifest = Manifest.load(Path(out_dir))
        if manifest.engine is not None:
            return TensorRTBackend(out_dir, manifest=manifest)
        return OnnxRuntimeBackend(out_dir, device=device, manifest=manifest)


def open_guide(
    main: OnnxRuntimeBackend | TensorRTBackend, *, device: str
) -> OnnxRuntimeBackend | TensorRTBackend | None:
    """The second network that was exported with `main`, if one was."""
    if (wanted := main.manifest.guide_sha256) is None:
        return None
    guide = open_network(main.folder / GUIDE_FOLDER, device=device)
    if (guide.checkpoint_sha256 or UNKNOWN) != wanted:
        raise MismatchError(f"{guide.folder} is not the guide that {main.folder} was exported with; export anew.")
    return guide
