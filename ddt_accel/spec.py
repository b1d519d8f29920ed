"""What is sampled: the recipe from which a trajectory's numbers are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError

MAX_STEPS, MAX_GUIDANCE = 10_000, 1000
SOLVERS = ("euler", "heun", "sde", "ab1", "ab2", "ab3", "ab4")


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """Solver, grid and guidance.

    Time runs from noise, t = 0, to data, t = 1. Guidance applies strictly inside `guidance_interval`. `last_step` is
    the length of the final step before the time shift and defaults to 1 / num_steps.
    """

    num_steps: int = 50
    solver: str = "euler"
    guidance: float = 2.0
    guidance_interval: tuple[float, float] = (0.3, 1.0)
    timeshift: float = 1.0
    last_step: float | None = None

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
        for name in ("guidance", "timeshift", "last_step"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        if (np.diff(self.grid) <= 0).any():
            raise ConfigError(
                f"{self.num_steps} steps with a last step of {self.last_step} and a time shift of {self.timeshift} "
                "leave steps of length 0; take fewer steps or leave out the others."
            )

    @property
    def grid(self) -> NDArray[np.float64]:
        """The step boundaries t_0 = 0 … t_N = 1, [N + 1].

        Computed in float32 operation by operation as the published samplers do, because whether a step is guided is
        decided by comparing these very numbers with the interval's ends: at 50 steps, step 15 is 0.3 − 2⁻²⁵.
        """
        # With a single step the published samplers ignore last_step.
        last_step = 1 / self.num_steps if self.last_step is None or self.num_steps == 1 else self.last_step
        end, n = np.float64(np.float32(1 - last_step)), self.num_steps
        step = np.float64(np.float32(end / np.float64(max(1, n - 1))))
        index = np.arange(n)
        # torch.linspace: counted from the nearer end, each point one fused multiply-add.
        points = np.where(index < n // 2, step * index, end - step * (n - 1 - index)) if n > 1 else np.zeros(1)
        tau = np.append(points, 1.0).astype(np.float32)
        shifted = tau / (tau + (np.float32(1) - tau) * np.float32(self.timeshift))
        return shifted.astype(np.float64)

    @property
    def times(self) -> NDArray[np.float64]:
        """The time of every network evaluation, [E]."""
        grid = self.grid
        if self.solver == "heun":
            # Two evaluations per step; the last step is an Euler step, for the network never saw t = 1.
            return np.repeat(grid, 2)[1:-2]
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
        # In closed form and not of the grid, whose numbers are rounded by float32: it names a limit.
        shifted = self.last_step * self.timeshift
        return float(f"{shifted / (1 - self.last_step + shifted):.5g}")

    def on_grid(self, num_steps: int, *, timeshift: float, solver: str) -> SamplingSpec:
        """The same guidance on another grid, and the same final step, where one is asked for."""
        final, last = self.final_step, self.last_step
        if final is None:
            last = None
        elif timeshift != self.timeshift:  # else it is what it was, to the last digit
            last = float(f"{final / (final + timeshift * (1 - final)):.6g}")
        return replace(self, num_steps=num_steps, timeshift=timeshift, solver=solver, last_step=last)

    @property
    def guidance_weights(self) -> NDArray[np.float64]:
        """w of every evaluation, [E]: the velocity is `v_u + w (v_c − v_u)`; 1 outside the interval."""
        low, high = (np.float32(end) for end in self.guidance_interval)
        times = self.times.astype(np.float32)
        return np.where((low < times) & (times < high), np.float64(self.guidance), 1.0)

    @property
    def num_evaluations(self) -> int:
        """E: 2N − 1 for Heun, N for all others."""
        return 2 * self.num_steps - 1 if self.solver == "heun" else self.num_steps

    def differences(self, other: SamplingSpec) -> list[str]:
        """The settings in which two recipes differ, as 'name: mine, not theirs', in words."""
        mine, theirs = asdict(self), asdict(other)
        names = {"num_steps": "steps", "guidance_interval": "guidance interval", "timeshift": "time shift",
                 "last_step": "last step"}  # fmt: skip
        return [f"{names.get(key, key)}: {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]

    @classmethod
    def from_dict(cls, values: Any) -> SamplingSpec:
        """The inverse of `dataclasses.asdict`; raises ConfigError for anything else."""
        if not isinstance(values, dict) or set(values) != set(cls.__dataclass_fields__):
            raise ConfigError(f"A sampling spec must have exactly {', '.join(cls.__dataclass_fields__)}.")
        try:
            return cls(**{**values, "guidance_interval": tuple(values["guidance_interval"])})
        except TypeError as error:
            raise ConfigError(f"The sampling spec does not make sense ({error}).") from None


def is_whole(value: object) -> bool:
    """Whether a setting is a whole number; NumPy's count."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def is_number(value: object) -> bool:
    """Whether a setting is a finite number; NumPy's count."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
