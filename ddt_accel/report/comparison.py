"""A comparison as compare.html and compare.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from ddt_accel.artifacts import write_atomic, write_json
from ddt_accel.comparison.contest import REFERENCE, UNSHARED, Contest, Field, Row
from ddt_accel.comparison.ours import OURS
from ddt_accel.evaluation.fidelity import Interval
from ddt_accel.report.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, Curve, speed_nearness
from ddt_accel.report.numbers import COMPARISON_FORMAT, COMPARISON_NAME, COMPARISON_VERSION
from ddt_accel.report.render import TEMPLATES, ruler

PAGE_NAME = "compare.html"
TITLES = {REFERENCE: "dB to the reference solution", UNSHARED: "dB to the unshared sampler"}
_OWN, _OTHERS = (ORANGE, BLUE, PURPLE), (BLACK, GREEN, GREY)
_MARKERS = "ovs^DP<>Xpd"


def write_comparison(contests: Sequence[Contest], field: Field, numbers: dict[str, Any], folder: Path) -> Path:
    """Writes both, the `numbers` being the `facts`; the page is self-contained, and is returned."""
    write_json(folder / COMPARISON_NAME, COMPARISON_FORMAT, COMPARISON_VERSION, numbers)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = _curves(contests, field.aim)
    other = UNSHARED if field.aim == REFERENCE else REFERENCE
    page = environment.get_template("comparison.html.j2").render(
        contests=contests,
        field=field,
        conditions=numbers["conditions"],
        title=TITLES[field.aim],
        other=other,
        other_title=TITLES[other],
        ordered=ordered,
        told=told,
        ours=OURS,
        ruler=ruler,
        plot=speed_nearness(curves, TITLES[field.aim], front=True) if curves else "",
    )
    write_atomic(folder / PAGE_NAME, page.encode())
    return folder / PAGE_NAME


def facts(contests: Sequence[Contest], field: Field, conditions: Mapping[str, str]) -> dict[str, Any]:
    """All numbers of a comparison."""
    return {
        "conditions": dict(conditions),
        "checkpoint_sha256": field.calibration.checkpoint_sha256,
        "sampling": field.calibration.spec.document(),
        "costs": field.costs.document(),
        "aim": field.aim,
        "num_images": field.num_images,
        "seed": field.seed,
        "contests": [
            {
                "cost": contest.cost,
                "unshared_milliseconds": 1000 * contest.unshared_seconds,
                "missing": contest.missing,
                "rows": [_facts(row, contest, field.aim) for row in ordered(contest, field.aim)],
            }
            for contest in contests
        ],
    }


def _facts(row: Row, contest: Contest, aim: str) -> dict[str, Any]:
    schedule = row.entry.schedule
    own = {other.entry.name: other.ahead_of(row, aim) for other in contest.rows if other.entry.name in OURS}
    return {
        "name": row.entry.name,
        "source": row.entry.source,
        "settings": row.entry.settings,
        "solver": schedule.spec.solver,
        "encoder_runs": schedule.budget,
        "evaluations": schedule.spec.num_evaluations,
        "refresh_steps": list(schedule.refresh_steps),
        "cost": row.cost,
        "milliseconds": 1000 * row.seconds,
        "speedup": row.speedup,
        "chosen_by_db": row.entry.promise,
        "to_unshared_db": row.to_unshared,
        "to_reference_db": row.to_reference,
        "behind_ours_db": {name: asdict(found) if found else None for name, found in own.items()},
    }


def ordered(contest: Contest, aim: str) -> list[Row]:
    """The closest first."""
    return sorted(contest.rows, key=lambda row: -sum(row.decibels(aim)))


def told(found: Interval | None, *, sign: bool = False) -> str:
    """A mean and its interval."""
    if found is None:
        return "–"
    shape = "+.1f" if sign else ".1f"
    return f"{found.mean:{shape}} ({found.low:{shape}} … {found.high:{shape}})"


def _curves(contests: Sequence[Contest], aim: str) -> list[Curve]:
    """A line for each method over the costs, ours first."""
    names = list(dict.fromkeys([*OURS, *(row.entry.name for contest in contests for row in contest.rows)]))
    curves = []
    for order, name in enumerate(names):
        rows = [row for contest in contests for row in contest.rows if row.entry.name == name]
        points = [(row.speedup, row.interval(aim)) for row in rows]
        known = [(speedup, found.mean) for speedup, found in points if found and math.isfinite(found.mean)]
        if known:
            own = name in OURS
            colors = _OWN if own else _OTHERS
            curves.append(
                Curve(
                    name=name,
                    color=colors[order % len(colors)],
                    marker="*" if own else _MARKERS[order % len(_MARKERS)],
                    speedups=[speedup for speedup, _ in known],
                    decibels=[mean for _, mean in known],
                    labels=[""] * len(known),
                    important=own,
                )
            )
    return curves
