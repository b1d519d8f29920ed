"""Under which conditions a study was made."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ddt_accel.calibration.statistics import Calibration
from ddt_accel.networks.device import processor
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec


def conditions(
    backend: Backend,
    model_name: str,
    spec: SamplingSpec,
    calibration: Calibration,
    schedule: Schedule,
    batch_size: int,
) -> dict[str, str]:
    """The machine, the versions and the settings under which everything was measured."""
    low, high = spec.guidance_interval
    guided = "CFG" if calibration.guide is None else "guidance by a second network"
    less = "≤" if spec.closed_interval else "<"
    ends = f", last step {spec.last_step:g}" if spec.last_step is not None else ""
    ends += f", end {spec.end:g}" if spec.end is not None else ""
    return {
        "model": f"{model_name}, checkpoint {calibration.checkpoint_sha256[:12]}",
        "network": backend.config.description,
        **({"guide": f"checkpoint {calibration.guide_sha256[:12]}"} if calibration.guide_sha256 is not None else {}),
        "sampling": f"{spec.solver}, {spec.num_steps} steps, {guided} {spec.guidance:g} for {low:g} {less} t {less} "
        f"{high:g}, time shift {spec.timeshift:g}{ends}",
        "calibration": f"{calibration.num_samples} trajectories of {calibration.spec.num_steps} steps",
        "schedule": f"{schedule.spec.num_steps} steps, {schedule.forecast} forecast, objective {schedule.objective}"
        f"{_own_steps(schedule)}",
        **machine(backend, batch_size),
    }


def machine(backend: Backend, batch_size: int) -> dict[str, str]:
    """What ran the networks, on what, and of which versions."""
    packages = ["ddt-accel", "torch", "numpy", "onnxruntime"]
    accelerator = f", {torch.cuda.get_device_name()}" if backend.device.type == "cuda" else ""
    return {
        "backend": backend.name,
        "device": backend.device.type + accelerator,
        "machine": f"{processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {platform.system()}",
        "batch": f"{batch_size} image{'' if batch_size == 1 else 's'}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in packages)
        + f", Python {platform.python_version()}",
    }


def _own_steps(schedule: Schedule) -> str:
    if schedule.unconditional_steps is None:
        return ""
    branch = "unconditional branch" if schedule.guide_sha256 is None else "guide"
    return f"; the {branch} refreshes at {', '.join(map(str, schedule.unconditional_steps))}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
