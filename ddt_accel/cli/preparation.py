"""What an optimisation works with: kept where it lies in the workspace, else made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.calibration import run_calibration
from ddt_accel.cli.console import say, stages
from ddt_accel.cli.fewer_steps import source_of
from ddt_accel.cli.networks import Opened
from ddt_accel.cli.recipes import sampling_of

if TYPE_CHECKING:
    from pathlib import Path

    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.networks.recipe import Recipe
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.sampling.noise import ImageRange
    from ddt_accel.schedule import Schedule
    from ddt_accel.spec import SamplingSpec
    from ddt_accel.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured: samples to calibrate on, of them those whose errors are followed and from how many steps;
    the reference solution's steps in terms of the calibrated ones, if no fewer than a report's; images to choose on, to
    fit on, to report on, of them those beside the reference solution, and those on the curve over budgets."""

    thorough: bool
    samples: int
    sensitivity_samples: int
    sensitivity_steps: int | None
    reference: float
    choosing: int
    fitting: int
    reporting: int
    beside_reference: int
    curve: int


THOROUGH = Effort(
    thorough=True, samples=64, sensitivity_samples=8, sensitivity_steps=None, reference=4.0, choosing=16,
    fitting=64, reporting=64, beside_reference=16, curve=16,
)  # fmt: skip
QUICK = Effort(
    thorough=False, samples=12, sensitivity_samples=2, sensitivity_steps=8, reference=2.0, choosing=8, fitting=10,
    reporting=16, beside_reference=12, curve=4,
)  # fmt: skip


def calibrated(
    place: Workspace,
    network: SplitNetwork,
    sampling: dict[str, Any],
    like: Recipe | None,
    effort: Effort,
    *,
    guide: SplitNetwork | None = None,
) -> Calibration:
    """The workspace's, if it is of this model and sampling, else one that is made now.

    Where `sampling` says nothing it is `like` a recipe, or as calibrated, or as published.
    """
    from ddt_accel.errors import ConfigError
    from ddt_accel.networks.split import latent_shape_of
    from ddt_accel.spec import SamplingSpec

    found, kept = None, None
    source, shape = network.source, latent_shape_of(network)
    if place.calibration_path.exists():
        found = place.calibration()
        own = (source.sha256, source_of(guide), shape) if source is not None else None
        if (found.checkpoint_sha256, found.guide_sha256, found.latent_shape) == own:
            kept = found
    if like is None and kept is not None:
        spec = SamplingSpec.chosen(asdict(kept.spec), sampling)
    else:
        spec = sampling_of(network, like, sampling, guided=guide is not None)
    if spec.solver == "sde":
        raise ConfigError("A stochastic sampler has no reference solution to come close to; give another --solver.")
    if kept is not None and kept.spec == spec and kept.sensitivity is not None:
        less = "" if kept.num_samples >= effort.samples else f"; `ddt-accel calibrate` makes one of {effort.samples}"
        say(f"Kept: {kept.num_samples} trajectories of {spec.num_steps} steps in {place.calibration_path}{less}.")
        return kept
    if found is not None:
        path = place.folder / f"calibration-{found.sha256[:8]}.safetensors"
        found.save(path)
        say(f"The calibration that was there is of another model or sampling; it is kept: {path}")
    return run_calibration(
        place,
        network,
        spec,
        samples=effort.samples,
        sensitivity_samples=effort.sensitivity_samples,
        sensitivity_steps=effort.sensitivity_steps,
        seed=0,
        batch_size=8,
        guide=guide,
        out=place.calibration_path,
    )


def exported(place: Workspace, network: SplitNetwork, *, needed: bool, guide: SplitNetwork | None = None) -> None:
    """To ONNX, where ONNX Runtime is installed and nothing of this network is there."""
    from importlib.util import find_spec

    from ddt_accel.artifacts import read_json
    from ddt_accel.backends.guided import backend_of
    from ddt_accel.backends.manifest import FILE_NAME, FORMAT, VERSION
    from ddt_accel.errors import ArtifactError, DDTAccelError
    from ddt_accel.exporting.export import export
    from ddt_accel.networks.split import latent_shape_of

    if find_spec("onnxruntime") is None and not needed:
        return
    try:
        told = read_json(place.export_path / FILE_NAME, FORMAT, VERSION)
        widths = list(backend_of(network, guide).widths)
        own = (source_of(network), source_of(guide), list(latent_shape_of(network)), widths)
        there = (told.get(key) for key in ("checkpoint_sha256", "guide_sha256", "latent_shape"))
        if (*there, told.get("widths", [1.0])) == own:
            say(f"Kept: the export in {place.export_path}.")
            return
    except ArtifactError:
        pass  # there is none, or none that is of use
    try:
        with stages() as on_stage:
            export(network, place.export_path, on_stage=on_stage, guide=guide)
    except DDTAccelError as error:
        if needed:
            raise
        say(f"  onnx: {error}")


def timed(place: Workspace, networks: Opened, spec: SamplingSpec, batch_size: int) -> Costs:
    """What the parts of a trajectory take on this backend, as it was measured here before or is now."""
    import torch

    from ddt_accel.errors import ArtifactError
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.evaluation.timing import timed_costs
    from ddt_accel.networks.device import device_name

    backend = networks.backend
    conditions = (
        f"{backend.name}, {device_name(backend.device)}, threads: {torch.get_num_threads()}, batches of {batch_size}"
    )
    try:
        costs = Costs.load(place.costs_path)
    except ArtifactError:
        costs = None
    second = backend.guide.checkpoint_sha256 if backend.guide is not None else None
    if (
        costs is None
        or costs.conditions != conditions
        or not (costs.is_of(backend.checkpoint_sha256, second) and costs.cover(backend.widths))
    ):
        costs = timed_costs(backend, spec, networks.latent_shape, batch_size, conditions)
        costs.save(place.costs_path)
    say(f"An image takes {1e3 * costs.encoder:.3g} ms in the encoder and {1e3 * costs.decoder:.3g} ms in the decoder.")
    return costs


def held_out(calibration: Calibration, effort: Effort, there: list[Schedule]) -> dict[str, ImageRange]:
    """Which images are for what: none of them calibrated on, none of them used twice; those to choose and to report on
    are none that a schedule that is `there` already was fitted or chosen on."""
    from itertools import count

    from ddt_accel.sampling.noise import ImageRange

    calibrated = {one.seed for one in calibration.ranges}
    seen = {seed for schedule in there for seed, _, _ in schedule.fitted_on}
    seeds = (seed for seed in count(1) if seed not in calibrated)
    usual = {name: next(seeds) for name in ("reporting", "choosing", "fitting")}
    fresh = (seed for seed in seeds if seed not in seen)
    counts = {"reporting": effort.reporting, "choosing": effort.choosing, "fitting": effort.fitting}
    return {
        name: ImageRange(seed=next(fresh) if seed in seen and name != "fitting" else seed, first=0, stop=counts[name])
        for name, seed in usual.items()
    }


def known(place: Workspace, calibration: Calibration) -> list[Schedule]:
    """Schedules that come with the package or lie in the workspace, and are for this very checkpoint and sampling."""
    from ddt_accel.errors import ArtifactError
    from ddt_accel.fitting.optimize import comparable
    from ddt_accel.schedule import Schedule, shipped_schedules

    known: list[Schedule] = []
    names: list[str | Path] = [*shipped_schedules(), place.schedule_path, *sorted(place.plans_path.glob("*.json"))]
    for name in names:
        try:
            schedule = Schedule.load(name)
        except ArtifactError:
            continue  # there is none, or it is damaged
        if comparable(schedule, calibration):
            known.append(schedule)
    if known:
        say(f"Beside what is found now stand {len(known)} schedules for this checkpoint that are there already.")
    return known


def keep(place: Workspace, schedule: Schedule, path: Path | None = None) -> None:
    """Makes a schedule the workspace's; a fitted one that was stays among the plans, for it may have taken long.
    Another `path` is written to as it is."""
    from ddt_accel.artifacts import checksum
    from ddt_accel.errors import ArtifactError
    from ddt_accel.schedule import Schedule

    def identity(file: Path) -> str | None:
        try:
            return checksum(Schedule.load(file).document())
        except ArtifactError:
            return None  # of a damaged one there is nothing to keep

    own = place.schedule_path
    replaced = identity(own) if own.exists() and (path is None or path.resolve() == own.resolve()) else None
    if replaced and replaced != checksum(schedule.document()) and (last := Schedule.load(own)).is_fitted:
        plans = sorted(place.plans_path.glob("*.json"))
        kept = next((plan for plan in plans if identity(plan) == replaced), None)
        if kept is None:
            kept = place.plans_path / f"replaced-{replaced[:16]}.json"
            last.save(kept)
        say(f"The fitted schedule that was the workspace's is kept: {kept}")
    schedule.save(path or own)


def beside(place: Workspace, schedule: Schedule) -> Path:
    """Saves a schedule that misses its target: among the plans, where the workspace has one, which stays; returns where
    it is."""
    if not place.schedule_path.exists():
        schedule.save(place.schedule_path)
        return place.schedule_path
    path = place.plans_path / "nearest-to-target.json"
    schedule.save(path)
    return path


def kept(place: Workspace) -> str:
    """What an interrupted run leaves behind."""
    return (
        f"What was finished of calibration, export, costs, reference solutions and fits is kept in {place.folder}; the "
        "same command goes on from there."
    )
