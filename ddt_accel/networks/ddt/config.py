"""The settings of a DDT, under the names of the published configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import (
    ConditionConfig,
    LatentShape,
    MultiplyAdds,
    TrainShape,
    check_heads,
    check_whole,
    stated,
)
from ddt_accel.networks.routes import Route


@dataclass(frozen=True, kw_only=True)
class DDTConfig(ConditionConfig):
    """The `init_args` of the published YAML; `num_groups` is the number of attention heads.

    A network of which parts were left out says how many heads and MLP channels each block has, and one with routers
    which of them run when.
    """

    family: ClassVar[str] = "ddt"

    in_channels: int
    patch_size: int
    num_groups: int
    hidden_size: int
    num_blocks: int
    num_encoder_blocks: int
    num_classes: int
    block_heads: tuple[int, ...] | None = None
    block_channels: tuple[int, ...] | None = None
    block_routes: tuple[Route, ...] | None = None

    def __post_init__(self) -> None:
        check_whole(self, [field.name for field in fields(self) if not field.name.startswith("block_")])
        check_heads(self.hidden_size, self.num_groups, ("hidden_size", "num_groups"))
        if self.num_encoder_blocks >= self.num_blocks:
            raise ConfigError(
                f"num_encoder_blocks is {self.num_encoder_blocks} of {self.num_blocks} blocks; the decoder needs at "
                "least one."
            )
        self.check_blocks()

    @classmethod
    def tells(cls, values: Mapping[str, Any]) -> bool:
        """Whether settings have a name that only this family gives one."""
        return "num_encoder_blocks" in values

    @classmethod
    def for_pictures(cls, shape: TrainShape) -> DDTConfig:
        """What `train` makes of its options, for one class."""
        if shape.decoder_width not in (None, shape.hidden_size):
            raise ConfigError(
                f"--decoder-width is {shape.decoder_width}, and the decoder of this family is as wide as its encoder, "
                f"{shape.hidden_size}; leave it out."
            )
        return cls(
            in_channels=3,
            patch_size=shape.patch,
            num_groups=shape.heads,
            hidden_size=shape.hidden_size,
            num_blocks=shape.encoder_blocks + shape.decoder_blocks,
            num_encoder_blocks=shape.encoder_blocks,
            num_classes=1,
        )

    @property
    def train_shape(self) -> TrainShape:
        """The inverse of `for_pictures`."""
        return TrainShape(
            patch=self.patch_size,
            heads=self.num_groups,
            hidden_size=self.hidden_size,
            encoder_blocks=self.num_encoder_blocks,
            decoder_blocks=self.num_decoder_blocks,
            decoder_width=None,
        )

    @property
    def num_decoder_blocks(self) -> int:
        return self.num_blocks - self.num_encoder_blocks

    @property
    def transformer_blocks(self) -> int:
        return self.num_blocks

    @property
    def encoder_blocks(self) -> int:
        return self.num_encoder_blocks

    @property
    def modulation_widths(self) -> tuple[int, ...]:
        """Six vectors for each decoder block, two for the final layer."""
        return (*(6 * self.hidden_size,) * self.num_decoder_blocks, 2 * self.hidden_size)

    @property
    def essence(self) -> dict[str, Any]:
        return stated(self)

    @property
    def description(self) -> str:
        return (
            f"{self.num_encoder_blocks} encoder and {self.num_decoder_blocks} decoder blocks of width "
            f"{self.hidden_size}, {self.num_groups} heads{self.blocks_said}, patches of "
            f"{self.patch_size} × {self.patch_size}"
        )

    @property
    def kept_values(self) -> int:
        return self.block_values

    def multiply_adds(self, latent_shape: LatentShape) -> MultiplyAdds:
        """At DDT-XL/2 and 256 px: encoder 93.2 G, modulations 12.9 G, decoder 25.4 G."""
        tokens, width = self.num_tokens(latent_shape), self.hidden_size
        ends = 2 * tokens * self.in_channels * self.patch_size**2 * width
        return MultiplyAdds(
            encoder=self.encoder_multiply_adds(tokens, self.num_encoder_blocks),
            modulations=tokens * width * self.modulation_size,
            decoder=self.blocks_multiply_adds(tokens, slice(self.num_encoder_blocks, None)) + ends,
        )


CONFIG = DDTConfig
