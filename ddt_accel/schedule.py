"""Where on a trajectory the encoder runs, and how its state is forecast in between."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import read_json, write_json
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.means import NAMES, NARROW, check_means, named, read_means, write_means
from ddt_accel.rows import Forecast as Forecast
from ddt_accel.rows import Row as Row
from ddt_accel.rows import check_numbers, checked_steps, checked_widths, is_range, shortened
from ddt_accel.spec import SamplingSpec, is_number, is_whole

FORMAT, VERSION = "ddt-accel schedule", 4
WITH_WIDTHS = 5  # the version of files that have any; all others are read by earlier releases, too
FITTED = "fitted"
WIDTHS = ("encoder_widths", "decoder_widths")
OPTIONAL = ("guide_sha256", *WIDTHS)  # in files
SHIPPED = Path(__file__).parent / "schedules"

# A seed, the first of its images, and the one after the last.
Images = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A sampling recipe, its refresh steps, and its forecasts.

    At a refresh step the encoder runs. At every other evaluation, a reuse step, the decoder works with a forecast of
    the state: the last one as it is, or where `forecasts` has a row (reuse step → weights of refreshed states), their
    weighted sum. `mean_modulations` are the modulations of the states that forecasts are relative to: [E, M] for the
    mean trajectory, [1, M] for a state of zeros. They are not needed where weights add up to one.

    `times` [E] and `integrator`, a row for each evaluation, are numbers of the schedule's own instead of those that the
    spec's recipe gives; guidance stays at the evaluations where the recipe has it. `fitted_on` names the images that
    fits have used, and a plan was chosen on: of a seed those first … stop − 1.

    The unconditional branch of guidance does as the conditional one, or has `unconditional_steps` and
    `unconditional_forecasts` of its own. Where a second network guides, that of `guide_sha256`, the branch is that
    network's, with `guide_mean_modulations` of its own. With the Heun solver steps are counted in evaluations, two per
    step of the grid.

    A network with nested widths may run narrow: the encoder at the refreshes of `encoder_widths`, the decoder at the
    evaluations of `decoder_widths`, each at the share of its heads and channels that is named there; it is complete
    everywhere else. A narrow refresh may have a row in `forecasts`, which then draws on its own state, too: what is
    forecast is the complete encoder's state. `narrow_mean_modulations` are those of the narrow states' means, a row for
    each narrow refresh in their order, where there is a mean trajectory.

    `predicted_cost` is the value of the objective that it was solved for, `predicted_error` the root-mean-square error
    of the final latents against the unshared trajectory that the calibration foretells, where it had sensitivities; of
    aligned forecasts that which was measured on other images.
    """

    spec: SamplingSpec
    refresh_steps: tuple[int, ...]
    forecasts: Mapping[int, Forecast] = field(default_factory=dict)
    unconditional_steps: tuple[int, ...] | None = None
    unconditional_forecasts: Mapping[int, Forecast] = field(default_factory=dict)
    times: tuple[float, ...] | None = None
    integrator: tuple[Row, ...] | None = None
    encoder_widths: Mapping[int, float] = field(default_factory=dict)
    decoder_widths: Mapping[int, float] = field(default_factory=dict)
    mean_modulations: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    narrow_mean_modulations: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    guide_mean_modulations: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    objective: str = "by hand"
    forecast: str = "hold"
    predicted_cost: float | None = None
    predicted_error: float | None = None
    fitted_on: tuple[Images, ...] = ()
    checkpoint_sha256: str | None = None
    guide_sha256: str | None = None
    calibration_sha256: str | None = None

    def __post_init__(self) -> None:
        last = self.spec.num_evaluations - 1
        if self.has_widths:
            self._check_widths()
        object.__setattr__(
            self,
            "refresh_steps",
            checked_steps("refresh_steps", self.refresh_steps, self.forecasts, 0, last, narrow=self.encoder_widths),
        )
        if self.unconditional_steps is not None:
            guided = np.flatnonzero(self.spec.guidance_weights != 1.0)
            if len(guided) == 0:
                raise ConfigError("unconditional_steps are given, but no step is guided.")
            steps = checked_steps(
                "unconditional_steps", self.unconditional_steps, self.unconditional_forecasts, int(guided[0]), last
            )
            object.__setattr__(self, "unconditional_steps", steps)
        elif self.unconditional_forecasts:
            raise ConfigError("unconditional_forecasts are given without unconditional_steps.")
        check_numbers(self.times, self.integrator, self.spec)
        if self.times is not None:
            object.__setattr__(self, "times", tuple(map(float, self.times)))
        object.__setattr__(self, "fitted_on", tuple(map(tuple, self.fitted_on)))
        if not all(map(is_range, self.fitted_on)):
            raise ConfigError(
                f"fitted_on is {self.fitted_on!r}; give of a fit a seed, its first image, and the one after the last."
            )
        for name in NAMES:
            check_means(name, getattr(self, name), *((len(self.encoder_widths),) if name == NARROW else (last + 1, 1)))
        if (self.narrow_mean_modulations is not None) != (self.centred and bool(self.encoder_widths)):
            raise ConfigError("narrow_mean_modulations go with a mean trajectory where an encoder runs narrow.")
        if len({means.shape[1] for name, means in self.means.items() if name != NAMES[1]}) > 1:
            raise ConfigError("mean_modulations and narrow_mean_modulations are of different networks.")
        both = self.guide_sha256 is not None and self.mean_modulations is not None
        if (self.guide_mean_modulations is not None) != both:
            raise ConfigError("guide_mean_modulations go with mean_modulations where a second network guides.")

    def _check_widths(self) -> None:
        for name, steps in (
            ("encoder_widths", self.refresh_steps), ("decoder_widths", range(self.spec.num_evaluations))
        ):  # fmt: skip
            object.__setattr__(self, name, checked_widths(name, getattr(self, name), steps))
        if self.unconditional_steps is not None or self.guide_sha256 is not None:
            raise ConfigError(
                "Both branches run at the same widths; give no unconditional_steps and no guide beside widths."
            )

    @property
    def has_widths(self) -> bool:
        """Whether any network runs narrow."""
        return bool(self.encoder_widths or self.decoder_widths)

    @property
    def widths(self) -> tuple[float, ...]:
        """Those narrower than complete that any network runs at."""
        return tuple(sorted({*self.encoder_widths.values(), *self.decoder_widths.values()}, reverse=True))

    @property
    def means(self) -> dict[str, NDArray[np.float32]]:
        """Those that there are, by name."""
        return {name: means for name in NAMES if (means := getattr(self, name)) is not None}

    @property
    def centred(self) -> bool:
        """Whether forecasts are of the deviation from a mean trajectory."""
        return self.mean_modulations is not None and len(self.mean_modulations) > 1

    @property
    def is_fitted(self) -> bool:
        """Whether it leads elsewhere than its recipe does: its numbers are its own."""
        return self.objective == FITTED or self.times is not None or self.integrator is not None

    def unshared(self) -> Schedule:
        """The same trajectory with the encoder run at every evaluation."""
        return replace(
            Schedule.full(self.spec),
            times=self.times,
            integrator=self.integrator,
            fitted_on=self.fitted_on,
            checkpoint_sha256=self.checkpoint_sha256,
            guide_sha256=self.guide_sha256,
        )

    @property
    def shares(self) -> bool:
        """Whether any evaluation does without a run of the encoder, in one branch at least, or with a narrow one."""
        fewer = self.budget < self.spec.num_evaluations or self.unconditional_steps is not None
        return fewer or self.has_widths

    @property
    def budget(self) -> int:
        """How often the encoder runs."""
        return len(self.refresh_steps)

    def forecast_at(self, step: int, *, unconditional: bool = False) -> Forecast:
        """The weights of a branch's refreshed states at a step; at a refresh, of its own state.

        Empty before the first refresh of the unconditional branch, where nothing reads it.
        """
        steps, forecasts = self.refresh_steps, self.forecasts
        if unconditional and self.unconditional_steps is not None:
            steps, forecasts = self.unconditional_steps, self.unconditional_forecasts
        before = bisect_right(steps, step)
        return forecasts.get(step, ((steps[before - 1], 1.0),) if before else ())

    @classmethod
    def full(cls, spec: SamplingSpec) -> Schedule:
        """The unshared trajectory: the encoder runs at every evaluation."""
        return cls(spec=spec, refresh_steps=tuple(range(spec.num_evaluations)), objective="full")

    @classmethod
    def uniform(cls, spec: SamplingSpec, budget: int) -> Schedule:
        """`budget` refreshes spread evenly, floor(k · E / budget), and held."""
        check_budget(budget, spec.num_evaluations)
        steps = tuple(k * spec.num_evaluations // budget for k in range(budget))
        return cls(spec=spec, refresh_steps=steps, objective="uniform")

    def document(self) -> dict[str, Any]:
        """What its file says."""
        return {
            "spec": self.spec.document(),
            "refresh_steps": list(self.refresh_steps),
            "forecast": self.forecast,
            "forecasts": _written(self.forecasts),
            "unconditional_steps": self.unconditional_steps and list(self.unconditional_steps),
            "unconditional_forecasts": _written(self.unconditional_forecasts),
            "times": self.times and list(self.times),
            "integrator": self.integrator and [[list(pair) for pair in row] for row in self.integrator],
            "means": named(self.means),
            "objective": self.objective,
            "predicted_cost": self.predicted_cost,
            "predicted_error": self.predicted_error,
            "fitted_on": [list(one) for one in self.fitted_on],
            "checkpoint_sha256": self.checkpoint_sha256,
            # Left out where there is none, here and below, so that older documents keep their checksum.
            **{name: _widths(widths) for name in WIDTHS if (widths := getattr(self, name))},
            **({"guide_sha256": self.guide_sha256} if self.guide_sha256 is not None else {}),
            "calibration_sha256": self.calibration_sha256,
        }

    def save(self, path: str | Path) -> None:
        """Writes the schedule as JSON, atomically, and before it the mean modulations, where it has any."""
        path = Path(path)
        write_means(path.parent, self.means)
        write_json(path, FORMAT, WITH_WIDTHS if self.has_widths else VERSION, self.document())

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Reads a schedule, from a file or by the name of a shipped one (`shipped_schedules`).

        Raises ArtifactError where a file is missing, damaged, foreign or makes no sense.
        """
        path = Path(path)
        if not path.exists():
            if str(path) not in shipped_schedules():
                raise ArtifactError(
                    f"There is no schedule at {path}; make one with `ddt-accel solve`, or take a shipped one: "
                    f"{', '.join(shipped_schedules())}."
                )
            path = SHIPPED / f"{path}.json"
        content = read_json(path, FORMAT, VERSION, WITH_WIDTHS)
        try:
            expected = set(cls.__dataclass_fields__) - {*NAMES, *OPTIONAL} | {"means"}
            if set(content) - set(OPTIONAL) != expected:
                raise ConfigError(f"it must have exactly {', '.join(sorted(expected))}")
            means = read_means(path.parent, content.pop("means"))
            if not isinstance(content["refresh_steps"], list):
                raise ConfigError("refresh_steps must be a list")
            for key in ("unconditional_steps", "times", "integrator", "fitted_on"):
                if not isinstance(content[key], list | None):
                    raise ConfigError(f"{key} must be a list or null")
            for key in ("predicted_cost", "predicted_error"):
                if not isinstance(content[key], int | float | None):
                    raise ConfigError(f"{key} must be a number or null")
            for key in ("objective", "forecast", "checkpoint_sha256", "guide_sha256", "calibration_sha256"):
                if not isinstance(content.get(key), str | None):
                    raise ConfigError(f"{key} must be a string")
            content["spec"] = SamplingSpec.from_dict(content["spec"])
            content["refresh_steps"] = tuple(content["refresh_steps"])
            for key in ("unconditional_steps", "times"):
                if content[key] is not None:
                    content[key] = tuple(content[key])
            seen = content["fitted_on"] or []
            # Before fits were continued, files had the images of one, or null.
            content["fitted_on"] = tuple(map(tuple, [seen] if seen and is_whole(seen[0]) else seen))
            if content["integrator"] is not None:
                content["integrator"] = tuple(map(_read_row, content["integrator"]))
            for key in ("forecasts", "unconditional_forecasts"):
                content[key] = _read_forecasts(content[key])
            for key in WIDTHS:
                content[key] = _read_widths(key, content.get(key, {}))
            return cls(**content | means)
        except (ConfigError, AttributeError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a usable schedule: {error}") from None


def shipped_schedules() -> list[str]:
    """The names of the schedules that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def _read_forecasts(rows: Mapping[str, Any]) -> dict[int, Forecast]:
    return {int(step): _read_row(row) for step, row in rows.items()}


def _read_row(row: Sequence[Any]) -> Row:
    if not all(isinstance(pair, list) and len(pair) == 2 and is_whole(pair[0]) and is_number(pair[1]) for pair in row):
        raise ConfigError(f"it has {shortened(tuple(row))} where [step, weight] pairs belong")
    return tuple((int(source), float(weight)) for source, weight in row)


def _read_widths(name: str, written: Any) -> dict[int, float]:
    if not isinstance(written, dict) or not all(step.isdecimal() and str(int(step)) == step for step in written):
        raise ConfigError(f"{name} must map evaluations to widths")
    return {int(step): width for step, width in written.items()}


def _widths(widths: Mapping[int, float]) -> dict[str, float]:
    return {str(step): width for step, width in sorted(widths.items())}


def _written(forecasts: Mapping[int, Forecast]) -> dict[str, list[list[float]]]:
    return {str(step): [list(pair) for pair in row] for step, row in sorted(forecasts.items())}


def check_budget(budget: int, num_evaluations: int) -> None:
    """Raises ConfigError unless 1 ≤ budget ≤ E."""
    if not is_whole(budget) or not 1 <= budget <= num_evaluations:
        raise ConfigError(
            f"The budget (--budget) is {budget!r}; the encoder must run at least once and at most {num_evaluations} "
            "times, once per evaluation."
        )
