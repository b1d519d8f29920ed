"""What a study says, in sentences."""

from __future__ import annotations

import math

from ddt_accel.evaluation.budgets import Target
from ddt_accel.evaluation.fidelity import Interval
from ddt_accel.report.headline import as_long, rival
from ddt_accel.report.study import GIVEN, UNSHARED, Study
from ddt_accel.report.ways import PUBLISHED, SOLVED, UNIFORM
from ddt_accel.schedule import FITTED, Schedule
from ddt_accel.solver.solve import GAMMA

# Times that differ more than this from the sum of their parts were disturbed.
BUSY = 0.1


def label(name: str, schedule: Schedule) -> str:
    """What a row is called on the page."""
    known = {
        UNSHARED: "unshared baseline",
        UNIFORM: "evenly spread",
        PUBLISHED: "published method",
        SOLVED: f"solved, {schedule.spec.num_steps} steps",
        FITTED: f"fitted, {schedule.spec.num_steps} steps",
        GIVEN: "schedule as given",
    }
    return known.get(name, name)


def title(study: Study) -> str:
    """The headline: what it gives and what it costs."""
    row = next(row for row in study.measurements if row.name == study.headline)
    near = study.near
    faster = f"{row.speedup:.1f}× as fast"
    if not near.to_reference:
        return f"{faster}, {decibels(study, study.headline)} from the unshared pictures"
    gain = near.gain(study.headline, UNSHARED)
    if gain is None or gain.low <= 0 <= gain.high:
        return f"{faster}, as near to the reference solution"
    if gain.low > 0:
        return f"{faster}, {gain.mean:.1f} dB nearer to the reference solution"
    return f"{faster}, at a cost of {-gain.mean:.1f} dB"


def runs(schedule: Schedule) -> str:
    """Where the encoder runs along a schedule."""
    count = schedule.spec.num_evaluations
    if not schedule.shares:
        return f"The encoder runs at all {count} evaluations."
    if schedule.has_widths:
        narrow = f"{len(schedule.encoder_widths)} times narrow; the decoder {len(schedule.decoder_widths)} times"
        return f"The encoder runs at {schedule.budget} of {count} evaluations, {narrow}."
    own = schedule.unconditional_steps
    branch = f", for the unconditional branch of CFG at {len(own)}" if own is not None else ""
    return f"The encoder runs at {schedule.budget} of {count} evaluations{branch}."


def aim(study: Study) -> str:
    """The target, and whether it was reached; without one, why the headline is what it is."""
    target = study.target
    if target is None or target == Target():
        if study.met:
            return (
                "No target was given. This is the fastest schedule measured that ends at least as near to the "
                "reference solution as the unshared baseline."
            )
        return f"No target was given. This is the schedule of the workspace.{_none_as_near(study)}"
    asked = [
        f"at most {target.milliseconds:g} ms per image" if target.milliseconds is not None else "",
        f"at least {target.speedup:g}× the speed" if target.speedup is not None else "",
        f"at least {target.psnr:g} dB" if target.psnr is not None else "",
        f"an error of at most {target.error:g}" if target.error is not None else "",
    ]
    said = f"Target: {' and '.join(filter(None, asked))}."
    if study.met:
        return f"{said} Met."
    return f"{said} Not met{_short(study, target)}: this is the nearest to it of all that was measured."


def _short(study: Study, target: Target) -> str:
    """By how much the headline is slower than the target."""
    row = next(row for row in study.measurements if row.name == study.headline)
    shares_missed = [
        1 - row.speedup / target.speedup if target.speedup is not None else 0.0,
        row.seconds * 1000 / target.milliseconds - 1 if target.milliseconds is not None else 0.0,
    ]
    missed = max(shares_missed)
    return f", by {100 * missed:.2g} %" if missed > 0 else ""


def pays(study: Study) -> tuple[str, str]:
    """Whether sharing pays at the headline's time, in a word and in sentences."""
    mine, near = study.headline, study.near
    sharing = study.schedules[mine].shares
    kind = "without sharing" if sharing else "with sharing"
    other = rival(mine, study.paces, study.schedules, near)
    slower = other is None
    if other is None:  # what stands beside it may have been measured to take some steps longer
        other = study.fewer.get(mine)
    if other is None:
        return "Not known" if sharing else "No", f"Nothing {kind} was measured that takes no longer than the headline."
    gain = near.gain(mine, other)
    if gain is not None and gain.low > 0 and not as_long(other, mine, study.paces, study.schedules):
        return "Not known", (
            f"Nothing {kind} was measured in about the same time. The nearest that takes no longer is much faster, and "
            f"{gain.mean:.1f} dB further: {figures(study, other)}."
        )
    said = f"The nearest {kind} in about the same time: {figures(study, other)}."
    if gain is None or gain.low <= 0 <= gain.high:
        return "No clear difference", f"{said} The headline ends as near{_interval(gain)}."
    if gain.high < 0 and slower:
        return "Not known", f"{said} It ends {-gain.mean:.1f} dB nearer{_interval(gain)}, but takes longer."
    if gain.low > 0:
        return "Yes" if sharing else "No", f"{said} The headline ends {gain.mean:.1f} dB nearer{_interval(gain)}."
    word = "No" if sharing else "Yes"
    return word, f"{said} It ends {-gain.mean:.1f} dB nearer than the headline{_interval(gain)}: take it instead."


def figures(study: Study, name: str) -> str:
    """A row with its time and nearness."""
    seconds = next(row.seconds for row in study.measurements if row.name == name)
    return f"{label(name, study.schedules[name])} ({seconds * 1000:.0f} ms per image, {decibels(study, name)})"


def decibels(study: Study, name: str) -> str:
    mean = study.near.mean(name)
    return "identical" if mean == math.inf else f"{mean:.1f} dB"


def busy(study: Study) -> str:
    """A warning where the machine did not keep its speed."""
    if study.disturbance < BUSY:
        return ""
    return (
        f"The machine was busy: times differ by up to {study.disturbance:.0%} from those of their parts. Measure again "
        "on a quiet one before you rely on speed-ups."
    )


def equal_time(study: Study) -> str:
    """How it was found which number of steps without sharing takes as long as a schedule."""
    if all(study.paces[row.name] == row.seconds for row in study.measurements):
        return "The number of steps is the smallest that was measured to take at least as long."
    return (
        "The machine was too busy to measure what takes as long. The number of steps is the smallest whose parts do, "
        "as measured along the baseline."
    )


def host(study: Study) -> str:
    """What the host costs where a trajectory is run call by call; nothing where it always is."""
    row = next(row for row in study.measurements if row.name == study.headline)
    if row.call_seconds is None:
        return ""
    return (
        f"Times are those of trajectories replayed as CUDA graphs. Call by call the headline takes "
        f"{row.call_seconds * 1000:.1f} ms per image in the place of {row.seconds * 1000:.1f}."
    )


def origin(schedule: Schedule) -> str:
    """What the solver minimised."""
    if schedule.objective == "similarity":
        return (
            "The solver picked the boxes that lose the least similarity. No other choice of "
            f"{schedule.budget} runs loses less."
        )
    if schedule.objective in GAMMA:
        return (
            f"The solver picked the runs from which the other states are forecast best ({schedule.forecast}). Every "
            "error counts by what it was measured to do to the picture."
        )
    return "These steps were not solved for."


def shown(value: Interval | None, digits: int) -> str:
    """A mean with its interval, or what stands for identical images."""
    if value is None:
        return "identical"
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} – {value.high:.{digits}f})"


def signed(value: float) -> str:
    """With its sign, set as a minus is."""
    return f"{value:+.1f}".replace("-", "−")


def _interval(gain: Interval | None) -> str:
    return f" (95 % interval {signed(gain.low)} to {signed(gain.high)} dB)" if gain else ""


def _none_as_near(study: Study) -> str:
    return " Nothing faster was measured that ends as near as the unshared baseline." if study.limits else ""
