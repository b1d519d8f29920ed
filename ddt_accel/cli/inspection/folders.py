"""Folders: workspaces, schedules of a curve or a plan, pictures, runs of training, what fits keep."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ddt_accel.artifacts import format_of
from ddt_accel.backends.manifest import FILE_NAME as MANIFEST
from ddt_accel.cli.headers import document, metadata
from ddt_accel.cli.holdings import holdings, model_of, sizes
from ddt_accel.cli.inspection.documents import run_of_images
from ddt_accel.cli.inspection.exports import export
from ddt_accel.cli.inspection.foreign import foreign
from ddt_accel.cli.inspection.told import Told
from ddt_accel.cli.sentences import counted
from ddt_accel.cli.status import as_facts
from ddt_accel.drawing.run_folder import FILE_NAME as RUN
from ddt_accel.errors import ArtifactError
from ddt_accel.evaluation.budgets import predicted_psnr
from ddt_accel.networks.candidates import SUFFIXES
from ddt_accel.schedule import FORMAT as SCHEDULE_FORMAT
from ddt_accel.schedule import Schedule
from ddt_accel.workspace import SETTINGS_NAME, ModelChoice, Workspace

LATENTS = "latents.npz"  # as the writer of samples calls them, which needs PyTorch


def folder(path: Path) -> Told | None:
    """What a folder is, by what lies in it; None for what may hold a checkpoint."""
    if not any(path.iterdir()):
        raise ArtifactError(f"{path} is an empty folder.")
    kinds: list[Callable[[Path], Told | None]] = [_export, workspace, _images, _schedules, _run, _fits]
    if not any(
        file.name.lower().endswith(SUFFIXES) for file in path.iterdir()
    ):  # beside weights, pictures are but their sample
        kinds += [_pictures, _latents, _classes]
    for kind in kinds:
        if (told := kind(path)) is not None:
            return told
    return None


def _export(path: Path) -> Told | None:
    return export(path) if (path / MANIFEST).exists() else None


def _runs(budget: int, evaluations: int) -> str:
    return f"{counted(budget, 'encoder run')} in {counted(evaluations, 'step')}"


def workspace(path: Path) -> Told | None:
    """All that a workspace holds, as `status` tells it."""
    place = Workspace(path)
    marks = (path / SETTINGS_NAME, place.calibration_path, place.partial_path, place.schedule_path)
    if not any(mark.exists() for mark in marks):
        return None
    found = holdings(place)
    words = {"kind": "workspace"} | {name: one.text for name, one in found.held.items()}
    if found.schedules:
        words["schedules"] = ", ".join(
            f"{row.name} ({row.damage or _runs(row.encoder_runs or 0, row.evaluations or 0)})"
            for row in found.schedules
        )
    try:
        choice = model_of(place) or ModelChoice()
    except ArtifactError:
        choice = ModelChoice()
    return Told(facts={"kind": "workspace", **asdict(choice), **as_facts(found)}, words=words)


def _images(path: Path) -> Told | None:
    return run_of_images(path / RUN) if (path / RUN).exists() else None


def _schedules(path: Path) -> Told | None:
    files = [file for file in sorted(path.glob("*.json")) if format_of(file) == SCHEDULE_FORMAT]
    if not files:
        return None
    found = sorted(((Schedule.load(file), file.name) for file in files), key=lambda pair: (pair[0].budget, pair[1]))
    told = {}
    for schedule, name in found:
        predicted = predicted_psnr(schedule)
        told[name] = _runs(schedule.budget, schedule.spec.num_evaluations) + (
            f", predicted {predicted:.1f} dB" if predicted is not None else ""
        )
    return Told(facts={"kind": "folder of schedules", "schedules": len(found), **told})


def _run(path: Path) -> Told | None:
    """A run of `train`: where it is, and whether its model is finished."""
    state = path / "state.safetensors"
    if not state.exists():
        return None
    told = metadata(state)
    if "train_spec" not in told or "step" not in told:
        return None
    history, spec = json.loads(told.get("history", "[]")), json.loads(told["train_spec"])
    model, step = path / "model.safetensors", int(told["step"])
    seen = step * int(spec.get("batch_size", 0))
    return Told(
        facts={
            "kind": "run of training",
            "images": f"{seen:,} of {int(spec.get('total_images', 0)):,}",
            "step": step,
            **({"loss": float(f"{history[-1][1]:.4f}")} if history else {}),
            "classes": json.loads(told.get("class_names", "[]")),
            "model": str(model) if model.exists() else "not finished; the same `ddt-accel train` goes on",
        }
    )


def _fits(path: Path) -> Told | None:
    converged, states = sorted(path.glob("converged-*.safetensors")), sorted(path.glob("state*.safetensors"))
    if not converged and not (states and all(document(state) for state in states)):
        return None
    told = {
        state.name: f"an interrupted fit at iteration {(document(state) or {}).get('iteration')}" for state in states
    }
    return Told(facts={"kind": "what fits keep", "converged trajectories": len(converged), **told})


def _pictures(path: Path) -> Told | None:
    """Pictures side by side, as `sample` draws them."""
    files = _picture_files(path)
    if not files:
        return None
    shapes: Counter[str] = Counter()
    for file in files[:100]:
        with Image.open(file) as image:
            shapes[f"{sizes(image.size)} {image.mode}"] += 1
    first, last = files[0].name, files[-1].name
    return Told(
        facts={
            "kind": "folder of pictures",
            "pictures": len(files),
            "sizes": [shape for shape, _ in shapes.most_common()],
            "names": first if len(files) == 1 else f"{first} … {last}",
        }
    )


def _latents(path: Path) -> Told | None:
    """What `sample` writes without an autoencoder."""
    latents = path / LATENTS
    return foreign(latents) if latents.is_file() else None


def _classes(path: Path) -> Told | None:
    """Pictures by class, or by split and class, as `train` reads them."""
    counts = {
        str(inner.relative_to(path)): len(files)
        for inner in sorted(path.rglob("*"))
        if inner.is_dir() and not any(part.startswith(".") for part in inner.relative_to(path).parts)
        if (files := _picture_files(inner))
    }
    if not counts:
        return None
    return Told(
        facts={
            "kind": "pictures by class, for `ddt-accel train --data`",
            "pictures": sum(counts.values()),
            **counts,
        }
    )


def _picture_files(path: Path) -> list[Path]:
    known = Image.registered_extensions()
    return sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in known and not file.name.startswith(".") and file.is_file()
    )
