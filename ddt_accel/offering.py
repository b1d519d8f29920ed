"""What a network is shown and served along: the schedules at hand, and the original that they stand beside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from ddt_accel.backends.sample import check_checkpoint
from ddt_accel.collection import Named, folder_for, shipped_for
from ddt_accel.errors import ArtifactError
from ddt_accel.networks.recipes import published_recipe
from ddt_accel.sampling.backend import Backend
from ddt_accel.spec import SamplingSpec
from ddt_accel.workspace import Workspace

# What the original is called beside schedules.
EXACT = "exact"


def at_hand(backend: Backend, place: Workspace, given: Sequence[Named], say: Callable[[str], None]) -> list[Named]:
    """Those that are `given`, then the workspace's, or where it has none the shipped ones; of one name the first.

    What is damaged is left out, and what runs a network at a width that it does not have, and said. Raises
    MismatchError for a given one of another network.
    """
    guide = None if backend.guide is None else backend.guide.checkpoint_sha256
    kept, damaged = folder_for(place.folder, backend.checkpoint_sha256, guide)
    for sentence in damaged:
        say(f"A schedule is left out: {sentence}")
    for one in given:
        check_checkpoint(one.schedule, backend)
    found: dict[str, Named] = {}
    for one in (*given, *(kept or shipped_for(backend.checkpoint_sha256, guide))):
        if lacking := sorted(set(one.schedule.widths) - set(backend.widths)):
            say(f"{one.name} is left out: it runs a network at width {lacking[0]:g}, which {backend.name} has not.")
            continue
        found.setdefault(one.name, one)
    return list(found.values())


def original(
    place: Workspace, found: Sequence[Named], given: Named | None, checkpoint_sha256: str | None, name: str
) -> SamplingSpec:
    """The sampler without sharing that all are beside, and that leads where the `given` schedule does: the calibrated
    one, else that of the first schedule which is not fitted, else 50 Euler steps to where the first one leads; where
    there is none, as the network of that `name` was published, else the usual one."""
    last = sorted(found, key=lambda one: one is given)  # what is given is beside the others' original, if they have one
    specs = [one.schedule.spec for one in last if not one.schedule.is_fitted]
    if place.calibration_path.exists():
        with contextlib.suppress(ArtifactError):
            calibration = place.calibration()
            if calibration.checkpoint_sha256 == checkpoint_sha256:
                specs.insert(0, calibration.spec)
    leading = next((spec for spec in specs if given is None or spec.aim == given.schedule.spec.aim), None)
    if leading is not None:
        return leading
    if found:
        return found[0].schedule.spec.on_grid(50, timeshift=1.0, solver="euler")
    recipe = published_recipe(name)
    return SamplingSpec() if recipe is None else recipe.spec({})
