"""An RAE decoder as it is stored, in diffusers' layout or the published one: weights, sizes, normalisation.

Decoding is `z = latents · std + mean` with `std = sqrt(var + 1e-5)` [C, n, n], the decoder over the n² tokens of z, and
`pixels · image_std + image_mean`, nominally in [0, 1].
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError
from ddt_accel.networks.contents import Contents, Entry, open_checkpoint
from ddt_accel.networks.decoder_files import DecoderFiles, decoder_prefix, is_statistics

_log = logging.getLogger(__name__)

EPS = 1e-5  # under the root of the published normalisation
POSITIONS, CLASS_TOKEN = "decoder_pos_embed", "trainable_cls_token"
# Published names, which are those of transformers, and diffusers' names.
_RENAMED = (
    ("attention.attention.query.", "attention.to_q."),
    ("attention.attention.key.", "attention.to_k."),
    ("attention.attention.value.", "attention.to_v."),
    ("attention.output.dense.", "attention.to_out.0."),
)
_FIELDS = {"width": "decoder_hidden_size", "inner": "decoder_intermediate_size", "depth": "decoder_num_hidden_layers"}
# Attention heads of the published ViTB, ViTL and ViTXL by width, whose configurations do not lie beside the weights.
_HEADS = {768: 12, 1024: 16, 1152: 16}
# Pixels as the encoders take them: DINOv2 and MAE those of ImageNet, SigLIP its own.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class StoredDecoder:
    """`tensors` have diffusers' names; the position table [1, n² + 1, width] is apart, None where the file has none."""

    tensors: dict[str, Tensor]
    positions: Tensor | None
    channels: int
    side: int
    patch_size: int
    width: int
    inner: int
    depth: int
    heads: int
    activation: str
    norm_eps: float
    scale: float  # by which diffusers divides latents first
    mean: Tensor
    std: Tensor
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side


def read_decoder(files: DecoderFiles) -> StoredDecoder:
    """Raises CheckpointError where a part is missing or does not fit the others; nothing in a file is executed.

    Where there are no statistics of the latents, these are taken as they come, and a warning is logged.
    """
    assert files.weights is not None  # as the kind is RAE's
    contents = open_checkpoint(files.weights)
    prefix = decoder_prefix(contents)
    if prefix is None:
        raise CheckpointError(
            f"{files.weights} holds no decoder of latents: it has no decoder_embed, as RAE's decoders have it."
        )
    entries = _named(contents, prefix)
    sizes = _sizes(entries, files)
    positions = entries.pop(POSITIONS, None)
    side = _side(positions, sizes["width"], files)
    statistics, side = _statistics(files, contents, sizes["channels"], side)
    image_mean, image_std = _image(files, contents)
    return StoredDecoder(
        tensors={name: _copy(entry) for name, entry in entries.items()},
        positions=_copy(positions) if positions else None,
        side=side,
        activation=str(files.settings.get("hidden_act", "gelu")),
        norm_eps=_number(files, "layer_norm_eps", 1e-12),
        scale=_number(files, "scaling_factor", 1.0),
        mean=statistics[0],
        std=statistics[1],
        image_mean=image_mean,
        image_std=image_std,
        **sizes,
    )


def _named(contents: Contents, prefix: str) -> dict[str, Entry]:
    """The decoder's tensors by diffusers' names; what else a training file holds is none of its."""
    entries = {}
    for keys, entry in contents.tensors:
        name = ".".join(keys)
        if name.startswith(prefix + "decoder_") or name == prefix + CLASS_TOKEN:
            name = name.removeprefix(prefix)
            for published, ours in _RENAMED:
                name = name.replace(published, ours)
            entries[name] = entry
    return entries


def _sizes(entries: dict[str, Entry], files: DecoderFiles) -> dict[str, int]:
    """Sizes as the weights have them, which the configuration may confirm; the number of heads only it can say."""
    shapes = {name: entry.shape for name, entry in entries.items()}
    blocks = {found[1] for name in shapes if (found := re.match(r"decoder_layers\.(\d+)\.", name))}
    try:
        width, channels = shapes["decoder_embed.weight"]
        (outputs,) = shapes["decoder_pred.bias"]
        inner = shapes["decoder_layers.0.intermediate.dense.bias"][0]
    except (KeyError, ValueError):
        raise CheckpointError(
            f"{files.weights} is no whole decoder: decoder_embed, decoder_pred or the first of its decoder_layers is "
            "missing or odd."
        ) from None
    patch_size = math.isqrt(outputs // 3)
    if 3 * patch_size**2 != outputs:
        raise CheckpointError(f"{files.weights} draws {outputs} values a token, which is no square patch.")
    if files.patch_size not in (None, patch_size):
        raise CheckpointError(
            f"{files.source} says decoder_patch_size {files.patch_size}, and {files.weights} draws patches of "
            f"{patch_size}; one of them belongs to another decoder."
        )
    sizes = {"width": width, "inner": inner, "depth": len(blocks)}
    for size, name in _FIELDS.items():
        if files.settings.get(name, sizes[size]) != sizes[size]:
            raise CheckpointError(
                f"The configuration of {files.source} says {name} {files.settings[name]}, and its weights have "
                f"{sizes[size]}; one of them belongs to another decoder."
            )
    heads = files.settings.get("decoder_num_attention_heads", _HEADS.get(width))
    if heads is None:
        raise CheckpointError(
            f"Nothing says how many attention heads {files.weights} has; put its config.json, with "
            "decoder_num_attention_heads, beside it or into decoder_config/ there."
        )
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(f"{files.source} says {heads!r} attention heads, which a width of {width} does not have.")
    return {**sizes, "channels": channels, "patch_size": patch_size, "heads": heads}


def _side(positions: Entry | None, width: int, files: DecoderFiles) -> int | None:
    """n of [C, n, n] by the position table or diffusers' configuration; None where they do not say."""
    if positions is not None:
        places = positions.shape[1] - 1 if len(positions.shape) == 3 else 0
        side = math.isqrt(max(places, 0))
        if positions.shape != (1, side**2 + 1, width) or not side:
            raise CheckpointError(
                f"{files.weights} has {POSITIONS} of shape {list(positions.shape)}; [1, n² + 1, {width}] is expected."
            )
        return side
    size, patch = (files.settings.get(name) for name in ("encoder_input_size", "encoder_patch_size"))
    return size // patch if isinstance(size, int) and isinstance(patch, int) and patch > 0 else None


def _statistics(
    files: DecoderFiles, contents: Contents, channels: int, side: int | None
) -> tuple[tuple[Tensor, Tensor], int]:
    """Mean and standard deviation of latents, and n, which they may be the only ones to say."""
    others = []
    for path in files.statistics:
        told = open_checkpoint(path)
        if not is_statistics(told):
            raise CheckpointError(f"{path} holds no statistics of latents, which are mean and var.")
        entries = {".".join(keys): entry for keys, entry in told.tensors}
        shapes = [entry.shape for entry in entries.values()]
        n = side or (shapes[0][-1] if len(shapes[0]) > 2 else None)
        if n and all(_fits(shape, (channels, n, n)) for shape in shapes):
            return _published(entries, path), n
        others.append(f"{path} has {' and '.join(str(list(shape)) for shape in shapes)}")
    if others:
        there = f"[{channels}, {side or 'n'}, {side or 'n'}]"
        raise CheckpointError(f"The decoder's latents are {there}, and their statistics are of others: {others[0]}.")
    if side is None:
        raise CheckpointError(
            f"Nothing says how many tokens {files.weights} decodes: it has no {POSITIONS}, and there is no stat.pt."
        )
    return _of_diffusers(files, contents, (channels, side, side)), side


def _published(entries: dict[str, Entry], path: Path) -> tuple[Tensor, Tensor]:
    values = {"mean": torch.zeros(1), "var": torch.ones(1)}
    for name, value in list(values.items()):
        if name in entries:
            values[name] = _copy(entries[name])
        else:
            _log.warning("%s has no %s of latents; going on with %g.", path, name, value.item())
    return _checked(values["mean"], torch.sqrt(values["var"] + EPS), path)


def _of_diffusers(files: DecoderFiles, contents: Contents, latents: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """From the weights, or else the configuration; its deviation is what is to be multiplied by, without another 1e-5.

    0 and 1 are diffusers' stand-ins for none.
    """
    stored = {".".join(keys): entry for keys, entry in contents.tensors}
    values = {}
    for name, default in (("latents_mean", torch.zeros(1)), ("latents_std", torch.ones(1))):
        kept, told = stored.get(f"_{name}"), files.settings.get(name)
        try:
            value = _copy(kept) if kept else default if told is None else torch.tensor(told, dtype=torch.float32)
        except (TypeError, ValueError):
            raise CheckpointError(f"{files.source} says {name}, and no numbers of one shape with it.") from None
        if not _fits(tuple(value.shape), latents):
            raise CheckpointError(
                f"The decoder's latents are {list(latents)}, and {files.source} has {name} of shape "
                f"{list(value.shape)}."
            )
        values[name] = value
    if torch.equal(values["latents_mean"], torch.zeros(1)) and torch.equal(values["latents_std"], torch.ones(1)):
        _log.warning(
            "There are no statistics (stat.pt) of the latents of %s; going on with mean 0 and variance 1.", files.source
        )
    return _checked(values["latents_mean"], values["latents_std"], files.weights)


def _copy(entry: Entry) -> Tensor:
    """In memory of its own: what is read lies in the file, which may be written anew."""
    return entry.read().to(torch.float32, copy=True)


def _fits(shape: tuple[int, ...], latents: tuple[int, int, int]) -> bool:
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    own = (1,) * (3 - len(shape)) + shape
    return len(own) == 3 and all(size in (1, full) for size, full in zip(own, latents, strict=True))


def _checked(mean: Tensor, std: Tensor, path: Path | None) -> tuple[Tensor, Tensor]:
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise CheckpointError(f"{path} is damaged: statistics of latents are not finite, or a variance is negative.")
    return mean, std


def _image(files: DecoderFiles, contents: Contents) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels: of the preprocessor, else of diffusers, else the known ones."""
    stored = {keys[-1]: entry for keys, entry in contents.tensors if keys[-1] in ("encoder_mean", "encoder_std")}
    known = _HALVES if "siglip" in files.encoder.lower() else _IMAGENET
    found = []
    for name, default in zip(("mean", "std"), known, strict=True):
        kept = stored.get(f"encoder_{name}")
        ways = (files.preprocessor.get(f"image_{name}"), _copy(kept).flatten().tolist() if kept else None,
                files.settings.get(f"encoder_norm_{name}"), default)  # fmt: skip
        told = next(way for way in ways if way is not None)
        if not isinstance(told, list | tuple) or len(told) != 3 or not all(map(_is_number, told)):
            raise CheckpointError(f"{files.source} says image_{name} {told!r}; three numbers are expected.")
        found.append(tuple(map(float, told)))
    return found[0], found[1]


def _number(files: DecoderFiles, name: str, default: float) -> float:
    told = files.settings.get(name)
    told = default if told is None else told
    if not _is_number(told) or not told > 0:
        raise CheckpointError(f"{files.source} says {name} {told!r}; a positive number is expected.")
    return float(told)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
