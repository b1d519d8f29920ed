"""`DDTPipeline`: a network and a schedule as a pipeline of diffusers (extra `vae`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.sample import check_checkpoint
from ddt_accel.backends.sampler import Sampler
from ddt_accel.backends.vae import PUBLISHED, LatentDecoder
from ddt_accel.collection import shipped_for
from ddt_accel.errors import ConfigError, DependencyError, MismatchError
from ddt_accel.networks.checkpoints import load_model
from ddt_accel.networks.class_names import names_of, number_of, numbers_by_name
from ddt_accel.networks.saving import save_network
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.capture import captures
from ddt_accel.schedule import Schedule

try:
    from diffusers import AutoencoderKL
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
except ImportError:
    raise DependencyError("diffusers is not installed; install it with `pip install 'ddt-accel[vae]'`.") from None

NETWORK, SCHEDULE, VAE = Path("network", "network.safetensors"), Path("schedule.json"), Path("vae")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16"}

# As in diffusers: (pipeline, step, time, {"latents": x}) → a mapping, whose "latents" take the place of x.
StepEnd = Callable[["DDTPipeline", int, float, dict[str, Tensor]], Mapping[str, Tensor] | None]


class DDTPipeline(DiffusionPipeline):
    """Pictures of classes, as diffusers' `DiTPipeline` draws them, along a schedule.

    `backend` is "torch", "compiled", "auto" (compiled on a GPU), or networks that are open, such as those of
    `open_backend`. `vae` makes pictures of latents; without one, the autoencoder of the published networks is loaded
    when it is first needed. A network that draws pictures itself needs none. More than `batch_size` images are drawn
    in several batches.
    """

    model_cpu_offload_seq = "network->vae"  # type: ignore[assignment]
    _optional_components = ["vae"]  # noqa: RUF012
    network: SplitNetwork
    schedule: Schedule
    vae: Any

    def __init__(
        self,
        network: SplitNetwork,
        schedule: Schedule,
        vae: AutoencoderKL | None = None,
        backend: str | Backend = "auto",
        batch_size: int = 16,
    ) -> None:
        super().__init__()
        if isinstance(backend, str) and backend not in ("auto", "compiled", "torch"):
            raise ConfigError(
                f"backend is {backend!r}; give auto, compiled or torch, or networks that are open, such as those of "
                "ddt_accel.open_backend(folder)."
            )
        self.register_modules(network=network, schedule=schedule, vae=vae)  # type: ignore[no-untyped-call]
        self.backend, self.batch_size = backend, batch_size
        self._made: tuple[Schedule, tuple[object, ...], Sampler] | None = None
        known = network.source.class_names if network.source else None
        self.class_names = names_of(network.config.num_classes, known)
        self.labels = dict(sorted(numbers_by_name(self.class_names or ()).items()))
        own = TorchBackend(network)
        check_checkpoint(schedule, own)
        if not isinstance(backend, str) and backend.checkpoint_sha256 != own.checkpoint_sha256:
            raise MismatchError("backend is open on other weights than the network's; open its own export.")

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no option is taken that would do nothing
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        schedule: Schedule | str | Path | None = None,
        backend: str | Backend = "auto",
        vae: Any = None,
        config: Mapping[str, Any] | str | None = None,
        weights: str = "ema",
        latent_shape: tuple[int, int, int] | None = None,
        batch_size: int = 16,
        torch_dtype: torch.dtype | None = None,
    ) -> DDTPipeline:
        """A pipeline of whatever `load_model` takes, or of a folder that `save_pretrained` wrote.

        `schedule` is one, a file, or the name of a shipped one; a saved folder has its own. `vae` is an AutoencoderKL,
        its folder or its repository. Nothing that is read is executed. Raises ConfigError where there is no schedule,
        naming those that come with the package, MismatchError where it is for another network.
        """
        folder = Path(os.path.expanduser(pretrained_model_name_or_path))
        saved = (folder / NETWORK).is_file()
        source = folder / NETWORK if saved else str(pretrained_model_name_or_path)
        network = load_model(source, config=config, weights=weights, latent_shape=latent_shape)
        if schedule is None and saved:
            schedule = folder / SCHEDULE
        if schedule is None:
            shipped = [one.name for one in shipped_for(network.source.sha256 if network.source else None)]
            known = f"one of those that come with it: {', '.join(shipped)}" if shipped else "a file or a shipped name"
            raise ConfigError(
                f"schedule is missing; give {known}, or make one with `ddt-accel optimize --model "
                f"{pretrained_model_name_or_path}`."
            )
        if vae is None and saved and (folder / VAE).is_dir():
            vae = folder / VAE
        pipeline = cls(
            network,
            schedule if isinstance(schedule, Schedule) else Schedule.load(schedule),
            LatentDecoder(vae).vae if isinstance(vae, str | Path) else vae,
            backend,
            batch_size,
        )
        return pipeline if torch_dtype is None else pipeline.to(torch_dtype)

    def save_pretrained(self, save_directory: str | Path) -> None:  # type: ignore[override]
        """Writes network, schedule and autoencoder into a folder, as safetensors and JSON."""
        folder = Path(os.path.expanduser(save_directory))
        save_network(self.network, folder / NETWORK)
        self.schedule.save(folder / SCHEDULE)
        if self.vae is not None:
            self.vae.save_pretrained(folder / VAE, safe_serialization=True)
        self.save_config(folder)

    @property
    def sampler(self) -> Sampler:
        """What draws; made anew where the network has been moved or converted, or the schedule replaced."""
        network, schedule = self.network, self.schedule
        state = (network, network.device, network.dtype, self.backend, self.batch_size)
        if self._made is None or self._made[0] is not schedule or self._made[1] != state:
            self._made = schedule, state, Sampler(self._opened(), schedule, batch_size=self.batch_size)
        return self._made[2]

    def _opened(self) -> Backend:
        if not isinstance(self.backend, str):
            return self.backend
        if self.backend == "compiled" or (self.backend == "auto" and captures(self.network.device)):
            return CompiledBackend(self.network, precision=_PRECISIONS.get(self.network.dtype))
        return TorchBackend(self.network)

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """The class numbers of names; raises ConfigError for a name that is none."""
        return self._numbers(label)

    def _numbers(self, labels: object) -> list[int]:
        """The class numbers of names or numbers, or of one; raises ConfigError for what is neither."""
        given = labels.tolist() if isinstance(labels, Tensor | np.ndarray | np.generic) else labels
        each = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        return [number_of(cast(Any, one), self.network.config.num_classes, self.class_names) for one in each]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[str | int] | Tensor | str | int,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
    ) -> Any:
        """An ImagePipelineOutput with one picture for each of the `class_labels`, names or numbers.

        A `generator` gives each image a seed, in order, and the seed alone gives its noise: the same picture on every
        device and in every batch. `output_type` is "pil", "np" [B, H, W, 3], "pt" [B, 3, H, W], both in 0 … 1, or
        "latent" [B, C, H, W]. Raises ConfigError for what cannot be drawn, MismatchError where `num_inference_steps`
        or `guidance_scale` contradict the schedule.
        """
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(f"output_type is {output_type!r}; give one of {', '.join(OUTPUT_TYPES)}.")
        self._check(num_inference_steps, guidance_scale)
        labels = self._numbers(class_labels)
        decode = None if output_type == "latent" or self.network.config.pixel_space else self._decoder()
        sampler, steps = self.sampler, self.schedule.spec.num_evaluations
        batches = -(-len(labels) // self.batch_size)
        stepwise = callback_on_step_end is not None or not captures(sampler.backend.device)
        with self.progress_bar(total=steps * batches) as bar:

            def on_step(_: Sampler, k: int, time: float, tensors: dict[str, Tensor]) -> Any:
                changed = None
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, k, time, tensors)
                bar.update()
                return changed

            latents = sampler(labels, seeds_of(generator, len(labels)), callback=on_step if stepwise else None)
            if not stepwise:  # on a GPU the whole trajectory is one call
                bar.update(steps * batches)
        images = (
            latents if output_type == "latent" else _as(output_type, latents if decode is None else decode(latents))
        )
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return ImagePipelineOutput(images=cast(Any, images)) if return_dict else (images,)

    def _decoder(self) -> LatentDecoder:
        if self.vae is None:
            self.vae = LatentDecoder(PUBLISHED, device=self.network.device).vae
        decoder = LatentDecoder.of(self.vae)
        decoder.check(self.sampler.latent_shape)
        return decoder

    def _check(self, steps: int | None, guidance: float | None) -> None:
        """Refuses sampling that the schedule is not for."""
        spec = self.schedule.spec
        for name, asked, has in (
            ("num_inference_steps", steps, spec.num_steps),
            ("guidance_scale", guidance, spec.guidance),
        ):
            if asked is None or asked == has:
                continue
            if isinstance(asked, bool) or not isinstance(asked, int | float):
                raise ConfigError(f"{name} is {asked!r}; give a number, or leave it out: the schedule is for {has:g}.")
            others = shipped_for(self.schedule.checkpoint_sha256, self.schedule.guide_sha256)
            fields = [(one.name, one.schedule.spec) for one in others]
            having = [
                other
                for other, its in fields
                if (its.num_steps if name == "num_inference_steps" else its.guidance) == asked
            ]
            advice = (
                f"give from_pretrained one of the schedules that have it: {', '.join(having)}"
                if having
                else "no schedule that comes with the package has it for this network; make one with `ddt-accel "
                f"calibrate {'--steps' if name == 'num_inference_steps' else '--guidance'} {asked:g}`, then `ddt-accel "
                "solve`"
            )
            raise MismatchError(f"{name} is {asked:g}, and the schedule is for {has:g}; leave it out, or {advice}.")


def seeds_of(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """A seed for each image: the next of one generator, that of PyTorch for None, or the next of each of several."""
    generators = [generator] * count if not isinstance(generator, Sequence) else list(generator)
    if wrong := [one for one in generators if one is not None and not isinstance(one, torch.Generator)]:
        raise ConfigError(f"generator is {wrong[0]!r}; give torch.Generator().manual_seed(…), or one for each image.")
    if len(generators) != count:
        raise ConfigError(f"There are {len(generators)} generators for {count} images; give one, or one for each.")

    def drawn(one: torch.Generator | None) -> int:
        device = one.device if one is not None else torch.device("cpu")
        return int(torch.randint(2**32, (1,), generator=one, device=device))

    return [drawn(one) for one in generators]


def _as(output_type: str, images: Tensor) -> Any:
    """Images [B, 3, H, W] in −1 … 1 as they are asked for."""
    pictures = (images.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return pictures
    arrays: np.ndarray[Any, np.dtype[np.float32]] = pictures.permute(0, 2, 3, 1).cpu().numpy()
    return DiffusionPipeline.numpy_to_pil(arrays) if output_type == "pil" else arrays
