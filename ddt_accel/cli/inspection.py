"""`inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit
from ddt_accel.cli.options import JsonOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def inspect(
    path: Annotated[Path, typer.Argument(help="Any file or folder that ddt-accel reads or writes, or a shipped name.")],
    json: JsonOption = False,
) -> None:
    """Explain what a file is, after checking it."""
    from ddt_accel.errors import ArtifactError

    if path.exists() and not path.is_file() and not path.is_dir():
        raise ArtifactError(f"{path} is neither a file nor a folder; give one that ddt-accel reads or writes.")
    facts = _facts(path)
    emit(facts, as_json=json, text="\n".join(f"{key:>18}  {_short(value)}" for key, value in facts.items()))


def _facts(path: Path) -> dict[str, Any]:
    from ddt_accel.backends import manifest
    from ddt_accel.calibration import statistics
    from ddt_accel.errors import ArtifactError
    from ddt_accel.networks.locate import embedded_models
    from ddt_accel.schedule import shipped_schedules
    from ddt_accel.workspace import SETTINGS_NAME, Workspace

    if not path.exists() and str(path) in shipped_schedules():
        return _schedule(path)
    if not path.exists() and str(path) in embedded_models():
        return _checkpoint(path)
    if not path.exists():
        raise ArtifactError(
            f"There is no {path}; give a file, a folder, an embedded model ({', '.join(embedded_models())}) or a "
            f"shipped schedule ({', '.join(shipped_schedules())})."
        )
    if path.is_dir() and ((path / SETTINGS_NAME).exists() or Workspace(path).calibration_path.exists()):
        return _workspace(path)
    if path.is_dir() and (path / manifest.FILE_NAME).exists():
        return _export(path)
    if path.name == manifest.FILE_NAME:
        return _export(path.parent)
    if path.suffix in (".onnx", ".engine"):
        return _network(path)
    if path.name == SETTINGS_NAME:
        return _workspace(path.parent)
    if path.suffix == ".json":
        return _document(path)
    if path.suffix == ".safetensors":
        kind = _kind(path)
        if kind is not None:
            return _calibration(path) if kind == statistics.FORMAT else _arrays(path, kind)
    return _checkpoint(path)


def _document(path: Path) -> dict[str, Any]:
    """A schedule, the numbers of a report, measured costs, or speeds of backends."""
    from ddt_accel.artifacts import format_of
    from ddt_accel.evaluation import costs
    from ddt_accel.report import render
    from ddt_accel.workspace import SPEEDS_FORMAT

    readers = {render.FORMAT: _report, costs.FORMAT: _costs, SPEEDS_FORMAT: _speeds}
    return readers.get(format_of(path) or "", _schedule)(path)


def _costs(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.evaluation.costs import Costs

    return {"kind": "costs per image and branch", **asdict(Costs.load(path))}


def _speeds(path: Path) -> dict[str, Any]:
    from ddt_accel.workspace import read_speeds

    conditions, seconds = read_speeds(path)
    told = "one encoder and five decoder runs, guided, by backend"
    times = {name: f"{1e3 * taken:.1f} ms" for name, taken in seconds.items()}
    return {"kind": "speeds", "of": told, **times, **conditions}


def _report(path: Path) -> dict[str, Any]:
    from ddt_accel.artifacts import read_json
    from ddt_accel.errors import ArtifactError
    from ddt_accel.report import render

    content = read_json(path, render.FORMAT, render.VERSION)
    try:
        return _measured(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a usable report (it lacks {error}); run `ddt-accel bench` again.") from None


def _measured(content: dict[str, Any]) -> dict[str, Any]:
    rows = {
        m["name"]: f"{len(m['refresh_steps'])} encoder runs in {m['num_evaluations']} steps, "
        f"{m['seconds'] * 1000:.1f} ms per image, {m['speedup']:.2f}x"
        for m in content["measurements"]
    }
    return {"kind": "report", "images": content["num_images"], **rows, **content["conditions"]}


def _workspace(folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.workspace import ModelChoice, Workspace

    place = Workspace(folder)
    made = [place.calibration_path, place.schedule_path, place.export_path, place.samples_path]
    return {
        "kind": "workspace",
        **asdict(place.remembered() or ModelChoice()),
        "holds": [path.name for path in made if path.exists()],
    }


def _network(path: Path) -> dict[str, Any]:
    from ddt_accel.backends.manifest import Manifest
    from ddt_accel.errors import ArtifactError

    manifest = Manifest.load(path.parent)
    if path.name not in manifest.files:
        raise ArtifactError(f"{path} is no part of the export that lies in {path.parent}.")
    return {
        "kind": f"{path.stem} of an export",
        "sha256": manifest.files[path.name],
        "tensors": [f"{name}: {dtype} {shape}" for name, dtype, shape in manifest.tensors[path.stem]],
        "parity": manifest.parity[path.stem],
        "model": manifest.model,
        "precision": manifest.precision,
    }


def _schedule(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.schedule import Schedule

    schedule = Schedule.load(path)
    drawn = max((len(row) for row in schedule.forecasts.values()), default=1)
    centred = ", of the deviation from the mean trajectory" if schedule.centred else ""
    return {
        "kind": "schedule",
        "encoder runs": f"{schedule.budget} of {schedule.spec.num_evaluations}",
        "refresh steps": list(schedule.refresh_steps),
        **({"unconditional": list(schedule.unconditional_steps)} if schedule.unconditional_steps is not None else {}),
        "forecast": f"{schedule.forecast}, from up to {drawn} states{centred}",
        **({"times": [round(time, 4) for time in schedule.times]} if schedule.times is not None else {}),
        **({"integrator": "weights of its own"} if schedule.integrator is not None else {}),
        "objective": schedule.objective,
        "predicted cost": schedule.predicted_cost,
        "predicted error": schedule.predicted_error,
        "checkpoint": schedule.checkpoint_sha256,
        "calibration": schedule.calibration_sha256,
        **{key.replace("_", " "): value for key, value in asdict(schedule.spec).items()},
    }


def _kind(path: Path) -> str | None:
    """The format that a safetensors file of ours says it has; None for anybody else's."""
    import json

    import safetensors

    from ddt_accel.errors import ArtifactError

    try:
        with safetensors.safe_open(path, framework="np") as file:
            document = (file.metadata() or {}).get("document")
        kind = json.loads(document).get("format") if document else None
        return kind if isinstance(kind, str) else None
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file ({error}).") from None


def _arrays(path: Path, kind: str) -> dict[str, Any]:
    """Mean modulations, converged trajectories, a fit that was interrupted, what engines are verified with."""
    from ddt_accel.artifacts import read_arrays
    from ddt_accel.backends import manifest
    from ddt_accel.errors import ArtifactError
    from ddt_accel.evaluation import converged
    from ddt_accel.fitting import fit
    from ddt_accel.schedule import MEANS_FORMAT, MEANS_VERSION

    versions = {
        manifest.REFERENCE_FORMAT: manifest.REFERENCE_VERSION,
        MEANS_FORMAT: MEANS_VERSION,
        converged.FORMAT: converged.VERSION,
        fit.FORMAT: fit.VERSION,
    }
    if kind not in versions:
        raise ArtifactError(f"{path} says it is a {kind[:80]}, which this ddt-accel does not know.")
    content, arrays = read_arrays(path, kind, versions[kind])
    shapes = {name: f"{array.dtype} {list(array.shape)}" for name, array in sorted(arrays.items())}
    return {"kind": kind.removeprefix("ddt-accel "), **content, **shapes}


def _calibration(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.calibration.statistics import Calibration

    calibration = Calibration.load(path)
    similarity = calibration.similarity
    neighbours, sensitivity = similarity.diagonal(1), calibration.sensitivity
    return {
        "kind": "calibration",
        "samples": calibration.num_samples,
        "images": [f"seed {r.seed}: {r.first} … {r.stop - 1}" for r in calibration.ranges],
        "neighbouring steps": f"cosine {neighbours.min():.4f} … {neighbours.max():.4f}" if len(neighbours) else "none",
        "first and last": f"cosine {similarity[0, -1]:.4f}",
        "sensitivity": f"{sensitivity[1:].max():.4g} … {sensitivity[1:].min():.4g}, from "
        f"{int(calibration.sensitivity_sum[:, 0].max())} samples{_uncertain(calibration.sensitivity_error)}"
        if sensitivity is not None
        else "not measured",
        "checkpoint": calibration.checkpoint_sha256,
        "latent shape": list(calibration.latent_shape),
        **{key.replace("_", " "): value for key, value in asdict(calibration.spec).items()},
    }


def _uncertain(error: NDArray[np.float64] | None) -> str:
    return f" (standard error {error.mean():.0%} on the average)" if error is not None else ""


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
