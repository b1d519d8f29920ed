"""A study as report.html, report.md and report.json."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ddt_accel.artifacts import write_atomic, write_json
from ddt_accel.evaluation.benchmark import Measurement
from ddt_accel.evaluation.fidelity import Interval, interval, to_uint8
from ddt_accel.report.figures import BLUE, GREEN, GREY, ORANGE, Curve, similarity_heatmap, speed_fidelity
from ddt_accel.report.numbers import FILE_NAME, FORMAT, VERSION
from ddt_accel.report.pictures import contact_sheet, png
from ddt_accel.report.study import CONVERGED, GIVEN, PUBLISHED, SOLVED, UNIFORM, UNSHARED, Study
from ddt_accel.schedule import FITTED, Schedule
from ddt_accel.solver.solve import GAMMA

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
        "num_images": study.num_images,
        "curve_images": study.curve_images,
        "seed": study.seed,
        "refresh_steps": list(study.schedule.refresh_steps),
        "measurements": [asdict(m) for m in study.measurements],
        "limits_db": study.limits,
        "curves": {way: [asdict(m) for m in points] for way, points in study.curves.items()},
    }


def _context(study: Study) -> dict[str, Any]:
    by_name = {m.name: m for m in study.measurements}
    fewer = next((m for m in study.measurements if m.name == f"{m.num_steps} steps"), None)
    pixels = any(m.psnr is not None for m in study.measurements)
    grids = []
    if pixels:
        captions = {
            UNSHARED: "Encoder at every step",
            UNIFORM: "Evenly spread, held",
            PUBLISHED: "Published method, held",
            SOLVED: "Solved" if study.schedule.forecast == "hold" else "Solved, forecast",
            FITTED: f"Fitted, {study.schedule.spec.num_steps} steps",
            GIVEN: "As given",
        }
        for name, latents in study.latents.items():
            sheet = png(contact_sheet(to_uint8(latents), columns=4), scale=max(1, 64 // latents.shape[-1]))
            plain = f"Only {name}, nothing shared" if fewer and name == fewer.name else name.capitalize()
            caption = captions.get(name, plain)
            grids.append({"caption": caption, "measurement": by_name[name], "png": base64.b64encode(sheet).decode()})
    fitted = study.chosen == FITTED
    values = study.limits if fitted else {m.name: m.psnr_values for m in study.measurements}
    return {
        "study": study,
        "spec": study.calibrated,
        "is_fitted": fitted,
        "asides": [_aside(by_name[name], study.limits) for name in study.others if name in study.limits],
        "limit": study.limit,
        "limit_steps": CONVERGED * study.calibrated.num_steps,
        "budget": study.schedule.budget,
        "evaluations": study.schedule.spec.num_evaluations,
        "unit": "evaluations" if study.schedule.spec.solver == "heun" else "steps",
        "unshared": by_name[UNSHARED],
        "uniform": by_name[UNIFORM],
        "published": by_name[PUBLISHED],
        "chosen": by_name[study.chosen],
        "is_solved": study.chosen == SOLVED,
        "fewer": fewer,
        "verdict": verdict(study.chosen, fewer, values, "where many steps lead" if fitted else "the original images")
        if pixels
        else "",
        "held": study.schedule.forecast == "hold",
        "origin": _origin(study.schedule),
        "pixels": pixels,
        "grids": grids,
        "heatmap": similarity_heatmap(study.statistics.similarity, study.schedule.refresh_steps),
        "curve": speed_fidelity(_curves(study, pixels), _fidelity_label(pixels)),
        "timeline": [k in study.schedule.refresh_steps for k in range(study.schedule.spec.num_evaluations)],
        "shown": shown,
    }


def verdict(chosen: str, fewer: Measurement | None, values: Mapping[str, Sequence[float | None]], goal: str) -> str:
    """Whether sharing, and how it is done here, paid: dB of each image to the `goal`, in pairs."""
    gain = _paired(values[chosen], values[PUBLISHED])
    text = f"With the same number of encoder runs this schedule {_says(gain, goal, 'than the published method')}."
    if fewer is not None:
        gain = _paired(values[chosen], values[fewer.name])
        text += f" Against simply taking {fewer.name} in about the same time it {_says(gain, goal, '')}."
    return text


def _aside(m: Measurement, limits: Mapping[str, Sequence[float | None]]) -> str:
    """What another schedule would do, compared with the original itself."""
    gain = _paired(limits[m.name], limits[UNSHARED])
    return (
        f"{m.name.capitalize()}: {m.speedup:.2f} times as fast, it "
        f"{_says(gain, 'where many steps lead', 'than the original does')}."
    )


def _origin(schedule: Schedule) -> str:
    """What the solver minimised, for people."""
    if schedule.objective == "similarity":
        return (
            "The solver picked the boxes that lose the least similarity; no other choice of "
            f"{schedule.budget} runs loses less."
        )
    if schedule.objective in GAMMA:
        return (
            f"The solver picked the steps from which the others can be forecast best ({schedule.forecast}), every "
            "error weighted by what it was measured to do to the picture."
        )
    if schedule.is_fitted:
        return "Its times, its integrator and its forecasts were fitted to where many steps lead."
    return "These steps were not solved for."


def _paired(a: Sequence[float | None], b: Sequence[float | None]) -> Interval | None:
    """The mean difference a − b over the images, with its 95 % interval."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return interval(np.array([x - y for x, y in pairs])) if pairs else None


def _says(gain: Interval | None, goal: str, suffix: str) -> str:
    if gain is None:
        return "cannot be told apart: the images are identical"
    text = f"{abs(gain.mean):.1f} dB (95 % interval {gain.low:+.1f} to {gain.high:+.1f})"
    tail = f" {suffix}" if suffix else ""
    if gain.low > 0:
        return f"comes closer to {goal} by {text}{tail}"
    if gain.high < 0:
        return f"ends further from {goal} by {text}{tail}"
    return f"makes no significant difference: {text}{tail}"


def shown(value: Interval | None, digits: int, unit: str = "") -> str:
    """A mean with its interval, or what stands for identical images."""
    if value is None:
        return "identical"
    return f"{value.mean:.{digits}f}{unit} ({value.low:.{digits}f} – {value.high:.{digits}f})"


def _fidelity_label(pixels: bool) -> str:
    return "PSNR to the unshared images (dB)" if pixels else "−20 log₁₀ of the relative L2 error of latents (dB)"


def _curves(study: Study, pixels: bool) -> list[Curve]:
    styles = {
        SOLVED: (BLUE, "o", "solved"),
        PUBLISHED: (GREEN, "D", "published method"),
        UNIFORM: (ORANGE, "s", "evenly spread, held"),
        "fewer steps": (GREY, "^", "fewer steps, no sharing"),
    }
    curves = []
    for way, points in study.curves.items():
        kept = [(m, value) for m in points if (value := _fidelity(m, pixels)) is not None]
        kept.sort(key=lambda pair: pair[0].num_steps * 1000 + len(pair[0].refresh_steps))
        color, marker, name = styles[way]
        curves.append(
            Curve(
                name=name,
                color=color,
                marker=marker,
                speedups=[m.speedup for m, _ in kept],
                fidelities=[value for _, value in kept],
                labels=[str(m.num_steps if way == "fewer steps" else len(m.refresh_steps)) for m, _ in kept],
            )
        )
    return curves


def _fidelity(m: Measurement, pixels: bool) -> float | None:
    if pixels:
        return m.psnr.mean if m.psnr else None
    return -20 * math.log10(m.relative_l2.mean) if m.relative_l2 and m.relative_l2.mean > 0 else None
