"""What a schedule costs, by what lies beside it: without a network, and without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

from ddt_accel.artifacts import read_json
from ddt_accel.backends.manifest import FILE_NAME, FORMAT, GUIDE_FOLDER, VERSION
from ddt_accel.cli.headers import document, metadata
from ddt_accel.errors import DDTAccelError
from ddt_accel.evaluation.costs import SECONDS, Costs, counted_costs
from ddt_accel.networks.families import config_of
from ddt_accel.networks.locate import EMBEDDED, embedded_models
from ddt_accel.schedule import SHIPPED, Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.workspace import Workspace


def measured_costs_of(place: Workspace, schedule: Schedule) -> Costs | None:
    """Seconds, where `bench` has measured this schedule's checkpoint in the workspace."""
    try:
        costs = Costs.load(place.costs_path)
    except DDTAccelError:
        return None
    same = costs.is_of(schedule.checkpoint_sha256, schedule.guide_sha256) and costs.cover(schedule.widths)
    return costs if costs.unit == SECONDS and same else None


def share_of_unshared(path: Path, schedule: Schedule) -> str | None:
    """The cost of a schedule over that of the sampler without sharing that it is for, in words; None where nothing
    tells.

    Looked for in the workspace that the schedule's file lies in, or for a shipped one in the embedded model.
    """
    base, what = schedule.unshared(), "its own trajectory"
    for folder in (path.parent, path.parent.parent):
        place = Workspace(folder)
        costs = measured_costs_of(place, schedule) or counted_by_export(
            place, schedule.checkpoint_sha256, schedule.guide_sha256
        )
        if costs is not None and costs.cover(schedule.widths):
            if (spec := _calibrated_spec(place, schedule)) is not None:
                base, what = Schedule.full(spec), "the calibrated sampler"
            break
    else:
        costs = _counted_by_name(path) if path.parent == SHIPPED else None
    if costs is None or not costs.cover(schedule.widths):
        return None
    unit = "time" if costs.unit == SECONDS else costs.unit
    own = f"{base.spec.num_steps} steps of {'its own integrator' if base.is_fitted else base.spec.solver}"
    return f"{costs.of(schedule) / costs.of(base):.3f} of the {unit} of {what} without sharing, {own}"


def _calibrated_spec(place: Workspace, schedule: Schedule) -> SamplingSpec | None:
    """The sampling that the workspace is calibrated for, where a schedule leads there: what `bench` compares it with
    (report/baseline.py)."""
    try:
        content = document(place.calibration_path)
        if content is None or content["checkpoint_sha256"] != schedule.checkpoint_sha256:
            return None
        if content.get("guide_sha256") != schedule.guide_sha256:
            return None
        spec = SamplingSpec.from_dict(content["spec"])
    except (DDTAccelError, KeyError, TypeError):
        return None
    return spec if spec.aim == schedule.spec.aim and "sde" not in (spec.solver, schedule.spec.solver) else None


def counted_by_export(place: Workspace, checkpoint_sha256: str | None, guide_sha256: str | None) -> Costs | None:
    """Multiply-adds, where the workspace has an export of this checkpoint, and of its guide."""
    for folder in (place.export_path, place.engines_path):
        try:
            told = read_json(folder / FILE_NAME, FORMAT, VERSION)
            if (told["checkpoint_sha256"], told.get("guide_sha256")) == (checkpoint_sha256, guide_sha256):
                guide = read_json(folder / GUIDE_FOLDER / FILE_NAME, FORMAT, VERSION) if guide_sha256 else None
                widths = tuple(told.get("widths", (1.0,)))
                return _counted(told["config"], told["latent_shape"], guide and guide["config"], widths)
        except (DDTAccelError, KeyError, TypeError, ValueError):
            continue
    return None


def _counted_by_name(path: Path) -> Costs | None:
    """Shipped schedules are named after the embedded model that they are for, the longest such name."""
    for name in sorted(embedded_models(), key=len, reverse=True):
        if path.stem.startswith(f"{name}-"):
            told = metadata(EMBEDDED / f"{name}.safetensors")
            widths = tuple(json.loads(told.get("widths", "[1.0]")))
            return _counted(json.loads(told["config"]), json.loads(told["latent_shape"]), widths=widths)
    return None


def _counted(
    config: dict[str, int],
    latent_shape: list[int],
    guide: dict[str, int] | None = None,
    widths: tuple[float, ...] = (1.0,),
) -> Costs:
    channels, height, width = map(int, latent_shape)
    network, guided_by = config_of(config), config_of(guide) if guide else None
    return counted_costs(network, (channels, height, width), guide=guided_by, widths=widths)
