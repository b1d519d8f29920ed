"""Where on a trajectory the encoder runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ddt_accel.artifacts import read_json, write_json
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.spec import SamplingSpec

FORMAT, VERSION = "ddt-accel schedule", 1


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A sampling recipe and its refresh steps: the evaluations at which the encoder runs.

    At every other evaluation, a reuse step, the decoder works with the state of the last refresh. With the Heun solver
    steps are counted in evaluations, two per step of the grid.
    """

    spec: SamplingSpec
    refresh_steps: tuple[int, ...]
    objective: str = "by hand"
    predicted_cost: float | None = None
    checkpoint_sha256: str | None = None
    calibration_sha256: str | None = None

    def __post_init__(self) -> None:
        steps, last = tuple(self.refresh_steps), self.spec.num_evaluations - 1
        if not steps or not all(isinstance(step, int) and not isinstance(step, bool) for step in steps):
            raise ConfigError(f"refresh_steps is {_shortened(steps)}; give whole numbers, the first of them 0.")
        if steps[0] != 0 or list(steps) != sorted(set(steps)) or steps[-1] > last:
            raise ConfigError(
                f"refresh_steps is {_shortened(steps)}; they must start at 0, increase, and end at {last} or before."
            )
        object.__setattr__(self, "refresh_steps", steps)

    @property
    def budget(self) -> int:
        """How often the encoder runs."""
        return len(self.refresh_steps)

    @classmethod
    def full(cls, spec: SamplingSpec) -> Schedule:
        """The unshared trajectory: the encoder runs at every evaluation."""
        return cls(spec=spec, refresh_steps=tuple(range(spec.num_evaluations)), objective="full")

    @classmethod
    def uniform(cls, spec: SamplingSpec, budget: int) -> Schedule:
        """`budget` refreshes spread evenly: floor(k · E / budget)."""
        check_budget(budget, spec.num_evaluations)
        steps = tuple(k * spec.num_evaluations // budget for k in range(budget))
        return cls(spec=spec, refresh_steps=steps, objective="uniform")

    def save(self, path: str | Path) -> None:
        """Writes the schedule as JSON, atomically."""
        write_json(Path(path), FORMAT, VERSION, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Reads a schedule; raises ArtifactError where the file is damaged, foreign or makes no sense."""
        content = read_json(Path(path), FORMAT, VERSION)
        try:
            if set(content) != set(cls.__dataclass_fields__):
                raise ConfigError(f"it must have exactly {', '.join(cls.__dataclass_fields__)}")
            steps = content["refresh_steps"]
            if not isinstance(steps, list):
                raise ConfigError("refresh_steps must be a list")
            if not isinstance(content["predicted_cost"], int | float | None):
                raise ConfigError("predicted_cost must be a number or null")
            for key in ("objective", "checkpoint_sha256", "calibration_sha256"):
                if not isinstance(content[key], str | None):
                    raise ConfigError(f"{key} must be a string")
            spec = SamplingSpec.from_dict(content["spec"])
            return cls(**{**content, "spec": spec, "refresh_steps": tuple(steps)})
        except ConfigError as error:
            raise ArtifactError(f"{path} is not a usable schedule: {error}") from None


def check_budget(budget: int, num_evaluations: int) -> None:
    """Raises ConfigError unless 1 ≤ budget ≤ E."""
    if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= num_evaluations:
        raise ConfigError(
            f"budget is {budget!r}; the encoder must run at least once and at most {num_evaluations} times, once per "
            "evaluation."
        )


def _shortened(steps: tuple[object, ...]) -> str:
    text = repr(list(steps))
    return text if len(text) <= 60 else text[:57] + "..."
