"""DDT's published files: https://github.com/MCG-NJU/DDT."""

from __future__ import annotations

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import SplitConfig
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.releases import Release, Shapes
from ddt_accel.networks.yaml_files import Place

TITLE = "DDT"
SETTING = "num_encoder_blocks"
SETTINGS_AT: tuple[Place, ...] = (("model", "denoiser", "init_args"),)
LATENTS_AT: Place = ("data", "latent_shape")
PARTS: frozenset[str] = frozenset()
TABLES: tuple[str, ...] = ()

XL2 = DDTConfig(
    in_channels=4, patch_size=2, num_groups=16, hidden_size=1152, num_blocks=28, num_encoder_blocks=22, num_classes=1000
)
RELEASES: tuple[Release, ...] = (
    Release(repository="MCG-NJU/DDT-XL-22en6de-R256", path="*", config=XL2, latent_shape=(4, 32, 32)),
    Release(repository="MCG-NJU/DDT-XL-22en6de-R512", path="*", config=XL2, latent_shape=(4, 64, 64)),
)


def sign_in(shapes: Shapes) -> str | None:
    """An embedder of patches, which the other families have of pixels, or as a convolution."""
    return "x_embedder.proj.weight of two axes" if len(shapes.get("x_embedder.proj.weight", ())) == 2 else None


def settings_of(shapes: Shapes) -> SplitConfig:
    """Encoder and decoder blocks have the same tensors."""
    raise ConfigError("its number of encoder blocks cannot be read off the weights")


def table_shapes(config: SplitConfig) -> Shapes:
    """None."""
    return {}
