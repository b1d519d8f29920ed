"""The shape of a DDT, under the names of the published configuration files, and where its weights came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ddt_accel.errors import ConfigError
from ddt_accel.spec import is_whole


@dataclass(frozen=True, kw_only=True)
class DDTConfig:
    """The `init_args` of the published YAML; `num_groups` is the number of attention heads."""

    in_channels: int
    patch_size: int
    num_groups: int
    hidden_size: int
    num_blocks: int
    num_encoder_blocks: int
    num_classes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not is_whole(value) or value < 1:
                raise ConfigError(f"{field.name} is {value!r}; give a whole number of at least 1.")
            object.__setattr__(self, field.name, int(value))
        if self.hidden_size % (4 * self.num_groups):
            raise ConfigError(
                f"hidden_size {self.hidden_size} over num_groups {self.num_groups} heads leaves a head size that is "
                "not a multiple of 4, which the 2-D rotary embedding needs."
            )
        if self.num_encoder_blocks >= self.num_blocks:
            raise ConfigError(
                f"num_encoder_blocks is {self.num_encoder_blocks} of {self.num_blocks} blocks; the decoder needs at "
                "least one."
            )

    @property
    def num_decoder_blocks(self) -> int:
        return self.num_blocks - self.num_encoder_blocks

    @property
    def modulation_size(self) -> int:
        """The number of modulation values per token: six vectors a decoder block, two for the final layer."""
        return sum(self.modulation_widths)

    @property
    def modulation_widths(self) -> tuple[int, ...]:
        """The number of each decoder block, and of the final layer."""
        return (*(6 * self.hidden_size,) * self.num_decoder_blocks, 2 * self.hidden_size)

    def num_tokens(self, latent_shape: tuple[int, int, int]) -> int:
        """L for latents [C, H, W]; raises ConfigError where the patches do not fit."""
        channels, height, width = latent_shape
        if (
            channels != self.in_channels
            or min(height, width) < 1
            or height % self.patch_size
            or width % self.patch_size
        ):
            raise ConfigError(
                f"Latents of shape {list(latent_shape)} do not fit {self.in_channels} channels in patches of "
                f"{self.patch_size} × {self.patch_size}."
            )
        return (height // self.patch_size) * (width // self.patch_size)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DDTConfig:
        """Takes the seven settings from a mapping with the published names; others in it are training matters.

        Whole numbers may be written as text, as configuration files do.
        """
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise ConfigError(f"The configuration lacks {', '.join(missing)}.")
        return cls(**{field.name: _number(values[field.name]) for field in fields(cls)})


def _number(value: Any) -> Any:
    """Text that is a whole number as that number; anything else as it is, for the settings to check."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\s*\+?[0-9]{1,18}\s*", value) else value


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a network's weights came from."""

    name: str
    sha256: str
    latent_shape: tuple[int, int, int] | None
    class_names: tuple[str, ...] | None
