"""What fine-tuning begins with: a checkpoint, pictures under its labels, and some of them kept out."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import ConditionConfig, TrainableConfig
from ddt_accel.networks.dynamic.slicing import narrowable, ranked
from ddt_accel.networks.dynamic.widths import widths_to
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.training.account import folded
from ddt_accel.training.images import ImageSet

HELD_OUT = 16  # one picture in so many, and
MOST_HELD_OUT = 512


def picture_size(model: SplitNetwork, given: int | None) -> int:
    """The side of the pictures that a network draws.

    `given` is what somebody asks for. Raises ConfigError for networks that draw latents, and for another size.
    """
    if not model.config.pixel_space:
        raise ConfigError(
            f"--from is a network that draws latents of {model.config.in_channels} channels; give one that draws "
            "pictures itself."
        )
    _, rows, columns = latent_shape_of(model, None if given is None else (3, given, given))
    known = model.source.latent_shape if model.source else None
    if given is not None and known is not None and known != (3, given, given):
        raise ConfigError(f"--size is {given}, and --from draws pictures of {known[2]} × {known[1]}; leave --size out.")
    if rows != columns:
        raise ConfigError(f"--from draws pictures of {columns} × {rows}; give one that draws squares.")
    return rows


def alone(model: SplitNetwork) -> SplitNetwork:
    """The complete network as such, without what an earlier fine-tuning learned of widths."""
    if isinstance(model.config, ConditionConfig):
        model.config = replace(model.config, block_routes=None)
    if model.source is not None:
        model.source = replace(model.source, widths=())
    return model


def nested(model: SplitNetwork, narrowest: float) -> tuple[SplitNetwork, tuple[float, ...]]:
    """The same network with its heads and channels ranked, and the widths that it is to learn.

    Raises ConfigError for one with other blocks, with too few heads, or that is narrow already.
    """
    order = in_order(model, narrowest)
    return order, widths_to(narrowable(model.config), narrowest)


def in_order(model: SplitNetwork, target: float) -> SplitNetwork:
    """The same network with its heads and channels ranked, so that what always runs is the first.

    Raises ConfigError for one with other blocks, with too few heads, or that is narrow already, and for a `target`
    below what always runs.
    """
    config = narrowable(model.config)
    if not 0 < target < 1:
        raise ConfigError(f"--target is {target:g}; give a share between 0 and 1.")
    if not config.complete:
        raise ConfigError("--from is a narrow network already; give the complete one that it came from.")
    if config.num_groups < 2:
        raise ConfigError("--dynamic leaves heads out, and --from has one; give a network with at least two.")
    least = 1 / config.num_groups
    if target < least:
        raise ConfigError(
            f"--target is {target:g}, and one of {config.num_groups} heads, which always runs, is {least:.3g} of them; "
            "give at least that."
        )
    order = ranked(model)
    order.source = model.source
    return order


def trainable_config(model: SplitNetwork) -> TrainableConfig:
    """The settings of a network that can be trained on."""
    return cast(TrainableConfig, model.config)


def under_labels_of(data: ImageSet, model: SplitNetwork) -> tuple[ImageSet, str | None]:
    """The pictures under a network's labels, and what to say where these are not told by name.

    Classes are the network's of the same names where it has them all; where it has none of them they count in order,
    and their names replace the network's. Raises ConfigError where there are too many, or only some have a name there.
    """
    names, count = (model.source.class_names if model.source else None) or (), model.config.num_classes
    known = [name for name in data.class_names if name in names]
    if len(known) == len(data.class_names):
        place = np.array([names.index(name) for name in data.class_names])
        return replace(data, labels=place[data.labels], class_names=names), None
    if known:
        lacking = [name for name in data.class_names if name not in names]
        raise ConfigError(
            f"The pictures' classes {folded(lacking)} are none of the network's ({folded(names)}), and others are; "
            "name all of them as the network does, or none."
        )
    if len(data.class_names) > count:
        raise ConfigError(
            f"The pictures have {len(data.class_names)} classes and the network has {count}; give at most as many."
        )
    rest = names[len(data.class_names) :] or tuple(f"class {index}" for index in range(len(data.class_names), count))
    note = f"The network's first {len(data.class_names)} of {count} classes are taken for these, in this order"
    return replace(data, class_names=(*data.class_names, *rest)), note


def divided(data: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The pictures to train on and those kept out: one in 16, at most 512, the same in every run.

    Raises ConfigError where there is only one.
    """
    total = len(data.images)
    if total < 2:
        raise ConfigError("There is one picture, and fine-tuning keeps one out to measure its loss; give more.")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).numpy()
    count = min(MOST_HELD_OUT, -(-total // HELD_OUT))
    kept, out = np.sort(order[count:]), np.sort(order[:count])
    first, second = (replace(data, images=data.images[one], labels=data.labels[one]) for one in (kept, out))
    return first, second
