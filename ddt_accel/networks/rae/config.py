"""The settings of RAE's DiT-DH, under the names of the published configuration files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import (
    LatentShape,
    MultiplyAdds,
    block_multiply_adds,
    check_heads,
    check_whole,
    swiglu_width,
)
from ddt_accel.spec import is_whole

# Tables that published files hold and that follow from the settings.
COMPUTED = tuple(f"{part}_feat_rope.freqs_{table}" for part in ("enc", "dec") for table in ("cos", "sin"))
FREQUENCIES = 256  # of the timestep embedding; their sines and cosines go into it


@dataclass(frozen=True, kw_only=True)
class DiTDHConfig:
    """The `stage_2.params` of the published YAML.

    `hidden_size`, `depth` and `num_heads` are those of the encoder and of the decoder; one number of heads is for both.
    `input_size` is the side n of latents [C, n, n].
    """

    family: ClassVar[str] = "rae"

    input_size: int
    patch_size: int | tuple[int, int] = 1
    in_channels: int
    hidden_size: tuple[int, int]
    depth: tuple[int, int]
    num_heads: tuple[int, int]
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    use_qknorm: bool = False
    use_swiglu: bool = True
    use_rope: bool = True
    use_rmsnorm: bool = True
    wo_shift: bool = False
    use_pos_embed: bool = True

    def __post_init__(self) -> None:
        check_whole(self, ["input_size", "in_channels", "num_classes"])
        for name in ("hidden_size", "depth", "num_heads"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        patch = self.patch_size
        if patch not in (1, (1, 1), [1, 1]):
            raise ConfigError(f"patch_size is {patch!r}; the published network works with patches of 1 alone.")
        object.__setattr__(self, "patch_size", 1)
        for name in ("mlp_ratio", "class_dropout_prob"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        if not 0 < self.mlp_ratio <= 64 or int(self.mlp_ratio * min(self.hidden_size)) < 2:
            raise ConfigError(f"mlp_ratio is {self.mlp_ratio}; give a number above 0, such as the published 4.0.")
        if not 0 <= self.class_dropout_prob < 1:
            raise ConfigError(f"class_dropout_prob is {self.class_dropout_prob}; give a number from 0 to below 1.")
        for field in fields(self):
            if field.name.startswith(("use_", "wo_")) and not isinstance(getattr(self, field.name), bool):
                raise ConfigError(f"{field.name} is {getattr(self, field.name)!r}; give true or false.")
        if not self.use_rope or self.wo_shift:
            name, value = ("wo_shift", "true") if self.wo_shift else ("use_rope", "false")
            raise ConfigError(f"{name} is {value}, with which the published network cannot be run either.")
        for width, heads in zip(self.hidden_size, self.num_heads, strict=True):
            check_heads(width, heads, ("hidden_size", "num_heads"))

    @classmethod
    def tells(cls, values: Mapping[str, Any]) -> bool:
        """Whether settings have a name that only this family gives one."""
        return "depth" in values and "input_size" in values

    @property
    def null_label(self) -> int | None:
        return self.num_classes if self.class_dropout_prob > 0 else None

    @property
    def state_size(self) -> int:
        """D₁: what the decoder is affine in lies behind the projector."""
        return self.hidden_size[1]

    @property
    def modulation_size(self) -> int:
        """Six vectors a decoder block, two for the final layer."""
        return sum(self.modulation_widths)

    @property
    def modulation_widths(self) -> tuple[int, ...]:
        """The number of each decoder block, and of the final layer."""
        return (*(6 * self.hidden_size[1],) * self.depth[1], 2 * self.hidden_size[1])

    @property
    def fixed_shape(self) -> LatentShape:
        return (self.in_channels, self.input_size, self.input_size)

    @property
    def pixel_space(self) -> bool:
        return False

    @property
    def essence(self) -> dict[str, Any]:
        """The ratio as the widths that it leads to; of the dropout whether there is a null label."""
        said = {name: value for name, value in asdict(self).items() if name not in ("mlp_ratio", "class_dropout_prob")}
        widths = [self.mlp_width(part) for part in (0, 1)]
        return {"family": self.family, **said, "mlp_widths": widths, "null_label": self.null_label}

    @property
    def description(self) -> str:
        parts = [
            f"{self.depth[part]} {name} blocks of width {self.hidden_size[part]}, {self.num_heads[part]} heads"
            for part, name in enumerate(("encoder", "decoder"))
        ]
        return f"{parts[0]}, and {parts[1]}, a token for every place"

    def mlp_width(self, part: int) -> int:
        """Hidden features of an MLP of the encoder (0) or of the decoder (1)."""
        width = self.hidden_size[part]
        return swiglu_width(width, self.mlp_ratio) if self.use_swiglu else int(width * self.mlp_ratio)

    def num_tokens(self, latent_shape: LatentShape) -> int:
        if tuple(latent_shape) != self.fixed_shape:
            raise ConfigError(
                f"Latents of shape {list(latent_shape)}: this network takes {list(self.fixed_shape)} alone, by its "
                "table of positions and its channels."
            )
        return self.input_size**2

    def multiply_adds(self, latent_shape: LatentShape) -> MultiplyAdds:
        """At DiT-DH-XL and 256 px: encoder with its projector 119.4 G, modulations 15.0 G, decoder 27.1 G."""
        tokens, (wide, own), (encoder, decoder) = self.num_tokens(latent_shape), self.hidden_size, self.depth
        matrices = [(3 if self.use_swiglu else 2) * self.hidden_size[part] * self.mlp_width(part) for part in (0, 1)]
        condition = wide**2 + 2 * FREQUENCIES * wide + encoder * 6 * wide**2
        projector = tokens * wide * own if wide != own else 0
        return MultiplyAdds(
            encoder=encoder * block_multiply_adds(tokens, wide, matrices=matrices[0])
            + tokens * self.in_channels * wide
            + condition
            + projector,
            modulations=tokens * own * self.modulation_size,
            decoder=decoder * block_multiply_adds(tokens, own, matrices=matrices[1])
            + 2 * tokens * self.in_channels * own,
        )


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Two whole numbers; one stands for both where it is the heads'."""
    values = [value, value] if is_whole(value) and name == "num_heads" else value
    if not isinstance(values, list | tuple) or len(values) != 2 or not all(is_whole(v) and v >= 1 for v in values):
        raise ConfigError(f"{name} is {value!r}; give two whole numbers, the encoder's and the decoder's.")
    return int(values[0]), int(values[1])


def _real(name: str, value: Any) -> float:
    try:
        real = float(value)
    except (TypeError, ValueError):
        real = math.nan
    if isinstance(value, bool) or not math.isfinite(real):
        raise ConfigError(f"{name} is {value!r}; give a number.")
    return real


CONFIG = DiTDHConfig
