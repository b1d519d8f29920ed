"""JSON documents of ours: schedules, measured costs and speeds, the numbers of a report or an evaluation, runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ddt_accel.artifacts import format_of, read_json
from ddt_accel.cli import evaluating
from ddt_accel.cli.costing import share_of_unshared
from ddt_accel.cli.holdings import images_of
from ddt_accel.cli.inspection.told import Told
from ddt_accel.cli.sentences import counted
from ddt_accel.drawing import run_folder
from ddt_accel.evaluation import costs
from ddt_accel.evaluation.budgets import predicted_psnr
from ddt_accel.report import numbers
from ddt_accel.schedule import SHIPPED, WIDTHS, Schedule, shipped_schedules
from ddt_accel.workspace import SPEEDS_FORMAT, read_speeds


def document(path: Path) -> Told:
    """Whatever the document says it is; a schedule, where it does not say."""
    readers = {
        numbers.FORMAT: report,
        numbers.COMPARISON_FORMAT: _comparison,
        costs.FORMAT: _costs,
        SPEEDS_FORMAT: _speeds,
        run_folder.FORMAT: run_of_images,
        evaluating.FORMAT: _evaluation,
    }
    return readers.get(format_of(path) or "", schedule)(path)


def schedule(path: Path) -> Told:
    """Where the encoder runs, how states are forecast, and what both cost."""
    found = Schedule.load(path)
    if not path.exists() and str(path) in shipped_schedules():
        path = SHIPPED / f"{path}.json"
    drawn = max((len(row) for row in found.forecasts.values()), default=1)
    centred = ", of the deviation from the mean trajectory" if found.centred else ""
    share, psnr = share_of_unshared(path, found), predicted_psnr(found)
    second = "unconditional" if found.guide_sha256 is None else "refresh steps of the guide"
    narrow = {name.replace("_", " "): steps for name in WIDTHS if (steps := _by_width(getattr(found, name)))}
    facts = {
        "kind": "schedule",
        "encoder runs": f"{found.budget} of {found.spec.num_evaluations}",
        **({"cost": share} if share else {}),
        "refresh steps": list(found.refresh_steps),
        **narrow,
        **({second: list(found.unconditional_steps)} if found.unconditional_steps is not None else {}),
        "forecast": f"{found.forecast}, from up to {drawn} states{centred}",
        **({"times": [round(time, 4) for time in found.times]} if found.times is not None else {}),
        **({"integrator": "weights of its own"} if found.integrator is not None else {}),
        "objective": found.objective,
        "predicted PSNR": f"{psnr:.1f} dB to the unshared image" if psnr is not None else None,
        "predicted cost": found.predicted_cost,
        "predicted error": found.predicted_error,
        "checkpoint": found.checkpoint_sha256,
        **({"guide": found.guide_sha256} if found.guide_sha256 is not None else {}),
        "calibration": found.calibration_sha256,
        **{key.replace("_", " "): value for key, value in asdict(found.spec).items()},
    }
    words = {key: value for key, value in facts.items() if value is not None}
    for name, steps in narrow.items():
        words[name] = "; ".join(f"{width} at {', '.join(map(str, where))}" for width, where in steps.items())
    return Told(facts=facts, words=words)


def _by_width(narrow: Mapping[int, float]) -> dict[str, list[int]]:
    """The steps at which a network runs narrow, by width."""
    widths = sorted({*narrow.values()}, reverse=True)
    return {f"{width:g}": [step for step in narrow if narrow[step] == width] for width in widths}


def report(path: Path) -> Told:
    """Every schedule that was measured, in a line."""
    found = numbers.read_report(path)
    rows = {
        row.name: f"{counted(len(row.refresh_steps), 'encoder run')} in {counted(row.num_evaluations, 'step')}, "
        f"{row.seconds * 1000:.1f} ms per image, {row.speedup:.2f}x"
        + (f", {row.to_unshared:.1f} dB to the unshared images" if row.to_unshared is not None else "")
        + (f", {row.to_reference:.1f} dB to the reference solution" if row.to_reference is not None else "")
        for row in found.rows
    }
    return Told(facts={"kind": "report", "images": found.num_images, **rows, **found.conditions})


def _comparison(path: Path) -> Told:
    """Every cost in a line, the closest method first."""
    found = numbers.read_comparison(path)
    told = {
        f"dB to the {found.aim}, at cost {cost:.3g}": ", ".join(
            f"{name} {means[name]:.1f}" for name in sorted(means, key=means.__getitem__, reverse=True)
        )
        for cost, means in found.means.items()
    }
    return Told(facts={"kind": "comparison", "images": found.num_images, **told, **found.conditions})


def _evaluation(path: Path) -> Told:
    """All figures, and what they are of."""
    found = read_json(path, evaluating.FORMAT, evaluating.VERSION)
    told = {name.replace("_", " "): value for name, value in found.items() if value is not None}
    return Told(facts={"kind": "evaluation", **told})


def _costs(path: Path) -> Told:
    return Told(facts={"kind": "costs per image and branch", **costs.Costs.load(path).document()})


def _speeds(path: Path) -> Told:
    conditions, seconds = read_speeds(path)
    told = "one encoder and five decoder runs, guided, by backend"
    times = {name: f"{1e3 * taken:.1f} ms" for name, taken in seconds.items()}
    facts = {"kind": "speeds", "of": told, **times, **conditions}
    versions = conditions.get("versions")
    words = {key: value for key, value in facts.items() if key not in ("versions", "exports")}
    if isinstance(versions, dict):
        words["versions"] = [f"{name} {version}" for name, version in versions.items()]
    return Told(facts=facts, words=words)


def run_of_images(path: Path) -> Told:
    """A run of `sample`: how far it is, and of what."""
    facts = {"kind": "run of images", **images_of(path.parent).facts}
    rest = "" if facts["drawn"] == facts["images"] else "; the same `ddt-accel sample` goes on"
    return Told(facts=facts, words={**facts, "drawn": f"{facts['drawn']} of {facts['images']}{rest}"})
