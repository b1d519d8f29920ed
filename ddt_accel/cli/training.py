"""`train`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, keeping, say, stages
from ddt_accel.cli.learning import stoppable, watched
from ddt_accel.cli.options import DeviceOption, JsonOption, ThreadsOption, check_device

SCRATCH_IMAGES, SCRATCH_RATE = 4_200_000, 1.5e-3  # where nothing is said: those of the embedded models

if TYPE_CHECKING:
    import torch

    from ddt_accel.networks.config import TrainableConfig, TrainShape
    from ddt_accel.training.train_spec import TrainSpec


def train(
    ctx: typer.Context,
    data: Annotated[Path, typer.Option(help="Image folder, a zip of one, or an npz with images and labels.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one continues.")],
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images to train on, repeats counted; more than before extend a run. By default 4,200,000, with "
            "--from 256,000.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=1, max=16384, help="Side of the images in pixels.")] = 32,
    split: Annotated[
        str | None, typer.Option(help="Which split, where the data has several; train by default.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="A checkpoint to go on from, as --model takes it elsewhere, instead of a fresh network; its shape is "
            "the checkpoint's.",
        ),
    ] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(
            help="With --from: nested, to learn several widths, each a prefix of heads and channels; routers, to learn "
            "which heads and channels run when."
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="With --dynamic: the narrowest width, as a share of the heads, or what routers are to leave of the "
            "blocks' multiply-adds; 0.5 by default.",
            show_default=False,
        ),
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Family of the network: ddt, the default, or pixnerd.", show_default=False)
    ] = None,
    hidden_size: Annotated[int, typer.Option(min=1, max=65536, help="Width of the network.")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    encoder_blocks: Annotated[int, typer.Option(min=1, max=1000, help="Blocks of the condition encoder.")] = 6,
    decoder_blocks: Annotated[int, typer.Option(min=1, max=1000, help="Blocks of the velocity decoder.")] = 2,
    decoder_width: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Width of the decoder, where a family has one of its own.")
    ] = None,
    patch: Annotated[int, typer.Option(min=1, help="Side of a patch, which becomes one token, in pixels.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="AdamW's peak; 500 steps of warm-up, at most a quarter of the run, then a cosine to 0. By default "
            "0.0015, with --from 0.0003.",
            show_default=False,
        ),
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="Of the averaged weights, a step; by default fitted to the run: 1 - 16/steps.")
    ] = None,
    label_dropout: Annotated[float, typer.Option(help="Share of images without their label, for guidance.")] = 0.1,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images; not for text or digits.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the order and the noise.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile; needs a C++ compiler.")] = False,
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between saves, which come every five minutes, too.")
    ] = 200,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Train a split network on labelled images in pixel space, by flow matching. Ctrl-C keeps what was trained."""
    import torch

    from ddt_accel.artifacts import check_writable, write_atomic
    from ddt_accel.cli import finetuning
    from ddt_accel.cli.console import show
    from ddt_accel.locks import making
    from ddt_accel.networks.config import TrainShape
    from ddt_accel.networks.threads import use_threads
    from ddt_accel.report.figures import loss_curve
    from ddt_accel.training.images import load_images
    from ddt_accel.training.loop import Trainer
    from ddt_accel.training.release import write_release
    from ddt_accel.training.start import divided, under_labels_of
    from ddt_accel.training.state import check_continues
    from ddt_accel.training.train_spec import TrainSpec

    # Everything that can be checked is, before the pictures are read.
    place = torch.device(check_device(device))
    begun = finetuning.beginning(ctx, start, dynamic, target)
    if begun is None:
        shape = TrainShape(
            patch=patch,
            heads=heads,
            hidden_size=hidden_size,
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
            decoder_width=decoder_width,
        )
        network = _network(family, size, shape)
    else:
        network, size = begun.config, begun.size
    precision, why = _precision(precision, place)
    spec = TrainSpec(
        network=network,
        total_images=images or (SCRATCH_IMAGES if begun is None else finetuning.IMAGES),
        batch_size=batch_size,
        learning_rate=(SCRATCH_RATE if begun is None else finetuning.RATE) if learning_rate is None else learning_rate,
        ema_decay=ema_decay,
        label_dropout=label_dropout,
        flip=flip,
        seed=seed,
        precision=precision,
        start=begun.identity if begun else None,
        widths=begun.widths if begun else (),
        target=begun.target if begun else None,
    )
    _check_memory(spec, size, place)
    state = out / "state.safetensors"
    check_writable(state)
    if state.exists():
        check_continues(state, spec)

    say(f"Reading {data} …")
    with stages() as on_stage:
        dataset = load_images(data, size=size, split=split, on_stage=on_stage)
    for line in dataset.lines:
        say(line)
    held_out = None
    if begun is None:
        spec = replace(spec, network=replace(network, num_classes=len(dataset.class_names)))
    else:
        dataset, note = under_labels_of(dataset, begun.model)
        if note is not None:
            say(note)
        dataset, held_out = divided(dataset)
    with making(state, say):
        trainer = Trainer(spec, dataset, out, place, compiled=compile, start=begun.model if begun else None)
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        say(f"{parameters:,} parameters, {precision}{why}, {use_threads(threads, measure=place.type == 'cpu')}")
        if trainer.finished:
            say(f"Trained to its end already, which {state} holds; more --images extend it")
        elif trainer.step:
            say(f"Going on at step {trainer.step:,} of {spec.num_steps:,}, which {state} holds")
        with keeping(lambda: f"The same command goes on from the last save in {state}."):
            with stoppable() as asked, watched(spec) as report:
                trainer.run(save_every=save_every, report=report, stop=lambda: asked() is not None)
            if (number := asked()) is not None and not trainer.finished:
                say(f"Step {trainer.step:,} of {spec.num_steps:,} is saved.")
                raise KeyboardInterrupt(number)
        seen = [step * batch_size for step, _ in trainer.history]
        curve = loss_curve(seen, [loss for _, loss in trainer.history])
        write_atomic(out / "loss.svg", curve.encode())
        path = write_release(trainer.state_path, out / "model.safetensors", latent_shape=(3, size, size))
    told = {"model": str(path), "images": spec.num_steps * batch_size, "loss": trainer.history[-1][1]}
    if trainer.routers is not None:
        write_atomic(out / "routers.svg", finetuning.routed_plot(path, trainer.average).encode())
    if begun is not None and held_out is not None:
        table, told["held_out"] = finetuning.held_out_table(begun, path, held_out, batch_size=batch_size, device=place)
        if not json:
            show(table)
    emit(
        told,
        as_json=json,
        text=f"Trained on {spec.num_steps * batch_size:,} images, loss {trainer.history[-1][1]:.4f} → {path}\n"
        f"Next: ddt-accel optimize --quick --model {shlex.quote(str(path))}",
    )


def _network(family: str | None, size: int, shape: TrainShape) -> TrainableConfig:
    """The network for one class: how many there are, the pictures say."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.networks.families import trainable

    if size % shape.patch:
        raise ConfigError(f"--size is {size} and --patch {shape.patch}; give a --size that is a multiple of --patch.")
    if shape.hidden_size % (4 * shape.heads):
        raise ConfigError(
            f"--hidden-size is {shape.hidden_size} and --heads {shape.heads}; give a --hidden-size that is a multiple "
            f"of {4 * shape.heads}, four for each head."
        )
    return trainable(family, shape)


def _precision(asked: str, device: torch.device) -> tuple[str, str]:
    """The precision, and why, where it is chosen here."""
    from ddt_accel.networks.device import bf16_gain, supports_bf16

    if asked != "auto":
        return asked, ""
    fast = supports_bf16(device)
    if device.type == "cuda":
        return ("bf16", "") if fast else ("fp32", " (this GPU does not multiply bf16)")
    if fast:
        return "bf16", f" (multiplied {bf16_gain():.1f} times as fast as fp32 here)"
    return "fp32", f" (bf16 is multiplied {1 / max(bf16_gain(), 1e-3):.1f} times as slowly here)"


def _check_memory(spec: TrainSpec, size: int, device: torch.device) -> None:
    """Refuses a step that takes more memory than there is, as far as that is certain."""
    import torch

    from ddt_accel.errors import ConfigError
    from ddt_accel.networks.device import memory_of
    from ddt_accel.networks.families import build

    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build(spec.network).parameters())
    # Weights, average, two moments and gradients; of the activations, in 16 bits, no more than what every block keeps.
    tokens = spec.network.num_tokens((3, size, size))
    activations = 2 * tokens * spec.network.kept_values
    needed = 20 * parameters + spec.batch_size * (activations + 4 * 3 * size**2)
    if needed > memory_of(device):
        raise ConfigError(
            f"A step of {spec.batch_size} images of {size} × {size} pixels, {tokens:,} tokens each, through "
            f"{parameters:,} parameters takes at least {needed / 1e9:,.0f} GB, and there are "
            f"{memory_of(device) / 1e9:,.0f} GB; choose a smaller --batch-size, --size or --hidden-size, or a larger "
            "--patch."
        )
