"""Diffusion transformers of the DDT family, made fast at inference without retraining.

Names are imported on first use, so that `import ddt_accel` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddt_accel.backends.compiled import CompiledBackend
    from ddt_accel.backends.open import open_backend
    from ddt_accel.backends.rae_decoder import RAEDecoder
    from ddt_accel.backends.sample import sample
    from ddt_accel.backends.sampler import Sampler
    from ddt_accel.backends.vae import LatentDecoder
    from ddt_accel.calibration.calibrate import calibrate
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.exporting.export import export
    from ddt_accel.fitting.fit import fit
    from ddt_accel.networks.checkpoints import load_model
    from ddt_accel.sampling.noise import draw_labels, draw_noise, draw_step_noise
    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.refresh import solve_all_budgets, solve_refresh_steps
    from ddt_accel.solver.solve import solve
    from ddt_accel.spec import SamplingSpec

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "calibration.statistics",
    "CompiledBackend": "backends.compiled",
    "LatentDecoder": "backends.vae",
    "RAEDecoder": "backends.rae_decoder",
    "Sampler": "backends.sampler",
    "SamplingSpec": "spec",
    "Schedule": "schedule",
    "calibrate": "calibration.calibrate",
    "draw_labels": "sampling.noise",
    "draw_noise": "sampling.noise",
    "draw_step_noise": "sampling.noise",
    "export": "exporting.export",
    "fit": "fitting.fit",
    "load_model": "networks.checkpoints",
    "open_backend": "backends.open",
    "sample": "backends.sample",
    "solve": "solver.solve",
    "solve_all_budgets": "solver.refresh",
    "solve_refresh_steps": "solver.refresh",
}

__all__ = [
    "Calibration",
    "CompiledBackend",
    "LatentDecoder",
    "RAEDecoder",
    "Sampler",
    "SamplingSpec",
    "Schedule",
    "calibrate",
    "draw_labels",
    "draw_noise",
    "draw_step_noise",
    "export",
    "fit",
    "load_model",
    "open_backend",
    "sample",
    "solve",
    "solve_all_budgets",
    "solve_refresh_steps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddt_accel' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ddt_accel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
