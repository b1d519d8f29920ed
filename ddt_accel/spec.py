"""What is sampled: the recipe from which a trajectory's numbers are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError

MAX_STEPS, MAX_GUIDANCE = 10_000, 1000
SOLVERS = ("euler", "heun", "sde", "ab1", "ab2", "ab3", "ab4")
# What float32 leaves of a number of at most 1: by so much an end of a closed interval may miss the time that it names.
ROUNDING = 2.0**-22


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """Solver, grid and guidance.

    Time runs from noise, t = 0, to data, t = 1. Guidance applies strictly inside `guidance_interval`, with a
    `closed_interval` at its ends, too. `last_step` is the length of the final step before the time shift and defaults
    to 1 / num_steps. With an `end` below 1, before the time shift, steps are even up to there, and that is the result:
    no final step leads on to the data.
    """

    num_steps: int = 50
    solver: str = "euler"
    guidance: float = 2.0
    guidance_interval: tuple[float, float] = (0.3, 1.0)
    timeshift: float = 1.0
    last_step: float | None = None
    end: float | None = None
    closed_interval: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.num_steps) or not 1 <= self.num_steps <= MAX_STEPS:
            raise ConfigError(
                f"The number of steps (--steps) is {self.num_steps!r}; give a whole number from 1 to {MAX_STEPS}."
            )
        object.__setattr__(self, "num_steps", int(self.num_steps))
        if self.solver not in SOLVERS:
            raise ConfigError(f"The solver (--solver) is {self.solver!r}; choose one of {', '.join(SOLVERS)}.")
        if not is_number(self.guidance) or abs(self.guidance) > MAX_GUIDANCE:
            raise ConfigError(
                f"The guidance (--guidance) is {self.guidance!r}; give a number within ±{MAX_GUIDANCE}, 1 for none (2 "
                "to 4 are usual)."
            )
        given: object = self.guidance_interval
        interval = tuple(given) if isinstance(given, list | tuple) else ()
        if len(interval) != 2 or not all(map(is_number, interval)) or interval[0] > interval[1]:
            raise ConfigError(
                f"The guidance interval (--guidance-interval) is {self.guidance_interval!r}; give two times, the lower "
                "one first."
            )
        object.__setattr__(self, "guidance_interval", (float(interval[0]), float(interval[1])))
        if not is_number(self.timeshift) or not 1e-3 <= self.timeshift <= 1e3:
            raise ConfigError(
                f"The time shift (--timeshift) is {self.timeshift!r}; give a number from 0.001 to 1000, 1 for none."
            )
        if self.last_step is not None and (not is_number(self.last_step) or not 0 < self.last_step <= 1):
            raise ConfigError(
                f"The last step (--last-step) is {self.last_step!r}; give a length in (0, 1], or leave it out."
            )
        if self.end is not None and (not is_number(self.end) or not 0 < self.end < 1):
            raise ConfigError(f"The end (--end) is {self.end!r}; give a time in (0, 1), or leave it out for 1.")
        if self.end is not None and self.last_step is not None:
            raise ConfigError(
                f"A last step of {self.last_step} (--last-step) leads to the data, and an end of {self.end} (--end) "
                "stops before; give one of them."
            )
        if not isinstance(self.closed_interval, bool):
            raise ConfigError(f"closed_interval (--closed-interval) is {self.closed_interval!r}; give true or false.")
        if self.closed_interval and self.guidance == 1:
            raise ConfigError(
                "A closed guidance interval (--closed-interval) with guidance 1 guides nothing; leave it out, or give "
                "a --guidance."
            )
        for name in ("guidance", "timeshift", "last_step", "end"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        if (np.diff(self.grid) <= 0).any():
            where = f"an end of {self.end}" if self.end is not None else f"a last step of {self.last_step}"
            raise ConfigError(
                f"{self.num_steps} steps with {where} and a time shift of {self.timeshift} leave steps of length 0; "
                "take fewer steps or leave out the others."
            )

    @property
    def grid(self) -> NDArray[np.float64]:
        """The step boundaries t_0 = 0 … t_N, [N + 1]; the last is 1, or the shifted `end`.

        Computed in float32 operation by operation as the published samplers do, because whether a step is guided is
        decided by comparing these very numbers with the interval's ends: at 50 steps, step 15 is 0.3 − 2⁻²⁵.
        """
        if self.end is not None:
            tau = linspace(self.end, self.num_steps + 1)
        else:
            # With a single step the published samplers ignore last_step.
            last_step = 1 / self.num_steps if self.last_step is None or self.num_steps == 1 else self.last_step
            tau = np.append(linspace(1 - last_step, self.num_steps), np.float32(1))
        shifted = tau / (tau + (np.float32(1) - tau) * np.float32(self.timeshift))
        return shifted.astype(np.float64)

    @property
    def times(self) -> NDArray[np.float64]:
        """The time of every network evaluation, [E]."""
        grid = self.grid
        if self.solver == "heun":
            # Two evaluations per step; a step to t = 1, which the network never saw, is an Euler step.
            return np.repeat(grid, 2)[1 : self.num_evaluations + 1]
        if self.solver.startswith("ab"):
            # The published multistep sampler adds up its step lengths in float32 and feeds the sum to the network.
            steps = np.diff(grid.astype(np.float32))
            return np.append(np.float32(0), np.cumsum(steps, dtype=np.float32))[:-1].astype(np.float64)
        return grid[:-1]

    @property
    def final_step(self) -> float | None:
        """How long the step is that `last_step` asks for, after the shift; None where it asks for none."""
        if self.last_step is None or self.num_steps == 1:
            return None
        return _shifted(self.last_step, self.timeshift)

    @property
    def end_time(self) -> float:
        """Where trajectories end, after the shift: 1 without an `end`."""
        return 1.0 if self.end is None else 1 - _shifted(1 - self.end, self.timeshift)

    @property
    def aim(self) -> tuple[object, ...]:
        """What decides where trajectories lead in the limit of many steps."""
        return self.guidance, self.guidance_interval, self.closed_interval, self.final_step, self.end_time

    def on_grid(self, num_steps: int, *, timeshift: float, solver: str) -> SamplingSpec:
        """The same guidance on another grid, to the same end, by the same final step, where one is asked for."""
        last, end = self.last_step, self.end
        if (final := self.final_step) is None:
            last = None
        elif timeshift != self.timeshift:  # else it is what it was, to the last digit
            last = _unshifted(final, timeshift)
        if end is not None and timeshift != self.timeshift:
            end = 1 - _unshifted(_shifted(1 - end, self.timeshift), timeshift)
        return replace(self, num_steps=num_steps, timeshift=timeshift, solver=solver, last_step=last, end=end)

    @property
    def guidance_weights(self) -> NDArray[np.float64]:
        """w of every evaluation, [E]: the velocity is `v_u + w (v_c − v_u)`; 1 outside the interval."""
        low, high = (np.float32(end) for end in self.guidance_interval)
        times = self.times.astype(np.float32)
        inside = (low < times) & (times < high)
        if self.closed_interval:
            # Of a time that is an end of the interval, which side it falls to is a matter of rounding: it is inside.
            inside = (low - ROUNDING <= times) & (times <= high + ROUNDING)
        return np.where(inside, np.float64(self.guidance), 1.0)

    @property
    def guided(self) -> str:
        """Guidance in words, all that there is to it."""
        low, high = self.guidance_interval
        return f"{self.guidance:g} on ({low:g}, {high:g})" + (", ends included" if self.closed_interval else "")

    def guides_as(self, other: SamplingSpec) -> bool:
        """Whether both guide by the same weight on the same interval."""
        own, others = ((spec.guidance, spec.guidance_interval, spec.closed_interval) for spec in (self, other))
        return own == others

    def check_guides(self) -> None:
        """Raises ConfigError where a closed interval is asked for that no evaluation lies in."""
        if self.closed_interval and not (self.guidance_weights != 1.0).any():
            low, high = self.guidance_interval
            raise ConfigError(
                f"The closed guidance interval from {low:g} to {high:g} (--guidance-interval) has none of the "
                f"{self.num_evaluations} evaluations, from t = 0 to {self.times[-1]:.4g}, and guides nothing; widen it."
            )

    @property
    def num_evaluations(self) -> int:
        """E: N, but 2N − 1 for Heun, 2N with an `end`."""
        if self.solver == "heun":
            return 2 * self.num_steps - (self.end is None)
        return self.num_steps

    def differences(self, other: SamplingSpec) -> list[str]:
        """The settings in which two recipes differ, as 'name: mine, not theirs', in words."""
        mine, theirs = asdict(self), asdict(other)
        names = {"num_steps": "steps", "guidance_interval": "guidance interval", "timeshift": "time shift",
                 "last_step": "last step", "closed_interval": "closed interval"}  # fmt: skip
        return [f"{names.get(key, key)}: {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]

    @classmethod
    def chosen(cls, base: Mapping[str, Any], said: Mapping[str, Any]) -> SamplingSpec:
        """Settings by name from `base`, but for those that are `said`, before which what contradicts them gives way."""
        values = {**base, **said}
        for mine, other in (("last_step", "end"), ("end", "last_step")):
            if mine in said and other not in said:
                values[other] = None
        if values.get("guidance") == 1 and "closed_interval" not in said:
            values["closed_interval"] = False
        return cls(**values)

    def document(self) -> dict[str, Any]:
        """What files say of it. What came later than the first files is left out where it is not used, so that the
        same sampling reads the same in all of them, and has the same checksum."""
        later = {"end", "closed_interval"}
        return {name: value for name, value in asdict(self).items() if name not in later or value not in (None, False)}

    @classmethod
    def from_dict(cls, values: Any) -> SamplingSpec:
        """The inverse of `document` and of `dataclasses.asdict`; raises ConfigError for anything else."""
        names = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or not names - {"end", "closed_interval"} <= set(values) <= names:
            raise ConfigError(f"A sampling spec must have exactly {', '.join(cls.__dataclass_fields__)}.")
        try:
            return cls(**{**values, "guidance_interval": tuple(values["guidance_interval"])})
        except TypeError as error:
            raise ConfigError(f"The sampling spec does not make sense ({error}).") from None


def linspace(end: float, count: int) -> NDArray[np.float32]:
    """`count` even points from 0 to `end`, to the bit as torch.linspace has them in float32."""
    last = np.float64(np.float32(end))
    step = np.float64(np.float32(last / np.float64(max(1, count - 1))))
    index = np.arange(count)
    # Counted from the nearer end, each point one fused multiply-add.
    points = np.where(index < count // 2, step * index, last - step * (count - 1 - index)) if count > 1 else np.zeros(1)
    return points.astype(np.float32)


def _shifted(length: float, timeshift: float) -> float:
    """How long a last piece before t = 1 is after the shift.

    In closed form and not of the grid, whose numbers are rounded by float32: it names a limit.
    """
    shifted = length * timeshift
    return float(f"{shifted / (1 - length + shifted):.5g}")


def _unshifted(length: float, timeshift: float) -> float:
    """The inverse of `_shifted`."""
    return float(f"{length / (length + timeshift * (1 - length)):.6g}")


def is_whole(value: object) -> bool:
    """Whether a setting is a whole number; NumPy's count."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def is_number(value: object) -> bool:
    """Whether a setting is a finite number; NumPy's count."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
