"""What determines a training run, and what tells two of them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import TrainableConfig
from ddt_accel.networks.families import as_mapping, config_of

MAX_WARMUP_STEPS = 500
MAX_EMA_DECAY = 0.9999
MAX_RAMP_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What determines a training run, beside its images.

    None for `warmup_steps` and `ema_decay` fits them to the length of the run: a quarter of its steps, at most 500, and
    an average that remembers about its last sixteenth, `1 − 16 / steps` rounded to four digits, at most 0.9999. `start`
    is the identity of the network that fine-tuning begins with, None for fresh weights; `widths` are the nested ones
    that are learned beside the complete network; with a `target`, the share of its blocks' multiply-adds, routers learn
    what runs when.
    """

    network: TrainableConfig
    total_images: int
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int | None = None
    ema_decay: float | None = None
    label_dropout: float = 0.1
    flip: bool = True
    seed: int = 0
    precision: str = "bf16"
    start: str | None = None
    widths: tuple[float, ...] = ()
    target: float | None = None

    def __post_init__(self) -> None:
        if self.total_images < self.batch_size or self.batch_size < 1:
            raise ConfigError(
                f"--images is {self.total_images} and --batch-size {self.batch_size}; give at least one batch."
            )
        if not 0 <= self.seed < 2**20:
            raise ConfigError(f"--seed is {self.seed}; give a whole number from 0 to {2**20 - 1}.")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"--learning-rate is {self.learning_rate}; give a number between 0 and 1.")
        for option, value in (("--label-dropout", self.label_dropout), ("--ema-decay", self.ema_decay)):
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{option} is {value}; give a number from 0 to below 1.")
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f"--precision is {self.precision!r}; choose auto, bf16 or fp32.")

    @property
    def num_steps(self) -> int:
        return self.total_images // self.batch_size

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return min(MAX_WARMUP_STEPS, self.num_steps // 4) if self.warmup_steps is None else self.warmup_steps

    @property
    def ramp(self) -> int:
        """Steps in which what is asked of routers falls from everything to the target."""
        return min(MAX_RAMP_STEPS, self.num_steps // 4)

    @property
    def decay(self) -> float:
        """What the average keeps of itself at each step, once it has left its start behind."""
        fitted = round(min(MAX_EMA_DECAY, max(0.0, 1 - 16 / self.num_steps)), 4)
        return fitted if self.ema_decay is None else self.ema_decay

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self.learning_rate * _cosine((step - self.warmup) / max(1, self.num_steps - self.warmup))

    def routers_rate_at(self, step: int) -> float:
        """Of their peak: a cosine to zero, without warm-up, since the target falls from the first step on."""
        return _cosine(step / self.num_steps)

    def as_mapping(self) -> dict[str, Any]:
        """The spec as a training state keeps it."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"network": as_mapping(self.network)}

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """How a run that was saved as `as_mapping` differs from this one, in the command line's words.

        More images than the saved run had are no difference: they extend it. Neither is the number of classes, which
        the images decide.
        """
        then, now = _options(saved), _options(self.as_mapping())
        if then["--images"] <= now["--images"]:
            del then["--images"], now["--images"]
        return [
            f"{option} {_said(then[option])}, not {_said(now[option])}" for option in now if then[option] != now[option]
        ]


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec under the names of `train`'s options."""
    network = cast(TrainableConfig, config_of(spec["network"]))
    shape = {f"--{name.replace('_', '-')}": value for name, value in asdict(network.train_shape).items()}
    return {
        "--family": network.family,
        **shape,
        "--images": spec["total_images"],
        "--batch-size": spec["batch_size"],
        "--learning-rate": spec["learning_rate"],
        "warm-up steps": spec["warmup_steps"],
        "--ema-decay": spec["ema_decay"],
        "--label-dropout": spec["label_dropout"],
        "--flip": spec["flip"],
        "--seed": spec["seed"],
        "--precision": spec["precision"],
        "--from": start[:12] if (start := spec.get("start")) else "no checkpoint",
        "widths": ", ".join(f"{width:g}" for width in spec.get("widths", ())) or "one",
        "routers": "none" if (target := spec.get("target")) is None else f"to {target:g} of the cost",
    }


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "fitted to the run" if value is None else str(value)
