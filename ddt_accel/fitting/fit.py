"""Fitting a schedule's scalars, by gradient descent through the trajectory, to where the converged one ends.

With the network frozen, what is left of a trajectory is some hundred numbers, fitted to a few dozen noises. The loss is
the mean over images of the log of the mean squared error to the converged end: every image counts alike, however hard
it is. Descent starts from the integrator in closed form, where that is better than the one given, and goes along
orthogonal inputs. The iterate that does best on held-out images is kept; on others it has to beat what was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.backends.guided import backend_of, check_guides
from ddt_accel.backends.sample import check_checkpoint, sample_images
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError, NumericsError
from ddt_accel.evaluation.converged import Keeper, Reference
from ddt_accel.evaluation.course import Course
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels
from ddt_accel.fitting.closed_form import closed_form
from ddt_accel.fitting.coordinates import COORDINATED, Coordinates
from ddt_accel.fitting.descent import Descent
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.scalars import INTEGRATOR, Scalars
from ddt_accel.fitting.trajectory import fitted_trajectory
from ddt_accel.networks.config import UNKNOWN, LatentShape
from ddt_accel.networks.dynamic.widths import narrow
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise
from ddt_accel.schedule import Schedule
from ddt_accel.stages import OnStage, silent

T = TypeVar("T")
FORMAT, VERSION = "ddt-accel fit", 4
# Iterations between looks at the images that the best iterate is chosen on; states are saved there.
LOOK_EVERY = 10
# How many dB worse than the best a look may be; then descent returns there and slows down.
RETREAT = 3.0


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fit's result; dB to the converged trajectory of images that it has not seen, and the gain in pairs.

    `schedule` is the warm start where the gain is not significant.
    """

    schedule: Schedule
    before: Interval
    after: Interval
    gain: Interval
    iteration: int

    @property
    def improved(self) -> bool:
        return self.gain.low > 0


def fit(
    model: SplitNetwork, schedule: Schedule, spec: FitSpec | None = None, *, guide: SplitNetwork | None = None
) -> Schedule:
    """The schedule with its times, integrator and forecasts fitted to the converged trajectory; see `Fitter`."""
    if guide is not None:
        check_guides(schedule.spec)
    return Fitter(model, schedule, spec or FitSpec(), guide=guide).run().schedule


def reference_steps(evaluations: int) -> int:
    """In how many steps trajectories count as converged, where schedules of so many evaluations are fitted."""
    return max(120, 4 * evaluations)


class Fitter:
    """One fit; `run` starts it, or continues what it left in `state_path`.

    A second network that guides, the `guide`, takes the place of the null label. `cache` is a folder for converged
    ends, `on_stage` is called with what comes next and how many steps it takes, and returns what to call after each.
    """

    def __init__(
        self,
        model: SplitNetwork,
        schedule: Schedule,
        spec: FitSpec,
        *,
        latent_shape: LatentShape | None = None,
        state_path: Path | None = None,
        cache: Path | None = None,
        on_stage: OnStage = silent,
        guide: SplitNetwork | None = None,
    ) -> None:
        self.model, self.guide, self.spec = model, guide, spec
        self.latent_shape = latent_shape_of(model, latent_shape)
        self.state_path, self.cache, self.on_stage = state_path, cache, on_stage
        self.reference_steps = spec.reference_steps or reference_steps(schedule.spec.num_evaluations)
        if self.reference_steps < 2 * schedule.spec.num_evaluations:
            raise ConfigError(
                f"{self.reference_steps} reference steps lead hardly further than the schedule's "
                f"{schedule.spec.num_evaluations}; give at least {2 * schedule.spec.num_evaluations}."
            )
        if spec.ranges[2].overlaps_any(schedule.fitted_on):
            raise MismatchError(
                f"The schedule to start from was fitted on images of seed {spec.seed} that this fit would be reported "
                "on; give another --seed."
            )
        self.micro_batch = min(spec.micro_batch or spec.batch_size, spec.batch_size)
        self.backend = backend_of(model, guide)
        check_checkpoint(schedule, self.backend)
        bias, guide_bias = model.modulation_bias.float().cpu().numpy(), None
        if guide is not None:  # a schedule that was written by hand is for this guide from now on
            guide_bias = guide.modulation_bias.float().cpu().numpy()
            known = guide.source.sha256 if guide.source else UNKNOWN
            schedule = dataclasses.replace(schedule, guide_sha256=schedule.guide_sha256 or known)
        self.warm = schedule
        self.narrow = {width: narrow(model, width, known=False) for width in schedule.widths}
        self.scalars = Scalars(schedule, bias, free=spec.free, sources=spec.sources, guide_bias=guide_bias)
        self.scalars.to(model.device)
        self.trained = {name: value for name, value in self.scalars.named_parameters() if value.requires_grad}
        self.best_iteration, self.best_score = 0, -math.inf
        self.best = {name: value.detach().clone() for name, value in self.trained.items()}

    @property
    def references(self) -> list[Reference]:
        """What `run` makes first, unless it is in `cache`."""
        return self.spec.references(self.warm.spec, self.reference_steps)

    def run(self) -> Fitted:
        """Fits to the end, and compares with the warm start on images that were not used."""
        ranges, references = self.spec.ranges, self.references
        keeper, made = Keeper(self.backend, self.latent_shape, self.cache), []
        done = self.on_stage("converged trajectories", len(references))
        for reference in references:
            made.append(keeper.made(reference, self.spec.batch_size))
            done()
        course, (*rest, choosing, reporting) = references[0].course(made[0]), made[1:]
        fitting = torch.cat([course.ends, *rest])
        done = self.on_stage("fitting", self.spec.iterations)
        if self.state_path is not None and self.state_path.exists():
            descent = self._load(self.state_path)
            for _ in range(descent.iteration):
                done()
        else:
            descent = self._start(course, choosing)
        networks = [self.model] if self.guide is None else [self.model, self.guide]
        requiring = [value for network in networks for value in network.parameters() if value.requires_grad]
        for value in requiring:
            value.requires_grad_(False)
        try:
            while descent.iteration < self.spec.iterations:
                try:
                    self._step(descent, fitting)
                except NumericsError:
                    if descent.iteration > descent.began:
                        self._return(descent)
                        continue
                    if self.best_iteration == 0:
                        raise
                    break  # the best numbers themselves lead no further
                done()
                if descent.iteration % LOOK_EVERY == 0 or descent.iteration == self.spec.iterations:
                    if self._look(choosing, descent.iteration) < self.best_score - RETREAT:
                        self._return(descent)
                    if self.state_path is not None:
                        self._save(self.state_path, descent)
        finally:
            for value in requiring:
                value.requires_grad_(True)
        before = self._decibels(self.warm, ranges[2], reporting)
        after = self._decibels(self._best_schedule(), ranges[2], reporting)
        gain = _interval(after - before)
        kept = self._best_schedule() if gain.low > 0 else self.warm
        return Fitted(
            schedule=kept, before=_interval(before), after=_interval(after), gain=gain, iteration=self.best_iteration
        )

    def _start(self, course: Course, choosing: Tensor) -> Descent:
        """From the schedule as it is given, or with its integrator in closed form: from what does better."""
        spec = self.spec
        self._look(choosing, 0)
        if math.isinf(self.best_score):
            raise NumericsError("The schedule to start from ends in NaN or infinity; start from another one.")
        if INTEGRATOR in spec.free:
            with contextlib.suppress(NumericsError):  # which the given one has not
                self.scalars.set_integrator(closed_form(self.backend, self.scalars.warm, course, spec.batch_size))
                self._look(choosing, 0)
            self._set(self.best)

        def along() -> Coordinates:
            batch = map(self._inputs, self._micro_batches(range(spec.batch_size)))
            return Coordinates.along(
                self.model, self.scalars, batch, autocast=spec.autocast, guide=self.guide, narrow=self.narrow
            )

        return self.descent(self._in_memory(along))

    def descent(self, coordinates: Coordinates) -> Descent:
        """What moves the numbers, along these coordinates."""
        spec = self.spec
        return Descent(self.trained, coordinates, learning_rate=spec.learning_rate, iterations=spec.iterations)

    def _in_memory(self, call: Callable[[], T]) -> T:
        """What a call gives that goes through micro-batches; where their size is free and memory runs out it is called
        again with half of it."""
        while True:
            try:
                return call()
            except torch.OutOfMemoryError:
                if self.spec.micro_batch is not None or self.micro_batch == 1:
                    raise
            # What the failed call holds is free only after that block.
            self.micro_batch = (self.micro_batch + 1) // 2
            for value in self.trained.values():
                value.grad = None
            if self.backend.device.type == "cuda":
                torch.cuda.empty_cache()

    def _micro_batches(self, indices: Sequence[int]) -> list[Sequence[int]]:
        size = self.micro_batch
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _inputs(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Noise and labels of some of the images to fit on."""
        seed, device = self.spec.seed, self.backend.device
        noise = draw_noise(self.latent_shape, seed=seed, indices=indices)
        return noise.to(device), draw_labels(self.model.config.num_classes, seed=seed, indices=indices).to(device)

    def _step(self, descent: Descent, targets: Tensor) -> None:
        spec = self.spec
        generator = np.random.default_rng([spec.seed, descent.iteration])
        chosen = generator.choice(spec.images, spec.batch_size, replace=False)

        def gradient() -> None:
            for indices in self._micro_batches(chosen.tolist()):
                inputs = self._inputs(indices)
                # The end alone: what else was passed must not stay while the next ones are on their way.
                end = fitted_trajectory(
                    self.model, self.scalars, *inputs, autocast=spec.autocast, guide=self.guide, narrow=self.narrow
                ).end
                error = (end - targets[indices].to(self.backend.device)).square().flatten(1).mean(1)
                (error.log().sum() / spec.batch_size).backward()

        self._in_memory(gradient)
        descent.step()

    def _return(self, descent: Descent) -> None:
        """To the best numbers so far, to go on from there at a lower rate."""
        self._set(self.best)
        for value in self.trained.values():
            value.grad = None
        descent.slow_down()

    def _look(self, targets: Tensor, iteration: int) -> float:
        """How the present numbers do on images that are not fitted, by the loop that will run them, in dB."""
        score = float(self._decibels(self.scalars.schedule(), self.spec.ranges[1], targets).mean())
        if score > self.best_score:
            self.best_score, self.best_iteration = score, iteration
            self.best = {name: value.detach().clone() for name, value in self.trained.items()}
        return score

    def _decibels(self, schedule: Schedule, images: ImageRange, targets: Tensor) -> NDArray[np.float64]:
        try:
            ends = sample_images(self.backend, schedule, images, self.latent_shape, self.spec.batch_size)
        except NumericsError:
            return np.full(images.count, -math.inf)
        return latent_decibels(ends, targets)

    def _best_schedule(self) -> Schedule:
        now = {name: value.detach().clone() for name, value in self.trained.items()}
        self._set(self.best)
        schedule = self.scalars.schedule()
        self._set(now)
        used = dataclasses.replace(self.spec.ranges[1], first=0)
        return dataclasses.replace(schedule, fitted_on=used.joined(self.warm.fitted_on))

    def _set(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(values[name])

    @property
    def _identity(self) -> str:
        """Which fit this is, so that another one's state is not continued."""
        settings = json.loads(json.dumps(asdict(self.spec)))
        known = {"checkpoint": self.backend.checkpoint_sha256, "shape": list(self.latent_shape), "fit": settings}
        return checksum({**known, "schedule": self.warm.document()})

    def _save(self, path: Path, descent: Descent) -> None:
        arrays: dict[str, Tensor] = {f"best.{name}": value for name, value in self.best.items()}
        arrays |= {f"value.{name}": value.detach() for name, value in self.trained.items()}
        content = {
            "identity": self._identity,
            "iteration": descent.iteration,
            "began": descent.began,
            "learning_rate": descent.learning_rate,
            "best_iteration": self.best_iteration,
            "best_score": self.best_score,
        }
        arrays |= descent.state()
        write_arrays(path, FORMAT, VERSION, content, {name: value.cpu().numpy() for name, value in arrays.items()})

    def continues(self) -> bool:
        """Whether `state_path` holds the state of this fit."""
        if self.state_path is None or not self.state_path.exists():
            return False
        try:
            return read_arrays(self.state_path, FORMAT, VERSION)[0].get("identity") == self._identity
        except ArtifactError:
            return False

    def _load(self, path: Path) -> Descent:
        content, arrays = read_arrays(path, FORMAT, VERSION)
        if content.get("identity") != self._identity:
            raise MismatchError(
                f"{path} is the state of another fit; remove it to start anew, or repeat that fit's settings to "
                "continue it."
            )
        tensors = {name: torch.from_numpy(value).to(self.backend.device) for name, value in arrays.items()}
        try:
            self._set({name: tensors[f"value.{name}"] for name in self.trained})
            self.best = {name: tensors[f"best.{name}"] for name in self.trained}
            self.best_iteration, self.best_score = int(content["best_iteration"]), float(content["best_score"])
            descent = self.descent(Coordinates({name: tensors[f"basis.{name}"] for name in COORDINATED}))
            descent.restore(tensors, int(content["iteration"]), int(content["began"]), float(content["learning_rate"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read as a fit's state ({error}); remove it.") from None
        return descent


def _interval(values: NDArray[np.float64]) -> Interval:
    found = interval(values)
    if found is None:
        raise NumericsError("A trajectory ends in NaN or infinity on the images to report on; start from another one.")
    return found
