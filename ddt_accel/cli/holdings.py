"""What a workspace holds, artefact by artefact; a damaged one is told, not raised. Loads no PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import checksum, format_of, read_json
from ddt_accel.backends import manifest
from ddt_accel.cli.costing import measured_costs_of
from ddt_accel.cli.headers import document
from ddt_accel.drawing.run_folder import FILE_NAME as RUN
from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.errors import ArtifactError, DDTAccelError
from ddt_accel.evaluation.budgets import predicted_psnr
from ddt_accel.evaluation.costs import Costs
from ddt_accel.networks.locate import embedded_models
from ddt_accel.report.numbers import COMPARISON_NAME, FILE_NAME, Report, Row, read_comparison, read_report
from ddt_accel.schedule import FORMAT as SCHEDULE_FORMAT
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.workspace import ModelChoice, Workspace, read_speeds

# What a file can do to whoever believes it.
DAMAGE = (DDTAccelError, OSError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Held:
    """One thing in a workspace: what it is, for people, and the same for programs."""

    text: str
    facts: dict[str, Any]
    damaged: bool = False


@dataclass(frozen=True, kw_only=True)
class ScheduleRow:
    """A schedule and what is known of it; dB are to the unshared image, of a fitted one to the reference solution."""

    name: str
    encoder_runs: int | None = None
    evaluations: int | None = None
    steps: int | None = None
    fitted: bool = False
    predicted_db: float | None = None
    measured_db: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    damage: str | None = None


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """All of it."""

    held: dict[str, Held]
    schedules: tuple[ScheduleRow, ...]

    def __bool__(self) -> bool:
        return bool(self.held or self.schedules)

    def has(self, name: str) -> bool:
        """Whether it is there, and of use."""
        return name in self.held and not self.held[name].damaged


def holdings(place: Workspace) -> Holdings:
    """What lies in the folder of a workspace."""
    parts: dict[str, tuple[Path, Callable[[Workspace], Held | None]]] = {
        "model": (place.folder, _model),
        "calibration": (place.calibration_path, lambda p: _calibration(p.calibration_path)),
        "interrupted calibration": (place.partial_path, lambda p: _interrupted(p.partial_path)),
        "interrupted fits": (place.fit_path, _fits),
        "curve": (place.curve_path, _curve),
        "export": (place.export_path, lambda p: export_of(p.export_path)),
        "engines": (place.engines_path, lambda p: export_of(p.engines_path)),
        "backends": (place.speeds_path, _speeds),
        "costs": (place.costs_path, _costs),
        "report": (place.folder / FILE_NAME, _report),
        "comparison": (place.compared_path / COMPARISON_NAME, lambda p: _comparison(p.compared_path)),
        "comparison, to the unshared": (
            place.compared_unshared_path / COMPARISON_NAME,
            lambda p: _comparison(p.compared_unshared_path),
        ),
        "samples": (place.samples_path, lambda p: samples_of(p.samples_path)),
        "images": (place.images_path / RUN, lambda p: images_of(p.images_path)),
    }
    held = {}
    for name, (path, look) in parts.items():
        if path.exists():
            try:
                found = look(place)
            except DAMAGE as error:
                found = Held(text=f"damaged: {error}", facts={"damage": str(error)}, damaged=True)
            if found is not None:
                held[name] = found
    return Holdings(held=held, schedules=_schedules(place))


def model_of(place: Workspace) -> ModelChoice | None:
    """The model that was chosen, or that all commands have taken without a choice."""
    chosen = place.remembered()
    return ModelChoice() if chosen is None and place.calibration_path.exists() else chosen


def _model(place: Workspace) -> Held | None:
    choice = model_of(place)
    if choice is None:
        return None
    embedded = choice.source in embedded_models()
    is_path = not embedded and Path(choice.source).is_absolute()
    told = [f"{choice.source}{' (embedded)' if embedded else ''}"]
    told += ["its file is not there any more"] if is_path and not Path(choice.source).exists() else []
    told += [f"weights {choice.weights}"] if choice.weights != ModelChoice().weights else []
    told += [f"configuration {choice.config}"] if choice.config else []
    told += [f"latents {sizes(choice.latent_shape)}"] if choice.latent_shape else []
    told += [f"guided by {choice.guide}"] if choice.guide else []
    return Held(text=", ".join(told), facts=choice.document())


def sizes(shape: tuple[int, ...] | list[int]) -> str:
    return " × ".join(map(str, shape))


def recipe(spec: SamplingSpec) -> str:
    """The sampling in a few words."""
    low, high = spec.guidance_interval
    guided = f", guidance {spec.guidance:g} from {low:g} to {high:g}" if spec.guidance != 1 else ""
    guided += ", ends included" if spec.closed_interval else ""
    shifted = f", time shift {spec.timeshift:g}" if spec.timeshift != 1 else ""
    shifted += f", last step {spec.last_step:g}" if spec.last_step is not None else ""
    ended = f", ending at {spec.end_time:.4g}" if spec.end is not None else ""
    return f"{spec.num_steps} steps of {spec.solver}{guided}{shifted}{ended}"


def _calibration(path: Path) -> Held:
    content = document(path)
    if content is None:
        raise ArtifactError(f"{path.name} is no calibration")
    spec = SamplingSpec.from_dict(content["spec"])
    samples = sum(r["stop"] - r["first"] for r in content["ranges"])
    return Held(
        text=f"{samples} samples, {recipe(spec)}, latents {sizes(content['latent_shape'])}"
        + (f", guided by the checkpoint {content['guide_sha256'][:12]}" if "guide_sha256" in content else ""),
        facts={
            "samples": samples,
            "checkpoint_sha256": content["checkpoint_sha256"],
            **({"guide_sha256": content["guide_sha256"]} if "guide_sha256" in content else {}),
            "spec": asdict(spec),
            "evaluations": spec.num_evaluations,
        },
    )


def _interrupted(path: Path) -> Held:
    found = _calibration(path)
    return Held(text=f"{found.text}; the same `ddt-accel calibrate` goes on from there", facts=found.facts)


def _fits(place: Workspace) -> Held | None:
    states = {path.name: document(path) or {} for path in sorted(place.fit_path.glob("state*.safetensors"))}
    reached = {name: int(content["iteration"]) for name, content in states.items()}
    if not reached:
        return None
    told = ", ".join(f"{name} at iteration {iteration}" for name, iteration in reached.items())
    return Held(text=f"{told}; the same command goes on from there", facts=reached)


def _curve(place: Workspace) -> Held | None:
    found = [Schedule.load(path) for path in place.curve_path.glob("[0-9]*.json")]
    if not found:
        return None
    budgets = sorted(schedule.budget for schedule in found)
    known = sorted(value for schedule in found if (value := predicted_psnr(schedule)) is not None)
    predicted = f", predicted {known[0]:.1f} to {known[-1]:.1f} dB" if known else ""
    return Held(
        text=f"{len(found)} schedules of {budgets[0]} to {budgets[-1]} encoder runs{predicted}",
        facts={"schedules": len(found), "encoder_runs": budgets},
    )


def export_of(folder: Path) -> Held | None:
    """An export by its manifest, the files looked for and not read."""
    if not (folder / manifest.FILE_NAME).exists():
        return None
    told = read_json(folder / manifest.FILE_NAME, manifest.FORMAT, manifest.VERSION)
    if absent := [name for name in told["files"] if not (folder / name).is_file()]:
        raise ArtifactError(f"{', '.join(absent)} is missing; export anew")
    engine = told["engine"]
    kind = "ONNX files" if engine is None else f"engines of {engine['library']} {engine['version']}"
    place = "" if engine is None else f" for {engine['gpu'] or 'all GPUs since Ampere'}"
    unverified = ", not run yet" if engine is not None and engine["verified"] is None else ""
    return Held(
        text=f"{kind} in {told['precision']}{place}, of {told['model']}, latents {sizes(told['latent_shape'])}"
        + (", with its guide" if told.get("guide_sha256") is not None else "")
        + unverified,
        facts={key: told[key] for key in ("model", "precision", "latent_shape", "engine", "checkpoint_sha256")},
    )


def _speeds(place: Workspace) -> Held:
    conditions, seconds = read_speeds(place.speeds_path)
    batch = int(conditions["batch"])
    ordered = dict(sorted(seconds.items(), key=lambda item: item[1]))
    told = ", ".join(f"{name} {1e3 * taken / batch:.1f} ms" for name, taken in ordered.items())
    text = f"{told} per image for one encoder and five decoder runs, {batch} image{'' if batch == 1 else 's'} at a time"
    return Held(text=f"{text}, {conditions['device']}", facts={"seconds": ordered, "conditions": conditions})


def _costs(place: Workspace) -> Held:
    costs = Costs.load(place.costs_path)
    return Held(text=f"measured: {costs.conditions}", facts=costs.document())


def _report(place: Workspace) -> Held:
    report = read_report(place.folder / FILE_NAME)
    (*_, best) = [None, *(row for row in report.rows if row.name == report.headline)]
    begun = f"; it begins with {best.name}, {best.speedup:.2f} times as fast" if best is not None else ""
    pages = [name for name in ("report.html", "report.md") if (place.folder / name).exists()]
    return Held(
        text=f"{', '.join([*pages, FILE_NAME])}: {len(report.rows)} schedules on {report.num_images} images{begun}",
        facts={"images": report.num_images, "measurements": [asdict(row) for row in report.rows]},
    )


def _comparison(folder: Path) -> Held:
    path = folder / COMPARISON_NAME
    found = read_comparison(path)
    best = [f"{max(means, key=means.__getitem__)} at {cost:.3g}" for cost, means in found.means.items() if means]
    return Held(
        text=f"{path}: on {found.num_images} images the closest are {', '.join(best) or 'none'}",
        facts={"images": found.num_images, "aim": found.aim, "means": found.means},
    )


def samples_of(folder: Path) -> Held | None:
    """Pictures, or latents, that `sample` has drawn."""
    pictures = sorted(folder.glob("[0-9]*.png"))
    if pictures:
        return Held(text=f"{len(pictures)} pictures in {folder}", facts={"pictures": len(pictures)})
    latents = folder / "latents.npz"
    return Held(text=f"latents in {latents}", facts={"latents": str(latents)}) if latents.exists() else None


def images_of(folder: Path) -> Held:
    """A run of many images, finished or not; its ranges are not read."""
    run = RunFolder.load(folder)
    drawn = run.present()
    facts = {"images": run.images, "drawn": drawn, **run.identity}
    return Held(text=f"{drawn} of {run.images} images in {folder}, {run.identity.get('sampling')}", facts=facts)


def _schedules(place: Workspace) -> tuple[ScheduleRow, ...]:
    others = [path for path in sorted(place.folder.glob("*.json")) if path != place.schedule_path]
    paths = [place.schedule_path] if place.schedule_path.exists() else []
    paths += [path for path in others if _says(path) == SCHEDULE_FORMAT]
    paths += sorted(place.plans_path.glob("*.json"))
    try:
        report = read_report(place.folder / FILE_NAME)
    except DAMAGE:
        report = None
    return tuple(_row(place, path, report) for path in paths)


def _says(path: Path) -> str | None:
    try:
        return format_of(path)
    except DAMAGE:
        return None


def _row(place: Workspace, path: Path, report: Report | None) -> ScheduleRow:
    name = str(path.relative_to(place.folder))
    try:
        schedule = Schedule.load(path)
        costs = measured_costs_of(place, schedule)
        predicted = None if costs is None else 1000 * costs.of(schedule)
    except DAMAGE as error:
        return ScheduleRow(name=name, damage=str(error))
    measured = _measured(place, schedule, report)
    fitted = schedule.is_fitted
    return ScheduleRow(
        name=name,
        encoder_runs=schedule.budget,
        evaluations=schedule.spec.num_evaluations,
        steps=schedule.spec.num_steps,
        fitted=fitted,
        predicted_db=predicted_psnr(schedule),
        measured_db=(measured.to_reference if fitted else measured.to_unshared) if measured else None,
        predicted_ms=predicted,
        measured_ms=1000 * measured.seconds if measured else None,
    )


def _measured(place: Workspace, schedule: Schedule, report: Report | None) -> Row | None:
    """What the report says of this very schedule on this very network."""
    checkpoint = schedule.checkpoint_sha256 or _calibrated_checkpoint(place)
    if report is None or checkpoint is None or report.checkpoint_sha256 != checkpoint:
        return None
    identity = checksum(schedule.document())
    return next((row for row in report.rows if row.schedule_sha256 == identity), None)


def _calibrated_checkpoint(place: Workspace) -> str | None:
    """The network of the workspace, which a schedule written by hand is for."""
    try:
        content = document(place.calibration_path)
        return None if content is None else str(content["checkpoint_sha256"])
    except DAMAGE:
        return None
