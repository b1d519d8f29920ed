"""Flow matching: how the embedded models were trained.

`x_t = t·x_1 + (1 − t)·ε` with `t = sigmoid(normal)`; the loss is `mean (v − (x_1 − ε))²`. Every random number is a
function of (seed, step), and the state holds weights, moving average and moments, so a run that was killed continues
to the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddt_accel.artifacts import check_writable, write_atomic
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError, NumericsError
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.config import DDTConfig
from ddt_accel.networks.ddt import DDT
from ddt_accel.training.images import ImageSet

LOG_EVERY = 100
GRADIENT_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What determines a training run, beside its images."""

    network: DDTConfig
    total_images: int
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 500
    ema_decay: float = 0.9995
    label_dropout: float = 0.1
    flip: bool = True
    seed: int = 0
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if self.total_images < self.batch_size or self.batch_size < 1:
            raise ConfigError(f"{self.total_images} images in batches of {self.batch_size}: give at least one batch.")
        if not 0 <= self.seed < 2**20:
            raise ConfigError(f"seed is {self.seed}; give a whole number from 0 to {2**20 - 1}.")
        if not 0 < self.learning_rate < 1 or not 0 <= self.label_dropout < 1 or not 0 <= self.ema_decay < 1:
            raise ConfigError(
                f"learning_rate {self.learning_rate}, label_dropout {self.label_dropout}, ema_decay {self.ema_decay}: "
                "all must lie between 0 and 1."
            )
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f"precision '{self.precision}' is unknown; choose bf16 or fp32.")

    @property
    def num_steps(self) -> int:
        return self.total_images // self.batch_size

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a training run reports every `LOG_EVERY` steps."""

    step: int
    images: int
    loss: float
    images_per_second: float


class Trainer:
    """One training run in a folder; `run` starts it or continues it.

    `state.safetensors` has the published checkpoint layout (`denoiser.*`, `ema_denoiser.*`) beside the optimiser's
    moments, so that `load_model` opens it like any other checkpoint.
    """

    def __init__(self, spec: TrainSpec, data: ImageSet, folder: Path, device: torch.device, *, compiled: bool) -> None:
        if len(data.class_names) != spec.network.num_classes:
            raise ConfigError(
                f"{len(data.class_names)} classes in the images, {spec.network.num_classes} in the network."
            )
        self.spec, self.folder, self.device = spec, folder, device
        self.class_names = data.class_names
        self.data_sha256 = data.sha256
        self.images = torch.from_numpy(data.images)
        self.labels = torch.from_numpy(data.labels)
        torch.manual_seed(spec.seed)
        self.model = DDT(spec.network).to(device)
        self.velocity: Callable[[Tensor, Tensor, Tensor], Tensor] = (
            torch.compile(self.model) if compiled else self.model
        )
        self.average = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.step = 0
        self.history: list[tuple[int, float]] = []
        self._permutation: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def run(
        self, *, save_every: int, report: Callable[[Progress], None], stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Trains to the end of the spec, or until `stop()`; saves every `save_every` steps and at the end."""
        check_writable(self.state_path)
        if self.state_path.exists():
            self.load()
        losses: list[Tensor] = []
        started = time.perf_counter()
        while self.step < self.spec.num_steps and not stop():
            losses.append(self._train_step())
            self.step += 1
            if self.step % LOG_EVERY == 0 or self.step == self.spec.num_steps:
                loss = torch.stack(losses).mean().item()
                if not math.isfinite(loss):
                    raise NumericsError(
                        f"The loss is {loss} at step {self.step}; lower --learning-rate or use --precision fp32. "
                        f"{self.state_path} holds the last good state."
                    )
                self.history.append((self.step, loss))
                elapsed = time.perf_counter() - started
                report(
                    Progress(
                        step=self.step,
                        images=self.step * self.spec.batch_size,
                        loss=loss,
                        images_per_second=len(losses) * self.spec.batch_size / elapsed,
                    )
                )
                losses, started = [], time.perf_counter()
                # Only here: a saved run resumes at the start of a logging window, so its history is the same too.
                if self.step % save_every == 0:
                    self.save()
        if self.step == self.spec.num_steps:
            self.save()

    def _train_step(self) -> Tensor:
        spec = self.spec
        generator = torch.Generator().manual_seed((spec.seed << 40) + self.step)
        chosen = self._indices()
        x1 = self.images[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = self.labels[chosen]
        size = len(chosen)
        if spec.flip:
            flipped = torch.rand(size, generator=generator) < 0.5
            x1 = torch.where(flipped[:, None, None, None], x1.flip(-1), x1)
        dropped = torch.rand(size, generator=generator) < spec.label_dropout
        labels = torch.where(dropped, spec.network.num_classes, labels)
        noise = torch.randn(x1.shape, generator=generator)
        t = torch.randn(size, generator=generator).sigmoid()
        x1, labels, noise, t = (value.to(self.device) for value in (x1, labels, noise, t))

        mix = t[:, None, None, None]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            velocity = self.velocity(mix * x1 + (1 - mix) * noise, t, labels)
        loss = (velocity.float() - (x1 - noise)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = spec.learning_rate_at(self.step)
        self.optimizer.step()
        # The average forgets its start quickly at first, then settles at the full decay.
        decay = min(spec.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            parameters = dict(self.model.named_parameters())
            torch._foreach_lerp_(list(self.average.values()), [parameters[name] for name in self.average], 1 - decay)
        return loss.detach()

    def _indices(self) -> Tensor:
        """The images of this step: a new permutation every epoch, read on across epoch ends."""
        count, size = len(self.images), self.spec.batch_size
        positions = torch.arange(self.step * size, (self.step + 1) * size)
        chosen = torch.empty(size, dtype=torch.int64)
        for epoch in (positions // count).unique().tolist():
            if self._permutation[0] != epoch:
                generator = torch.Generator().manual_seed((self.spec.seed << 40) + (1 << 39) + epoch)
                self._permutation = (epoch, torch.randperm(count, generator=generator))
            here = positions // count == epoch
            chosen[here] = self._permutation[1][positions[here] % count]
        return chosen

    def save(self) -> None:
        """Writes the whole state atomically."""
        tensors = {f"denoiser.{name}": value.detach() for name, value in self.model.named_parameters()}
        tensors |= {f"ema_denoiser.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"optimizer.{moment}.{name}"] = self.optimizer.state[parameter][moment]
        metadata = {
            "config": json.dumps(asdict(self.spec.network)),
            "train_spec": json.dumps(asdict(self.spec)),
            "class_names": json.dumps(self.class_names),
            "data_sha256": self.data_sha256,
            "step": str(self.step),
            "history": json.dumps(self.history),
        }
        cpu = {name: value.cpu().contiguous() for name, value in tensors.items()}
        metadata["tensors_sha256"] = tensors_sha256(cpu)
        write_atomic(self.state_path, safetensors.torch.save(cpu, metadata))

    def load(self) -> None:
        """Continues from `state_path`; refuses the state of another run."""
        try:
            with safetensors.safe_open(self.state_path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["tensors_sha256"] != tensors_sha256(tensors):
                raise ValueError("its tensors fail their checksum")
            saved = json.loads(metadata["train_spec"]) | {"images": metadata["data_sha256"]}
            step, history = int(metadata["step"]), json.loads(metadata["history"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(
                f"{self.state_path} cannot be read as a training state ({error}); move it away to start anew."
            ) from None
        wanted = asdict(self.spec) | {"images": self.data_sha256}
        different = sorted(key for key in wanted if saved.get(key) != wanted[key])
        if different:
            raise MismatchError(
                f"{self.state_path} was trained with another {', '.join(different)}; use the same settings to "
                "continue, or another --out to start anew."
            )
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"denoiser.{name}"])
                self.average[name].copy_(tensors[f"ema_denoiser.{name}"])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(step), device=self.device),
                    "exp_avg": tensors[f"optimizer.exp_avg.{name}"].to(self.device),
                    "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"].to(self.device),
                }
        self.step, self.history = step, [(int(at), float(loss)) for at, loss in history]
