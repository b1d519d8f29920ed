"""The comparison itself: everyone chooses, then all that were chosen are measured on other images, batch by batch in
turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ddt_accel.backends.sample import check_checkpoint, sample_images
from ddt_accel.calibration.watched import networks_of
from ddt_accel.comparison.choices import Choices
from ddt_accel.comparison.choosing import Chooser, Entry
from ddt_accel.comparison.contest import REFERENCE, UNSHARED, Contest, Field, Row
from ddt_accel.comparison.ours import ALIGNED, CLOSED, FITTED, SOLVED, SOLVING, WIDTHS
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.candidates import with_widths
from ddt_accel.evaluation.converged import converged_ends, reference_steps
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.fitting.aligned import align, unshared_path
from ddt_accel.fitting.finder import Finder
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.search import QUICK
from ddt_accel.rivals.rival import Rival
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.stages import OnStage, silent


def compare(
    field: Field,
    targets: Sequence[float],
    rivals: Sequence[Rival],
    fitted: Sequence[Schedule],
    folder: Path,
    *,
    joint: JointFit | None = None,
    on_stage: OnStage = silent,
) -> list[Contest]:
    """The contests at all costs, in terms of the calibrated trajectory unshared.

    `fitted` are schedules of ours that were fitted before, none of them on the images here. With a `joint` fit others
    are made for every cost, and rivals that were fitted to other networks are fitted to these. What each chose is kept
    in `folder`, so that a comparison that was interrupted goes on with the next one.
    """
    if not targets or not all(0 < target < 1 for target in targets):
        given = ", ".join(f"{target:g}" for target in targets) or "none"
        raise ConfigError(f"The costs are {given}; give some between 0 and 1, in terms of the unshared sampler.")
    check_checkpoint(field.unshared, field.backend)
    if joint is not None and any(map(field.seen.overlaps, joint.spec.ranges)):
        raise MismatchError(f"Images of seed {field.seed} would be fitted on; compare with another --seed.")
    done = on_stage("what is to be reached", 1)
    if field.aim == REFERENCE:
        ends = _reference(field, field.choosing, folder)
    else:
        shape = field.calibration.latent_shape
        ends = sample_images(field.backend, field.unshared, field.choosing, shape, field.batch_size)
    done()
    chooser = Chooser(
        field.backend, field.calibration, field.costs, field.choosing, ends, field.batch_size,
        own_grid=field.aim == UNSHARED,
    )  # fmt: skip
    choices = Choices(folder, field.identity)
    finder = Finder(
        field.backend, field.calibration, field.costs, field.closing,
        search=QUICK, copying=field.aim == UNSHARED, folder=folder, on_stage=on_stage,
    )  # fmt: skip
    contests = []
    for cost in sorted(targets):
        entries = _entries(field, chooser, choices, cost, rivals, fitted, finder, joint, on_stage)
        measured = partial(_measured, field, chooser, cost, entries, folder, on_stage)
        contests.append(choices.contest(cost, entries, measured))
    return contests


def _entries(
    field: Field, chooser: Chooser, choices: Choices, cost: float, rivals: Sequence[Rival],
    fitted: Sequence[Schedule], finder: Finder, joint: JointFit | None, on_stage: OnStage,
) -> dict[str, Entry | None]:  # fmt: skip
    """What everyone enters with at a cost."""
    entries: dict[str, Entry | None] = {}
    advance = on_stage(f"choosing at cost {cost:g}", len(rivals) + 2)
    for rival in (*rivals, SOLVING):
        entries[rival.name] = choices.of(cost, rival.name, partial(_chosen, field, chooser, rival, cost))
        advance()
    if len(field.backend.widths) > 1:
        entries[WIDTHS] = choices.of(cost, WIDTHS, partial(_with_widths, field, chooser, cost))
    entries[ALIGNED] = choices.of(cost, ALIGNED, partial(_aligned, field, chooser, entries[SOLVED]))
    advance()
    entries[CLOSED] = choices.of(cost, CLOSED, partial(_closed, chooser, finder, cost))
    advance = on_stage(f"fitting at cost {cost:g}", 1)
    entries[FITTED] = _fitted(chooser, fitted, cost, joint)
    for rival in rivals:
        known = entries[rival.name]
        if joint is not None and known is not None and rival.refitted:
            name = f"{rival.name}, fitted here"
            entries[name] = choices.of(cost, name, partial(_refitted, chooser, known, name, joint))
    advance()
    return entries


def _chosen(field: Field, chooser: Chooser, rival: Rival, cost: float) -> Entry | None:
    """What a rival enters with; None, too, where it has to look at states and the backend shows none."""
    entry = chooser.choose(rival, cost)
    if entry is None or rival.along is None:
        return entry
    networks = networks_of(field.backend)
    if networks is None:
        return None
    schedule = rival.along(networks, entry.schedule, field.aligning, field.calibration.latent_shape)
    return chooser.entry(rival.name, rival.source, entry.settings, schedule)


def _with_widths(field: Field, chooser: Chooser, cost: float) -> Entry | None:
    """The best of every grid's schedule with widths."""
    every = [with_widths(statistics, field.costs, cost * chooser.unit) for statistics in chooser.grids(SOLVING, cost)]
    found = [chooser.entry(WIDTHS, SOLVING.source, "", one) for one in every if one is not None]
    return max(filter(None, found), key=lambda entry: entry.promise, default=None)


def _aligned(field: Field, chooser: Chooser, solved: Entry | None) -> Entry | None:
    if solved is None or not solved.schedule.forecasts:
        return None
    images, size = field.aligning, field.batch_size
    path = unshared_path(field.backend, solved.schedule, images, field.calibration.latent_shape, size)
    schedule = align(field.backend, solved.schedule, path, images, size)
    return chooser.entry(ALIGNED, SOLVING.source, solved.settings, schedule)


def _closed(chooser: Chooser, finder: Finder, cost: float) -> Entry | None:
    schedules = [finder.closed(cost, shared=shared) for shared in (False, True)]
    return _best(chooser, CLOSED, [schedule for schedule in schedules if schedule is not None])


def _fitted(chooser: Chooser, known: Sequence[Schedule], cost: float, joint: JointFit | None) -> Entry | None:
    """The best of the fitted schedules that a cost affords: of those that are known, or are fitted now."""
    schedules = [schedule for schedule in known if chooser.cost(schedule) <= cost]
    if joint is not None:
        made = [joint.fitted(cost, shared=shared) for shared in (False, True)]
        schedules += [schedule for schedule in made if schedule is not None]
    return _best(chooser, FITTED, schedules)


def _best(chooser: Chooser, name: str, schedules: Sequence[Schedule]) -> Entry | None:
    found = [chooser.entry(name, "docs/concepts/fits.md", "", schedule) for schedule in schedules]
    return max(filter(None, found), key=lambda entry: entry.promise, default=None)


def _refitted(chooser: Chooser, known: Entry, name: str, joint: JointFit) -> Entry | None:
    """A rival's schedule with its numbers fitted to these very networks, with the effort that ours are."""
    own = joint.calibration
    warm = replace(known.schedule, checkpoint_sha256=own.checkpoint_sha256, guide_sha256=own.guide_sha256)
    return chooser.entry(name, known.source, known.settings, joint.fit(warm).schedule)


def _measured(
    field: Field, chooser: Chooser, cost: float, entries: Mapping[str, Entry | None], folder: Path, on_stage: OnStage
) -> Contest:
    finite = {name: entry for name, entry in entries.items() if entry is not None}
    try:
        seconds, rows = _rows(field, chooser, cost, finite, folder, on_stage)
    except NumericsError:  # of one that was finite on the images that it was chosen by
        finite = {name: entry for name, entry in finite.items() if _is_finite(field, entry.schedule)}
        seconds, rows = _rows(field, chooser, cost, finite, folder, on_stage)
    missing = [name for name in entries if name not in finite]
    return Contest(cost=cost, unshared_seconds=seconds, rows=rows, missing=missing)


def _is_finite(field: Field, schedule: Schedule) -> bool:
    shape = field.calibration.latent_shape
    try:
        sample_images(field.backend, schedule, field.reporting, shape, field.batch_size)
    except NumericsError:
        return False
    return True


def _rows(
    field: Field, chooser: Chooser, cost: float, there: Mapping[str, Entry], folder: Path, on_stage: OnStage
) -> tuple[float, list[Row]]:
    """What the unshared sampler takes per image, and everyone's row."""
    batches = -(-field.num_images // field.batch_size)
    (unshared, *measured), latents = measure(
        field.backend,
        {UNSHARED: field.unshared} | {name: entry.schedule for name, entry in there.items()},
        latent_shape=field.calibration.latent_shape,
        num_images=field.num_images,
        seed=field.seed,
        batch_size=field.batch_size,
        on_run=on_stage(f"measuring at cost {cost:g}", batches * (1 + len(there))),
    )
    reference = _reference(field, field.reporting, folder)
    rows = [
        Row(
            entry=there[m.name],
            cost=chooser.cost(there[m.name].schedule),
            seconds=m.seconds,
            speedup=m.speedup,
            to_unshared=latent_decibels(latents[m.name], latents[UNSHARED]).tolist(),
            to_reference=latent_decibels(latents[m.name], reference).tolist(),
        )
        for m in measured
    ]
    return unshared.seconds, rows


def _reference(field: Field, images: ImageRange, folder: Path) -> Tensor:
    """Where the reference solutions of some images end."""
    spec, shape = field.calibration.spec, field.calibration.latent_shape
    steps = reference_steps(spec.num_steps)
    return converged_ends(field.backend, spec, steps, images, shape, field.batch_size, cache=folder)
