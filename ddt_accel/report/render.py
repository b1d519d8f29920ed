"""A study as report.html, report.md and report.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ddt_accel.artifacts import checksum, write_atomic, write_json
from ddt_accel.evaluation.benchmark import Measurement
from ddt_accel.evaluation.converged import reference_steps
from ddt_accel.report import words
from ddt_accel.report.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Curve,
    similarity_heatmap,
    speed_nearness,
)
from ddt_accel.report.gallery import gallery
from ddt_accel.report.headline import Values
from ddt_accel.report.numbers import FILE_NAME, FORMAT, VERSION
from ddt_accel.report.study import UNSHARED, Study
from ddt_accel.report.ways import BEST_FEWER, FEWER, OTHERS, PUBLISHED, SOLVED, UNIFORM

TEMPLATES = Path(__file__).parent


def write_report(study: Study, folder: Path) -> list[Path]:
    """Writes the three files; the page is self-contained."""
    context = _context(study)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = []
    for name in ("report.html", "report.md"):
        text = environment.get_template(f"{name}.j2").render(context)
        written.append(folder / name)
        write_atomic(written[-1], text.encode())
    written.append(folder / FILE_NAME)
    write_json(written[-1], FORMAT, VERSION, as_json(study))
    return written


def as_json(study: Study) -> dict[str, Any]:
    """All numbers of the report."""
    return {
        "conditions": study.conditions,
        "checkpoint_sha256": study.statistics.checkpoint_sha256,
        "num_images": study.num_images,
        "curve_images": study.curve_images,
        "seed": study.seed,
        "headline": study.headline,
        "target": asdict(study.target) if study.target else None,
        "target_met": study.met,
        "sharing_pays": dict(zip(("verdict", "why"), words.pays(study), strict=True)),
        "fewer_steps": study.fewer,
        "refresh_steps": list(study.schedule.refresh_steps),
        "measurements": [
            {**_numbers(m), "schedule_sha256": checksum(study.schedules[m.name].document())} for m in study.measurements
        ],
        "limits_db": study.limits,
        "curves": {way: [_numbers(m) for m in points] for way, points in study.curves.items()},
        "curve_limits_db": study.curve_limits,
        "disturbance": study.disturbance,
    }


def _numbers(m: Measurement) -> dict[str, Any]:
    """A measurement; nothing of runs call by call where nothing is run otherwise."""
    return {name: value for name, value in asdict(m).items() if name != "call_seconds" or value is not None}


def _context(study: Study) -> dict[str, Any]:
    rows = {m.name: m for m in study.measurements}
    pixels = any(m.psnr_values for m in study.measurements)
    ways, reference, factor = gallery(study) if pixels else ([], None, 1)
    headline = study.schedules[study.headline]
    labels = {name: words.label(name, schedule) for name, schedule in study.schedules.items()}
    return {
        "study": study,
        "spec": study.calibrated,
        "rows": rows,
        "row": rows[study.headline],
        "unshared": rows[UNSHARED],
        "labels": labels,
        "title": words.title(study),
        "runs": words.runs,
        "decibels": words.decibels,
        "headline": headline,
        "aim": words.aim(study),
        "busy": words.busy(study),
        "host": words.host(study),
        "pays": words.pays(study),
        "equal_time": words.equal_time(study),
        "pairs": [(pace, other, study.near.gain(pace, other)) for pace, other in study.fewer.items()],
        "to_reference": study.near.to_reference,
        "limit": study.limit,
        "limit_steps": reference_steps(study.calibrated.num_steps),
        "limit_images": len(study.limits.get(UNSHARED, ())),
        "origin": words.origin(study.schedule),
        "on_its_grid": study.schedule.spec == study.calibrated and not study.schedule.is_fitted,
        "pixels": pixels,
        "ways": ways,
        "reference": reference,
        "factor": factor,
        "heatmap": similarity_heatmap(study.statistics.similarity, study.schedule.refresh_steps),
        "front": speed_nearness(_near_curves(study, labels), _NEAR, front=True) if study.limits else "",
        "copying": speed_nearness(_copying_curves(study, pixels), _COPYING[pixels], front=False),
        "ruler": ruler,
        "shown": words.shown,
        "signed": words.signed,
    }


_NEAR = "dB to the reference solution"
_COPYING = {True: "PSNR to the unshared pictures, dB", False: "−20 log₁₀ of the relative error of latents, dB"}
# By way: colour, marker, name.
_STYLES = {
    SOLVED: (BLUE, "o", "solved, by encoder runs"),
    BEST_FEWER: (BLACK, "v", "fewer steps, best integrator"),
    FEWER: (GREY, "^", "fewer steps, as calibrated"),
    PUBLISHED: (GREEN, "D", "published method"),
    UNIFORM: (PURPLE, "s", "evenly spread"),
}


def _near_curves(study: Study, labels: dict[str, str]) -> list[Curve]:
    """All that was measured, by how near it ends to the reference solution, on the images that all were drawn for."""
    near = {name: _mean(values) for name, values in study.curve_limits.items()}
    points = {m.name: m for found in study.curves.values() for m in found}
    single = dict.fromkeys([study.headline, *(m.name for m in study.curves[OTHERS] if m.name != UNSHARED)])
    curves = [
        Curve(
            name="the headline" if name == study.headline else labels[name],
            color=ORANGE,
            marker="*" if name == study.headline else "P",
            speedups=[points[name].speedup],
            decibels=[near[name]],
            labels=[labels[name]],
            important=name == study.headline,
        )
        for name in single
        if math.isfinite(near[name])
    ]
    return curves + _curves(study, near, (SOLVED, BEST_FEWER, FEWER, PUBLISHED))


def _copying_curves(study: Study, pixels: bool) -> list[Curve]:
    """How near schedules end to what the unshared sampler draws."""
    near = {}
    for m in (m for points in study.curves.values() for m in points):
        if pixels:
            near[m.name] = m.psnr.mean if m.psnr else math.inf
        else:
            near[m.name] = -20 * math.log10(m.relative_l2.mean) if m.relative_l2 and m.relative_l2.mean else math.inf
    return _curves(study, near, (SOLVED, PUBLISHED, UNIFORM, FEWER))


def _curves(study: Study, near: dict[str, float], wanted: tuple[str, ...]) -> list[Curve]:
    found = []
    for way in wanted:
        points = [m for m in study.curves[way] if math.isfinite(near[m.name])]
        points.sort(key=lambda m: (m.num_evaluations, len(m.refresh_steps)))
        color, marker, name = _STYLES[way]
        steps = way in (FEWER, BEST_FEWER)
        if len(points) > (UNSHARED in {m.name for m in points}):
            found.append(
                Curve(
                    name=name,
                    color=color,
                    marker=marker,
                    speedups=[m.speedup for m in points],
                    decibels=[near[m.name] for m in points],
                    labels=[
                        "" if m.name == UNSHARED else str(m.num_steps if steps else len(m.refresh_steps))
                        for m in points
                    ],
                )
            )
    return found


def ruler(count: int, refreshes: Sequence[int]) -> str:
    """The evaluations of a trajectory as SVG, from noise to picture; dark where the encoder runs."""
    marks = "".join(f'<rect x="{k + 0.08:.2f}" y="0" width="0.84" height="1" fill="#1f5fbf"/>' for k in refreshes)
    others = sorted(set(range(count)) - set(refreshes))
    rest = "".join(f'<rect x="{k + 0.08:.2f}" y="0" width="0.84" height="1" fill="#d5dbe5"/>' for k in others)
    said = "the encoder runs at evaluations " + ", ".join(map(str, refreshes))
    return (
        f'<svg class="ruler" viewBox="0 0 {count} 1" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f"{rest}{marks}</svg>"
    )


def _mean(values: Values) -> float:
    return float(np.mean([math.inf if value is None else value for value in values]))
