"""`train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddt_accel.cli.console import emit, say
from ddt_accel.cli.options import DeviceOption, JsonOption, check_device


def train(
    data: Annotated[Path, typer.Option(help="Image folder, a zip of one, or an npz with images and labels.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one continues.")],
    images: Annotated[int, typer.Option(help="Images to train on, repeats counted.")] = 4_200_000,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 32,
    split: Annotated[str, typer.Option(help="Which split, where the data has several.")] = "train",
    hidden_size: Annotated[int, typer.Option(help="Width of the network.")] = 128,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    encoder_blocks: Annotated[int, typer.Option(help="Blocks of the condition encoder.")] = 6,
    decoder_blocks: Annotated[int, typer.Option(help="Blocks of the velocity decoder.")] = 2,
    patch: Annotated[int, typer.Option(help="Side of a patch, which becomes one token, in pixels.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    learning_rate: Annotated[
        float, typer.Option(help="AdamW's peak; 500 steps of warm-up, then a cosine to 0.")
    ] = 1.5e-3,
    ema_decay: Annotated[float, typer.Option(help="Of the averaged weights, a step.")] = 0.9995,
    label_dropout: Annotated[float, typer.Option(help="Share of images without their label, for guidance.")] = 0.1,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images; not for text or digits.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the order and the noise.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile; needs a C++ compiler.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between saves, a multiple of 100.")] = 200,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Train a DDT on labelled images in pixel space, by flow matching."""
    import torch

    from ddt_accel.artifacts import check_writable, write_atomic
    from ddt_accel.errors import ConfigError
    from ddt_accel.locks import making
    from ddt_accel.networks.config import DDTConfig
    from ddt_accel.networks.device import supports_bf16
    from ddt_accel.report.figures import loss_curve
    from ddt_accel.training.images import load_images
    from ddt_accel.training.loop import LOG_EVERY, Progress, Trainer, TrainSpec
    from ddt_accel.training.release import write_release

    check_writable(out / "state.safetensors")
    if save_every < 1 or save_every % LOG_EVERY:
        raise ConfigError(f"--save-every is {save_every}; give a multiple of {LOG_EVERY}.")
    target = torch.device(check_device(device))
    if precision == "auto":
        precision = "bf16" if supports_bf16(target) else "fp32"
    say(f"Reading {data} …")
    dataset = load_images(data, size=size, split=split)
    spec = TrainSpec(
        network=DDTConfig(
            in_channels=3,
            patch_size=patch,
            num_groups=heads,
            hidden_size=hidden_size,
            num_blocks=encoder_blocks + decoder_blocks,
            num_encoder_blocks=encoder_blocks,
            num_classes=len(dataset.class_names),
        ),
        total_images=images,
        batch_size=batch_size,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        label_dropout=label_dropout,
        flip=flip,
        seed=seed,
        precision=precision,
    )
    spec.network.num_tokens((3, size, size))
    with making(out / "state.safetensors", say):
        trainer = Trainer(spec, dataset, out, target, compiled=compile)

        def report(progress: Progress) -> None:
            left = (spec.total_images - progress.images) / progress.images_per_second / 60
            say(
                f"step {progress.step}/{spec.num_steps}  {progress.images:,} images  loss {progress.loss:.4f}  "
                f"{progress.images_per_second:.0f} images/s  {left:.0f} min left"
            )

        trainer.run(save_every=save_every, report=report)
        seen = [step * batch_size for step, _ in trainer.history]
        curve = loss_curve(seen, [loss for _, loss in trainer.history])
        write_atomic(out / "loss.svg", curve.encode())
        path = write_release(trainer.state_path, out / "model.safetensors", latent_shape=(3, size, size))
    emit(
        {"model": str(path), "images": spec.num_steps * batch_size, "loss": trainer.history[-1][1]},
        as_json=json,
        text=f"Trained on {spec.num_steps * batch_size:,} images, loss {trainer.history[-1][1]:.4f} → {path}\n"
        f"Next: ddt-accel calibrate --model {path}",
    )
