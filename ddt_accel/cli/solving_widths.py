"""`solve --widths`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.sentences import counted

if TYPE_CHECKING:
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.solve import Statistics
    from ddt_accel.solver.with_widths import WidthCertificate

# Of widths from 1 down; further ones are drawn as the last.
SYMBOLS = "●◐○"


def check_alone(others: Mapping[str, bool]) -> None:
    """Raises ConfigError where --widths is given with options that it has no answer for."""
    from ddt_accel.errors import ConfigError

    if given := [name for name, is_given in others.items() if is_given]:
        raise ConfigError(
            f"--widths solves for one budget and calibrated forecasts; give it without {', '.join(given)}."
        )


def solved_with_widths(
    statistics: Statistics, costs: Costs, budget: int, objective: str
) -> tuple[Schedule, str, dict[str, Any]]:
    """The schedule within what the networks of `solve`'s for so many encoder runs cost, what is said of both, and the
    same for --json."""
    from ddt_accel.solver.solve import solve
    from ddt_accel.solver.with_widths import check_objective, check_widths, solve_with_widths

    widths = check_widths(statistics)[0].widths
    check_objective(objective)
    complete = solve(statistics, budget, objective=objective)
    total, each = costs.of(complete, networks_alone=True), [costs.at(width) for width in widths]
    schedule, certificate = solve_with_widths(
        statistics, total, [one.encoder for one in each], [one.decoder for one in each], objective=objective
    )
    told = "\n".join(
        [
            *_drawn(schedule, widths),
            _runs_told(schedule),
            _certified(certificate),
            _cost_told(schedule, complete, costs, total),
            _compared(schedule, complete),
        ]
    )
    return schedule, told, _facts(schedule, complete, certificate, costs, total)


def _drawn(schedule: Schedule, widths: tuple[float, ...]) -> list[str]:
    """A line for the encoder, one for the decoder, one character a step, and what the characters mean."""

    def symbol(width: float) -> str:
        return SYMBOLS[min(widths.index(width), len(SYMBOLS) - 1)]

    steps, refreshes = range(schedule.spec.num_evaluations), set(schedule.refresh_steps)
    encoder = "".join(symbol(schedule.encoder_widths.get(k, 1.0)) if k in refreshes else "·" for k in steps)
    decoder = "".join(symbol(schedule.decoder_widths.get(k, 1.0)) for k in steps)
    meaning = ", ".join(f"{symbol(width)} width {width:g}" for width in widths)
    return [f"{encoder}  encoder", f"{decoder}  decoder; {meaning}"]


def _runs_told(schedule: Schedule) -> str:
    evaluations = schedule.spec.num_evaluations
    steps = [
        f"{step} ({schedule.encoder_widths[step]:g})" if step in schedule.encoder_widths else str(step)
        for step in schedule.refresh_steps
    ]
    return (
        f"The encoder runs at {schedule.budget} of {evaluations} steps, "
        f"{_by_width(schedule.encoder_widths, schedule.budget)}: {', '.join(steps)}\n"
        f"The decoder runs at all {evaluations}, {_by_width(schedule.decoder_widths, evaluations)}."
    )


def _by_width(narrow: Mapping[int, float], runs: int) -> str:
    """How many runs there are of each width."""
    if not narrow:
        return "complete"
    counts = sorted(Counter(narrow.values()).items(), reverse=True)
    parts = [f"{runs - len(narrow)} times complete", *(f"{count} at width {width:g}" for width, count in counts)]
    return ", ".join(parts)


def _certified(certificate: WidthCertificate) -> str:
    said = (
        f"The objective comes to {certificate.cost:.4g}, the least of {Decimal(certificate.considered):.4g} choices of "
        "refreshes and widths"
    )
    if certificate.complete_cost is None:
        return f"{said}."
    return f"{said}; without widths to {certificate.complete_cost:.4g}."


def _cost_told(schedule: Schedule, complete: Schedule, costs: Costs, total: float) -> str:
    share = costs.of(schedule, networks_alone=True) / total
    return (
        f"Its networks take {share:.1%} of what those of the best for {_without(complete)} take. By {costs.unit} "
        f"({costs.conditions})."
    )


def _without(complete: Schedule) -> str:
    return f"{counted(complete.budget, 'encoder run')} without widths"


def _compared(schedule: Schedule, complete: Schedule) -> str:
    """What is predicted with widths and without, and which of them is better."""
    from ddt_accel.evaluation.budgets import predicted_psnr

    if not schedule.has_widths:
        return (
            f"{_predicted('Predicted', schedule)}. No narrow network is worth its error at this cost: all widths came "
            "out complete."
        )
    said = (
        f"{_predicted('Predicted', schedule)}; {_predicted(_without(complete), complete)}, at "
        f"{', '.join(map(str, complete.refresh_steps))}."
    )
    ours, theirs = predicted_psnr(schedule), predicted_psnr(complete)
    if ours is not None and (theirs is None or ours < theirs):
        better = "exact" if theirs is None else f"{theirs - ours:.1f} dB closer"
        return (
            f"{said} Widths lose here: without them it should end {better}. This is the schedule with widths all the "
            f"same; `ddt-accel solve --budget {complete.budget}` writes the other."
        )
    gained = f" {ours - theirs:.1f} dB" if ours is not None and theirs is not None else ""
    return f"{said} It should end{gained} closer; `ddt-accel bench` measures."


def _predicted(name: str, schedule: Schedule) -> str:
    from ddt_accel.evaluation.budgets import predicted_psnr

    psnr = predicted_psnr(schedule)
    return f"{name}: {psnr:.1f} dB to the unshared trajectory" if psnr is not None else f"{name}: no error"


def _facts(
    schedule: Schedule, complete: Schedule, certificate: WidthCertificate, costs: Costs, total: float
) -> dict[str, Any]:
    """For --json."""
    from dataclasses import asdict

    from ddt_accel.evaluation.budgets import predicted_psnr

    return {
        "refresh_steps": list(schedule.refresh_steps),
        "encoder_widths": {str(step): width for step, width in schedule.encoder_widths.items()},
        "decoder_widths": {str(step): width for step, width in schedule.decoder_widths.items()},
        "forecast": schedule.forecast,
        "objective": schedule.objective,
        "predicted_cost": schedule.predicted_cost,
        "predicted_error": schedule.predicted_error,
        "predicted_psnr": predicted_psnr(schedule),
        "certificate": asdict(certificate),
        "total": total,
        "cost": costs.of(schedule, networks_alone=True),
        "unit": costs.unit,
        "conditions": costs.conditions,
        "without_widths": {
            "refresh_steps": list(complete.refresh_steps),
            "predicted_error": complete.predicted_error,
            "predicted_psnr": predicted_psnr(complete),
            "cost": costs.of(complete, networks_alone=True),
        },
    }
