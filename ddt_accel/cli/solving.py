"""`solve`."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, following, given, say, show
from ddt_accel.cli.fewer_steps import costs_of, fewer_facts, fewer_told, left_out_told, predicted_told, unreached_told
from ddt_accel.cli.options import DEFAULT_WORKSPACE, JsonOption, WorkspaceOption
from ddt_accel.cli.preparation import keep
from ddt_accel.cli.refining import improve
from ddt_accel.cli.sentences import counted
from ddt_accel.cli.solving_widths import check_alone, solved_with_widths

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.solve import Certificate, Statistics
    from ddt_accel.spec import SamplingSpec

DEFAULT_BUDGET = 10


def solve(
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            "-k",
            help="How often the encoder may run; without a target 10, of 10 steps or fewer a fifth.",
        ),
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
    objective: Annotated[str, typer.Option(help="sum, power, minimax, or similarity (published; holds).")] = "sum",
    sources: Annotated[int, typer.Option(help="From how many refreshed states a calibrated forecast is made.")] = 2,
    centred: Annotated[
        bool, typer.Option("--centred/--uncentred", help="Forecast the deviation from the mean trajectory.")
    ] = True,
    split: Annotated[
        bool,
        typer.Option("--split", help="Refresh the unconditional branch, or the guide, at steps of its own; uncentred."),
    ] = False,
    widths: Annotated[
        bool,
        typer.Option(
            "--widths",
            help="Also run narrow networks, of a model with several widths, at the cost of --budget complete runs.",
        ),
    ] = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Write the schedules of all budgets, and a table.")] = False,
    refine: Annotated[
        bool, typer.Option("--refine", help="Run neighbouring schedules too, and keep what ends closer.")
    ] = False,
    align: Annotated[
        bool,
        typer.Option("--align", help="Choose the weights of forecasts along the shared trajectory, on a few images."),
    ] = False,
    refine_images: Annotated[
        int, typer.Option(help="On how many images either is done, and judged on as many others.")
    ] = 16,
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
    from ddt_accel.artifacts import check_writable
    from ddt_accel.errors import ConfigError, DDTAccelError
    from ddt_accel.evaluation.budgets import Target, beside, choose, predicted_psnr
    from ddt_accel.locks import making
    from ddt_accel.solver.solve import Method, solve_curve
    from ddt_accel.solver.split import ALIKE
    from ddt_accel.solver.split import split as solve_split
    from ddt_accel.solver.with_widths import check_widths
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    calibrated = place.calibration(calibration)
    spec = calibrated.spec
    statistics = on_grid(calibrated, spec if steps is None else dataclasses.replace(spec, num_steps=steps))
    method = Method(forecast=forecast, objective=objective, sources=sources, centred=centred and not split)
    path = out or place.schedule_path
    if split and (pareto or refine):
        raise ConfigError("--split is for one budget; give it without --pareto and --refine.")
    if align and pareto:
        raise ConfigError("--align is for one budget; give it without --pareto.")
    target = Target(milliseconds=target_ms, speedup=target_speedup, error=max_error, psnr=min_psnr)
    evaluations = statistics.spec.num_evaluations
    usual = DEFAULT_BUDGET if evaluations > DEFAULT_BUDGET else max(1, evaluations // 5)
    if widths:
        check_alone(
            {
                "--split": split,
                "--pareto": pareto,
                "--refine": refine,
                "--align": align,
                "a target": target != Target(),
                "--forecast, --sources or --uncentred": (forecast, sources, centred) != ("calibrated", 2, True),
            }
        )
        check_widths(statistics)
        prices = costs_of(place, calibrated)
        schedule, said, result = solved_with_widths(statistics, prices, usual if budget is None else budget, objective)
        keep(place, schedule, path)
        fewer = beside(calibrated, schedule, prices)
        hint = following(
            f"ddt-accel bench{given('--schedule', out)}{given('--calibration', calibration)}", workspace=workspace
        )
        lines = [said, fewer_told(schedule, fewer, calibrated, target), f"→ {path}", hint]
        result |= {"fewer_steps": fewer_facts(fewer), "schedule": str(path)}
        emit(result, as_json=json, text="\n".join(filter(None, lines)))
        return
    if pareto:
        if budget is not None or target != Target():
            raise ConfigError("--pareto writes all budgets; give it without a budget or target.")
        curve = solve_curve(statistics, evaluations, method)
        folder = out or place.curve_path
        with making(folder, say):
            _write_curve(curve, folder, calibrated, costs_of(place, calibrated), workspace, as_json=json)
            if out is None:  # a folder of ours: what another grid left would pass for this one's
                made = {f"{schedule.budget}.json" for schedule, _ in curve}
                for stale in folder.glob("[0-9]*.json"):
                    if stale.stem.isdecimal() and stale.name not in made:
                        stale.unlink()
        return
    if target == Target():
        chosen = solve_curve(statistics, usual if budget is None else budget, method)[-1]
        costs = None
        # Of a calibration from elsewhere nothing tells the costs, without which two networks' runs are not split.
        with contextlib.nullcontext() if split and calibrated.guide else contextlib.suppress(DDTAccelError):
            costs = costs_of(place, calibrated)
    else:
        if budget is not None:
            raise ConfigError("Give --budget or a target, not both.")
        costs = costs_of(place, calibrated)
        curve = solve_curve(statistics, evaluations, method)
        chosen = choose(curve, target, costs)
        say(f"By {costs.unit} ({costs.conditions}): {counted(chosen[0].budget, 'encoder run')}.")
        if unreached := unreached_told(curve, chosen[0], target):
            say(unreached)
    schedule, certificate = chosen
    said, result = describe(schedule, certificate), facts(schedule, certificate)
    if split:
        common, schedule = schedule, solve_split(statistics, schedule, method, costs=costs.relative if costs else ALIKE)
        said, result = _split_told(common, schedule), result | _split_facts(schedule)
    if refine or align:
        check_writable(path)
        improved = improve(place, statistics, schedule, method, refine_images, refining=refine, aligning=align)
        schedule, said, result = improved.schedule, f"{said}\n{improved.told}", result | improved.facts
    keep(place, schedule, path)
    fewer = beside(calibrated, schedule, costs) if costs is not None else None
    result |= {"predicted_psnr": predicted_psnr(schedule), "fewer_steps": fewer_facts(fewer), "schedule": str(path)}
    used = given("--schedule", out)
    measuring = f"ddt-accel bench{used}{given('--calibration', calibration)}"
    hints = measuring if place.export_path.exists() else "ddt-accel export", f"ddt-accel sample --backend torch{used}"
    lines = [said, predicted_told(schedule, fewer), fewer_told(schedule, fewer, calibrated, target), f"→ {path}"]
    emit(result, as_json=json, text="\n".join([*filter(None, lines), following(*hints, workspace=workspace)]))


def on_grid(calibration: Calibration, spec: SamplingSpec) -> Statistics:
    """The calibration, or what it says of a coarser grid."""
    from ddt_accel.calibration.resample import resample
    from ddt_accel.errors import MismatchError

    steps = calibration.spec.num_steps
    if spec == calibration.spec:
        return calibration
    if spec.num_steps > steps:
        raise MismatchError(
            f"--steps is {spec.num_steps}, but the calibration has only {steps}; run "
            f"`ddt-accel calibrate --steps {spec.num_steps}` first."
        )
    say(
        f"Interpolating the calibration of {steps} steps of {calibration.spec.solver} to {spec.num_steps} of "
        f"{spec.solver}."
    )
    return resample(calibration, spec)


def _split_facts(schedule: Schedule) -> dict[str, Any]:
    return {
        "refresh_steps": list(schedule.refresh_steps),
        "unconditional_steps": list(schedule.unconditional_steps or ()),
        "predicted_cost": schedule.predicted_cost,
        "predicted_error": schedule.predicted_error,
    }


def _split_told(common: Schedule, schedule: Schedule) -> str:
    """Both branches' refreshes, and what they are compared with."""
    from ddt_accel.solver.split import branch_runs, encoder_runs

    lines = []
    names = ("network", "guide") if schedule.guide_sha256 is not None else ("conditional", "unconditional")
    own = dict(zip(names, (schedule.refresh_steps, schedule.unconditional_steps or ()), strict=True))
    for branch, steps in own.items():
        drawn = "".join("●" if k in steps else "·" for k in range(schedule.spec.num_evaluations))
        lines.append(f"{drawn}  {branch}, {len(steps)} runs: {', '.join(map(str, steps))}")
    if schedule.guide_sha256 is not None:
        both = " + ".join(map(str, branch_runs(schedule)))
        lines.append(
            f"The encoders run {both} times for an image, which cost no more than {common.budget} common steps."
        )
        return "\n".join(lines)
    return "\n".join(lines) + (
        f"\nThe encoder runs {encoder_runs(schedule)} times for an image, as often as at {common.budget} steps common "
        "to both branches."
    )


def _write_curve(
    curve: list[tuple[Schedule, Certificate]], folder: Path, calibration: Calibration, costs: Costs, workspace: Path, *,
    as_json: bool,
) -> None:  # fmt: skip
    from rich.table import Table

    from ddt_accel.evaluation.budgets import beside, predicted_psnr
    from ddt_accel.evaluation.costs import SECONDS
    from ddt_accel.schedule import Schedule

    unit, timed = costs.of(Schedule.full(curve[0][0].spec)), costs.unit == SECONDS
    rows, lines = [], []
    found = [
        beside(calibration, schedule, costs) if schedule.budget < schedule.spec.num_evaluations else None
        for schedule, _ in curve
    ]
    for (schedule, certificate), fewer in zip(curve, found, strict=True):
        schedule.save(folder / f"{schedule.budget}.json")
        cost, psnr = costs.of(schedule), predicted_psnr(schedule)
        known = fewer_facts(fewer) or {}
        rows.append(
            facts(schedule, certificate)
            | {"speedup": unit / cost, "cost": cost, "predicted_psnr": psnr, "fewer_steps": known or None}
        )
        lines.append(
            {
                "encoder runs": str(schedule.budget),
                "speed-up": f"{unit / cost:.2f}×",
                "ms": f"{cost * 1000:.1f}" if timed else _UNKNOWN,
                "predicted error": f"{schedule.predicted_error or schedule.predicted_cost:.4g}",
                "predicted dB to the unshared": _number(psnr),
                "predicted dB to the reference": _number(known.get("expected")),
                "fewer steps": str(fewer.steps) if fewer else _UNKNOWN,
                "their dB to the unshared": _number(known.get("copying")),
                "their dB to the reference": _number(known.get("reference")),
                "sharing gains, dB to the unshared": _number(known.get("copying_gain"), "+.1f"),
                "sharing gains, dB to the reference": _number(known.get("reference_gain"), "+.1f"),
            }
        )
    if not as_json:
        columns = [name for name in lines[0] if any(line[name] != _UNKNOWN for line in lines)]
        table = Table(*columns)
        for line in lines:
            table.add_row(*(line[name] for name in columns))
        show(table)
    told = [
        f"Speed by {costs.unit} ({costs.conditions}).",
        "Fewer steps cost no less than the row's schedule." if any(found) else "",
        left_out_told(curve, found),
        "What is predicted, `ddt-accel bench` measures.",
    ]
    emit(
        {"folder": str(folder), "unit": costs.unit, "conditions": costs.conditions, "curve": rows},
        as_json=as_json,
        text=f"{' '.join(filter(None, told))}\n{len(rows)} schedules → {folder}\n"
        + following(f"ddt-accel bench --schedule {shlex.quote(str(folder))}/N.json", workspace=workspace),
    )


_UNKNOWN = "–"


def _number(value: float | None, form: str = ".1f") -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:{form}}" if round(value, 1) else "0.0"


def facts(schedule: Schedule, certificate: Certificate) -> dict[str, Any]:
    """What `--json` says of a solved schedule."""
    return {
        "refresh_steps": list(schedule.refresh_steps),
        "forecast": schedule.forecast,
        "objective": schedule.objective,
        "predicted_cost": schedule.predicted_cost,
        "predicted_error": schedule.predicted_error,
        "certificate": dataclasses.asdict(certificate),
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
        f"{_MEANING[schedule.objective]}: {certificate.cost:.4g}, {found} of {Decimal(certificate.considered):.4g} "
        f"schedules{tied}; evenly spread steps come to {certificate.uniform_cost:.4g}, the published program's to "
        f"{certificate.published_cost:.4g}."
    )


# What a schedule is the least of.
_MEANING = {
    "similarity": "Sum of 1 − cosine over the reuse steps",
    "sum": "Error of the final latents, if all errors added up",
    "power": "Error of the final latents, if errors of segments were independent",
    "minimax": "Error of the final latents from the worst segment",
}
