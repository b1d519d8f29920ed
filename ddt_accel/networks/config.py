"""What is known of a split network beside its weights: its sizes, its costs, and where it came from.

Each family has its own settings, under its published names; everything outside `networks/` sees `SplitConfig` alone.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

from ddt_accel.errors import ConfigError
from ddt_accel.networks.routes import Route, checked_routes
from ddt_accel.spec import is_whole

LatentShape = tuple[int, int, int]
UNKNOWN = "unknown"  # what stands for the checkpoint's SHA-256 of a network without a source


@dataclass(frozen=True, kw_only=True)
class MultiplyAdds:
    """Of one image in one branch, in matrix products alone.

    `encoder` ends with the state, `modulations` is the affine map of it, `decoder` what remains of the decoder under
    modulations that are there already.
    """

    encoder: float
    modulations: float
    decoder: float


@dataclass(frozen=True, kw_only=True)
class TrainShape:
    """The network that `train` is asked for, in terms that all families share."""

    patch: int
    heads: int
    hidden_size: int
    encoder_blocks: int
    decoder_blocks: int
    decoder_width: int | None


class SplitConfig(Protocol):
    """A split network's settings, whatever its family.

    Modulations are what the decoder reads of the state, an affine map of it: in DDT and RAE shifts, scales and gates;
    in PixNerd the weights of the network that draws one patch, which implicit representations call so, too (Dupont et
    al., 2022, arXiv 2201.12204).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    family: ClassVar[str]

    @property
    def in_channels(self) -> int:
        """C of latents [C, H, W]."""

    @property
    def num_classes(self) -> int:
        """Labels are 0 … num_classes − 1."""

    @property
    def null_label(self) -> int | None:
        """The label of the unconditional branch; None where the network was trained without one."""

    @property
    def state_size(self) -> int:
        """D of encoder states [B, L, D]."""

    @property
    def modulation_size(self) -> int:
        """M of modulations [B, L, M]."""

    @property
    def modulation_widths(self) -> tuple[int, ...]:
        """The parts of M, one for each of the decoder's layers that read any, in order."""

    @property
    def fixed_shape(self) -> LatentShape | None:
        """The only latents that the network takes, where it is bound to some."""

    @property
    def pixel_space(self) -> bool:
        """Whether latents are pictures in −1 … 1."""

    @property
    def essence(self) -> dict[str, Any]:
        """What of the settings makes a difference to what the network computes: part of its identity."""

    @property
    def description(self) -> str:
        """For people: blocks, widths, heads, patches."""

    def num_tokens(self, latent_shape: LatentShape) -> int:
        """L for latents [C, H, W]; raises ConfigError where they do not fit the network."""

    def multiply_adds(self, latent_shape: LatentShape) -> MultiplyAdds:
        """Raises ConfigError as `num_tokens` does."""


class TrainableConfig(SplitConfig, Protocol):
    """Settings of a family whose networks `train` trains on pictures; `for_pictures(shape)` makes them."""

    @property
    def train_shape(self) -> TrainShape:
        """How `train` is asked for such a network."""

    @property
    def kept_values(self) -> int:
        """Numbers a token that a training step keeps, at least."""


class ConditionConfig:
    """What follows in the same way from the settings of all networks with DDT's condition encoder."""

    in_channels: int
    patch_size: int
    num_groups: int  # attention heads of a complete block
    hidden_size: int
    num_classes: int
    block_heads: tuple[int, ...] | None  # of each transformer block, where they are narrow
    block_channels: tuple[int, ...] | None
    block_routes: tuple[Route, ...] | None  # of a complete network with routers

    @property
    @abstractmethod
    def modulation_widths(self) -> tuple[int, ...]:
        """See `SplitConfig`."""

    @property
    def null_label(self) -> int:
        return self.num_classes

    @property
    def state_size(self) -> int:
        return self.hidden_size

    @property
    def modulation_size(self) -> int:
        return sum(self.modulation_widths)

    @property
    def fixed_shape(self) -> None:
        return None

    @property
    def pixel_space(self) -> bool:
        return self.in_channels == 3

    def num_tokens(self, latent_shape: LatentShape) -> int:
        return count_patches(latent_shape, self.in_channels, self.patch_size)

    @property
    def head_size(self) -> int:
        """d of every head, also where a block has fewer of them."""
        return self.hidden_size // self.num_groups

    @property
    @abstractmethod
    def transformer_blocks(self) -> int:
        """How many blocks have heads and an MLP, the encoder's first."""

    @property
    @abstractmethod
    def encoder_blocks(self) -> int:
        """How many of these are the encoder's."""

    @property
    def heads(self) -> tuple[int, ...]:
        """Of each transformer block."""
        return self.block_heads or (self.num_groups,) * self.transformer_blocks

    @property
    def channels(self) -> tuple[int, ...]:
        """Hidden features of each transformer block's MLP."""
        return self.block_channels or (swiglu_width(self.hidden_size),) * self.transformer_blocks

    @property
    def complete(self) -> bool:
        """Whether no block lacks a head or a channel."""
        return self.block_heads is None and self.block_channels is None

    @property
    def blocks_said(self) -> str:
        """For people: what narrow blocks have, with a comma before it; nothing of complete ones."""
        if self.complete:
            return ""
        heads, channels = (
            str(low) if low == high else f"{low} to {high}"
            for low, high in ((min(numbers), max(numbers)) for numbers in (self.heads, self.channels))
        )
        return f", of which blocks have {heads}, and {channels} channels in their MLPs"

    def narrowed(self, heads: Sequence[int], channels: Sequence[int]) -> Self:
        """The same network with so many heads and hidden features in each transformer block."""
        # This class is no dataclass itself, and all that are made of it are.
        return replace(  # type: ignore[type-var]
            self, block_heads=tuple(heads), block_channels=tuple(channels), block_routes=None
        )

    def block_costs(self, tokens: int) -> list[tuple[float, float]]:
        """Multiply-adds of each transformer block without its modulations: in attention, and in the MLP."""
        width = self.hidden_size
        return [
            (tokens * (4 * width + 2 * tokens) * heads * self.head_size, tokens * 3 * width * channels)
            for heads, channels in zip(self.heads, self.channels, strict=True)
        ]

    def blocks_multiply_adds(self, tokens: int, blocks: slice) -> float:
        """Of some transformer blocks, without their modulations."""
        return sum(attention + mlp for attention, mlp in self.block_costs(tokens)[blocks])

    def encoder_multiply_adds(self, tokens: int, blocks: int) -> float:
        """Of the encoder with its embedder and the condition."""
        width = self.hidden_size
        patch = tokens * self.in_channels * self.patch_size**2 * width
        condition = width**2 + 256 * width + blocks * 6 * width**2
        return self.blocks_multiply_adds(tokens, slice(blocks)) + patch + condition

    @property
    def block_values(self) -> int:
        """Numbers a token that a training step keeps of transformer blocks, at least: of each its input, queries, keys
        and values, and the two inner products of its MLP."""
        queries_and_more = 3 * sum(self.heads) * self.head_size
        return self.transformer_blocks * self.hidden_size + queries_and_more + 2 * sum(self.channels)

    def check_blocks(self) -> None:
        """Raises ConfigError where narrow blocks are none that the network can have; lists become tuples."""
        complete = {"block_heads": self.num_groups, "block_channels": swiglu_width(self.hidden_size)}
        for name, most in complete.items():
            given = getattr(self, name)
            if given is None:
                continue
            whole = isinstance(given, list | tuple) and all(is_whole(one) and 1 <= one <= most for one in given)
            if not whole or len(given) != self.transformer_blocks:
                raise ConfigError(
                    f"{name} is {given!r}; give {self.transformer_blocks} whole numbers from 1 to {most}, one for each "
                    "block, or leave it out."
                )
            object.__setattr__(self, name, tuple(int(one) for one in given))
        if self.block_routes is not None:
            if not self.complete:
                raise ConfigError("A network with routes is complete; leave block_heads and block_channels out.")
            routes = checked_routes(self.block_routes, self.transformer_blocks, self.num_groups)
            object.__setattr__(self, "block_routes", routes)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a network's weights came from; `widths` are the nested ones that it was trained at, from 1 down."""

    name: str
    sha256: str
    latent_shape: LatentShape | None
    class_names: tuple[str, ...] | None
    widths: tuple[float, ...] = ()


C = TypeVar("C")


def stated(config: Any) -> dict[str, Any]:
    """A family's settings by name, without those that are left open, which earlier files do not have."""
    return {name: value for name, value in asdict(config).items() if value is not None}


def from_mapping(kind: type[C], values: Mapping[str, Any]) -> C:
    """The settings of a family from a mapping with their published names; others in it are training matters.

    Whole numbers may be written as text, as configuration files do. Raises ConfigError for what lacks or is impossible.
    """
    known = fields(kind)  # type: ignore[arg-type]
    missing = [field.name for field in known if field.name not in values and field.default is MISSING]
    if missing:
        raise ConfigError(f"The configuration lacks {', '.join(missing)}.")
    return kind(**{field.name: number(values[field.name]) for field in known if field.name in values})


def number(value: Any) -> Any:
    """Text that is a whole number as that number; anything else as it is, for the settings to check."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*\+?[0-9]{1,18}\s*", value) else value


def check_whole(config: Any, names: list[str]) -> None:
    """Raises ConfigError unless all of these settings are whole numbers of at least 1, which they become."""
    for name in names:
        value = getattr(config, name)
        if not is_whole(value) or value < 1:
            raise ConfigError(f"{name} is {value!r}; give a whole number of at least 1.")
        object.__setattr__(config, name, int(value))


def check_heads(width: int, heads: int, names: tuple[str, str]) -> None:
    """Raises ConfigError where a head's size is none that the rotary embedding of two axes can turn."""
    if width % (4 * heads):
        raise ConfigError(
            f"{names[0]} {width} over {names[1]} {heads} heads leaves a head size that is not a multiple of 4, which "
            "the 2-D rotary embedding needs."
        )


def count_patches(latent_shape: LatentShape, channels: int, patch: int) -> int:
    """L of latents [C, H, W] in square patches; raises ConfigError where these do not fit."""
    given, height, width = latent_shape
    if given != channels or min(height, width) < 1 or height % patch or width % patch:
        raise ConfigError(
            f"Latents of shape {list(latent_shape)} do not fit {channels} channels in patches of {patch} × {patch}."
        )
    return (height // patch) * (width // patch)


def swiglu_width(width: int, ratio: float = 4.0) -> int:
    """Hidden features of SwiGLU."""
    return int(2 * int(ratio * width) / 3)


def block_multiply_adds(tokens: int, width: int, *, matrices: float) -> float:
    """Of a transformer block without its modulations: attention, and an MLP of `matrices` weights in all."""
    return tokens * (4 * width**2 + matrices + 2 * tokens * width)
