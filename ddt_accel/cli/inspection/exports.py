"""Exports, and the networks in them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ddt_accel.backends.manifest import GUIDE_FOLDER, Engine, Manifest
from ddt_accel.cli.holdings import sizes
from ddt_accel.cli.inspection.told import Told
from ddt_accel.errors import ArtifactError


def export(folder: Path) -> Told:
    """A whole export, every file of it verified."""
    manifest = Manifest.load(folder)
    facts = {key.replace("_", " "): value for key, value in asdict(manifest).items()}
    config, engine = manifest.config, manifest.engine
    made = "by the decoder" if manifest.sources else "outside"
    up_to = f", from up to {manifest.sources} states" if manifest.sources else ""
    words = {
        "kind": f"export: {'ONNX files' if engine is None else 'engines'}",
        "model": manifest.model,
        "precision": manifest.precision,
        "latents": sizes(manifest.latent_shape),
        "network": f"{config.description}, {config.num_classes} classes",
        **({"classes": list(manifest.class_names)} if manifest.class_names else {}),
        "kept": f"{manifest.cache} between refreshes; forecasts are made {made}{up_to}",
        **({"widths": ", ".join(f"{one:g}" for one in manifest.widths)} if len(manifest.widths) > 1 else {}),
        **({"engines": _engine(engine)} if engine is not None else {}),
        "parity": ", ".join(f"{name} {error:.1e}" for name, error in manifest.parity.items())
        + " from PyTorch in fp32, relative to the largest value",
        "checkpoint": manifest.checkpoint_sha256 or "unknown",
        **({"guide": f"{manifest.guide_sha256}, in {GUIDE_FOLDER}/"} if manifest.guide_sha256 is not None else {}),
        "made by": [f"{name} {version}" for name, version in manifest.versions.items()],
        "files": list(manifest.files),
    }
    return Told(facts={"kind": "export", **facts}, words=words)


def _engine(engine: Engine) -> str:
    batches = ", ".join(f"{least} to {most} images, best at {best}" for least, best, most in engine.batches)
    verified = "not run yet" if engine.verified is None else f"verified here, {engine.verified:.1e} from PyTorch"
    later = ", later versions of it too" if engine.version_compatible else ""
    gpus = "all GPUs since Ampere" if engine.gpu is None or engine.hardware_compatible else engine.gpu
    return f"{engine.library} {engine.version}{later}, for {gpus}, {batches}; {verified}"


def network(path: Path) -> Told:
    """One of the networks of an export."""
    if not (path.parent / "manifest.json").exists():
        raise ArtifactError(f"{path} is no network of ours: there is no manifest.json of an export beside it.")
    manifest = Manifest.load(path.parent)
    if path.name not in manifest.files:
        raise ArtifactError(f"{path} is no part of the export that lies in {path.parent}.")
    return Told(
        facts={
            "kind": f"{path.stem} of an export",
            "sha256": manifest.files[path.name],
            "tensors": [f"{name}: {dtype} {shape}" for name, dtype, shape in manifest.tensors[path.stem]],
            "parity": manifest.parity[path.stem],
            "model": manifest.model,
            "precision": manifest.precision,
        }
    )
