"""`optimize`, and `demo`, which is its run on the embedded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, keeping, say, say_threads, stages
from ddt_accel.cli.fitting import wants_autocast
from ddt_accel.cli.networks import BackendOption, Opened, check_backend, load_networks, open_networks
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    BatchOption,
    ConfigOption,
    DeviceOption,
    GuideOption,
    JsonOption,
    LatentOption,
    ModelOption,
    ThreadsOption,
    WeightsOption,
    WorkspaceOption,
    check_device,
    model_options,
)
from ddt_accel.cli.preparation import (
    QUICK,
    THOROUGH,
    Effort,
    beside,
    calibrated,
    exported,
    held_out,
    keep,
    kept,
    known,
    timed,
)
from ddt_accel.cli.recipes import (
    ClosedOption,
    EndOption,
    GuidanceOption,
    IntervalOption,
    LastStepOption,
    LikeOption,
    ShiftOption,
    SolverOption,
    StepsOption,
    recipe_like,
    sampling_said,
)

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.budgets import Target
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.fitting.optimize import Choice, Optimizer
    from ddt_accel.networks.recipe import Recipe
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.report.study import Study
    from ddt_accel.sampling.noise import ImageRange
    from ddt_accel.schedule import Schedule
    from ddt_accel.stages import OnStage
    from ddt_accel.workspace import Workspace

DEFAULT_SPEEDUP = 5.0


def optimize(
    budget_ms: Annotated[float | None, typer.Option(help="Milliseconds per image here, at most.")] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Over the sampler without sharing, at least; 5 without any target.")
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="dB to the reference solution, which many more steps draw, at least.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="In minutes: fewer samples and images, fits in closed form alone.")
    ] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    guide: GuideOption = None,
    like: LikeOption = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    guidance: GuidanceOption = None,
    guidance_interval: IntervalOption = None,
    closed_interval: ClosedOption = None,
    timeshift: ShiftOption = None,
    last_step: LastStepOption = None,
    end: EndOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch_size: BatchOption = 16,
    json: JsonOption = False,
) -> None:
    """Find the best schedule for a target: calibrate, export, plan, fit, measure, report, in one go.

    What lies in the workspace is used, its sampling, too, and what was interrupted continues. The best schedule becomes
    the workspace's; five lines say what to expect of it.
    """
    from ddt_accel.errors import ConfigError
    from ddt_accel.evaluation.budgets import Target
    from ddt_accel.workspace import Workspace

    asked = {"--budget-ms": budget_ms, "--speedup": speedup, "--min-psnr": min_psnr}
    if len(said := [name for name, value in asked.items() if value is not None]) > 1:
        raise ConfigError(f"{' and '.join(said)} are two targets; give one.")
    if not said:
        speedup = DEFAULT_SPEEDUP
    if speedup is not None and speedup <= 1:
        raise ConfigError(f"--speedup is {speedup:g}; give more than 1, which is the sampler as it is.")
    sampling = sampling_said(
        num_steps=steps,
        solver=solver,
        guidance=guidance,
        guidance_interval=guidance_interval,
        closed_interval=closed_interval,
        timeshift=timeshift,
        last_step=last_step,
        end=end,
    )
    place, said_of_model = Workspace(workspace), model_options(model, config, weights, latent_shape, guide)
    recipe = recipe_like(like, sampling, guided=place.chosen(said_of_model).guide is not None)
    device = check_device(device)
    say_threads(threads, device)
    _run(
        place,
        Target(milliseconds=budget_ms, speedup=speedup, psnr=min_psnr),
        QUICK if quick else THOROUGH,
        said_of_model,
        sampling,
        recipe,
        backend,
        device,
        batch_size,
        as_json=json,
    )


def demo(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Which of the embedded models.", show_default="cifar10")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Do it all on an embedded model: `optimize --speedup 5 --quick`, stage by stage."""
    from importlib.util import find_spec

    from ddt_accel.errors import ConfigError, DependencyError
    from ddt_accel.evaluation.budgets import Target
    from ddt_accel.networks.locate import embedded_models
    from ddt_accel.workspace import DEFAULT_MODEL, Workspace

    place = Workspace(workspace)
    source = DEFAULT_MODEL if model is None else model
    if source not in embedded_models():
        raise ConfigError(
            f"The demo takes an embedded model ({', '.join(embedded_models())}), not {source}; with a checkpoint of "
            f"your own run `ddt-accel optimize --model {source} --speedup {DEFAULT_SPEEDUP:g} --quick`."
        )
    remembered = place.remembered()
    if remembered is not None and remembered.source != source:
        raise ConfigError(
            f"{workspace} holds work on {remembered.source}, which the demo of {source} would write over; give it "
            "another --workspace."
        )
    if find_spec("onnxruntime") is None:
        raise DependencyError("The demo runs the networks by ONNX Runtime; install ddt-accel[cpu].")
    say(
        f"This makes the embedded model {source} {DEFAULT_SPEEDUP:g} times as fast, as `ddt-accel optimize "
        f"--speedup {DEFAULT_SPEEDUP:g} --quick` does with any model."
    )
    say_threads(threads, "cpu")
    said = {"source": source}
    _run(place, Target(speedup=DEFAULT_SPEEDUP), QUICK, said, {}, None, "auto", "cpu", 16, as_json=json)


def _run(
    place: Workspace, target: Target, effort: Effort, said: dict[str, Any], sampling: dict[str, Any],
    recipe: Recipe | None, backend: str, device: str, batch_size: int, *, as_json: bool,
) -> None:  # fmt: skip
    from ddt_accel.artifacts import check_writable
    from ddt_accel.cli.expectations import expectations, facts
    from ddt_accel.locks import making
    from ddt_accel.report.render import write_report

    check_backend(backend)
    for path in (place.schedule_path, place.costs_path, place.folder / "report.html"):
        check_writable(path)
    with keeping(lambda: kept(place)):
        network, guide = load_networks(place, said, device)
        say("1/5  Calibrating: how does the encoder's state change along trajectories of the sampler as it is?")
        calibration = calibrated(place, network, sampling, recipe, effort, guide=guide)
        if calibration.spec.num_evaluations > 1:
            alike = calibration.similarity.diagonal(1).mean()
            say(f"From one step to the next its cosine similarity is {alike:.4f}.")
        say("2/5  Backend: which runs the two networks fastest here, and what does each of them cost?")
        if device == "cpu" and backend in ("auto", "onnx"):
            exported(place, network, needed=backend == "onnx", guide=guide)
        compiling = effort.thorough or device != "cpu"
        networks = open_networks(place, backend, None, said, device, batch_size, compiling=compiling)
        costs = timed(place, networks, calibration.spec, batch_size)
        there = known(place, calibration)
        images = held_out(calibration, effort, there)
        say("3/5  Searching: which steps, integrator and encoder runs end closest to the reference solution?")
        with making(place.fit_path, say), stages() as on_stage:
            choice = _choose(
                place, network, guide, networks, calibration, costs, images, there, target, effort, on_stage, batch_size
            )
            path = place.schedule_path
            if choice.met:
                keep(place, choice.best.schedule)
            else:
                path = beside(place, choice.best.schedule)
        say(_found(choice))
        say("4/5  Measuring it beside what you would have done instead, on other images")
        with making(place.folder / "report.html", say), stages() as on_stage:
            study = _study(networks, calibration, choice, images["reporting"], target, effort, on_stage, batch_size)
        say("5/5  Writing the report")
        page, *_ = write_report(study, place.folder)
    lines = expectations(study, choice, target, place, networks, device, path)
    emit(
        facts(study, choice, target) | {"schedule": str(path), "report": str(page), "expect": lines},
        as_json=as_json,
        text="\n".join(lines),
    )


def _choose(
    place: Workspace, network: SplitNetwork, guide: SplitNetwork | None, networks: Opened, calibration: Calibration,
    costs: Costs, images: dict[str, ImageRange], there: list[Schedule], target: Target, effort: Effort,
    on_stage: OnStage, batch_size: int,
) -> Choice:  # fmt: skip
    from ddt_accel.evaluation.converged import reference_steps
    from ddt_accel.evaluation.judge import Judge
    from ddt_accel.fitting import search
    from ddt_accel.fitting.fit_spec import LEAST_HELD_OUT, LEAST_REFERENCE_STEPS, FitSpec
    from ddt_accel.fitting.joint import JointFit
    from ddt_accel.fitting.optimize import Optimizer

    own = calibration.spec.num_steps  # and no fewer than the report will have, so that both speak of one solution
    steps = max(LEAST_REFERENCE_STEPS, reference_steps(own), round(effort.reference * own))
    done = on_stage("the reference solution to choose by", 1)
    judge = Judge(
        networks.backend,
        calibration,
        costs,
        images["choosing"],
        batch_size,
        reference_steps=steps,
        cache=place.fit_path,
    )
    done()
    fitting = images["fitting"]
    spec = FitSpec(seed=fitting.seed, autocast=wants_autocast(None, networks.backend.device))
    if not effort.thorough:
        spec = FitSpec(
            seed=fitting.seed, images=fitting.count, batch_size=fitting.count,
            held_out=LEAST_HELD_OUT, reference_steps=steps,
        )  # fmt: skip
    joint = JointFit(
        network,
        calibration,
        costs,
        spec,
        # Gradients are taken in PyTorch's float32, and what they lead to is searched by the same arithmetic.
        backend=None if effort.thorough else networks.backend,
        search=search.THOROUGH if effort.thorough else search.QUICK,
        folder=place.fit_path,
        on_stage=on_stage,
        guide=guide,
    )
    optimizer = Optimizer(
        judge, joint, thorough=effort.thorough, known=there, folder=place.plans_path, on_stage=on_stage
    )
    choice = optimizer.choose(target)
    if choice.met and target.limits_time:
        return _in_time(place, optimizer, choice, target, networks, batch_size, on_stage)
    return choice


def _in_time(
    place: Workspace, optimizer: Optimizer, choice: Choice, target: Target, networks: Opened, batch_size: int,
    on_stage: OnStage,
) -> Choice:  # fmt: skip
    """The choice if it is as fast as it should be when it is run from end to end, else what is chosen once more by the
    costs that this implies, which are kept in any case."""
    from ddt_accel.evaluation.timing import whole_costs

    judge, schedule = optimizer.judge, choice.best.schedule
    whole = whole_costs(
        networks.backend, judge.calibration.spec, schedule, networks.latent_shape, batch_size, judge.costs.conditions,
        on_stage,
    )  # fmt: skip
    whole.costs.save(place.costs_path)
    limit = whole.unshared / target.speedup if target.speedup else (target.milliseconds or 0.0) / 1000
    if whole.seconds <= limit:
        return choice
    say(
        f"From end to end {choice.best.name} takes {1e3 * whole.seconds:.3g} ms, more than the {1e3 * limit:.3g} that "
        "are asked for: choosing once more, by what whole trajectories take."
    )
    # What the costs do not explain of this trajectory will be missing from its like, too.
    return optimizer.once_more(choice, whole.costs, limit * whole.costs.of(schedule) / whole.seconds)


def _study(
    networks: Opened, calibration: Calibration, choice: Choice, images: ImageRange, target: Target, effort: Effort,
    on_stage: OnStage, batch_size: int,
) -> Study:  # fmt: skip
    from ddt_accel.report.study import conduct

    return conduct(
        networks.backend,
        calibration,
        choice.best.schedule,
        model_name=networks.name,
        latent_shape=networks.latent_shape,
        num_images=images.count,
        curve_images=effort.curve,
        seed=images.seed,
        batch_size=batch_size,
        on_stage=on_stage,
        others={name: plan.schedule for name, plan in choice.others.items()},
        target=target,
        settled=True,
        reference_images=effort.beside_reference,
    )


def _found(choice: Choice) -> str:
    """What was chosen, in characters, ● where the encoder runs; by the images that it was chosen on."""
    schedule, best = choice.best.schedule, choice.best
    refreshes = set(schedule.refresh_steps)
    drawn = "".join("●" if k in refreshes else "·" for k in range(schedule.spec.num_evaluations))
    others = "".join(f"; {name}, {plan.name}: {plan.mean:.1f} dB" for name, plan in choice.others.items())
    return f"{drawn}  {best.name}: {best.mean:.1f} dB to the reference solution{others}."
