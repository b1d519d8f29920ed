"""What to expect of the schedule that `optimize` chose, in five lines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.console import following, given
from ddt_accel.fitting.search import STEPS
from ddt_accel.report.headline import as_long, rival
from ddt_accel.report.words import BUSY, figures

if TYPE_CHECKING:
    from pathlib import Path

    from ddt_accel.cli.networks import Opened
    from ddt_accel.evaluation.budgets import Target
    from ddt_accel.evaluation.fidelity import Interval
    from ddt_accel.fitting.optimize import Choice
    from ddt_accel.report.study import Study
    from ddt_accel.workspace import Workspace


def expectations(
    study: Study, choice: Choice, target: Target, place: Workspace, networks: Opened, device: str, path: Path
) -> list[str]:
    """Speed, fidelity, fewer steps beside it, whether sharing pays, and what comes next; `path` has the schedule."""
    own = "" if path == place.schedule_path else given("--schedule", path)
    sampling = f"ddt-accel sample --backend {networks.option}{own}"
    return [
        _speed(study, choice, target),
        _fidelity(study),
        _fewer_steps(study),
        _sharing(study),
        f"Made: {path}, {place.folder / 'report.html'}. {following(sampling, workspace=place.folder, device=device)}",
    ]


def facts(study: Study, choice: Choice, target: Target) -> dict[str, Any]:
    """The same for programs."""
    rows = {row.name: row for row in study.measurements}
    mine, unshared, fewer = rows[study.chosen], study.measurements[0], study.fewer.get(study.chosen)
    other = rival(study.chosen, study.paces, study.schedules, study.near)
    schedule = study.schedule
    return {
        "target": {name: value for name, value in asdict(target).items() if value is not None},
        "met": choice.met and study.met,
        "num_steps": schedule.spec.num_steps,
        "refresh_steps": list(schedule.refresh_steps),
        "unconditional_steps": schedule.unconditional_steps,
        "ms": mine.seconds * 1000,
        "unshared_ms": unshared.seconds * 1000,
        "speedup": mine.speedup,
        "predicted_speedup": 1 / choice.best.cost,
        "reference_db": {row.name: _as_dict(study.limit[row.name]) for row in (mine, unshared)},
        "fewer_steps": fewer
        and {
            "name": fewer,
            "ms": rows[fewer].seconds * 1000,
            "reference_db": _as_dict(study.limit[fewer]),
            "gain_db": _as_dict(study.near.gain(study.chosen, fewer)),
        },
        "sharing": other
        and {
            "shares": schedule.shares,
            "other": other,
            "other_shares": study.schedules[other].shares,
            "as_long": as_long(other, study.chosen, study.paces, study.schedules),
            "gain_db": _as_dict(study.near.gain(study.chosen, other)),
        },
        "conditions": study.conditions,
    }


def _speed(study: Study, choice: Choice, target: Target) -> str:
    mine = next(row for row in study.measurements if row.name == study.chosen)
    unshared = study.measurements[0]
    if target.milliseconds is not None:
        asked, reached = f"{target.milliseconds:g} ms", mine.seconds * 1000 <= target.milliseconds
    elif target.speedup is not None:
        asked, reached = f"{target.speedup:g} times", mine.speedup >= target.speedup
    else:
        known = study.limit[study.chosen]
        asked, reached = f"{target.psnr:g} dB", known is None or known.mean >= (target.psnr or 0)
    told = (
        f"{mine.seconds * 1000:.1f} ms an image instead of {unshared.seconds * 1000:.1f}, {mine.speedup:.2f} times as "
        f"fast as the sampler without sharing ({study.conditions['backend']}, {study.conditions['batch']} at a time)"
    )
    if study.disturbance > BUSY:
        told += f"; the machine was busy, and times differ by up to {study.disturbance:.0%} from those of their parts"
    if not choice.met:
        steps = "" if target.psnr is not None else f" by {min(STEPS[0], study.calibrated.num_steps)} steps or more"
        return f"{asked} cannot be reached here{steps}; the nearest that can: {told}."
    if not reached and target.psnr is not None:
        return f"{asked} was reached on the images that it was chosen on, and is missed on these: {told}."
    if not reached:
        return (
            f"{asked} was asked for, and missed by this measurement, though not by those that it was chosen by: {told}."
        )
    return f"{asked} was asked for, and is reached: {told}."


def _fidelity(study: Study) -> str:
    spec, images = study.calibrated, len(study.limits[study.chosen])
    return (
        f"It ends at {_told(study.limit[study.chosen])} to the reference solution, on {images} images that it was "
        f"neither chosen nor fitted on; the sampler without sharing, {spec.num_steps} steps of {spec.solver}, at "
        f"{_told(study.limit[study.measurements[0].name])}."
    )


def _fewer_steps(study: Study) -> str:
    name = study.fewer.get(study.chosen)
    if name is None:
        return "Fewer steps in the same time: there are none to compare with."
    rows = {row.name: row for row in study.measurements}
    row = rows[name]
    times = study.paces[name] / study.paces[study.chosen]
    # One step more than the schedule's time affords is what stands beside it.
    same = abs(times - 1) <= 1.5 / row.num_steps
    long = "in the same time" if same else f"in {times:.1f} times the time here"
    said = f"Fewer steps {long}, {name} without sharing ({row.seconds * 1000:.1f} ms), end at "
    return f"{said}{_told(study.limit[name])}; this schedule {_gained(study.near.gain(study.chosen, name))}."


def _sharing(study: Study) -> str:
    schedule = study.schedule
    runs = f"the encoder runs at {schedule.budget} of {schedule.spec.num_evaluations} evaluations"
    name = rival(study.chosen, study.paces, study.schedules, study.near)
    if name is None:
        return f"Sharing: {runs}; nothing of the other kind was measured that takes no longer."
    gain = study.near.gain(study.chosen, name)
    mine, other = study.schedules[study.chosen].shares, study.schedules[name].shares
    if gain is None or gain.low <= 0 <= gain.high:
        verdict = "makes no clear difference here"
    elif gain.low > 0 and not as_long(name, study.chosen, study.paces, study.schedules):
        verdict = "is not compared here with anything that takes as long"
    else:
        verdict = f"{'pays' if mine == (gain.low > 0) else 'does not pay'} here"
    kind = "with" if other else "without"
    return f"Sharing {verdict}: {runs}, and beside the nearest {kind} it, {figures(study, name)}, it {_gained(gain)}."


def _gained(gain: Interval | None) -> str:
    if gain is None:
        return "draws the same"
    told = f"({gain.low:+.1f} … {gain.high:+.1f})"
    if gain.low <= 0 <= gain.high:
        return f"is as close: {gain.mean:+.1f} dB {told}"
    return f"ends {abs(gain.mean):.1f} dB {'closer' if gain.mean > 0 else 'further'} {told}"


def _told(value: Interval | None) -> str:
    return f"{value.mean:.1f} dB ({value.low:.1f} … {value.high:.1f})" if value else "no distance at all"


def _as_dict(value: Interval | None) -> dict[str, float] | None:
    return asdict(value) if value is not None else None
