"""`solve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, out, say
from ddt_accel.cli.options import DEFAULT_WORKSPACE, JsonOption, WorkspaceOption

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.solve import Certificate, Statistics
    from ddt_accel.workspace import Workspace

DEFAULT_BUDGET = 10


def solve(
    budget: Annotated[
        int | None, typer.Option("--budget", "-k", help="How often the encoder may run; 10 without a target.")
    ] = None,
    target_speedup: Annotated[float | None, typer.Option(help="Over the unshared trajectory, at least.")] = None,
    target_ms: Annotated[float | None, typer.Option(help="Milliseconds per image, as bench measured, at most.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="Predicted, in dB to the unshared image, at least.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Predicted, root mean square, of the latents.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Sampling steps; fewer than calibrated are interpolated.")
    ] = None,
    forecast: Annotated[
        str, typer.Option(help="The state between refreshes: calibrated, linear or hold.")
    ] = "calibrated",
    objective: Annotated[str, typer.Option(help="power, sum, minimax, or similarity (published; holds).")] = "power",
    sources: Annotated[int, typer.Option(help="From how many refreshed states a calibrated forecast is made.")] = 2,
    centred: Annotated[
        bool, typer.Option("--centred/--uncentred", help="Forecast the deviation from the mean trajectory.")
    ] = True,
    pareto: Annotated[bool, typer.Option("--pareto", help="Write the schedules of all budgets, and a table.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    calibration: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write, a folder with --pareto; in the workspace by default.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find the steps at which the encoder should run, and how to forecast its state in between.

    The published method is --forecast hold --objective similarity.
    """
    from ddt_accel.errors import ConfigError
    from ddt_accel.evaluation.budgets import Target, choose
    from ddt_accel.solver.solve import solve_curve
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    statistics = _statistics(place.calibration(calibration), steps)
    method: dict[str, Any] = {"forecast": forecast, "objective": objective, "sources": sources, "centred": centred}
    target = Target(milliseconds=target_ms, speedup=target_speedup, error=max_error, psnr=min_psnr)
    evaluations = statistics.spec.num_evaluations
    if pareto:
        if budget is not None or target != Target():
            raise ConfigError("--pareto writes all budgets; give it without a budget or target.")
        curve = solve_curve(statistics, evaluations, **method)
        _write_curve(curve, out or place.curve_path, _costs(place), as_json=json)
        return
    if target == Target():
        chosen = solve_curve(statistics, DEFAULT_BUDGET if budget is None else budget, **method)[-1]
    else:
        if budget is not None:
            raise ConfigError("Give --budget or a target, not both.")
        costs = _costs(place)
        chosen = choose(solve_curve(statistics, evaluations, **method), target, costs)
        say(f"By {costs.unit} ({costs.conditions}): {len(chosen[0].refresh_steps)} encoder runs.")
    path = out or place.schedule_path
    chosen[0].save(path)
    emit(
        facts(*chosen) | {"schedule": str(path)},
        as_json=json,
        text=f"{describe(*chosen)}\n→ {path}\nNext: ddt-accel export --onnx, or ddt-accel sample --backend torch",
    )


def _statistics(calibration: Calibration, steps: int | None) -> Statistics:
    """The calibration, or what it says of a coarser grid."""
    import dataclasses

    from ddt_accel.calibration.resample import resample
    from ddt_accel.errors import MismatchError

    calibrated = calibration.spec
    if steps is None or steps == calibrated.num_steps:
        return calibration
    if steps > calibrated.num_steps:
        raise MismatchError(
            f"--steps is {steps}, but the calibration has only {calibrated.num_steps}; run "
            f"`ddt-accel calibrate --steps {steps}` first."
        )
    say(f"Interpolating the calibration of {calibrated.num_steps} steps to {steps}.")
    return resample(calibration, dataclasses.replace(calibrated, num_steps=steps))


def _costs(place: Workspace) -> Costs:
    """The costs that `bench` measured in this workspace, else counted ones of its model."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.evaluation.costs import Costs, counted_costs

    if place.costs_path.exists():
        return Costs.load(place.costs_path)
    network = place.load_model({})
    if network.source is None or network.source.latent_shape is None:
        raise ConfigError("Nothing says how large the latents are; run `ddt-accel bench` first.")
    return counted_costs(network.config, network.source.latent_shape)


def _write_curve(curve: list[tuple[Schedule, Certificate]], folder: Path, costs: Costs, *, as_json: bool) -> None:
    from rich.table import Table

    from ddt_accel.evaluation.budgets import predicted_psnr
    from ddt_accel.evaluation.costs import SECONDS
    from ddt_accel.schedule import Schedule

    unit = costs.of(Schedule.full(curve[0][0].spec))
    table = Table("encoder runs", "speed-up", *(["ms"] if costs.unit == SECONDS else []), "predicted", "as PSNR, dB")
    rows = []
    for schedule, certificate in curve:
        schedule.save(folder / f"{schedule.budget}.json")
        cost, psnr = costs.of(schedule), predicted_psnr(schedule)
        rows.append(facts(schedule, certificate) | {"speedup": unit / cost, "cost": cost, "predicted_psnr": psnr})
        table.add_row(
            str(schedule.budget),
            f"{unit / cost:.2f}×",
            *([f"{cost * 1000:.1f}"] if costs.unit == SECONDS else []),
            f"{schedule.predicted_cost:.4g}",
            f"{psnr:.1f}" if psnr else "–",
        )
    if not as_json:
        out.print(table)
    emit(
        {"folder": str(folder), "unit": costs.unit, "conditions": costs.conditions, "curve": rows},
        as_json=as_json,
        text=f"Speed by {costs.unit} ({costs.conditions}).\n{len(rows)} schedules → {folder}",
    )


def facts(schedule: Schedule, certificate: Certificate) -> dict[str, Any]:
    """What `--json` says of a solved schedule."""
    from dataclasses import asdict

    return {
        "refresh_steps": list(schedule.refresh_steps),
        "forecast": schedule.forecast,
        "objective": schedule.objective,
        "predicted_cost": schedule.predicted_cost,
        "certificate": asdict(certificate),
    }


def describe(schedule: Schedule, certificate: Certificate) -> str:
    """A solved schedule and its certificate for people; one character a step, ● where the encoder runs."""
    refreshes = set(schedule.refresh_steps)
    drawn = "".join("●" if k in refreshes else "·" for k in range(schedule.spec.num_evaluations))
    found = "the least" if certificate.exact else "for two states the least"
    tied = f", shared by {certificate.ties}" if certificate.ties > 1 else ""
    return (
        f"{drawn}\n"
        f"The encoder runs at {schedule.budget} of {schedule.spec.num_evaluations} steps: "
        f"{', '.join(map(str, schedule.refresh_steps))}\n"
        f"{_MEANING[schedule.objective]}: {schedule.predicted_cost:.4g}\n"
        f"At {certificate.cost:.4g} it is {found} of {certificate.considered:.4g} schedules{tied}; evenly spread steps "
        f"come to {certificate.uniform_cost:.4g}, the published program's to {certificate.published_cost:.4g}."
    )


_MEANING = {
    "similarity": "Sum of 1 − cosine over the reuse steps",
    "sum": "Predicted error of the final latents, if all errors add up",
    "power": "Predicted root-mean-square error of the final latents",
    "minimax": "Predicted error of the final latents from the worst segment",
}
