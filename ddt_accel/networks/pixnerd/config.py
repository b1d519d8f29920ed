"""The settings of a class-conditional PixNerd, under the names of the published configuration files."""

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
class PixNerdConfig(ConditionConfig):
    """The `init_args` of the published YAML.

    `num_groups` is the number of attention heads, `num_cond_blocks` the encoder's share of all blocks; `hidden_size_x`
    is the width h of the network that draws one patch, `nerf_mlpratio` the ratio r of its hidden features to that. A
    network of which parts were left out says how many heads and MLP channels each encoder block has, and one with
    routers which of them run when.
    """

    family: ClassVar[str] = "pixnerd"

    in_channels: int
    patch_size: int
    num_groups: int
    hidden_size: int
    hidden_size_x: int
    num_blocks: int
    num_cond_blocks: int
    nerf_mlpratio: int = 4
    num_classes: int
    block_heads: tuple[int, ...] | None = None
    block_channels: tuple[int, ...] | None = None
    block_routes: tuple[Route, ...] | None = None

    def __post_init__(self) -> None:
        check_whole(self, [field.name for field in fields(self) if not field.name.startswith("block_")])
        check_heads(self.hidden_size, self.num_groups, ("hidden_size", "num_groups"))
        if self.num_cond_blocks >= self.num_blocks:
            raise ConfigError(
                f"num_cond_blocks is {self.num_cond_blocks} of {self.num_blocks} blocks; the decoder needs at least "
                "one."
            )
        self.check_blocks()

    @classmethod
    def tells(cls, values: Mapping[str, Any]) -> bool:
        """Whether settings have a name that only this family gives one."""
        return "num_cond_blocks" in values

    @classmethod
    def for_pictures(cls, shape: TrainShape) -> PixNerdConfig:
        """What `train` makes of its options, for one class; pixels are an eighth as wide as tokens by default."""
        return cls(
            in_channels=3,
            patch_size=shape.patch,
            num_groups=shape.heads,
            hidden_size=shape.hidden_size,
            hidden_size_x=shape.decoder_width or max(1, shape.hidden_size // 8),
            num_blocks=shape.encoder_blocks + shape.decoder_blocks,
            num_cond_blocks=shape.encoder_blocks,
            nerf_mlpratio=2,
            num_classes=1,
        )

    @property
    def train_shape(self) -> TrainShape:
        """The inverse of `for_pictures`."""
        return TrainShape(
            patch=self.patch_size,
            heads=self.num_groups,
            hidden_size=self.hidden_size,
            encoder_blocks=self.num_cond_blocks,
            decoder_blocks=self.num_decoder_blocks,
            decoder_width=self.hidden_size_x,
        )

    @property
    def num_decoder_blocks(self) -> int:
        return self.num_blocks - self.num_cond_blocks

    @property
    def transformer_blocks(self) -> int:
        return self.num_cond_blocks

    @property
    def encoder_blocks(self) -> int:
        return self.num_cond_blocks

    @property
    def modulation_widths(self) -> tuple[int, ...]:
        """Both weight matrices of each decoder block."""
        return (2 * self.nerf_mlpratio * self.hidden_size_x**2,) * self.num_decoder_blocks

    @property
    def essence(self) -> dict[str, Any]:
        return {"family": self.family, **stated(self)}

    @property
    def description(self) -> str:
        return (
            f"{self.num_cond_blocks} encoder blocks of width {self.hidden_size}, {self.num_groups} heads"
            f"{self.blocks_said}, and {self.num_decoder_blocks} decoder blocks of width {self.hidden_size_x} a pixel, "
            f"patches of {self.patch_size} × {self.patch_size}"
        )

    @property
    def kept_values(self) -> int:
        """Of each decoder block its weights, and its pixels' features, beside what encoder blocks keep."""
        pixels = self.patch_size**2 * (1 + self.nerf_mlpratio) * self.hidden_size_x
        return self.block_values + self.modulation_size + self.num_decoder_blocks * pixels

    def multiply_adds(self, latent_shape: LatentShape) -> MultiplyAdds:
        """At PixNerd-XL/16 and 256 px: encoder 110.4 G, modulations 19.3 G, decoder 4.32 G."""
        tokens = self.num_tokens(latent_shape)
        pixels = tokens * self.patch_size**2
        # The waves' share of the embedder is a table; the products of a pixel are those of its patch's weights.
        per_pixel = 2 * self.in_channels * self.hidden_size_x + self.modulation_size
        return MultiplyAdds(
            encoder=self.encoder_multiply_adds(tokens, self.num_cond_blocks),
            modulations=tokens * self.hidden_size * self.modulation_size,
            decoder=pixels * per_pixel,
        )


CONFIG = PixNerdConfig
