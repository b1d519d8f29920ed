"""`calibrate` and `solve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, say, steps
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    BatchOption,
    ConfigOption,
    DeviceOption,
    JsonOption,
    LatentOption,
    ModelOption,
    SeedOption,
    WeightsOption,
    WorkspaceOption,
    check_device,
    model_options,
)

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.networks.ddt import DDT
    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.solve import Certificate
    from ddt_accel.spec import SamplingSpec
    from ddt_accel.workspace import Workspace


def calibrate(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    steps: Annotated[int, typer.Option("--steps", help="Sampling steps.")] = 50,
    solver: Annotated[str, typer.Option(help="euler, heun, sde, ab1, ab2, ab3 or ab4.")] = "euler",
    guidance: Annotated[float, typer.Option(help="Guidance weight; 1 is none.")] = 2.0,
    guidance_interval: Annotated[
        tuple[float, float], typer.Option(help="Guidance applies strictly between these times.")
    ] = (0.3, 1.0),
    timeshift: Annotated[float, typer.Option(help="Time shift of the grid; 1 is none.")] = 1.0,
    last_step: Annotated[float | None, typer.Option(help="Length of the last step; 1 / steps by default.")] = None,
    samples: Annotated[int, typer.Option(help="Sample trajectories to average over.")] = 64,
    sensitivity_samples: Annotated[
        int, typer.Option(help="On how many of them errors are followed to the picture; each costs 26 trajectories.")
    ] = 8,
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    device: DeviceOption = "cpu",
    out: Annotated[Path | None, typer.Option(help="Where to write; in the workspace by default.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure how the encoder's state changes along unshared trajectories."""
    from ddt_accel.spec import SamplingSpec
    from ddt_accel.workspace import Workspace

    spec = SamplingSpec(
        num_steps=steps,
        solver=solver,
        guidance=guidance,
        guidance_interval=guidance_interval,
        timeshift=timeshift,
        last_step=last_step,
    )
    place = Workspace(workspace)
    network = place.load_model(model_options(model, config, weights, latent_shape))
    network = network.to(check_device(device))
    calibration = run_calibration(
        place,
        network,
        spec,
        samples=samples,
        sensitivity_samples=sensitivity_samples,
        seed=seed,
        batch_size=batch_size,
        out=out or place.calibration_path,
    )
    path = out or place.calibration_path
    emit(
        {
            "calibration": str(path),
            "samples": calibration.num_samples,
            "evaluations": spec.num_evaluations,
            "mean_neighbour_similarity": float(calibration.similarity.diagonal(1).mean())
            if spec.num_evaluations > 1
            else 1.0,
        },
        as_json=json,
        text=f"Calibrated on {calibration.num_samples} trajectories of {spec.num_evaluations} steps → {path}\n"
        "Next: ddt-accel solve --budget 10",
    )


def run_calibration(
    place: Workspace,
    network: DDT,
    spec: SamplingSpec,
    *,
    samples: int,
    sensitivity_samples: int,
    seed: int,
    batch_size: int,
    out: Path,
) -> Calibration:
    """Calibrates with a bar; continues what an interrupted run of the same settings left behind."""
    from ddt_accel.calibration.calibrate import calibrate as run
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.errors import ArtifactError

    partial = place.partial_path
    resume = None
    if partial.exists():
        try:
            resume = Calibration.load(partial)
        except ArtifactError:
            say(f"{partial} is damaged and is not used.")
    source = network.source
    if resume is not None:
        kept = resume.ranges[0]
        same = resume.spec == spec and source is not None and resume.checkpoint_sha256 == source.sha256
        if not same or len(resume.ranges) != 1 or (kept.seed, kept.first) != (seed, 0) or kept.stop > samples:
            resume = None
        else:
            say(f"Continuing an interrupted calibration: {resume.num_samples} of {samples} samples are done.")
    with steps("calibrating", samples) as bar:

        def on_batch(done: Calibration) -> None:
            done.save(partial)
            bar.to(done.num_samples)

        calibration = run(
            network,
            spec,
            samples,
            seed,
            batch_size=batch_size,
            sensitivity_samples=sensitivity_samples,
            resume=resume,
            on_batch=on_batch,
        )
    calibration.save(out)
    partial.unlink(missing_ok=True)
    return calibration


def solve(
    budget: Annotated[int, typer.Option("--budget", "-k", help="How often the encoder may run.")] = 10,
    steps: Annotated[int | None, typer.Option("--steps", help="Sampling steps, as calibrated.")] = None,
    forecast: Annotated[
        str, typer.Option(help="The state between refreshes: calibrated, linear or hold.")
    ] = "calibrated",
    objective: Annotated[str, typer.Option(help="power, sum, minimax, or similarity (published; holds).")] = "power",
    sources: Annotated[int, typer.Option(help="From how many refreshed states a calibrated forecast is made.")] = 2,
    centred: Annotated[
        bool, typer.Option("--centred/--uncentred", help="Forecast the deviation from the mean trajectory.")
    ] = True,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    calibration: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; in the workspace by default.")] = None,
    json: JsonOption = False,
) -> None:
    """Find the steps at which the encoder should run, and how to forecast its state in between.

    The published method is --forecast hold --objective similarity.
    """
    from ddt_accel.errors import MismatchError
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    statistics = place.calibration(calibration)
    if steps is not None and steps != statistics.spec.num_steps:
        raise MismatchError(
            f"--steps is {steps}, but the calibration has {statistics.spec.num_steps}; run "
            f"`ddt-accel calibrate --steps {steps}` first."
        )
    method = {"forecast": forecast, "objective": objective, "sources": sources, "centred": centred}
    result, text = run_solver(statistics, budget, out=out or place.schedule_path, **method)
    emit(result, as_json=json, text=f"{text}\nNext: ddt-accel export --onnx, or ddt-accel sample --backend torch")


def run_solver(statistics: Calibration, budget: int, *, out: Path, **method: Any) -> tuple[dict[str, Any], str]:
    """Solves, saves, and says what it found and how it compares: as data and as text."""
    from dataclasses import asdict

    from ddt_accel.solver.solve import solve_curve

    schedule, certificate = solve_curve(statistics, budget, **method)[-1]
    schedule.save(out)
    result = {
        "schedule": str(out),
        "refresh_steps": list(schedule.refresh_steps),
        "forecast": schedule.forecast,
        "objective": schedule.objective,
        "predicted_cost": schedule.predicted_cost,
        "certificate": asdict(certificate),
    }
    text = (
        f"{_drawn(schedule)}\n"
        f"The encoder runs at {budget} of {schedule.spec.num_evaluations} steps: "
        f"{', '.join(map(str, schedule.refresh_steps))}\n"
        f"{_MEANING[schedule.objective]}: {schedule.predicted_cost:.4g}. {_compared(certificate)}\n→ {out}"
    )
    return result, text


_MEANING = {
    "similarity": "Sum of 1 − cosine over the reuse steps",
    "sum": "Predicted error of the final latents, if all errors add up",
    "power": "Predicted root-mean-square error of the final latents",
    "minimax": "Predicted error of the final latents from the worst segment",
}


def _compared(certificate: Certificate) -> str:
    """The certificate in words."""
    found = "the least" if certificate.exact else "for two states the least"
    tied = f", shared by {certificate.ties}" if certificate.ties > 1 else ""
    return (
        f"At {certificate.cost:.4g} it is {found} of {certificate.considered:.4g} schedules{tied}; evenly spread steps "
        f"come to {certificate.uniform_cost:.4g}, the published program's to {certificate.published_cost:.4g}."
    )


def _drawn(schedule: Schedule) -> str:
    """One character a step: ● where the encoder runs, · where it does not."""
    refreshes = set(schedule.refresh_steps)
    return "".join("●" if k in refreshes else "·" for k in range(schedule.spec.num_evaluations))
