"""`plan`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, out, say, steps
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    BatchOption,
    ConfigOption,
    DeviceOption,
    JsonOption,
    LatentOption,
    ModelOption,
    WeightsOption,
    WorkspaceOption,
    model_options,
)
from ddt_accel.cli.runs import open_networks

if TYPE_CHECKING:
    from ddt_accel.evaluation.fidelity import Interval
    from ddt_accel.evaluation.plan import Plan, Row


def plan(
    cost: Annotated[
        list[float] | None, typer.Option("--cost", help="A cost in terms of the calibrated trajectory; repeatable.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    calibration: Annotated[Path | None, typer.Option(help="A calibration file, of a fine grid.")] = None,
    backend: Annotated[str, typer.Option(help="onnx (the workspace's export) or torch.")] = "torch",
    export_folder: Annotated[Path | None, typer.Option("--export", help="An export folder.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    device: DeviceOption = "cpu",
    images: Annotated[
        int, typer.Option("--images", "-n", help="Held-out images to choose on, and as many to report on.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the held-out images; not the calibrated one.")] = 2,
    batch_size: BatchOption = 16,
    schedule: Annotated[Path | None, typer.Option("--out", help="Where to write the best schedule.")] = None,
    json: JsonOption = False,
) -> None:
    """Choose steps, integrator and refreshes together, by where the trajectory ends.

    Costs are the measured ones of the last `bench` of this workspace, else counted multiply-adds. The best plan of the
    last cost becomes the workspace's schedule.
    """
    from ddt_accel.artifacts import check_writable
    from ddt_accel.evaluation.costs import counted_costs, kept_costs
    from ddt_accel.evaluation.plan import make_plans
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    path = schedule or place.schedule_path
    check_writable(path)
    statistics = place.calibration(calibration)
    networks = open_networks(place, backend, export_folder, model_options(model, config, weights, latent_shape), device)
    costs = kept_costs(place.costs_path, statistics.checkpoint_sha256, say) or counted_costs(
        networks.backend.config, networks.latent_shape
    )
    with ExitStack() as bars:

        def progress(label: str, total: int) -> Callable[[], None]:
            bars.close()
            return bars.enter_context(steps(label, total)).advance

        rows = make_plans(
            networks.backend,
            statistics,
            costs,
            cost or [0.16, 0.2, 0.25, 0.3, 0.4, 0.5],
            latent_shape=networks.latent_shape,
            num_images=images,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    best = rows[-1].best
    if best is not None:
        best.schedule.save(path)
    if not json:
        _print(rows)
    emit(
        {"unit": costs.unit, "conditions": costs.conditions, "rows": [_facts(row) for row in rows]},
        as_json=json,
        text=f"Costs are {costs.unit} ({costs.conditions}); 1 is the calibrated trajectory, unshared.\n"
        f"dB to the converged trajectory, with 95 % intervals, on {images} images of seed {seed}, not those that "
        "plans were chosen on.\n"
        + (f"The best at {rows[-1].cost:g}: {best.name} → {path}" if best else "Nothing is as cheap as that."),
    )


def _print(rows: list[Row]) -> None:
    from rich.table import Table

    table = Table("cost", "fewer steps", "and another time shift", "published", "shared", "gain over either, dB")
    for row in rows:
        gains = "\n".join(_gain(row.gain(plan)) for plan in (row.fewer, row.unshared))
        table.add_row(f"{row.cost:g}", *map(_cell, (row.fewer, row.unshared, row.published, row.shared)), gains)
    out.print(table)


def _gain(gain: Interval | None) -> str:
    if gain is None:
        return "–"
    said = f"{gain.mean:+.1f} ({gain.low:+.1f} … {gain.high:+.1f})"
    return f"{said} not significant" if gain.low <= 0 <= gain.high else said


def _cell(plan: Plan | None) -> str:
    if plan is None:
        return "out of reach"
    copying = f"; {plan.copying.mean():.1f} to its own unshared" if plan.copying is not None else ""
    return f"{plan.mean:.1f} dB: {plan.name} ({plan.cost:.3f}){copying}"


def _facts(row: Row) -> dict[str, Any]:
    from dataclasses import asdict

    plans = {"fewer": row.fewer, "unshared": row.unshared, "published": row.published, "shared": row.shared}
    gains = {"gain_over_fewer": row.gain(row.fewer), "gain": row.gain(row.unshared)}
    return {
        "cost": row.cost,
        **{name: asdict(gain) if gain else None for name, gain in gains.items()},
        **{
            way: {
                "name": found.name,
                "cost": found.cost,
                "fidelity_db": found.mean,
                "copying_db": float(found.copying.mean()) if found.copying is not None else None,
                "timeshift": found.schedule.spec.timeshift,
                "refresh_steps": list(found.schedule.refresh_steps),
                "unconditional_steps": found.schedule.unconditional_steps,
                "solver": found.schedule.spec.solver,
                "num_steps": found.schedule.spec.num_steps,
                "centred": found.schedule.centred,
            }
            if found
            else None
            for way, found in plans.items()
        },
    }
