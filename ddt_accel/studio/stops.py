"""The stops of the page's slider: schedules from the cheapest to the original, and what is known of each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import checksum
from ddt_accel.collection import Named
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.evaluation.budgets import predicted_psnr
from ddt_accel.evaluation.costs import SECONDS, costs_here
from ddt_accel.networks.config import LatentShape
from ddt_accel.offering import EXACT, at_hand
from ddt_accel.offering import original as unshared
from ddt_accel.report.numbers import FILE_NAME, Row, read_report
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.workspace import Workspace

# How close the shipped fits were measured to end to the reference solution.
KNOWN = Path(__file__).parent / "known.json"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A schedule on the slider; `share` is its cost over the original's.

    `db` is PSNR to the original's pictures, `exact_db` that to the reference solution, which the original misses, too.
    """

    name: str
    schedule: Schedule
    share: float
    seconds: float | None  # per image, where `bench` has measured the parts, or the whole
    db: float | None
    exact_db: float | None
    measured: bool  # whether dB are of the workspace's report, and not predicted

    @property
    def steps(self) -> int:
        return self.schedule.spec.num_steps

    @property
    def takes_guidance(self) -> bool:
        """Whether it is as good for other guidance: nothing of it was calibrated or fitted."""
        one = self.schedule
        return one.calibration_sha256 is None and not one.is_fitted and one.mean_modulations is None

    def guided(self, guidance: float | None) -> Schedule:
        """The schedule with another guidance; raises ConfigError where it is for its own alone."""
        spec = self.schedule.spec
        if guidance is None or guidance == spec.guidance:
            return self.schedule
        if not self.takes_guidance:
            raise ConfigError(
                f"Guidance is {guidance:g}, and {self.name} is a schedule for {spec.guidance:g}; take that, or the "
                f"stop {EXACT}."
            )
        return replace(self.schedule, spec=replace(spec, guidance=guidance))


@dataclass(frozen=True, kw_only=True)
class Stops:
    """All of them, by cost; the last is the original."""

    stops: tuple[Stop, ...]
    given: str | None = None

    @property
    def original(self) -> Stop:
        return self.stops[-1]

    def at(self, place: object) -> Stop:
        """What the slider stands at; the original where it has no such place."""
        if isinstance(place, int | float) and 0 <= place < len(self.stops):
            return self.stops[int(place)]
        return self.original

    @property
    def guidance(self) -> tuple[float, float]:
        """From where to where it can be set; every schedule's own is in between, for Gradio refuses what is beyond."""
        own = [stop.schedule.spec.guidance for stop in self.stops]
        return min(1.0, *own), max(8.0, *own)

    @property
    def first(self) -> int:
        """Where the slider stands at first: at the `given` schedule; else at the cheapest that ends as close to the
        exact solution as the original does, or within 35 dB of it; else halfway."""
        by_name = [index for index, stop in enumerate(self.stops) if stop.name == self.given]
        own = self.original.exact_db
        close = [
            index
            for index, stop in enumerate(self.stops[:-1])
            if (own is not None and stop.exact_db is not None and stop.exact_db >= own)
            or (stop.db is not None and stop.db >= 35)
        ]
        return next(iter([*by_name, *close]), len(self.stops) // 2)


def stops_of(
    backend: Backend, latent_shape: LatentShape, place: Workspace, given: Named | None, say: Say, *, name: str = ""
) -> Stops:
    """The workspace's schedules, or where it has none the shipped ones, and the one that was `given` in any case; where
    there is none at all, evenly spread ones, along which any network can be run.

    Those that lead elsewhere than the original does, by another guidance or final step, are left out, and so is what is
    damaged, which is said. `name` is the network's, for how it was published to be sampled.
    """
    found = at_hand(backend, place, [] if given is None else [given], say)
    original = Schedule.full(unshared(place, found, given, backend.checkpoint_sha256, name))
    sha256 = backend.checkpoint_sha256
    costs = costs_here(place.costs_path, backend, latent_shape, say)
    rows, known, own = _measured(place, sha256), _known(sha256), _known_of(original, sha256)

    def stop(one: Named) -> Stop:
        cost, row = costs.of(one.schedule), rows.get(_sum(one.schedule))
        # Predictions are of how far it ends from its own steps without sharing.
        predicted = predicted_psnr(one.schedule) if one.schedule.spec == original.spec else None
        exact = known.get(one.name) if one.name != EXACT else own
        if exact is None and own is not None and predicted is not None:
            exact = _both(own, predicted)
        return Stop(
            name=one.name,
            schedule=one.schedule,
            share=cost / costs.of(original),
            seconds=row.seconds if row is not None else cost if costs.unit == SECONDS else None,
            db=predicted if row is None else row.to_unshared,
            exact_db=exact if row is None else row.to_reference,
            measured=row is not None,
        )

    fitting: dict[str, Named] = {}  # of equal ones the first
    for one in found:
        spec, differs = one.schedule.spec, one.schedule.shares or one.schedule.is_fitted
        if spec.aim == original.spec.aim and (differs or spec != original.spec):
            fitting.setdefault(_sum(one.schedule), one)
    stops = sorted(map(stop, fitting.values() or _spread(original.spec)), key=lambda one: one.share)
    return Stops(
        stops=(*stops, stop(Named(name=EXACT, schedule=original))), given=None if given is None else given.name
    )


def _spread(spec: SamplingSpec) -> list[Named]:
    """Encoder runs at a tenth, a fifth and half of the evaluations."""
    total = spec.num_evaluations
    budgets = sorted({max(1, total // part) for part in (10, 5, 2)} - {total})
    return [Named(name=f"even-{one}of{total}", schedule=Schedule.uniform(spec, one)) for one in budgets]


def _measured(place: Workspace, checkpoint_sha256: str | None) -> dict[str, Row]:
    """What the workspace's report says, by the checksum of a schedule."""
    path: Path = place.folder / FILE_NAME
    if not path.exists():
        return {}
    try:
        report = read_report(path)
    except ArtifactError:
        return {}
    if report.checkpoint_sha256 is None or report.checkpoint_sha256 != checkpoint_sha256:
        return {}
    return {row.schedule_sha256: row for row in report.rows if row.schedule_sha256 is not None}


def _sum(schedule: Schedule) -> str:
    return checksum(schedule.document())


def _known(checkpoint_sha256: str | None) -> dict[str, float]:
    """dB of shipped schedules to the reference solution, by name, where they are for these weights."""
    told: dict[str, Any] = json.loads(KNOWN.read_text())
    return dict(told["schedules"]) if told["checkpoint_sha256"] == checkpoint_sha256 else {}


def _known_of(original: Schedule, checkpoint_sha256: str | None) -> float | None:
    """The same of the sampler that the shipped schedules are beside."""
    told: dict[str, Any] = json.loads(KNOWN.read_text())
    sampler = told["original"]
    same = sampler["solver"] == original.spec.solver and original.spec == SamplingSpec(num_steps=sampler["num_steps"])
    return float(sampler["db"]) if same and told["checkpoint_sha256"] == checkpoint_sha256 else None


def _both(decibels: float, others: float) -> float:
    """Of two errors that are independent."""
    return -10 * math.log10(10 ** (-decibels / 10) + 10 ** (-others / 10))
