"""Flow matching: how the embedded models were trained, and how checkpoints are fine-tuned.

`x_t = t·x_1 + (1 − t)·ε` with `t = sigmoid(normal)`; the loss is `mean (v − (x_1 − ε))²`. Every random number is a
function of (seed, step), and the state holds weights, moving average and moments, so a run that was killed continues
to the same bits on a CPU; a GPU adds up the gradients of attention in no fixed order. A network with nested widths is
trained complete and at one random width a batch, one with routers complete and as they leave it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ddt_accel.artifacts import check_writable
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.networks.condition import ConditionEncoder
from ddt_accel.networks.dynamic.routers import Routers
from ddt_accel.networks.dynamic.slicing import narrowable
from ddt_accel.networks.families import build
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.training.account import folded
from ddt_accel.training.dynamic_loss import target_at
from ddt_accel.training.images import ImageSet
from ddt_accel.training.nested import draw_width
from ddt_accel.training.routed import RoutedPass, fresh_routers, router_rate
from ddt_accel.training.state import State, read_state, write_state
from ddt_accel.training.train_spec import TrainSpec

HISTORY_EVERY = 100  # steps
HISTORY_ENTRIES = 20  # of short runs, at least, so that their curve is one and their last loss is that of the end
SAVE_SECONDS = 300.0
GRADIENT_NORM = 1.0

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


class Trainer:
    """One training run in a folder, which goes on where the folder's `state.safetensors` stands.

    It begins with fresh weights, or with those of `start`, a network of the same settings. A state with fewer images to
    train on is extended: its steps stay as they are, and the learning rate goes on along the cosine of the new length.
    Raises MismatchError for the state of any other run.
    """

    def __init__(
        self,
        spec: TrainSpec,
        data: ImageSet,
        folder: Path,
        device: torch.device,
        *,
        compiled: bool,
        start: SplitNetwork | None = None,
    ) -> None:
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
        fresh = build(spec.network) if start is None else copy.deepcopy(start)
        self.model = fresh.to(device).train().requires_grad_(True)
        self.velocity: Velocity = _compiled(self.model) if compiled else self.model
        groups = [{"params": list(self.model.parameters())}]
        self.parameters = dict(self.model.named_parameters())
        self.routers: Routers | None = None
        if spec.target is not None:
            self.routers = fresh_routers(self.model).to(device)
            self.router_rate = router_rate(self.model, spec.ramp)
            groups.append({"params": list(self.routers.parameters())})
            self.parameters |= dict(self.routers.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            groups, lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.step = 0
        self.history: list[tuple[int, float]] = []
        self._window: list[Tensor] = []
        self._permutation: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        if self.state_path.exists():
            self._load()

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    @property
    def finished(self) -> bool:
        return self.step == self.spec.num_steps

    def run(
        self,
        *,
        save_every: int,
        report: Callable[[int, Tensor], None] = lambda step, loss: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Trains to the end of the spec, or until `stop()`; `report` gets the number of steps and each one's loss.

        Saves every `save_every` steps, every five minutes, and at the end, wherever that is. Raises NumericsError
        where the loss is no number; the state stays the last that was saved.
        """
        check_writable(self.state_path)
        every = min(HISTORY_EVERY, max(1, self.spec.num_steps // HISTORY_ENTRIES))
        saved_at, saved = time.monotonic(), self.step
        while not self.finished and not stop():
            loss = self._train_step()
            self.step += 1
            self._window.append(loss)
            if self.step % every == 0 or self.finished:
                self.history.append((self.step, self._mean_loss()))
                self._window = []
            report(self.step, loss)
            if self.step % save_every == 0 or time.monotonic() - saved_at > SAVE_SECONDS:
                self.save()
                saved_at, saved = time.monotonic(), self.step
        if saved != self.step:
            self.save()

    def _mean_loss(self) -> float:
        """Of the steps since the last entry of the history."""
        loss = torch.stack(self._window).mean().item()
        if not math.isfinite(loss):
            kept = f"{self.state_path} holds the last good state." if self.state_path.exists() else "Nothing was saved."
            raise NumericsError(
                f"The loss is {loss} at step {self.step}; lower --learning-rate or use --precision fp32. {kept}"
            )
        return loss

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
        self.optimizer.zero_grad()
        losses = []
        for velocity_at, cost in self._passes(generator):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
                velocity = velocity_at(mix * x1 + (1 - mix) * noise, t, labels)
            losses.append((velocity.float() - (x1 - noise)).square().mean())
            (losses[-1] + cost()).backward()  # at once, so that only one pass is in memory
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), GRADIENT_NORM)
        of_network, *of_routers = self.optimizer.param_groups
        of_network["lr"] = spec.learning_rate_at(self.step)
        for group in of_routers:
            group["lr"] = self.router_rate * spec.routers_rate_at(self.step)
        self.optimizer.step()
        # The average forgets its start quickly at first, then settles at the full decay.
        decay = min(spec.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        return torch.stack([loss.detach() for loss in losses]).mean()

    def _passes(self, generator: torch.Generator) -> list[tuple[Velocity, Callable[[], Tensor | float]]]:
        """The networks whose errors a step adds up, each with what is added for its cost: the complete one, and one
        narrow one where there are widths or routers."""
        complete = (self.velocity, lambda: 0.0)
        if self.routers is not None and self.spec.target is not None:
            target = target_at(self.step, self.spec.target, self.spec.ramp)
            routed = RoutedPass(self.model, self.routers, generator, target)
            return [complete, (routed, routed.cost)]
        if not self.spec.widths:
            return [complete]
        model = cast(ConditionEncoder, self.model)
        masks = [
            replace(one, heads=one.heads.to(self.device), channels=one.channels.to(self.device))
            for one in draw_width(narrowable(model.config), self.spec.widths, generator)
        ]
        return [complete, (lambda x, t, y: model.masked(x, t, y, masks), lambda: 0.0)]

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
        """Writes the whole state."""
        if self._window:
            self._mean_loss()  # raises where it is no number
        tensors = {f"denoiser.{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"ema_denoiser.{name}": value for name, value in self.average.items()}
        for name, parameter in self.parameters.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"optimizer.{moment}.{name}"] = self.optimizer.state[parameter][moment]
        state = State(
            step=self.step,
            history=self.history,
            window=[loss.item() for loss in self._window],
            class_names=self.class_names,
            data_sha256=self.data_sha256,
            tensors=tensors,
        )
        _, height, width, channels = self.images.shape
        write_state(self.state_path, self.spec, state, latent_shape=(channels, height, width))

    def _load(self) -> None:
        state = read_state(self.state_path, self.spec)
        if state.data_sha256 != self.data_sha256:
            raise MismatchError(
                f"{self.state_path} was trained on other images, of {len(state.class_names)} classes "
                f"({folded(state.class_names)}); give the same --data, --size and --split to continue, or another "
                "--out to start anew."
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state.tensors[f"denoiser.{name}"])
                self.average[name].copy_(state.tensors[f"ema_denoiser.{name}"])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step), device=self.device),
                    "exp_avg": state.tensors[f"optimizer.exp_avg.{name}"].to(self.device),
                    "exp_avg_sq": state.tensors[f"optimizer.exp_avg_sq.{name}"].to(self.device),
                }
        self.step, self.history = state.step, state.history
        self._window = [torch.tensor(loss, device=self.device) for loss in state.window]


def _compiled(model: SplitNetwork) -> Velocity:
    from ddt_accel.backends.compiled import compiling  # PyTorch's compiler takes seconds to import

    program = torch.compile(model)

    def call(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with compiling("leave out --compile"):
            velocity: Tensor = program(x, t, y)
            return velocity

    return call
