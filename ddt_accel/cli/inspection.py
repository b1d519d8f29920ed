"""`inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ddt_accel.cli.console import emit
from ddt_accel.cli.options import JsonOption


def inspect(
    path: Annotated[Path, typer.Argument(help="Schedule, calibration, export folder or manifest, or checkpoint.")],
    json: JsonOption = False,
) -> None:
    """Explain what a file is, after checking it."""
    from ddt_accel.errors import ArtifactError

    if not path.exists():
        raise ArtifactError(f"There is no {path}.")
    facts = _facts(path)
    emit(facts, as_json=json, text="\n".join(f"{key:>18}  {_short(value)}" for key, value in facts.items()))


def _facts(path: Path) -> dict[str, Any]:
    if path.is_dir() and (path / "manifest.json").exists():
        return _export(path)
    if path.name == "manifest.json":
        return _export(path.parent)
    if path.suffix == ".json":
        return _schedule(path)
    if path.suffix == ".safetensors" and _is_calibration(path):
        return _calibration(path)
    return _checkpoint(path)


def _schedule(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.schedule import Schedule

    schedule = Schedule.load(path)
    return {
        "kind": "schedule",
        "encoder runs": f"{schedule.budget} of {schedule.spec.num_evaluations}",
        "refresh steps": list(schedule.refresh_steps),
        "objective": schedule.objective,
        "predicted cost": schedule.predicted_cost,
        "checkpoint": schedule.checkpoint_sha256,
        "calibration": schedule.calibration_sha256,
        **{key.replace("_", " "): value for key, value in asdict(schedule.spec).items()},
    }


def _is_calibration(path: Path) -> bool:
    import safetensors

    from ddt_accel.calibration.statistics import FORMAT
    from ddt_accel.errors import ArtifactError

    try:
        with safetensors.safe_open(path, framework="np") as file:
            return f'"{FORMAT}"' in (file.metadata() or {}).get("document", "")
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file ({error}).") from None


def _calibration(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.calibration.statistics import Calibration

    calibration = Calibration.load(path)
    similarity = calibration.similarity
    neighbours = similarity.diagonal(1)
    return {
        "kind": "calibration",
        "samples": calibration.num_samples,
        "images": [f"seed {r.seed}: {r.first} … {r.stop - 1}" for r in calibration.ranges],
        "neighbouring steps": f"cosine {neighbours.min():.4f} … {neighbours.max():.4f}" if len(neighbours) else "none",
        "first and last": f"cosine {similarity[0, -1]:.4f}",
        "checkpoint": calibration.checkpoint_sha256,
        **{key.replace("_", " "): value for key, value in asdict(calibration.spec).items()},
    }


def _export(folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.backends.manifest import Manifest

    manifest = Manifest.load(folder)
    facts = asdict(manifest)
    return {"kind": "export", **{key.replace("_", " "): value for key, value in facts.items()}}


def _checkpoint(path: Path) -> dict[str, Any]:
    from ddt_accel.networks.checkpoints import describe

    return {"kind": "checkpoint", **describe(path)}


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 400 else text[:397] + "..."
