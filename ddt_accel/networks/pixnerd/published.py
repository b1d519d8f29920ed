"""PixNerd's published files: https://github.com/MCG-NJU/PixNerd."""

from __future__ import annotations

import math

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import SplitConfig
from ddt_accel.networks.pixnerd.config import PixNerdConfig
from ddt_accel.networks.releases import Release, Shapes, blocks_in
from ddt_accel.networks.yaml_files import Place

TITLE = "PixNerd"
SETTING = "num_cond_blocks"
SETTINGS_AT: tuple[Place, ...] = (("model", "denoiser", "init_args"),)
LATENTS_AT: Place = ("data", "pred_dataset", "init_args", "latent_shape")
PARTS: frozenset[str] = frozenset()
TABLES: tuple[str, ...] = ()

XL16 = PixNerdConfig(
    in_channels=3, patch_size=16, num_groups=16, hidden_size=1152, hidden_size_x=64, num_blocks=30, num_cond_blocks=26,
    nerf_mlpratio=2, num_classes=1000,
)  # fmt: skip
_REPOSITORY = "MCG-NJU/PixNerd-XL-P16-C2I"
RELEASES: tuple[Release, ...] = (
    # `res512_ft200k_epoch=325-step=1800000_emainit.ckpt`; there is no YAML for it.
    Release(repository=_REPOSITORY, path="*res512*", config=XL16, latent_shape=(3, 512, 512)),
    Release(repository=_REPOSITORY, path="*", config=XL16, latent_shape=(3, 256, 256)),
)
_GENERATOR = "param_generator1.0.weight"


def sign_in(shapes: Shapes) -> str | None:
    """A block that makes weights."""
    generators = blocks_in(shapes, _GENERATOR)
    return f"blocks.{generators[0]}.{_GENERATOR}" if generators else None


def settings_of(shapes: Shapes) -> SplitConfig:
    """All of them follow."""
    try:
        width, features = shapes["s_embedder.proj.weight"]
        channels, inner = shapes["final_layer.linear.weight"]
        rows, _ = shapes["y_embedder.embedding_table.weight"]
        encoder, decoder = blocks_in(shapes, "attn.qkv.weight"), blocks_in(shapes, _GENERATOR)
        weights, _ = shapes[f"blocks.{decoder[0]}.{_GENERATOR}"]
        (head,) = shapes["blocks.0.attn.q_norm.weight"]
        return PixNerdConfig(
            in_channels=channels,
            patch_size=math.isqrt(features // channels),
            num_groups=width // head,
            hidden_size=width,
            hidden_size_x=inner,
            num_blocks=len(encoder) + len(decoder),
            num_cond_blocks=len(encoder),
            nerf_mlpratio=weights // (2 * inner**2),
            num_classes=rows - 1,
        )
    except ConfigError:
        raise
    except (LookupError, ValueError, ZeroDivisionError):
        raise ConfigError("its settings cannot be read off the weights, of which some are missing or odd") from None


def table_shapes(config: SplitConfig) -> Shapes:
    """None."""
    return {}
